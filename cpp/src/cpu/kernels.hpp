#pragma once

// The CPU kernels of one instruction set, as a table of functions.
//
// A block is a few images of one group, one to a lane of a vector. Its rows are packed as [pixel][channel][lane], so
// that every operand of a dot product is one contiguous vector, whatever the strides of the arrays; the recurrence then
// needs no shuffles, and its last kh rows are all that a block keeps.
//
// The order of operations that makes one output, the same for every instruction set's lanes, any batch and any channel
// block: the image's own value (solve) or zero (conv); the rows from the oldest to the present one; in a row the pixels
// from the oldest to the present one; in a pixel the channels upwards; the diagonal last.

#include <cstdint>
#include <type_traits>

#include "backend.hpp"

namespace invconv::detail::cpu {

/// What a storage type T is computed in.
template <class T>
using Arithmetic = std::conditional_t<std::is_same_v<T, double>, double, float>;

/// A filter's shape; the numbers are of one group.
struct FilterShape {
  std::int64_t channels, height, width, kernel_height, kernel_width;
  bool solve, unit_diagonal;
};

/// One unit of a correlation: rows [row_begin, row_end) of a block of images.
struct CorrelationShape {
  std::int64_t channels, height, width, kernel_height, kernel_width;
  std::int64_t row_begin, row_end;
};

/// The pixels that a correlation sums in the arithmetic of T before the sum is added up in double.
inline constexpr std::int64_t correlation_pixels = 1024;

template <class T>
struct Kernels {
  using A = Arithmetic<T>;

  const char* name;
  /// The numbers of lanes there are, descending, the last one 1.
  std::int64_t lanes[4];

  /// Elements of A that a packed weight takes.
  std::int64_t (*packed_weight_size)(const FilterShape& shape);
  void (*pack_weight)(const FilterShape& shape, const Taps<const T>& weight, A* packed);
  /// Solves or filters `images` <= lanes images, the first at `in` and `out`. `scratch` is aligned to 64 bytes and
  /// holds filter_scratch_size(shape, lanes) elements.
  void (*filter)(const FilterShape& shape, std::int64_t lanes, std::int64_t images, const Images<const T>& in,
                 const Images<T>& out, const A* packed, A* scratch);

  /// Adds the unit's products to sum[i][o][k], k = (kw-1-j) C + c, for output channel o and the tap (i, j) of channel
  /// c.
  void (*correlate)(const CorrelationShape& shape, std::int64_t lanes, std::int64_t images, const Images<const T>& x,
                    const Images<const T>& g, double* sum, A* scratch);
};

inline std::int64_t filter_scratch_size(const FilterShape& s, std::int64_t lanes) {
  const std::int64_t ring = s.kernel_height * (s.width + s.kernel_width - 1);
  return (s.solve ? ring : ring + s.width) * s.channels * lanes;
}

inline std::int64_t correlation_scratch_size(const CorrelationShape& s, std::int64_t lanes) {
  const std::int64_t rows = s.row_end - s.row_begin;
  return (rows * s.width + (rows + s.kernel_height - 1) * (s.width + s.kernel_width - 1)) * s.channels * lanes;
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
