// bounded_weight: from free numbers to a weight whose inverse is bounded.

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include "check.hpp"
#include "geometry.hpp"

namespace invconv {

namespace {

using namespace detail;

template <class A, class T>
A widened(T number) {
  if constexpr (std::is_same_v<T, A>) {
    return number;
  } else {
    return to_float(number);
  }
}

template <class T, class A>
T narrowed(A number) {
  if constexpr (std::is_same_v<T, A>) {
    return number;
  } else if constexpr (std::is_same_v<T, float16>) {
    return to_float16(number);
  } else {
    return to_bfloat16(number);
  }
}

/// One group's weight as a dense array [output][tap][input], the anchor's first.
template <class A>
class Bounded {
 public:
  Bounded(std::int64_t channels, std::int64_t taps)
      : channels_(channels), row_(taps * channels), numbers_(static_cast<std::size_t>(channels * row_)) {}

  A* row(std::int64_t output) { return numbers_.data() + output * row_; }

  /// From free taps to (I + L)(I + V).
  void bound(double bound) {
    // What keeps a sum within the bound; of NaN comes NaN.
    const auto scale = [bound](double sum) { return static_cast<A>(sum <= bound ? 1 : bound / sum); };
    const auto absolute = [](const A* from, std::int64_t count) {
      double sum = 0;
      for (std::int64_t k = 0; k < count; ++k) {
        sum += std::abs(from[k]);
      }
      return sum;
    };
    double norms = 0;
    for (std::int64_t at = channels_; at < row_; at += channels_) {
      double norm = 0;
      for (std::int64_t o = 0; o < channels_; ++o) {
        const double sum = absolute(row(o) + at, channels_);
        norm = norm >= sum || std::isnan(norm) ? norm : sum;  // the larger one; NaN stays
      }
      norms += norm;
    }
    for (std::int64_t o = 0; o < channels_; ++o) {
      A* const to = row(o);
      const A lower = scale(absolute(to, o)), others = scale(norms);
      std::for_each(to, to + o, [lower](A& tap) { tap *= lower; });
      to[o] = 1;
      std::fill(to + o + 1, to + channels_, A(0));
      std::for_each(to + channels_, to + row_, [others](A& tap) { tap *= others; });
    }
    // (I + L) V from the last row on, since each takes in those before it.
    for (std::int64_t o = channels_ - 1; o > 0; --o) {
      A* const to = row(o);
      for (std::int64_t c = 0; c < o; ++c) {
        const A factor = to[c], *const from = row(c);
        for (std::int64_t k = channels_; k < row_; ++k) {
          to[k] += factor * from[k];
        }
      }
    }
  }

 private:
  std::int64_t channels_, row_;
  std::vector<A> numbers_;
};

}  // namespace

template <class T>
void bounded_weight(In<T> taps, double bound, View<T> weight, const Options& options) {
  using A = Arithmetic<T>;
  const char* const function = "bounded_weight";
  const Sizes sizes = check_weight(function, taps.shape, options);
  check_same_shape(function, "weight", weight.shape, "taps", taps.shape);
  check_output(function, "weight", weight.shape, weight.stride);
  check_data(function, "taps", taps.data, taps.shape);
  check_data(function, "weight", weight.data, weight.shape);
  if (!(bound > 0 && bound < 1)) {
    throw Error("[bounded_weight] expected bound in (0, 1), but got " + std::to_string(bound));
  }
  const std::int64_t channels = sizes.channels, width = sizes.kernel_width, count = sizes.kernel_height * width;
  // The largest number whose sums stay finite.
  const std::int64_t numbers = std::max<std::int64_t>(sizes.groups * channels * channels * count, 1);
  const A largest = std::numeric_limits<A>::max() / static_cast<A>(numbers);
  Bounded<A> bounded(channels, count);
  const auto for_taps = [&](const auto& of, auto&& each) {
    for (std::int64_t o = 0; o < channels; ++o) {
      A* number = bounded.row(o);
      for (std::int64_t tap = 0; tap < count; ++tap) {
        for (std::int64_t c = 0; c < channels; ++c) {
          each(of.data[o * of.out + c * of.in + tap / width * of.row + tap % width * of.column], *number++);
        }
      }
    }
  };
  for (std::int64_t group = 0; group < sizes.groups; ++group) {
    const Corner corner = corner_of(options, group);
    for_taps(group_taps(taps, group, channels, corner, false), [largest](const T& from, A& to) {
      const A tap = widened<A>(from);
      to = tap < -largest ? -largest : tap > largest ? largest : tap;
    });
    bounded.bound(bound);
    for_taps(group_taps(weight, group, channels, corner, false), [](T& to, const A& from) { to = narrowed<T>(from); });
  }
}

#define INVCONV_INSTANTIATE(T) template void bounded_weight<T>(In<T>, double, View<T>, const Options&);
INVCONV_INSTANTIATE(float)
INVCONV_INSTANTIATE(double)
INVCONV_INSTANTIATE(float16)
INVCONV_INSTANTIATE(bfloat16)

}  // namespace invconv
