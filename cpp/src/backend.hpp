#pragma once

// What a backend is handed: the checked problem, with corner and transpose already turned into strides. A backend knows
// the top-left case alone.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>

#include "invconv/invconv.hpp"

namespace invconv::detail {

inline bool has_no_elements(std::span<const std::int64_t> shape) {
  return std::find(shape.begin(), shape.end(), 0) != shape.end();
}

/// The images of one group. Strides in elements. Row 0 and column 0 lie at the padded sides, channel 0 first in the
/// triangle's order.
template <class T>
struct Images {
  T* data;
  std::int64_t batch, channel, row, column;

  constexpr Images from_image(std::int64_t index) const { return {data + index * batch, batch, channel, row, column}; }
};

/// The taps of one group by age: row i, column j is the tap that multiplies x[p - (i, j)], so (0, 0) is the anchor.
template <class T>
struct Taps {
  T* data;
  std::int64_t out, in, row, column;
  std::int64_t batch = 0;  // from one image's to the next one's; 0 where the images share them

  constexpr Taps from_image(std::int64_t index) const { return {data + index * batch, out, in, row, column, batch}; }
};

struct Sizes {
  std::int64_t batch, groups;
  std::int64_t channels;  // of one group
  std::int64_t height, width;
  std::int64_t kernel_height, kernel_width;
  std::int64_t weights = 1;  // one for all images, or one for each

  bool operator==(const Sizes&) const = default;
};

inline bool is_empty(const Sizes& s) { return s.batch == 0 || s.channels == 0 || s.height == 0 || s.width == 0; }

template <class A, class B>
constexpr std::common_type_t<A, B> ceil_div(A total, B share) {
  return (total + share - 1) / share;
}

/// Splits `total` into the fewest equal shares of at most `most`, and returns what a share then holds.
template <class A, class B>
constexpr std::common_type_t<A, B> fair_share(A total, B most) {
  return ceil_div(total, ceil_div(total, most));
}

/// Taps that reach beyond the image on every pixel are left out: they multiply nothing.
inline Sizes clipped(Sizes sizes) {
  sizes.kernel_height = std::min(sizes.kernel_height, sizes.height);
  sizes.kernel_width = std::min(sizes.kernel_width, sizes.width);
  return sizes;
}

/// What a storage type T is computed in.
template <class T>
using Arithmetic = std::conditional_t<std::is_same_v<T, double>, double, float>;

/// solve and conv.
template <class T>
struct Filter {
  struct Group {
    Images<const T> in;
    Images<T> out;
    Taps<const T> weight;

    constexpr Group from_image(std::int64_t index) const {
      return {in.from_image(index), out.from_image(index), weight.from_image(index)};
    }
  };
  Operation operation;
  Sizes sizes;
  bool unit_diagonal;
  std::vector<Group> groups;
};

/// weight_grad, or its negative.
template <class T>
struct Correlation {
  struct Group {
    Images<const T> x, g;
    Taps<T> dw;

    constexpr Group from_image(std::int64_t index) const {
      return {x.from_image(index), g.from_image(index), dw.from_image(index)};
    }
  };
  Sizes sizes;
  bool unit_diagonal, negative;
  std::vector<Group> groups;
};

/// Every backend has these three, in a namespace of its own. The number of threads is definite, at least 1, and the
/// workspace at least as large as they ask for solve, conv or weight_grad.
#define INVCONV_BACKEND(EXECUTION)                                                                 \
  template <class T>                                                                               \
  std::size_t workspace_size(Operation operation, const Sizes& sizes, const EXECUTION& execution); \
  template <class T>                                                                               \
  void run(const Filter<T>& problem, void* workspace, const EXECUTION& execution);                 \
  template <class T>                                                                               \
  void run(const Correlation<T>& problem, void* workspace, const EXECUTION& execution);

namespace cpu {
INVCONV_BACKEND(Cpu)
template <class T>
PlanInfo describe(Operation operation, const Sizes& sizes, const Cpu& execution);
}  // namespace cpu
namespace cuda {
INVCONV_BACKEND(Cuda)
/// Whether one run makes both gradients of a solve; `shared_bytes` as of describe_plan().
template <class T>
bool has_both_gradients(const Sizes& sizes, const Cuda& execution, std::size_t shared_bytes = 0);
/// The solve that `solve` is, and the negative of weight_grad as the derivative by the weight that it reads: `sums` has
/// the result for x and the x of solve_backward for g, in the view of `solve`. The workspace is as large as
/// workspace_size() asks for solve_backward.
template <class T>
void run(const Filter<T>& solve, const Correlation<T>& sums, void* workspace, const Cuda& execution);
template <class T>
PlanInfo describe(Operation operation, const Sizes& sizes, const Cuda& execution, std::size_t shared_bytes);
void synchronize(const Cuda& execution);
CudaInfo info();
int devices();
bool has_kernels();
}  // namespace cuda

#undef INVCONV_BACKEND

}  // namespace invconv::detail
