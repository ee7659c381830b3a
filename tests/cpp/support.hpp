#pragma once

// Arrays in every layout, random problems, and what a storage type costs in accuracy.

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <new>
#include <ostream>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "invconv/invconv.hpp"
#include "reference.hpp"

namespace invconv::test {

// ---- storage types ------------------------------------------------------------------------------------------------

#if defined(INVCONV_THREAD_SANITIZER)
/// What threads share does not depend on more than the size of the arithmetic's type and on whether values are
/// converted; and the sanitizer is slow.
using StorageTypes = ::testing::Types<double, bfloat16>;
#else
using StorageTypes = ::testing::Types<float, double, float16, bfloat16>;
#endif

template <class T>
inline constexpr bool is_half = std::is_same_v<T, float16> || std::is_same_v<T, bfloat16>;

/// The largest relative error of one operation in the arithmetic of T: float for the half types.
template <class T>
inline constexpr double arithmetic_roundoff = std::is_same_v<T, double> ? 0x1p-53 : 0x1p-24;

/// The largest relative error of storing a result of that arithmetic as a T: 0 where the two are the same type.
template <class T>
inline constexpr double storage_roundoff = std::is_same_v<T, float16>    ? 0x1p-11
                                           : std::is_same_v<T, bfloat16> ? 0x1p-8
                                                                         : 0.0;

/// The largest absolute error of storing a subnormal result: half of the spacing of the subnormal numbers. (For the
/// other types it is far below every value in these tests.)
template <class T>
inline constexpr double storage_underflow = std::is_same_v<T, float16> ? 0x1p-25 : 0.0;

template <class T>
double value_of(T stored) {
  if constexpr (is_half<T>) {
    return to_float(stored);
  } else {
    return stored;
  }
}

template <class T>
T rounded(double value) {
  if constexpr (std::is_same_v<T, float16>) {
    return to_float16(static_cast<float>(value));
  } else if constexpr (std::is_same_v<T, bfloat16>) {
    return to_bfloat16(static_cast<float>(value));
  } else {
    return static_cast<T>(value);
  }
}

template <class T>
T not_a_number() {
  return rounded<T>(std::numeric_limits<double>::quiet_NaN());
}

// ---- arrays -------------------------------------------------------------------------------------------------------

/// How the axes lie in memory: `order` from the outermost axis to the innermost; `step` is the distance of neighbours
/// in units of what is inside the axis, so 1 is dense, 2 leaves gaps, negative is reversed and 0 repeats one value.
struct Layout {
  const char* name;
  std::array<int, 4> order;
  Shape step;
};

inline constexpr Layout contiguous{"contiguous", {0, 1, 2, 3}, {1, 1, 1, 1}};

/// Layouts that inputs and outputs may have. Between them they reach every way in which a kernel may read a row:
/// along the columns, along the channels, along both at once, and neither, forwards and backwards.
inline constexpr Layout layouts[] = {
    contiguous,
    {"channels last", {0, 2, 3, 1}, {1, 1, 1, 1}},
    {"transposed image", {0, 1, 3, 2}, {1, 1, 1, 1}},
    {"all axes reversed", {3, 2, 1, 0}, {1, 1, 1, 1}},
    {"batch innermost", {1, 2, 3, 0}, {1, 1, 1, 1}},
    {"flipped rows and columns", {0, 1, 2, 3}, {1, 1, -1, -1}},
    {"channels last, flipped", {0, 2, 3, 1}, {-1, -1, 1, -1}},
    {"every second column", {0, 1, 2, 3}, {1, 1, 1, 2}},
    {"every second channel, last", {0, 2, 3, 1}, {1, 2, 1, 1}},
    {"every third from behind", {1, 0, 3, 2}, {-3, 3, -3, 3}},
    {"gaps between rows", {0, 1, 2, 3}, {2, 3, 2, 1}},
};

/// Layouts for inputs only: one value stands for a whole axis, as in a gradient that was broadcast.
inline constexpr Layout repeating_layouts[] = {
    {"one image for the batch", {0, 1, 2, 3}, {0, 1, 1, 1}},
    {"one value for the image", {0, 1, 2, 3}, {1, 1, 0, 0}},
    {"one value", {0, 1, 2, 3}, {0, 0, 0, 0}},
};

/// An array in a buffer of exactly the size it needs, so that the address sanitizer sees each access beyond it. What
/// lies between its elements is filled with a pattern that no result has.
template <class T>
class Array {
 public:
  explicit Array(const Shape& shape, const Layout& layout = contiguous) {
    view_.shape = shape;
    Index unit = 1, first = 0, last = 0;
    for (int place = 3; place >= 0; --place) {
      const auto axis = static_cast<std::size_t>(layout.order[static_cast<std::size_t>(place)]);
      const Index stride = layout.step[axis] * unit;
      view_.stride[axis] = stride;
      const Index reach = shape[axis] > 0 ? (shape[axis] - 1) * stride : 0;
      (stride < 0 ? first : last) += reach;
      unit *= std::max<Index>(std::abs(layout.step[axis]) * shape[axis], 1);
    }
    const bool empty = shape[0] * shape[1] * shape[2] * shape[3] == 0;
    buffer_.assign(static_cast<std::size_t>(empty ? 0 : last - first + 1), gap());
    view_.data = empty ? buffer_.data() : buffer_.data() - first;
  }
  Array(const Array& other) : buffer_(other.buffer_), view_(other.view_) { rebase(other); }
  Array& operator=(const Array& other) {
    buffer_ = other.buffer_;
    view_ = other.view_;
    rebase(other);
    return *this;
  }

