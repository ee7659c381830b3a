#pragma once

// One solve, eight problems: every corner, transposed or not, is the top-left problem seen through flipped axes.
//
// A corner flips rows (b) and columns (r) of the images. The transpose of a causal convolution is causal towards the
// opposite corner with its weight transposed in the channels; its anchor is then upper triangular, so the channels are
// taken in reverse order, which makes it lower triangular again.

#include <utility>

#include "backend.hpp"

namespace invconv::detail {

inline Corner corner_of(const Options& options, std::int64_t group) {
  return options.corners.size() == 1 ? options.corners[0] : options.corners[static_cast<std::size_t>(group)];
}

inline bool flips_rows(Corner corner) { return corner == Corner::bl || corner == Corner::br; }
inline bool flips_columns(Corner corner) { return corner == Corner::tr || corner == Corner::br; }

template <class T>
Images<T> group_images(const View<T>& view, std::int64_t group, std::int64_t channels, Corner corner, bool transpose) {
  if (has_no_elements(view.shape)) {  // a flip would leave the array
    return {view.data, 0, 0, 0, 0};
  }
  Images<T> images{view.data + group * channels * view.stride[1], view.stride[0], view.stride[1], view.stride[2],
                   view.stride[3]};
  const auto flip = [&](std::int64_t& stride, std::int64_t size) {
    images.data += (size - 1) * stride;
    stride = -stride;
  };
  if (transpose) {
    flip(images.channel, channels);
  }
  if (flips_rows(corner) != transpose) {
    flip(images.row, view.shape[2]);
  }
  if (flips_columns(corner) != transpose) {
    flip(images.column, view.shape[3]);
  }
  return images;
}

template <class T, std::size_t Axes>
Taps<T> group_taps(const View<T, Axes>& weight, std::int64_t group, std::int64_t channels, Corner corner,
                   bool transpose) {
  if (has_no_elements(weight.shape)) {
    return {weight.data, 0, 0, 0, 0};
  }
  const auto [out, in, row, column] = std::to_array<std::int64_t>(
      {weight.stride[Axes - 4], weight.stride[Axes - 3], weight.stride[Axes - 2], weight.stride[Axes - 1]});
  Taps<T> taps{weight.data + group * channels * out, out, in, row, column, Axes == 5 ? weight.stride[0] : 0};
  const auto flip = [&](std::int64_t& stride, std::int64_t size) {
    taps.data += (size - 1) * stride;
    stride = -stride;
  };
  if (transpose) {
    flip(taps.out, channels);
    flip(taps.in, channels);
    std::swap(taps.out, taps.in);
  }
  // A weight that pads the top stores its oldest row first; by age it reads backwards.
  if (!flips_rows(corner)) {
    flip(taps.row, weight.shape[Axes - 2]);
  }
  if (!flips_columns(corner)) {
    flip(taps.column, weight.shape[Axes - 1]);
  }
  return taps;
}

}  // namespace invconv::detail
