#pragma once

// Which kernel computes a problem, and how it is launched. Nothing here needs a device: the table of plans is tested
// without one.

#include <cstddef>
#include <cstdint>

#include "backend.hpp"

namespace invconv::detail::cuda {

constexpr int rounded_up(int size, int to) { return ceil_div(size, to) * to; }

/// What a plan must know of a device.
struct Device {
  std::size_t shared_bytes;  // of one block, at most
};

enum class Kernel {
  image,   // solve, square kernels: one thread block for an image and a group, all of it in shared memory
  wide,    // solve, more channels: one for a strip of rows, with the last anti-diagonals in shared memory
  block,   // solve, any shape: likewise, or with more in the workspace
  strips,  // solve, 3 x 3 taps and few channels: rows in the lanes of a warp, strip after strip in a pipeline
  direct,  // conv: each output by itself
  tiles,   // conv: a tile of an image in shared memory
  sums,    // weight_grad: sums over parts of the images, then over the parts
  // Both gradients of a solve: as image, and then sums with x in shared memory beside the result.
  image_sums,
};

/// The sizes of a problem as kernels use them: those of one group.
struct GroupShape {
  int channels, height, width, kernel_height, kernel_width;
  bool unit_diagonal;
};

/// What solve_image is instantiated for: the taps of a side, a thread's outputs and inputs, and the most channels that
/// one thread substitutes (0: a warp does). It does not list them all: backend.cu does.
struct ImageVariant {
  int taps, outputs, inputs, substituted;
  friend bool operator==(const ImageVariant&, const ImageVariant&) = default;

  /// Rows of taps that a thread has the weights of, where an element of the arithmetic has so many bytes.
  constexpr int rows_of_taps(std::size_t element) const { return taps == 3 && element == 4 ? taps : 1; }
  /// The most threads of a block: 8 warps may have 255 registers each, 12 warps 168.
  constexpr int most_threads(std::size_t element) const {
    const std::size_t numbers = static_cast<std::size_t>(rows_of_taps(element) * taps * outputs * inputs);
    return numbers * element > 84 * 4 ? 256 : 384;
  }
};

struct ImageShape {
  GroupShape shape;  // with height <= width, or swapped
  ImageVariant variant;
  bool swapped;
  int pitch, row_pitch;  // elements from a pixel to the next, and from a row to the next
  int row_threads;       // threads that share a row
  int row_groups;        // rows that are summed at once
  int slices;
};

/// image_sums: slices of an image, and rows of a slice.
struct ImageSumsShape {
  int slices, rows;
};

/// How solve_block and solve_wide go through an image: `lanes` threads have some pixels of a diagonal, each `outputs`
/// channels of them at a time.
struct BlockShape {
  GroupShape shape;
  int outputs, lanes;
  int padded;         // output channels of a packed weight
  bool swapped;       // whether the image's rows are its columns; the taps keep theirs
  int height, width;  // of the image, swapped
  int rows, strips;   // rows of a strip, but perhaps of the last one
  int pitch;          // elements from a pixel to the next
  int edge_columns;   // that are kept of the strip above, a power of two
  bool weight_in_shared, history_in_shared;

  /// Rows and columns between a pixel and the farthest one that it reads.
  constexpr int above() const { return (swapped ? shape.kernel_width : shape.kernel_height) - 1; }
  constexpr int before() const { return (swapped ? shape.kernel_height : shape.kernel_width) - 1; }
  /// Rows that a strip hands down.
  constexpr int edge_rows() const { return above() < rows ? above() : rows; }
  /// Elements: of the last diagonals; of the strip above, as far as it is kept; of what a strip hands down.
  constexpr std::int64_t history_size() const { return std::int64_t{above() + before() + 1} * rows * pitch; }
  constexpr std::int64_t ring_size() const { return strips > 1 ? std::int64_t{above()} * edge_columns * pitch : 0; }
  constexpr std::int64_t edge_size() const { return std::int64_t{edge_rows()} * width * pitch; }
};

/// wide: warps that share the sums of some rows and outputs, and rows of a thread that sums.
inline constexpr int wide_parts = 4, wide_pixels = 4;

/// wide: such units of a block, and its threads, at most, where substituting ones have so many outputs. They leave 128
/// or 96 registers to a thread.
constexpr int wide_units(int outputs) { return outputs > 6 ? 3 : 4; }
constexpr int wide_threads(int outputs) { return outputs > 6 ? 512 : 640; }

struct WideShape {
  BlockShape strip;  // its threads substitute
  int row_groups, units;
  int first_line;  // of the weight, whose lines are (tap, input), that stays in shared memory