  /// A copy with the values rounded to T.
  Array(const Dense& values, const Layout& layout) : Array(values.shape, layout) {
    for_each([&](T& element, std::size_t at) { element = rounded<T>(values.data[at]); });
  }

  const View<T>& view() const { return view_; }
  const Shape& shape() const { return view_.shape; }

  T& at(Index i, Index j, Index k, Index l) const {
    const Shape& s = view_.stride;
    return view_.data[i * s[0] + j * s[1] + k * s[2] + l * s[3]];
  }

  Dense dense() const {
    Dense result(view_.shape);
    for_each([&](const T& element, std::size_t at) { result.data[at] = value_of(element); });
    return result;
  }

  /// The elements in row-major order, whatever the layout.
  std::vector<T> elements() const {
    std::vector<T> result;
    for_each([&](const T& element, std::size_t) { result.push_back(element); });
    return result;
  }

  const std::vector<T>& buffer() const { return buffer_; }

  /// Whether the memory between the elements is as it was.
  bool gaps_are_intact() const {
    std::vector<bool> is_element(buffer_.size());
    for_each(
        [&](const T& element, std::size_t) { is_element[static_cast<std::size_t>(&element - buffer_.data())] = true; });
    const T pattern = gap();
    for (std::size_t at = 0; at < buffer_.size(); ++at) {
      if (!is_element[at] && std::memcmp(&buffer_[at], &pattern, sizeof(T)) != 0) {
        return false;
      }
    }
    return true;
  }

 private:
  /// The bytes 0xff: a NaN in every type, and one that no operation makes.
  static T gap() {
    T value;
    std::memset(static_cast<void*>(&value), 0xff, sizeof(T));
    return value;
  }

  void rebase(const Array& other) { view_.data = buffer_.data() + (other.view_.data - other.buffer_.data()); }

  template <class Each>
  void for_each(Each&& each) const {
    std::size_t at = 0;
    for (Index i = 0; i < view_.shape[0]; ++i) {
      for (Index j = 0; j < view_.shape[1]; ++j) {
        for (Index k = 0; k < view_.shape[2]; ++k) {
          for (Index l = 0; l < view_.shape[3]; ++l, ++at) {
            each(this->at(i, j, k, l), at);
          }
        }
      }
    }
  }

