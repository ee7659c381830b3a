#include "cpu/plan.hpp"

#include <algorithm>
#include <limits>
#include <utility>

namespace invconv::detail::cpu {

namespace {

using Index = std::int64_t;

Index divided_up(Index a, Index b) { return (a + b - 1) / b; }

/// Output channels are computed in equal blocks, the last one padded.
Index equal_blocks(Index channels, Index most) { return divided_up(channels, divided_up(channels, most)); }

/// The time of one multiplication of vectors; narrower ones than the widest can start two at a time.
double step_cost(const Machine& machine, Index lanes) { return lanes == machine.lanes[0] ? 1.0 : 0.65; }

FilterShape shape_of(const Sizes& s, bool solve, bool unit_diagonal, Index element) {
  const Index elements = s.batch * s.groups * s.channels * s.height * s.width;
  return {s.channels,
          s.height,
          s.width,
          s.kernel_height,
          s.kernel_width,
          solve,
          unit_diagonal,
          0,
          0,
          0,
          0,
          elements * element > 12 << 20};
}

Index packed_weight_elements(const FilterShape& shape) {
  Index inputs = 0;
  for (Index first = 0; first < shape.channels; first += shape.block) {
    inputs += (shape.kernel_height * shape.kernel_width - 1) * shape.channels + first + shape.block;
  }
  return inputs * shape.block;
}

Index pointer_bytes(Index pointers) { return divided_up(pointers * static_cast<Index>(sizeof(void*)), 64) * 64; }

/// A ring whose bands stay whole, with `older` rows beside `bands` of them.
Index ring_rows(Index height, Index band, Index bands, Index older) {
  return band == height ? height + older : divided_up(bands * band + older, band) * band;
}

/// Rows packed together: long pieces of memory are read several times faster than short ones, as long as the rows kept
/// stay in the second level of cache.
Index images_band(const Sizes& s, Index row_bytes) {
  Index band = std::min(divided_up(256, s.width), s.height);
  while (band > 1 && ring_rows(s.height, band, 1, s.kernel_height - 1) * row_bytes > 448 * 1024) {
    --band;
  }
  return band;
}

Part images_part(const Machine& machine, const Sizes& s, FilterShape shape, Index lanes) {
  Part part{Layout::images, lanes, 0, s.batch, lanes, 1, false, shape, 0, 0, 0, 0, 0};
  FilterShape& f = part.shape;
  f.block = equal_blocks(s.channels, machine.block);
  f.band = images_band(s, (s.width + s.kernel_width - 1) * s.channels * lanes * machine.element);
  f.ring = ring_rows(s.height, f.band, 1, s.kernel_height - 1);
  const Index rows = f.ring * (s.width + s.kernel_width - 1) + (f.solve ? 0 : f.band * s.width);
  part.weight_elements = packed_weight_elements(f);
  part.scratch_bytes = pointer_bytes(s.kernel_height) + rows * s.channels * lanes * machine.element;
  return part;
}

/// Bands of one or two vectors of rows.
Part rows_part(const Machine& machine, const Sizes& s, FilterShape shape, Index lanes, Index vectors, int threads) {
  const Index rows = vectors * lanes;
  Part part{Layout::rows, lanes, 0, s.batch, 1, divided_up(s.height, rows), false, shape, 0, 0, 0, 0, 0};
  FilterShape& f = part.shape;
  f.block = equal_blocks(s.channels, machine.rows_block);
  f.band = rows;
  const Index lead = s.kernel_height + s.kernel_width - 2;
  part.shared = s.batch * s.groups < threads && part.bands > 1;
  part.edge_pitch = lead + s.width + 2 * rows + s.kernel_height;
  part.edge_elements = (s.kernel_height - 1) * s.channels * part.edge_pitch;
  part.weight_elements = packed_weight_elements(f);
  // A short row at once; else windows that stay in the first level of cache.
  const Index steps = divided_up(s.width + rows - 1, lanes) * lanes;
  f.pitch = steps <= 512 ? steps : 128;
  part.scratch_bytes =
      pointer_bytes(s.kernel_height) +
      (s.kernel_height * (lead + lanes) + (f.pitch + lanes) * vectors) * s.channels * lanes * machine.element;
  return part;
}

/// Pixels that the layout channels computes at once.
constexpr Index streams = 4;

Part channels_part(const Machine& machine, const Sizes& s, FilterShape shape, Index lanes, Index images, int threads) {
  Part part{Layout::channels, lanes, 0, s.batch, images, 0, false, shape, 0, 0, 0, 0, 0};
  FilterShape& f = part.shape;
  f.block = equal_blocks(divided_up(s.channels, lanes), machine.channel_vectors) * lanes;
  f.band = std::min(streams / images, s.height);
  part.bands = divided_up(s.height, f.band);
  part.shared = divided_up(s.batch, images) * s.groups < threads && part.bands > 1;
  f.ring = ring_rows(s.height, f.band, part.shared ? threads + 1 : 1, s.kernel_height - 1);
  part.weight_elements = packed_weight_elements(f);
  part.ring_elements = images * f.ring * (s.width + s.kernel_width - 1) * divided_up(s.channels, f.block) * f.block;
  part.scratch_bytes = pointer_bytes(s.kernel_height * streams);
  return part;
}

Part columns_part(const Machine& machine, const Sizes& s, FilterShape shape, Index lanes, int threads) {
  Part part{Layout::columns, lanes, 0, s.batch, 1, 1, false, shape, 0, 0, 0, 0, 0};
  FilterShape& f = part.shape;
  const Index row = s.width + s.kernel_width - 1, older = s.kernel_height - 1;
  f.block = equal_blocks(s.channels, machine.block);
  // Lines that stay in the second level of cache.
  const Index cached = 256 * 1024 / (2 * machine.element * s.channels * row);
  f.band = std::clamp<Index>(cached - older, std::min<Index>(s.height, 4), s.height);
  if (threads > 1 && s.batch * s.groups < 2 * threads) {  // rows do not wait for each other
    part.shared = true;
    part.bands = std::min<Index>(divided_up(s.height, std::max(older, Index{1})), 4 * threads);
  }
  // Channels' lines a power of two apart would share a few places of the cache.
  f.pitch = (older + f.band) * row + 4 * lanes;
  f.pitch += f.pitch * machine.element % 4096 < 64 ? 16 : 0;
  part.weight_elements = packed_weight_elements(f);
  part.scratch_bytes = pointer_bytes(s.kernel_height) + 2 * s.channels * f.pitch * machine.element;
  return part;
}

/// How many of the `taps` of an axis lie inside the image, on average over its pixels: the rest is left out.
double inside(Index size, Index taps) {
  return static_cast<double>(taps) - static_cast<double>((taps - 1) * taps) / static_cast<double>(2 * size);
}

/// Multiplications of vectors, in units of channels x taps, on the thread that has the most.
double cost(const Machine& machine, const Sizes& s, const Part& part, int threads) {
  const Index tasks = part.image_groups() * s.groups;
  const double taps = static_cast<double>(s.kernel_height * s.kernel_width);
  const double inside_rows = inside(s.height, s.kernel_height) / static_cast<double>(s.kernel_height);
  const double inside_both = inside_rows * inside(s.width, s.kernel_width) / static_cast<double>(s.kernel_width);
  const double channels = static_cast<double>(s.channels), step = step_cost(machine, part.lanes);
  double each = 0;
  // Of bands that follow each other: the steps of one, and those by which it is behind the one above it.
  Index steps = 0, behind = 0;
  switch (part.layout) {
    case Layout::images:
      each = static_cast<double>(s.height * s.width) * channels * step * inside_both;
      break;
    case Layout::rows:
      // Beside the arithmetic, what is moved from lane to lane, and the waiting for the last pixel, during which a
      // second vector can be worked on.
      steps = s.width + part.shape.band - 1;
      behind = part.shape.band + part.lanes + s.kernel_height;
      each = static_cast<double>(part.bands * steps * (part.shape.band / part.lanes)) *
             (channels * step + (part.shape.band > part.lanes ? 2 : 3) * channels / taps);
      break;
    case Layout::channels:
      steps = s.width + part.shape.band - 1;
      behind = 12;
      each =
          static_cast<double>(part.bands * steps) *
          (1.15 * static_cast<double>(streams * divided_up(s.channels, part.lanes)) * step * inside_both + 12 / taps);
      break;
    case Layout::columns:
      each = static_cast<double>(s.height *
                                 std::min(divided_up(s.width, part.lanes) * part.lanes, s.width + s.kernel_width - 1)) /
             static_cast<double>(part.lanes) * channels * step * inside_rows;
      break;
  }
  if (part.shared) {
    const double all = each * static_cast<double>(tasks) / static_cast<double>(std::min<Index>(threads, part.bands));
    const double bands = static_cast<double>(part.bands), lag = static_cast<double>((part.bands - 1) * behind);
    return steps > 0 ? std::max(all, each / bands * (1 + lag / static_cast<double>(steps))) : all;
  }
  return each * static_cast<double>(divided_up(tasks, threads));
}

struct Choice {
  std::vector<Part> parts;
  double cost = std::numeric_limits<double>::infinity();
};

/// The layout of least cost for some images.
Choice best_part(const Machine& machine, Operation operation, const Sizes& s, bool unit_diagonal, int threads) {
  Choice best;
  for (const Part& part : possible_parts(machine, operation, s, unit_diagonal, threads)) {
    const double own = cost(machine, s, part, threads);
    if (own < best.cost) {
      best = {{part}, own};
    }
  }
  return best;
}

}  // namespace

std::vector<Part> possible_parts(const Machine& machine, Operation operation, const Sizes& s, bool unit_diagonal,
                                 int threads) {
  const FilterShape shape = shape_of(s, operation == Operation::solve, unit_diagonal, machine.element);
  std::vector<Part> parts;
  for (const Index lanes : machine.lanes) {
    parts.push_back(images_part(machine, s, shape, lanes));
    if (lanes == 1) {
      continue;
    }
    if (!shape.solve) {
      parts.push_back(columns_part(machine, s, shape, lanes, threads));
      continue;
    }
    if (s.kernel_height - 1 <= lanes) {  // else a band would need rows of the last but one
      parts.push_back(rows_part(machine, s, shape, lanes, 1, threads));
      if (s.kernel_height == double_band_kernel && s.kernel_width == double_band_kernel &&
          s.channels <= double_band_channels) {
        parts.push_back(rows_part(machine, s, shape, lanes, 2, threads));
      }
    }
    for (Index images = 1; images <= std::min(streams, s.batch); images *= 2) {
      parts.push_back(channels_part(machine, s, shape, lanes, images, threads));
    }
  }
  return parts;
}

FilterPlan plan_filter(const Machine& machine, Operation operation, const Sizes& s, bool unit_diagonal, int threads) {
  Choice best = best_part(machine, operation, s, unit_diagonal, threads);
  // Full vectors of images, as many for every thread, and the rest as suits it.
  const Index lanes = machine.lanes[0], rest = s.batch % (lanes * threads);
  if (rest > 0 && rest < s.batch) {
    Sizes full = s, left = s;
    full.batch = s.batch - rest;
    left.batch = rest;
    const FilterShape shape = shape_of(s, operation == Operation::solve, unit_diagonal, machine.element);
    const Part main = images_part(machine, full, shape, lanes);
    Choice tail = best_part(machine, operation, left, unit_diagonal, threads);
    if (cost(machine, full, main, threads) + tail.cost < best.cost) {
      tail.parts[0].first = full.batch;
      best.parts = {main, tail.parts[0]};
    }
  }
  return make_plan(std::move(best.parts), s.groups, threads);
}

FilterPlan careful_plan(const Machine& machine, const Sizes& s, const FilterPlan& plan) {
  Index lanes = 1;
  for (const Index many : machine.lanes) {
    lanes = lanes == 1 && many <= s.batch ? many : lanes;
  }
  return make_plan({images_part(machine, s, plan.parts[0].shape, lanes)}, s.groups, plan.threads);
}

FilterPlan make_plan(std::vector<Part> parts, Index groups, int threads) {
  Index tasks = 0;
  for (const Part& part : parts) {
    tasks += part.image_groups() * groups * (part.shared ? part.bands : 1);
  }
  return {std::move(parts), static_cast<int>(std::min<Index>(threads, tasks))};
}

}  // namespace invconv::detail::cpu
