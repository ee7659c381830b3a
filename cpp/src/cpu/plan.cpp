#include "cpu/plan.hpp"

#include <algorithm>
#include <limits>
#include <utility>

#include "cpu/sizes.hpp"

namespace invconv::detail::cpu {

namespace {

/// AVX-512.
bool is_wide(const Machine& machine) { return machine.lanes[0] * machine.element >= 64; }

/// The time of one multiplication of vectors, against that of the widest. Measured with AVX-512, where two narrower
/// ones can start at a time; a solve with AVX2 gains little by them.
double step_cost(const Machine& machine, Index lanes, bool solve) {
  return lanes == machine.lanes[0] ? 1.0 : solve && !is_wide(machine) ? 0.85 : 0.65;
}

FilterShape shape_of(const Sizes& s, bool solve, Index element) {
  const Index elements = s.batch * s.groups * s.channels * s.height * s.width;
  FilterShape shape{};
  shape.channels = s.channels;
  shape.height = s.height;
  shape.width = s.width;
  shape.kernel_height = s.kernel_height;
  shape.kernel_width = s.kernel_width;
  shape.solve = solve;
  // Measured where 32 MiB of cache are the last: together with its input, such an output would not stay there.
  shape.streamed = elements * element >= 12 << 20;
  return shape;
}

Index packed_weight_elements(const FilterShape& shape) {
  Index inputs = 0;
  for (Index first = 0; first < shape.channels; first += shape.block) {
    inputs += (shape.kernel_height * shape.kernel_width - 1) * shape.channels + first + shape.block;
  }
  return inputs * shape.block;
}

/// Output channels to a block: of the largest ones, that which leaves the least to compute in vain.
Index block_of(Index channels, Index most) {
  Index best = fair_share(channels, most);
  for (Index block = most; 3 * block >= 2 * most; --block) {
    best = ceil_div(channels, block) * block < ceil_div(channels, best) * best ? block : best;
  }
  return best;
}

Index pointer_bytes(Index pointers) { return static_cast<Index>(aligned_bytes<void*>(pointers)); }

/// A ring whose bands stay whole, with `older` rows beside `bands` of them.
Index ring_rows(Index height, Index band, Index bands, Index older) {
  return band == height ? height + older : ceil_div(bands * band + older, band) * band;
}

/// What stays in the second level of cache.
constexpr Index most_cached = 448 * 1024;

/// Rows packed together: long pieces of memory are read several times faster than short ones, as long as the rows kept
/// stay in a cache. An even number, since two rows may be computed together.
Index images_band(const Sizes& s, Index row_bytes) {
  Index band = ceil_div(256, most_rows * s.width) * most_rows;
  while (band > 1 && ring_rows(s.height, band, 1, s.kernel_height - 1) * row_bytes > most_cached) {
    band -= band > most_rows ? most_rows : 1;
  }
  return std::min(band, s.height);
}

Part images_part(const Machine& machine, const Sizes& s, FilterShape shape, Index lanes, Index together) {
  Part part{.layout = Layout::images, .lanes = lanes, .batch = s.batch, .images = lanes, .bands = 1, .shape = shape};
  FilterShape& f = part.shape;
  f.rows = together;
  f.block = block_of(s.channels, machine.block / f.rows);
  f.band = images_band(s, (s.width + s.kernel_width - 1) * s.channels * lanes * machine.element);
  f.ring = ring_rows(s.height, f.band, 1, s.kernel_height - 1);
  const Index rows = f.ring * (s.width + s.kernel_width - 1) + (f.solve ? 0 : f.band * s.width);
  part.weight_elements = packed_weight_elements(f);
  part.scratch_bytes = pointer_bytes(s.kernel_height + most_rows - 1) + rows * s.channels * lanes * machine.element;
  return part;
}

/// As many rows of each as fill the lanes.
Part mixed_part(const Machine& machine, const Sizes& s, FilterShape shape, Index lanes, Index images, int threads) {
  Part part{.layout = Layout::mixed, .lanes = lanes, .batch = s.batch, .images = images, .shape = shape};
  FilterShape& f = part.shape;
  f.block = fair_share(s.channels, rows_block);
  f.band = lanes / images;
  part.bands = ceil_div(s.height, f.band);
  const Index older = s.kernel_height - 1, steps = s.width + f.band - 1;
  // With older rows than those of the band above it, a band would need those of the last but one.
  part.shared = ceil_div(s.batch, images) * s.groups < threads && part.bands > 1 && older <= f.band;
  part.edge_elements = part.shared ? steps * s.channels * older * images : 0;
  const Index cell = ceil_div(older * images, lanes) * lanes + lanes;
  const Index lead = older + s.kernel_width - 1;
  // An odd number of vectors, so that the steps which a step reads do not share their places in the cache with it.
  f.pitch = (s.channels * cell / lanes | 1) * lanes;
  part.weight_elements = packed_weight_elements(f);
  part.scratch_bytes = pointer_bytes(s.kernel_height) + (lead + steps) * f.pitch * machine.element;
  return part;
}

/// Bands of one or two vectors of rows.
Part rows_part(const Machine& machine, const Sizes& s, FilterShape shape, Index lanes, Index vectors, int threads) {
  const Index rows = vectors * lanes;
  Part part{.layout = Layout::rows,
            .lanes = lanes,
            .batch = s.batch,
            .images = 1,
            .bands = ceil_div(s.height, rows),
            .shape = shape};
  FilterShape& f = part.shape;
  f.block = fair_share(s.channels, rows_block);
  f.band = rows;
  const Index slant = rows_slant(f), lead = s.kernel_height + s.kernel_width - 2;
  part.shared = s.batch * s.groups < threads && part.bands > 1;
  part.edge_pitch = lead + s.width + (slant + 1) * rows + s.kernel_height;
  part.edge_first = lead;
  part.edge_elements = (s.kernel_height - 1) * s.channels * part.edge_pitch;
  part.weight_elements = packed_weight_elements(f);
  // A short row at once; else windows that for one channel stay in the first level of cache.
  const Index steps = ceil_div(s.width + slant * (rows - 1), lanes) * lanes;
  f.pitch = steps <= 512 ? steps : 128;
  part.scratch_bytes =
      pointer_bytes(s.kernel_height) +
      ((s.kernel_height * (lead + lanes) + f.pitch + rows_waiting(lanes, machine.element)) * s.channels * vectors +
       rows_weight_vectors(f)) *
          lanes * machine.element;
  return part;
}

Part channels_part(const Machine& machine, const Sizes& s, FilterShape shape, Index lanes, Index images, int threads) {
  Part part{.layout = Layout::channels, .lanes = lanes, .batch = s.batch, .images = images, .shape = shape};
  FilterShape& f = part.shape;
  f.block = fair_share(ceil_div(s.channels, lanes), machine.channel_vectors) * lanes;
  f.band = std::min<Index>(channel_streams / images, s.height);
  part.bands = ceil_div(s.height, f.band);
  part.shared = ceil_div(s.batch, images) * s.groups < threads && part.bands > 1;
  f.ring = ring_rows(s.height, f.band, part.shared ? threads + 1 : 1, s.kernel_height - 1);
  part.weight_elements = packed_weight_elements(f);
  part.ring_elements = images * f.ring * (s.width + s.kernel_width - 1) * ceil_div(s.channels, f.block) * f.block;
  part.scratch_bytes = pointer_bytes(s.kernel_height * channel_streams);
  return part;
}

Part columns_part(const Machine& machine, const Sizes& s, FilterShape shape, Index lanes, int threads) {
  Part part{.layout = Layout::columns, .lanes = lanes, .batch = s.batch, .images = 1, .bands = 1, .shape = shape};
  FilterShape& f = part.shape;
  const Index row = s.width + s.kernel_width - 1, older = s.kernel_height - 1;
  f.block = block_of(s.channels, machine.block / (s.width < machine.rows * lanes ? 1 : machine.rows));
  // Lines that stay in the second level of cache.
  const Index cached = 256 * 1024 / (2 * machine.element * s.channels * row);
  f.band = std::clamp<Index>(cached - older, std::min<Index>(s.height, 4), s.height);
  if (threads > 1 && s.batch * s.groups < 2 * threads) {  // rows do not wait for each other
    part.shared = true;
    part.bands = std::min<Index>(ceil_div(s.height, std::max(older, Index{1})), 4 * threads);
  }
  // Channels' lines a power of two apart would share a few places of the cache.
  f.pitch = (older + f.band) * row + 4 * lanes;
  f.pitch += f.pitch * machine.element % 4096 < 64 ? 16 : 0;
  part.weight_elements = packed_weight_elements(f);
  part.scratch_bytes = pointer_bytes(s.kernel_height) + 2 * s.channels * f.pitch * machine.element;
  return part;
}

Part flat_part(const Machine& machine, const Sizes& s, FilterShape shape, int threads) {
  const Index lanes = machine.lanes[0], images = s.batch * s.groups;
  Part part{.layout = Layout::flat, .lanes = lanes, .batch = s.batch, .images = 1, .bands = 1, .shape = shape};
  FilterShape& f = part.shape;
  f.block = block_of(s.channels, flat_block);
  if (threads > 1 && images < 2 * threads) {
    part.shared = true;
    part.bands = std::min<Index>(ceil_div(s.height * s.width, lanes), 4 * threads);
  } else {
    part.images = std::clamp<Index>(images / (8 * threads), 1, s.batch);  // they share a table
  }
  part.weight_elements = packed_weight_elements(f);
  part.scratch_bytes = flat_masks(f, lanes) * static_cast<Index>(sizeof(LaneMask));
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
  const double channels = static_cast<double>(s.channels), step = step_cost(machine, part.lanes, part.shape.solve);
  // A band tells the one below on another core how far it is, and so much could be done meanwhile.
  const double told = 1000 / (channels * taps);
  double each = 0;
  const Index slant = rows_slant(part.shape);
  // What a pixel of so many images, a cache line of them, costs besides if the images do not stay in the cache: their
  // rows lie far apart, and few of them come before they are needed. Measured with AVX-512.
  const auto scattered = [&](Index images) {
    constexpr double per_line = 12;
    return part.shape.streamed ? per_line / taps * static_cast<double>(images * machine.element) / 64 : 0;
  };
  // Of bands that follow each other: the steps of one, and those by which it is behind the one above it.
  Index steps = 0, behind = 0;
  switch (part.layout) {
    case Layout::images:
      // Rows computed together share the reading of the weights, but not at their ends. Measured with AVX2,
      // taken over for AVX-512.
      each = static_cast<double>(s.height * s.width * ceil_div(s.channels, part.shape.block) * part.shape.block) *
             step * inside_both;
      each *= part.shape.rows < machine.rows
                  ? 1.1
                  : 1 + 0.8 * static_cast<double>(machine.rows - 1) / static_cast<double>(s.width);
      // See solve_single_rows; measured with AVX-512.
      if (is_wide(machine) && part.shape.solve && is_small(part.shape) && s.channels == 1 && part.shape.rows == 2) {
        each *= 0.6;
      }
      each += static_cast<double>(s.height * s.width) * scattered(part.lanes);
      break;
    case Layout::mixed:
      // Measured with AVX-512. Nothing is left out, and a step has something to do beside its arithmetic, or, with few
      // channels, waits for it.
      steps = s.width + part.shape.band - 1;
      behind = part.shape.band + hand_over(s.width, mixed_hand_over);
      each = static_cast<double>(part.bands * steps) *
             (static_cast<double>(ceil_div(s.channels, part.shape.block) * part.shape.block) * std::max(step, 0.85) +
              (s.channels <= small_channels ? 2.2 : 1.2) +
              (part.shared ? told / static_cast<double>(hand_over(s.width, mixed_hand_over)) : 0));
      each += static_cast<double>(s.height * s.width) * scattered(part.lanes / part.shape.band);
      break;
    case Layout::rows:
      // Beside the arithmetic, what is moved from lane to lane, and the waiting for the last pixel, during which a
      // second vector can be worked on.
      steps = s.width + slant * (part.shape.band - 1);
      behind = slant * part.shape.band + hand_over(s.width, part.lanes) + s.kernel_height;
      each = static_cast<double>(part.bands * steps * (part.shape.band / part.lanes)) *
             (1.05 * channels * step + (part.shape.band > part.lanes ? 2 : 3) * channels / taps);
      break;
    case Layout::channels:
      // A multiplication in four pixels needs a broadcast of each; inside the pixel the channels wait for each other.
      steps = s.width + part.shape.band - 1;
      behind = 2 * hand_over(s.width, channels_hand_over) + part.shape.band;
      each = static_cast<double>(part.bands * steps) *
             (1.15 * static_cast<double>(channel_streams * ceil_div(s.channels, part.lanes)) * step *
                  (1 + inside_both) / 2 +
              12 / taps + (part.shared ? told / static_cast<double>(hand_over(s.width, channels_hand_over)) : 0));
      break;
    case Layout::columns:
      each = static_cast<double>(s.height *
                                 std::min(ceil_div(s.width, part.lanes) * part.lanes, s.width + s.kernel_width - 1)) /
             static_cast<double>(part.lanes) * channels * step * inside_rows;
      break;
    case Layout::flat: {
      // Measured with AVX-512, against images: beside the arithmetic a vector takes as long as so many multiplications,
      // and less by what their packing takes of each channel, which is not counted there; but as long at least as
      // reading and writing do. A row of taps is left out where it lies above the image for a whole vector.
      constexpr double overhead = 36, packing = 30, moving = 0.3;
      const Index vectors = ceil_div(s.height * s.width, part.lanes);
      Index left_out = 0;
      for (Index i = 1; i < s.kernel_height; ++i) {
        left_out += i * s.width / part.lanes;
      }
      const double included = 1 - static_cast<double>(left_out) / static_cast<double>(vectors * s.kernel_height);
      const double outputs = static_cast<double>(ceil_div(s.channels, part.shape.block) * part.shape.block);
      each = static_cast<double>(part.images * vectors) *
             std::max(outputs * included + (overhead / channels - packing) / taps, moving * channels);
      break;
    }
  }
  if (part.shared && steps > 0) {
    // A band begins when its thread has done with an earlier one, and the band above is far enough.
    const Index workers = std::min<Index>(threads, part.bands), last = part.bands - 1;
    const Index begin = last / workers * std::max(steps, workers * behind) + last % workers * behind;
    const double all = each * static_cast<double>(tasks) / static_cast<double>(workers);
    return std::max(all, each * static_cast<double>(begin + steps) / static_cast<double>(part.bands * steps));
  }
  if (part.shared) {
    return each * static_cast<double>(tasks) / static_cast<double>(std::min<Index>(threads, part.bands));
  }
  return each * static_cast<double>(ceil_div(tasks, threads));
}

struct Choice {
  std::vector<Part> parts;
  double cost = std::numeric_limits<double>::infinity();
};

/// The layout of least cost for some images.
Choice best_part(const Machine& machine, Operation operation, const Sizes& s, int threads, bool flat) {
  const std::vector<Part> parts = possible_parts(machine, operation, s, threads, flat);
  const bool has_flat = std::ranges::any_of(parts, [](const Part& part) { return part.layout == Layout::flat; });
  Choice best;
  for (const Part& part : parts) {
    if (has_flat && part.layout == Layout::columns) {
      continue;  // it counts no overhead; measured, flat is never slower
    }
    const double own = cost(machine, s, part, threads);
    if (own < best.cost) {
      best = {{part}, own};
    }
  }
  return best;
}

}  // namespace

std::vector<Part> possible_parts(const Machine& machine, Operation operation, const Sizes& s, int threads, bool flat) {
  const FilterShape shape = shape_of(s, operation == Operation::solve, machine.element);
  std::vector<Part> parts;
  if (flat && machine.has_flat && !shape.solve) {
    const Part part = flat_part(machine, s, shape, threads);
    if (part.scratch_bytes <= most_cached) {
      parts.push_back(part);
    }
  }
  for (const Index lanes : machine.lanes) {
    parts.push_back(images_part(machine, s, shape, lanes, 1));
    if (lanes == 1) {  // the last ones
      break;
    }
    if (machine.rows > 1) {
      parts.push_back(images_part(machine, s, shape, lanes, machine.rows));
    }
    if (!shape.solve) {
      parts.push_back(columns_part(machine, s, shape, lanes, threads));
      continue;
    }
    for (Index images = 1; images < lanes && images < 2 * s.batch; images *= 2) {
      const Part part = mixed_part(machine, s, shape, lanes, images, threads);
      if (part.scratch_bytes <= most_cached && (!part.shared || s.batch * s.groups < threads)) {
        parts.push_back(part);
      }
    }
    if (s.kernel_height - 1 <= lanes) {  // else a band would need rows of the last but one
      parts.push_back(rows_part(machine, s, shape, lanes, 1, threads));
      if (s.kernel_height == double_band_kernel && s.kernel_width == double_band_kernel &&
          s.channels <= double_band_channels) {
        parts.push_back(rows_part(machine, s, shape, lanes, 2, threads));
      }
    }
    for (Index images = 1; images <= std::min<Index>(channel_streams, s.batch); images *= 2) {
      const Part part = channels_part(machine, s, shape, lanes, images, threads);
      if (!part.shared || s.batch * s.groups < threads) {  // else fewer images at once keep the threads apart
        parts.push_back(part);
      }
    }
  }
  return parts;
}

FilterPlan plan_filter(const Machine& machine, Operation operation, const Sizes& s, int threads, bool flat) {
  Choice best = best_part(machine, operation, s, threads, flat);
  // Full vectors of images, as many for every thread, and the rest as suits it.
  const Index lanes = machine.lanes[0], rest = s.batch % (lanes * threads);
  if (rest > 0 && rest < s.batch) {
    Sizes full = s, left = s;
    full.batch = s.batch - rest;
    left.batch = rest;
    const FilterShape shape = shape_of(s, operation == Operation::solve, machine.element);
    Part main = images_part(machine, full, shape, lanes, machine.rows);
    const Part alone = images_part(machine, full, shape, lanes, 1);
    if (cost(machine, full, alone, threads) < cost(machine, full, main, threads)) {
      main = alone;
    }
    Choice tail = best_part(machine, operation, left, threads, flat);
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
  return make_plan({images_part(machine, s, plan.parts[0].shape, lanes, 1)}, s.groups, plan.threads);
}

FilterPlan make_plan(std::vector<Part> parts, Index groups, int threads) {
  Index tasks = 0;
  for (const Part& part : parts) {
    tasks += part.tasks(groups);
  }
  return {std::move(parts), static_cast<int>(std::min<Index>(threads, tasks))};
}

}  // namespace invconv::detail::cpu