  std::vector<T> buffer_;
  View<T> view_;
};

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

/// Exactly this many bytes at a multiple of 64, so that the address sanitizer guards both ends.
class Aligned {
 public:
  explicit Aligned(std::size_t bytes) : data_(static_cast<unsigned char*>(::operator new(bytes, alignment))) {}
  ~Aligned() { ::operator delete(data_, alignment); }
  Aligned(const Aligned&) = delete;
  Aligned& operator=(const Aligned&) = delete;
  unsigned char* data() const { return data_; }

 private:
  static constexpr std::align_val_t alignment{64};
  unsigned char* data_;
};

/// Exactly as much memory as a call asks for, of which nothing is known.
class CallerMemory {
 public:
  explicit CallerMemory(std::size_t bytes) : bytes_(bytes), memory_(std::max<std::size_t>(bytes, 1)) {
    std::fill_n(memory_.data(), bytes, static_cast<unsigned char>(0xff));  // NaN in every type
  }
  Workspace workspace() const { return {memory_.data(), bytes_}; }

 private:
  std::size_t bytes_;
  Aligned memory_;
};

// ---- problems -----------------------------------------------------------------------------------------------------

/// Random numbers that are the same with every standard library.
class Random {
 public:
  explicit Random(std::uint64_t seed) : engine_(seed) {}

  Index integer(Index low, Index high) {
    return low + static_cast<Index>(engine_() % static_cast<std::uint64_t>(high - low + 1));
  }
  bool coin() { return integer(0, 1) == 1; }
  double uniform(double low, double high) {
    return low + (high - low) * static_cast<double>(engine_() >> 11) * 0x1p-53;
  }
  template <class Container>
  const auto& pick(const Container& from) {
    return from[static_cast<std::size_t>(integer(0, static_cast<Index>(std::size(from)) - 1))];
  }

