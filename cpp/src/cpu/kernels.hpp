#pragma once

// The CPU kernels of one instruction set, as a table of functions.
//
// The order of operations that makes one output, the same for every layout, any number of lanes and any channel block:
// the image's own value (solve) or zero (conv); the rows from the oldest to the present one; in a row the pixels from
// the oldest to the present one; in a pixel the channels upwards; the diagonal last. Taps outside the image are left
// out or multiplied by zeros, as suits the layout: that changes the sign of a zero at most, and all zeros come out
// positive. (A weight that is not finite goes to the layout images, one row at a time, which leaves all of
// them out.)

#include <cstdint>
#include <type_traits>

#include "backend.hpp"

namespace invconv::detail::cpu {

/// A filter's shape, its numbers of one group, and how a layout splits it (plan.hpp).
struct FilterShape {
  std::int64_t channels, height, width, kernel_height, kernel_width;
  bool solve, unit_diagonal;
  std::int64_t block;  // output channels computed together
  std::int64_t band;   // rows handled together
  std::int64_t rows;   // images: computed together, or fewer where these are left
  std::int64_t ring;   // images, channels: rows kept, a multiple of band or at least all rows and the zeros above them
  std::int64_t pitch;  // columns: elements from one channel's line to the next one's; rows: steps of a
                       // window; mixed: elements from one step to the next one
  bool streamed;       // rows, columns, flat: whether the output is too large for the caches
};

/// The most rows that are computed together with images in the lanes. Then some taps outside the image meet zeros.
inline constexpr std::int64_t most_rows = 2;

/// Kernels with a row of constant sizes: few enough channels that all of them are one block.
inline constexpr std::int64_t small_kernel = 3, small_channels = 4;

[[gnu::always_inline]] inline bool is_small(const FilterShape& shape) {
  return shape.kernel_height == small_kernel && shape.kernel_width == small_kernel && shape.channels <= small_channels;
}

/// With rows in the lanes, the columns by which a row of a small kernel is behind the one above it; else it is one. A
/// result is a chain of multiply-adds. With one column, all those from the pixel above on would wait for the step
/// before, with two only that of the pixel to the left, the last one: several channels have enough to do meanwhile.
[[gnu::always_inline]] inline constexpr int small_slant(std::int64_t channels) { return channels == 1 ? 2 : 1; }
[[gnu::always_inline]] inline std::int64_t rows_slant(const FilterShape& shape) {
  return is_small(shape) ? small_slant(shape.channels) : 1;
}

/// Numbers of a small kernel's packed weight, which solve_rows may keep as vectors.
[[gnu::always_inline]] inline std::int64_t rows_weight_vectors(const FilterShape& shape) {
  return is_small(shape) ? shape.kernel_height * shape.kernel_width * shape.channels * shape.channels : 0;
}

/// A band of rows in the lanes is one vector of them, or two for kernels of 3 x 3 taps of at most so many channels.
inline constexpr std::int64_t double_band_kernel = 3, double_band_channels = 2;

/// Elements of a row that wait for the next window of steps: at most what does not fill a cache line.
[[gnu::always_inline]] inline constexpr std::int64_t rows_waiting(std::int64_t lanes, std::int64_t element) {
  return lanes * element < 64 ? 64 / element : lanes;
}

/// Output channels computed together with rows in the lanes, and with the pixels as they lie in memory.
inline constexpr int rows_block = 12, flat_block = 12;

/// Vectors of pixels as they lie in memory, of which up to so many are computed together.
inline constexpr int flat_vectors_together = 8;

/// A mask of a vector of pixels depends on the column in which it begins, except near the ends of the image, where rows
/// are missing: vectors [0, head) and [tail, vectors), whichever end the taps reach over. Between these, masks repeat
/// after `phases` vectors; the first `repeated` are kept, flat_vectors_together - 1 more than that, so that a group
/// that begins at any phase has its masks one after the other. An image too small for that is all head.
struct FlatRegions {
  std::int64_t head, tail, vectors, phases, repeated;
};

[[gnu::always_inline]] inline FlatRegions flat_regions(const FilterShape& shape, std::int64_t lanes) {
  const std::int64_t pixels = shape.height * shape.width, reach = (shape.kernel_height - 1) * shape.width;
  FlatRegions r{(reach + lanes - 1) / lanes, (pixels - reach) / lanes, (pixels + lanes - 1) / lanes, shape.width, 0};
  for (std::int64_t common = lanes; r.phases % 2 == 0 && common % 2 == 0; common /= 2) {
    r.phases /= 2;
  }
  r.repeated = r.phases + flat_vectors_together - 1;
  return r.tail - r.head > r.repeated ? r : FlatRegions{r.vectors, r.vectors, r.vectors, 1, 0};
}

/// How many masks there are: of each of those vectors one for every tap, and a flag.
[[gnu::always_inline]] inline std::int64_t flat_masks(const FilterShape& shape, std::int64_t lanes) {
  const FlatRegions r = flat_regions(shape, lanes);
  return (r.head + r.repeated + r.vectors - r.tail) * (shape.kernel_height * shape.kernel_width + 1);
}

/// The lanes of a vector of pixels whose tap is inside the image; the anchor's are those that are pixels.
using LaneMask = std::uint16_t;

/// Pixels computed together with channels in the lanes: they do not depend on each other, and hide the latency of a
/// multiplication.
inline constexpr int channel_streams = 4;

/// Columns after which a band tells the one below, on another core perhaps, how far it is: a multiple of `least`. In a
/// long row that it does so seldom costs little; each time, the other core waits for what was written.
[[gnu::always_inline]] inline constexpr std::int64_t hand_over(std::int64_t width, std::int64_t least) {
  const std::int64_t many = width / (8 * least);
  return (many < 1 ? 1 : many < 16 ? many : 16) * least;
}

/// The least number of columns, with channels in the lanes and with several rows of several images; for rows in the
/// lanes it is the number of lanes.
inline constexpr std::int64_t channels_hand_over = 4, mixed_hand_over = 8;

/// How far a band is, on a cache line of its own.
struct alignas(64) Progress {
  std::int64_t columns;
};

/// A band of rows and its neighbours. A row that it reads above it may be in the making on another thread.
template <class A>
struct Band {
  std::int64_t index;
  // The last kernel_height - 1 rows of the band above. Rows: [the nearest first][channel][column]; mixed:
  // [step][channel][lane], the last lanes of a cell.
  const A* above;
  A* below;  // the same of this one
  std::int64_t pitch;
  const Progress* before;  // of the band above; null where it is finished
  Progress* done;          // null where nobody waits
  std::int64_t stride;     // from one band of its thread to the next, as far as can be told
};

/// What the units of a correlation have in common; the numbers are of one group.
struct CorrelationShape {
  std::int64_t inputs, outputs, kernel_height, kernel_width;
  /// Whether the input channels are in the lanes, and a unit is whole images; else pixels are, and each row is packed
  /// by itself, with room for its left neighbours, if rows fill their vectors, or all of them as one run.
  bool by_channels, by_rows;
  // Are packed at a time, and of these gone through at a time: the lines of the latter and of a block of outputs fit in
  // the first level of cache. The former is a multiple of the latter.
  std::int64_t inputs_at_once, inputs_together;
  std::int64_t g_line, x_line;  // elements of a packed channel, and between two of them
};

/// One unit of a correlation: a rectangle of pixels of a few images.
struct CorrelationUnit {
  std::int64_t images, row, rows, column, columns;
  std::int64_t rows_before;  // of the unit right above this one, if that is what the scratch memory holds; else 0
  std::int64_t rows_after;   // of the unit right below this one, which is next; else 0
};

/// The most products that a correlation adds up one after the other in the arithmetic of T; such sums, or
/// those of a vector's lanes folded onto each other, are added up in double.
inline constexpr std::int64_t correlation_chain = 256;

/// Outputs that are stored together; with pixels in the lanes their sums lie side by side. The last ones may be fewer.
inline constexpr int correlation_outputs = 4;
[[gnu::always_inline]] inline std::int64_t correlation_block(std::int64_t outputs, std::int64_t first) {
  return outputs - first < correlation_outputs ? outputs - first : correlation_outputs;
}

/// With channels in the lanes, the outputs of every slice but the last are a multiple of this.
inline constexpr int correlation_channel_outputs = 16;

template <class T>
struct Kernels {
  using A = Arithmetic<T>;

