#include "plan.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <initializer_list>
#include <limits>
#include <string>
#include <utility>

namespace invconv::detail::cuda {

namespace {

std::size_t aligned(std::size_t bytes) { return (bytes + 63) / 64 * 64; }

std::size_t product(std::size_t element, std::initializer_list<std::int64_t> sizes) {
  for (const std::int64_t size : sizes) {
    element *= static_cast<std::size_t>(size);
  }
  return element;
}

/// Whether a block has its weight in shared memory; what it has there beside it is known.
bool plan_weight(Plan& plan, const Device& device, int padded, std::size_t element) {
  const GroupShape& s = plan.shape;
  const std::size_t bytes = aligned(product(element, {s.kernel_height, s.kernel_width, s.channels, padded}));
  if (plan.shared_bytes + bytes <= device.shared_bytes) {
    plan.shared_bytes += bytes;
    return true;
  }
  plan.weight_bytes = bytes * static_cast<std::size_t>(plan.groups);
  return false;
}

/// The least one that is not below `size`.
int power_of_two(int size) { return static_cast<int>(std::bit_ceil(static_cast<unsigned>(size))); }

/// The least odd multiple of 4 that is not below `size`: neighbours at such a distance, read four elements at a time,
/// lie in different banks.
int odd_fours(int size) { return 4 * (ceil_div(size, 4) | 1); }

/// Of channels that a warp substitutes in solve_image a lane has two.
constexpr int most_image_channels = 64;

/// Strips of an image, of which each hands down so many elements.
void plan_pipeline(Plan& plan, int strips, std::int64_t edge_size, std::size_t element) {
  if (strips > 1) {
    const std::int64_t all = std::int64_t{plan.batch} * plan.groups * strips;
    plan.cleared_bytes = aligned(product(sizeof(unsigned), {1 + all}));  // the ticket, and what each has handed down
    plan.edges_bytes = aligned(product(element, {all, edge_size}));
  }
}

/// Of two numbers of outputs the one that idles least.
void choose_outputs(BlockShape& b, int most_lanes, std::array<int, 2> choice) {
  for (const int outputs : choice) {
    const int lanes = std::min(power_of_two(ceil_div(b.shape.channels, outputs)), most_lanes);
    const int padded = rounded_up(b.shape.channels, lanes * outputs);
    if (b.padded == 0 || padded < b.padded) {
      b.outputs = outputs;
      b.lanes = lanes;
      b.padded = padded;
    }
  }
}

/// Cuts an image into strips. Returns the bytes of what a block keeps.
std::size_t plan_block_strips(Plan& plan, BlockShape& b, int most_rows, std::size_t element) {
  const GroupShape& s = b.shape;
  b.swapped = s.width < s.height && s.width <= most_rows;
  b.height = b.swapped ? s.width : s.height;
  b.width = b.swapped ? s.height : s.width;
  b.rows = fair_share(b.height, most_rows);
  b.strips = ceil_div(b.height, b.rows);
  b.pitch = odd_fours(s.channels);
  b.edge_columns = power_of_two(block_columns + b.above() + b.before());
  plan_pipeline(plan, b.strips, b.edge_size(), element);
  return product(element, {b.history_size() + b.ring_size()});
}

void plan_block(Plan& plan, const Device& device, std::size_t element) {
  plan.kernel = Kernel::block;
  BlockShape& b = plan.block;
  b.shape = plan.shape;
  const bool is_wide = b.shape.channels > 32;
  choose_outputs(b, is_wide ? 16 : 8, is_wide ? std::array{8, 6} : std::array{4, 3});
  const int pixels = block_pixels(element, b.outputs);
  const std::size_t kept = plan_block_strips(plan, b, std::min(block_rows, block_threads / b.lanes * pixels), element);
  plan.threads = rounded_up(ceil_div(b.rows, pixels) * b.lanes, 32);
  plan.shared_bytes = block_header_bytes;
  b.history_in_shared = plan.shared_bytes + kept <= device.shared_bytes;
  if (b.history_in_shared) {
    plan.shared_bytes += kept;
  } else {
    plan.rest_bytes = product(kept, {plan.batch, plan.groups, b.strips});
  }
  b.weight_in_shared = plan_weight(plan, device, b.padded, element);
}

/// Whether a strip fits, and is computed in float: double would have no registers. The plan is complete then.
bool plan_wide(Plan& plan, const Device& device, std::size_t element) {
  if (plan.shape.channels <= most_image_channels || element != sizeof(float)) {
    return false;
  }
  Plan wide = plan;
  wide.kernel = Kernel::wide;
  WideShape& w = wide.wide;
  BlockShape& b = w.strip;
  b.shape = plan.shape;
  choose_outputs(b, 16, {8, 6});
  const int groups_of_outputs = b.padded / (b.outputs * b.lanes), units = wide_units(b.outputs);
  if (groups_of_outputs > units) {
    return false;
  }
  const std::size_t kept = plan_block_strips(wide, b, units / groups_of_outputs * wide_pixels, element);
  b.history_in_shared = true;
  w.row_groups = ceil_div(b.rows, wide_pixels);
  w.units = w.row_groups * groups_of_outputs;
  wide.threads = w.sum_threads() + rounded_up(ceil_div(b.rows, block_pixels(element, b.outputs)) * b.lanes, 32);
  wide.shared_bytes = block_header_bytes + kept + product(element, {w.parts_size()});
  if (wide.shared_bytes > device.shared_bytes) {
    return false;
  }
  const std::size_t line = product(element, {b.padded});
  const int lines = b.shape.kernel_height * b.shape.kernel_width * b.shape.channels;
  w.first_line =
      lines - static_cast<int>(std::min<std::size_t>(lines, (device.shared_bytes - wide.shared_bytes) / line));
  wide.shared_bytes += product(line, {lines - w.first_line});
  wide.weight_bytes = aligned(product(line, {lines})) * static_cast<std::size_t>(plan.groups);
  plan = wide;
  return true;
}

/// The variant for a problem, or one of 0 taps.
ImageVariant image_variant(const GroupShape& s, std::size_t element) {
  const int taps = s.kernel_height;
  if (taps != s.kernel_width || (taps != 3 && taps != 5 && taps != 7) || s.channels > most_image_channels) {
    return {};
  }
  const bool is_float = element == sizeof(float);
  if (taps == 3 && is_float && s.channels <= 8) {
    return {3, 2, 2, 8};
  }
  if (s.channels <= 12) {
    return {taps, 3, 3, 12};
  }
  if (taps == 3 && is_float && s.channels <= 16) {
    return {3, 4, 4, 16};
  }
  if (taps == 7 && !is_float) {
    return {};
  }
  return {taps, 4, 4, 0};
}

/// Whether an image fits; the plan is complete then.
bool plan_image(Plan& plan, const Device& device, std::size_t element) {
  const ImageVariant variant = image_variant(plan.shape, element);
  ImageShape image{};
  image.variant = variant;
  image.shape = plan.shape;
  GroupShape& s = image.shape;
  if (variant.taps == 0 || std::min(s.height, s.width) > image_rows) {
    return false;
  }
  image.swapped = s.height > s.width;
  if (image.swapped) {
    std::swap(s.height, s.width);
  }
  const int groups_of_outputs = ceil_div(s.channels, variant.outputs);
  const int groups_of_inputs = ceil_div(s.channels, variant.inputs);
  image.slices = groups_of_inputs * (variant.taps / variant.rows_of_taps(element));
  image.row_threads = groups_of_outputs * image.slices;
  const int substituting = variant.substituted > 0 ? rounded_up(s.height, 32) : 0;
  const int summing = std::min(image_sum_threads, variant.most_threads(element) - substituting);
  if (image.row_threads > summing) {
    return false;
  }
  image.row_groups = std::min(summing / image.row_threads, s.height);
  image.pitch = odd_fours(
      std::max({groups_of_outputs * variant.outputs, groups_of_inputs * variant.inputs, variant.substituted}));
  // From a row to the next on a diagonal it is a row less a pixel.
  const std::int64_t row = std::int64_t{s.width} * image.pitch;
  const std::int64_t row_pitch = row + ((row - image.pitch) / 4 % 2 == 0 ? 4 : 0);
  // The weight takes the place of the parts before there are any.
  const std::int64_t parts = 2 * std::int64_t{image.slices} * s.height * image.pitch;
  const std::int64_t weight = std::int64_t{variant.taps * variant.taps - 1} * groups_of_inputs * variant.inputs *
                              groups_of_outputs * variant.outputs;
  const std::int64_t elements = s.height * row_pitch +
                                std::int64_t{std::max(variant.substituted, s.channels)} * image.pitch +
                                std::max(parts, weight);
  const std::size_t bytes = product(element, {elements});
  if (bytes > device.shared_bytes) {
    return false;
  }
  image.row_pitch = static_cast<int>(row_pitch);
  plan.kernel = Kernel::image;
  plan.image = image;
  plan.shared_bytes = bytes;
  plan.threads = rounded_up(image.row_groups * image.row_threads, 32) + substituting;
  return true;
}

/// Makes a plan of solve_image one of both gradients, where x fits beside the image and that pays.
/// `groups` are those of a call for one weight, as for plan_sums().
void plan_image_sums(Plan& plan, const Device& device, int groups, std::size_t element) {
  const GroupShape& s = plan.image.shape;
  const std::int64_t entries = std::int64_t{s.channels} * s.channels * s.kernel_height * s.kernel_width;
  const std::int64_t sums = std::int64_t{plan.batch} * groups;
  const std::size_t images = product(element, {2, s.height, plan.image.row_pitch});
  if (plan.kernel != Kernel::image || !has_image_sums(element) || entries > image_sums_entries ||
      entries * s.height * s.width > image_sums_products ||
      sums > image_sums_bytes / static_cast<std::int64_t>(product(sizeof(double), {entries})) ||
      images > device.shared_bytes) {
    return;
  }
  // Slices of rows, as many as there are threads for, whose sums are passed on in shared memory.
  const int most_threads = plan.image.variant.most_threads(element), taps = s.kernel_width;
  const int tiles = ceil_div(s.channels, image_sums_outputs) * ceil_div(s.channels, image_sums_inputs) * taps *
                    ceil_div(taps, image_sums_taps(taps));
  const std::size_t passed = product(element, {entries}), free_bytes = device.shared_bytes - images;
  const int fitting = static_cast<int>(std::min<std::size_t>(free_bytes / passed, image_rows));
  const int rows = ceil_div(s.height, std::clamp(std::min(most_threads / tiles, fitting), 1, s.height));
  if (rows * s.width > sums_chain) {
    return;
  }
  const int slices = ceil_div(s.height, rows);
  plan.kernel = Kernel::image_sums;
  plan.image_sums = {slices, rows};
  plan.threads = std::max(plan.threads, std::min(rounded_up(tiles * slices, 32), most_threads));
  plan.shared_bytes = std::max(plan.shared_bytes, images + (slices > 1 ? product(passed, {slices}) : std::size_t{0}));
  plan.sums.shape = plan.shape;  // of add_parts
  plan.sums.parts = plan.batch;
  plan.rest_bytes = aligned(product(sizeof(double), {entries, plan.groups, plan.batch}));
}

/// Whether a strip's window fits; the plan is complete then.
bool plan_strips(Plan& plan, const Device& device, std::size_t element) {
  const GroupShape& s = plan.shape;
  if (s.channels > strips_channels || s.kernel_height != strips_kernel || s.kernel_width != strips_kernel) {
    return false;
  }
  const int rows = 32 * rows_of_lane(element, s.channels), edges = s.kernel_height - 1;
  const std::size_t bytes = product(element, {s.channels, rows * strip_pitch + edges * strip_columns +
                                                              s.kernel_height * s.kernel_width * s.channels});
  if (bytes > device.shared_bytes) {
    return false;
  }
  plan.kernel = Kernel::strips;
  plan.threads = 32;
  plan.shared_bytes = bytes;
  plan.strips = {s.height, s.width, ceil_div(s.height, rows), s.unit_diagonal};
  plan_pipeline(plan, plan.strips.strips, std::int64_t{edges} * s.channels * s.width, element);
  return true;
}

void plan_direct(Plan& plan, const Device& device, std::size_t element, bool in_place) {
  const GroupShape& s = plan.shape;
  plan.kernel = Kernel::direct;
  DirectShape& d = plan.direct;
  d.shape = s;
  d.in_place = in_place;
  d.lanes = std::min(32, power_of_two(s.channels));
  d.padded = rounded_up(s.channels, d.lanes);
  plan.threads = 256;
  if (in_place) {  // the results of a piece wait
    const auto waiting = [&] { return aligned(product(element, {plan.threads / d.lanes, s.channels})); };
    while (plan.threads > 32 && waiting() > device.shared_bytes / 2) {
      plan.threads /= 2;
    }
    plan.shared_bytes = waiting();
  }
  d.weight_in_shared = plan_weight(plan, device, d.padded, element);
  // A few pieces to a block, so that a weight is not packed for each.
  const std::int64_t pieces = ceil_div(std::int64_t{s.height} * s.width, plan.threads / d.lanes);
  d.blocks_per_image = in_place ? 1 : static_cast<int>(std::clamp<std::int64_t>(pieces / 4, 1, 1024));
}

/// Whether tiles fit; the plan is complete then.
bool plan_tiles(Plan& plan, const Device& device, std::size_t element) {
  const GroupShape& s = plan.shape;
  const int width = fair_share(s.width, 32);
  const int most_rows = ceil_div(s.height, tile_rows), most_outputs = ceil_div(s.channels, tile_outputs);
  for (int outputs = fair_share(most_outputs, tile_threads / width);; outputs = (outputs + 1) / 2) {
    for (int rows = std::clamp(tile_threads / (width * outputs), 1, most_rows);; rows = (rows + 1) / 2) {
      const std::size_t weight =
          product(element, {s.kernel_height, s.kernel_width, s.channels, tile_line(outputs), tile_outputs});
      const std::size_t bytes = weight + product(element, {s.channels, width + s.kernel_width - 1,
                                                           tile_pitch(tile_rows * rows + s.kernel_height - 1)});
      if (bytes <= device.shared_bytes) {
        plan.kernel = Kernel::tiles;
        plan.tiles = {s, width, rows, outputs};
        plan.threads = rounded_up(width * rows * outputs, 32);
        plan.shared_bytes = bytes;
        return true;
      }
      if (rows == 1) {
        break;
      }
    }
    if (outputs == 1) {
      return false;
    }
  }
}

/// `groups` are those of a call for one weight, which say how many parts there are.
void plan_sums(Plan& plan, int groups, std::size_t element) {
  const GroupShape& s = plan.shape;
  plan.kernel = Kernel::sums;
  SumsShape& sums = plan.sums;
  sums.shape = s;
  sums.batch = plan.batch;
  sums.square = s.kernel_height == 1 && s.kernel_width == 1 ? 1 : 3;
  sums.inputs = fair_share(s.channels, 16);
  sums.outputs = fair_share(ceil_div(s.channels, sums_outputs), 16);
  const int pairs = sums.inputs * sums.outputs;
  sums.span = fair_share(s.width, pairs > 16 ? 16 : 8);
  sums.units = narrowed(std::int64_t{plan.batch} * ceil_div(s.height, sums_rows) * ceil_div(s.width, sums.span),
                        "units of pixels");

  // Every device has that much shared memory.
  constexpr std::size_t most_shared = 48 * 1024;
  const int halo = sums.square - 1;
  const std::size_t unit =
      sums_unit_bytes +
      element * static_cast<std::size_t>(sums.inputs * sums_line(sums_rows + halo, sums.span + halo) +
                                         sums_outputs * sums.outputs * sums_line(sums_rows, sums.span));
  sums.slices = std::min({sums_threads / pairs, static_cast<int>(most_shared / unit), sums.units});
  plan.threads = rounded_up(sums.slices * pairs, 32);
  const std::size_t passed = product(sizeof(double), {sums_outputs, sums.square, sums.square, pairs, sums.slices / 2});
  const std::size_t slices = static_cast<std::size_t>(sums.slices);
  plan.shared_bytes = std::max(slices * unit, slices * sums_unit_bytes + passed);

  // Two blocks for each processor of a large device, but no part without a unit for each of its threads, and a few
  // megabytes of sums at most, unless one part alone takes more.
  const std::size_t bytes = product(sizeof(double), {s.channels, s.channels, s.kernel_height, s.kernel_width});
  const std::int64_t tiles = std::int64_t{ceil_div(s.channels, sums.inputs)} *
                             ceil_div(s.channels, sums_outputs * sums.outputs) *
                             ceil_div(s.kernel_height, sums.square) * ceil_div(s.kernel_width, sums.square) * groups;
  const auto most = static_cast<std::int64_t>((std::size_t{16} << 20) / (bytes * static_cast<std::size_t>(groups)));
  sums.parts = static_cast<int>(
      std::max<std::int64_t>(1, std::min({most, 264 / tiles, std::int64_t{ceil_div(sums.units, sums.slices)}})));
  plan.rest_bytes = aligned(product(bytes, {plan.groups, sums.parts}));
}

}  // namespace

int narrowed(std::int64_t size, const char* what) {
  if (size > std::numeric_limits<int>::max() / 2) {
    throw Error(std::string("[cuda] expected fewer than 2^30 ") + what + ", but got " + std::to_string(size));
  }
  return static_cast<int>(size);
}

Plan plan(const Device& device, Operation operation, const Sizes& sizes, bool unit_diagonal, std::size_t element,
          bool in_place) {
  Plan plan{};
  plan.shape = {narrowed(sizes.channels, "channels"),
                narrowed(sizes.height, "rows"),
                narrowed(sizes.width, "columns"),
                narrowed(sizes.kernel_height, "rows of taps"),
                narrowed(sizes.kernel_width, "columns of taps"),
                unit_diagonal};
  const int groups = narrowed(sizes.groups, "groups"), images = narrowed(sizes.batch, "images");
  plan.groups = sizes.weights == 1 ? groups : images;
  plan.batch = sizes.weights == 1 ? images : 1;
  if (operation == Operation::conv) {
    if (in_place || !plan_tiles(plan, device, element)) {
      plan_direct(plan, device, element, in_place);
    }
  } else if (operation == Operation::weight_grad) {
    plan_sums(plan, groups, element);
  } else if (!plan_strips(plan, device, element) && !plan_image(plan, device, element) &&
             !plan_wide(plan, device, element)) {
    plan_block(plan, device, element);
  }
  if (operation == Operation::solve_backward) {
    plan_image_sums(plan, device, groups, element);
  }
  return plan;
}

std::size_t workspace_bytes(const Device& device, Operation operation, const Sizes& sizes, std::size_t element) {
  if (operation == Operation::solve_backward) {
    const Plan both = plan(device, operation, sizes, true, element);
    return both.kernel == Kernel::image_sums  // else one after the other
               ? both.workspace_bytes()
               : std::max(both.workspace_bytes(), workspace_bytes(device, Operation::weight_grad, sizes, element));
  }
  return std::max(plan(device, operation, sizes, true, element, false).workspace_bytes(),
                  plan(device, operation, sizes, true, element, true).workspace_bytes());
}

}  // namespace invconv::detail::cuda