  constexpr int sum_threads() const { return units * wide_parts * 32; }
  /// Elements of the parts of a diagonal's sums.
  constexpr std::int64_t parts_size() const { return std::int64_t{wide_parts} * strip.rows * strip.padded; }
};

struct StripsShape {
  int height, width, strips;
  bool unit_diagonal;
};

struct DirectShape {
  GroupShape shape;
  int lanes;   // that share a pixel
  int padded;  // output channels of a packed weight
  int blocks_per_image;
  bool weight_in_shared, in_place;
};

struct TilesShape {
  GroupShape shape;
  int width, row_groups, output_groups;
};

struct SumsShape {
  GroupShape shape;
  int batch, parts, units, span, inputs, outputs, slices;
  int square;       // a block has square x square taps
  GroupShape full;  // with taps outside of every image, whose derivatives are 0
  bool negative;
};

struct Plan {
  Kernel kernel;
  GroupShape shape;
  int groups, batch;  // of a launch: with one weight for each image, the images of a group and 1
  int threads = 0;    // of a block
  std::size_t shared_bytes = 0;
  // Bytes of the workspace, from its beginning: what is cleared first, packed weights, what strips hand down, the rest.
  std::size_t cleared_bytes = 0, weight_bytes = 0, edges_bytes = 0, rest_bytes = 0;
  // That of the kernel:
  ImageShape image{};
  ImageSumsShape image_sums{};
  WideShape wide{};
  BlockShape block{};
  StripsShape strips{};
  DirectShape direct{};
  TilesShape tiles{};
  SumsShape sums{};

  std::size_t workspace_bytes() const { return cleared_bytes + weight_bytes + edges_bytes + rest_bytes; }
};

/// strips: the most channels, and the taps of a side.
inline constexpr int strips_channels = 4, strips_kernel = 3;

/// Columns that a strip reads, writes and hands over at a time; after how many such chunks the last lane is through
/// with one; the columns of the window, and from a row of it to the next. A lane is a column behind the one above it:
/// an even pitch keeps the lanes in different banks, and with this one so are 8 columns of 4 rows.
inline constexpr int strip_columns = 8, strip_delay = 5, strip_window = (strip_delay + 1) * strip_columns,
                     strip_pitch = strip_window + 8;

/// Rows of a lane: two, where there are registers for them.
constexpr int rows_of_lane(std::size_t element, int channels) {
  return element * static_cast<std::size_t>(channels) > 12 ? 1 : 2;
}

/// block: pixels of a thread that has so many of their outputs. Many channels wait for their weights, few for each
/// other; in double more would spill.
constexpr int block_pixels(std::size_t element, int outputs) { return outputs > 4 && element == sizeof(float) ? 2 : 1; }

/// block: threads at most; rows of a strip at most; columns that it hands down at a time; bytes of shared memory for
/// what is a block's own.
inline constexpr int block_threads = 256, block_rows = 64, block_columns = 16;
inline constexpr std::size_t block_header_bytes = 336;

/// image: the threads that sum, and the rows, at most.
inline constexpr int image_sum_threads = 256, image_rows = 64;

/// image_sums: of a thread the taps of a row, the channels of dy, and those of x, which are read at once.
constexpr int image_sums_taps(int taps) { return taps == 7 ? 4 : 3; }
inline constexpr int image_sums_outputs = 4, image_sums_inputs = 4;

/// image_sums: whether there are kernels of it; in double they would spill.
constexpr bool has_image_sums(std::size_t element) { return element == sizeof(float); }

/// image_sums: the most products of two channels and a tap that a block sums for one image, entries of a weight, and
/// bytes of the sums of all images. With more of them it pays to share the sums out to all processors.
inline constexpr std::int64_t image_sums_products = 1 << 20, image_sums_entries = 3 << 12, image_sums_bytes = 32 << 20;

/// The most products that weight_grad adds up one after the other in the arithmetic of T.
inline constexpr int sums_chain = 256;

/// Threads of a block of weight_grad, at most; rows of a unit, and outputs of a thread.
inline constexpr int sums_threads = 256, sums_rows = 4, sums_outputs = 2;

/// Of shared memory, for where a unit lies.
inline constexpr std::size_t sums_unit_bytes = 24;

/// Elements of a unit's channel, odd: threads that have units or channels side by side read different banks.
constexpr int sums_line(int rows, int columns) { return rows * columns | 1; }

/// Threads of a block of conv, at most; pixels of a column and outputs of a thread.
inline constexpr int tile_threads = 256, tile_rows = 4, tile_outputs = 4;

/// Elements of a column of a tile, odd: columns side by side lie in different banks.
constexpr int tile_pitch(int rows) { return rows | 1; }

/// The weights of a tap and an input, in those of tile_outputs outputs, odd: inputs side by side lie in different
/// banks.
constexpr int tile_line(int output_groups) { return output_groups | 1; }

/// Kernels count pixels, channels and taps of one image in 32 bits.
int narrowed(std::int64_t size, const char* what);

/// `sizes` are clipped and not empty; `element` is the bytes of the arithmetic. It does not depend on the batch which
/// kernel it is. With one weight for each image there is a launch for each group, and each image is planned as it is by
/// itself, so that it has the same bits.
/// Of solve_backward it is the plan of its solve or, as long as the batch has not too many sums, image_sums, which is
/// both gradients; dy has the same bits. conv over its input may ask for more shared memory than there is: then there
/// is no kernel for it.
Plan plan(const Device& device, Operation operation, const Sizes& sizes, bool unit_diagonal, std::size_t element,
          bool in_place = false);

/// Of a call, whether it is in place or not.
std::size_t workspace_bytes(const Device& device, Operation operation, const Sizes& sizes, std::size_t element);

}  // namespace invconv::detail::cuda