  const char* name;
  /// The numbers of lanes there are, descending, the last one 1.
  std::int64_t lanes[4];
  /// The most output channels whose sums fit in registers, for images and columns in the lanes, and the most vectors of
  /// output channels.
  std::int64_t block, channel_vectors;
  /// So many rows, 1 or most_rows, share the reading of the weights, with several images in the lanes.
  std::int64_t rows;

  /// Whether all taps that a filter reads are finite.
  bool (*is_finite)(const FilterShape& shape, const Taps<const T>& weight);

  /// For each layout of plan.hpp; `scratch` is aligned to 64 bytes and as large as the plan says.
  void (*pack_weight)(const FilterShape& shape, const Taps<const T>& weight, A* packed);
  void (*filter_images)(const FilterShape& shape, std::int64_t lanes, std::int64_t images, const Images<const T>& in,
                        const Images<T>& out, const A* packed, void* scratch);
  void (*solve_rows)(const FilterShape& shape, std::int64_t lanes, const Images<const T>& in, const Images<T>& out,
                     const A* packed, const Band<A>& band, void* scratch);
  void (*solve_mixed)(const FilterShape& shape, std::int64_t lanes, std::int64_t images, const Images<const T>& in,
                      const Images<T>& out, const A* packed, const Band<A>& band, void* scratch);
  void (*solve_channels)(const FilterShape& shape, std::int64_t lanes, std::int64_t images, const Images<const T>& in,
                         const Images<T>& out, const A* packed, const Band<A>& band, A* ring, void* scratch);
  void (*conv_columns)(const FilterShape& shape, std::int64_t lanes, const Images<const T>& in, const Images<T>& out,
                       std::int64_t begin, std::int64_t end, const A* packed, void* scratch);