 private:
  std::mt19937_64 engine_;
};

inline constexpr Corner all_corners[] = {Corner::tl, Corner::tr, Corner::bl, Corner::br};

inline Dense random_images(Random& random, const Shape& shape) {
  Dense images(shape);
  for (double& value : images.data) {
    value = random.uniform(-1, 1);
  }
  return images;
}

/// A weight whose other taps add up to less than `row_sum`, with a diagonal of 1 to 2 in magnitude: for row_sum < 1 a
/// solve magnifies its input by at most 1 / (1 - row_sum). What must not be read is NaN.
inline Dense random_weight(Random& random, const Shape& shape, const Options& options, double row_sum) {
  Dense weight(shape);
  const double most = row_sum / static_cast<double>(std::max<Index>(shape[1] * shape[2] * shape[3], 1));
  for (Index o = 0; o < shape[0]; ++o) {
    for (Index c = 0; c < shape[1]; ++c) {
      for (Index u = 0; u < shape[2]; ++u) {
        for (Index v = 0; v < shape[3]; ++v) {
          Options with_diagonal = options;
          with_diagonal.unit_diagonal = true;
          const Entry kind = entry(shape, with_diagonal, o, c, u, v);
          double& w = weight(o, c, u, v);
          if (kind == Entry::read) {
            w = random.uniform(-most, most);
          } else if (kind == Entry::one && !options.unit_diagonal) {
            w = random.coin() ? random.uniform(1, 2) : random.uniform(-2, -1);
          } else {
            w = std::numeric_limits<double>::quiet_NaN();
          }
        }
      }
    }
  }
  return weight;
}

/// A shape of images and of the weight, and the options.
struct Problem {
  Shape image;
  Shape weight;
  Options options;
};

inline Problem make_problem(const Shape& image, Index kernel_height, Index kernel_width, const Options& options) {
  return {image, {image[1], image[1] / options.groups, kernel_height, kernel_width}, options};
}

inline std::ostream& operator<<(std::ostream& out, const Problem& problem) {
  constexpr const char* names[] = {"tl", "tr", "bl", "br"};
  const auto print = [&](const Shape& s) { out << '(' << s[0] << ", " << s[1] << ", " << s[2] << ", " << s[3] << ')'; };
  out << "image ";
  print(problem.image);
  out << ", weight ";
  print(problem.weight);
  out << ", groups " << problem.options.groups << ", corners";
  for (const Corner corner : problem.options.corners) {
    out << ' ' << names[static_cast<int>(corner)];
  }
  return out << (problem.options.unit_diagonal ? ", unit diagonal" : ", free diagonal")
             << (problem.options.transpose ? ", transposed" : "");
}

/// Options of any kind, with one of these numbers of groups.
inline Options random_options(Random& random, const std::array<Index, 5>& groups) {
  Options options;
  options.groups = random.pick(groups);
  options.corners.clear();
  for (Index group = random.coin() ? options.groups : 1; group > 0; --group) {
    options.corners.push_back(random.pick(all_corners));
  }
  options.unit_diagonal = random.coin();
  options.transpose = random.coin();
  return options;
}

/// A small problem of any kind. The sizes reach both sides of 4, 8 and 16, the numbers of lanes and of output channels
/// that kernels work on at once.
inline Problem random_problem(Random& random) {
  constexpr Index batches[] = {0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17};
  constexpr Index channels_of_a_group[] = {1, 2, 3, 4, 5, 7, 8, 9, 12, 13, 16, 17};
  const Options options = random_options(random, {1, 1, 2, 3, 4});
  const Index per_group = random.pick(channels_of_a_group);
  const bool wide = options.groups * per_group > 12;
  const Index batch = random.pick(batches);
  const Index largest = wide ? 4 : 9;
  const Shape image{wide ? std::min<Index>(batch, 5) : batch, options.groups * per_group, random.integer(0, largest),
                    random.integer(0, largest)};
  return make_problem(image, random.integer(1, 4), random.integer(1, 4), options);
}

// ---- what solve and conv promise ------------------------------------------------------------------------------------

/// The promise: |M x - y| <= 2 (n + 2) eps (|M| |x| + |y|) with n = kh kw C/groups terms per output. Half of it is the
/// theory's (Higham, theorem 8.5: a substitution, or a dot product, of n terms has a relative backward error of n eps
/// in each entry, and one more eps for the diagonal); the other half pays for the rounding of this reference, which
/// sums the same n terms in double. A half type adds the rounding of what it stores: of x in a solve, which M then
/// spreads, and of y in a convolution.
template <class T>
void expect_within_bound(Operation operation, const Dense& in, const Dense& weight, const Dense& out,
                         const Options& options) {
  const bool is_solve = operation == Operation::solve;
  const Dense& x = is_solve ? out : in;
  const Dense& y = is_solve ? in : out;
  const Dense product = conv(x, weight, options);
  const Dense spread = conv(magnitude(x), magnitude(weight), options);
  Dense stored = magnitude(out);
  for (double& value : stored.data) {
    value = storage_roundoff<T> * value + storage_underflow<T>;
  }
  if (is_solve) {
    stored = conv(stored, magnitude(weight), options);
  }
  const double terms = static_cast<double>(weight.shape[1] * weight.shape[2] * weight.shape[3]);
  for (std::size_t at = 0; at < y.data.size(); ++at) {
    const double bound =
        2 * (terms + 2) * arithmetic_roundoff<T> * (spread.data[at] + std::abs(y.data[at])) + stored.data[at];
    const double residual = std::abs(product.data[at] - y.data[at]);
    // Written so that a NaN fails.
    ASSERT_TRUE(residual <= bound) << "element " << at << ": |M x - y| = " << residual << ", but the bound is "
                                   << bound;
  }
}

}  // namespace invconv::test
