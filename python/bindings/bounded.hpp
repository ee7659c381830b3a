#pragma once

/// The bounded weight of invconv.nn, whose formula takes torch ten times as long for a small layer.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "invconv/invconv.hpp"

/// Writes (I + L)(I + V) into `weight`, (C, C/groups, kh, kw) as `taps`, both dense: L is the strictly lower triangle
/// of the taps at the anchor, each row scaled until its absolute values sum up to `bound` at most; V the other taps,
/// those of a group scaled until their norms do so, where a tap's norm is the largest of its rows' sums of absolute
/// values. Infinite taps count as the largest number whose sums stay finite.
template <class T>
void bounded_weight(const T* taps, T* weight, const invconv::Shape& shape, double bound,
                    const invconv::Options& options) {
  const auto [channels, size, height, width] = shape;
  const std::int64_t count = height * width, row = size * count;
  std::vector<T> lower(static_cast<std::size_t>(size * size));  // I + L
  const T largest = std::numeric_limits<T>::max() / static_cast<T>(channels * row);
  const auto at = [](std::int64_t index) { return static_cast<std::size_t>(index); };
  // What keeps a sum within the bound; of NaN comes NaN.
  const auto scale = [bound](double sum) { return static_cast<T>(sum <= bound ? 1 : bound / sum); };
  std::transform(taps, taps + channels * row, weight, [largest](T tap) {
    return tap < -largest ? -largest : tap > largest ? largest : tap;
  });
  for (std::int64_t group = 0; group < options.groups; ++group, weight += size * row) {
    const auto of = options.corners.size() > 1 ? static_cast<std::size_t>(group) : 0;
    const invconv::Corner corner = options.corners[of];
    const bool top = corner == invconv::Corner::tl || corner == invconv::Corner::tr;
    const bool left = corner == invconv::Corner::tl || corner == invconv::Corner::bl;
    const std::int64_t anchor = (top ? height - 1 : 0) * width + (left ? width - 1 : 0);
    double norms = 0;
    for (std::int64_t tap = 0; tap < count; ++tap) {
      double norm = 0;
      for (std::int64_t o = 0; o < size && tap != anchor; ++o) {
        double sum = 0;
        for (std::int64_t c = 0; c < size; ++c) {
          sum += std::abs(weight[o * row + c * count + tap]);
        }
        norm = norm >= sum ? norm : std::isnan(norm) ? norm : sum;
      }
      norms += norm;
    }
    for (std::int64_t o = 0; o < size; ++o) {
      T* const to = weight + o * row;
      double sum = 0;
      for (std::int64_t c = 0; c < o; ++c) {
        sum += std::abs(to[c * count + anchor]);
      }
      for (std::int64_t c = 0; c < size; ++c) {
        lower[at(o * size + c)] = c < o ? to[c * count + anchor] * scale(sum) : static_cast<T>(c == o);
        to[c * count + anchor] = 0;
      }
    }
    // (I + L) V, from the last row on, since each takes in those before it.
    std::transform(weight, weight + size * row, weight, [others = scale(norms)](T tap) { return tap * others; });
    for (std::int64_t o = size - 1; o > 0; --o) {
      T* const to = weight + o * row;
      for (std::int64_t c = 0; c < o; ++c) {
        const T factor = lower[at(o * size + c)], *const from = weight + c * row;
        for (std::int64_t k = 0; k < row; ++k) {
          to[k] += factor * from[k];
        }
      }
    }
    for (std::int64_t k = 0; k < size * size; ++k) {
      weight[k * count + anchor] = lower[at(k)];
    }
  }
}