  /// Null without AVX-512, and for float16 and bfloat16, which must be widened first. From vector `begin` to `end` of
  /// each of the images.
  void (*conv_flat)(const FilterShape& shape, std::int64_t images, const Images<const T>& in, const Images<T>& out,
                    std::int64_t begin, std::int64_t end, const A* packed, void* scratch);

  /// With channels in the lanes, adds the unit's products to sums[o][i][j][c], and each lane adds up all pixels of the
  /// unit, at most correlation_chain. Else adds them to sums[b][i][c][j][o], for the outputs o of the block b and the
  /// tap (i, j) of input c, or rather, where not all inputs are gone through together, to one such array [i][c][j][o]
  /// after the other for those that are. A lane adds up at most correlation_chain products, so a unit has at most that
  /// many vectors of pixels. Unless rows are packed by themselves, `column` is the column, counted from the unit's
  /// first one, of each element of a line of x. It and `scratch`, which holds correlation_scratch_size() elements, are
  /// aligned to 64 bytes.
  void (*correlate)(const CorrelationShape& shape, const CorrelationUnit& unit, const Images<const T>& x,
                    const Images<const T>& g, const A* column, double* sums, A* scratch);
};

[[gnu::always_inline]] inline std::int64_t whole_vectors(std::int64_t elements, std::int64_t lanes) {
  return (elements + lanes - 1) / lanes * lanes;
}

/// Elements from one packed row of an image to the next image's.
[[gnu::always_inline]] inline std::int64_t correlation_g_row(const CorrelationShape& s, std::int64_t columns,
                                                             std::int64_t lanes) {
  return s.by_rows ? whole_vectors(columns, lanes) : columns;
}
[[gnu::always_inline]] inline std::int64_t correlation_x_row(const CorrelationShape& s, std::int64_t columns,
                                                             std::int64_t lanes) {
  return s.by_rows ? whole_vectors(s.kernel_width - 1, lanes) + whole_vectors(columns, lanes) : columns;
}

/// Lines of x for each input: where rows are not packed by themselves, one for each column that a tap reaches.
[[gnu::always_inline]] inline std::int64_t correlation_copies(const CorrelationShape& s) {
  return s.by_rows || s.by_channels ? 1 : s.kernel_width;
}

inline std::int64_t correlation_scratch_size(const CorrelationShape& s) {
  const std::int64_t outputs = s.by_channels ? whole_vectors(s.outputs, correlation_channel_outputs) : s.outputs;
  return s.g_line * outputs + s.x_line * s.inputs_at_once * correlation_copies(s);
}

// Defined by kernels_<level>.cpp for each storage type.
template <class T>
Kernels<T> kernels_baseline();
template <class T>
Kernels<T> kernels_avx2();
template <class T>
Kernels<T> kernels_avx512();
template <class T>
Kernels<T> kernels_neon();

}  // namespace invconv::detail::cpu
