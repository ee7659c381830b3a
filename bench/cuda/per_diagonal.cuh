#pragma once

// A baseline: the solve as the method's first CUDA code launched it, one kernel for each anti-diagonal and channel, so
// that a solve is (height + width - 1) * channels launches, which follow each other on the stream.

#include <algorithm>
#include <cstdint>

#include "device.cuh"

namespace invconv::bench {

/// Contiguous images and a weight of kernel x kernel taps, one group, corner tl, a unit diagonal.
struct PerDiagonalShape {
  int batch, channels, height, width, kernel;
};

/// One channel of x on one anti-diagonal, whose first pixel lies in row `first`, of all images. A thread has a pixel;
/// earlier diagonals are complete, and so are earlier channels of this one.
__global__ void solve_diagonal_of_channel(const float* y, const float* weight, float* x, PerDiagonalShape s,
                                          int diagonal, int first, int pixels, int channel) {
  const std::int64_t index = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (index >= std::int64_t{s.batch} * pixels) {
    return;
  }
  const std::int64_t plane = std::int64_t{s.height} * s.width, image = index / pixels * s.channels * plane;
  const int row = first + static_cast<int>(index % pixels), column = diagonal - row;
  const std::int64_t pixel = image + std::int64_t{row} * s.width + column;
  const float* const taps = weight + std::int64_t{channel} * s.channels * s.kernel * s.kernel;
  float sum = y[pixel + channel * plane];
  // In the order of our kernels, so that the results have their bits.
  for (int i = s.kernel - 1 < row ? s.kernel - 1 : row; i >= 0; --i) {
    for (int j = s.kernel - 1 < column ? s.kernel - 1 : column; j >= 0; --j) {
      const int inputs = i == 0 && j == 0 ? channel : s.channels;
      for (int input = 0; input < inputs; ++input) {
        const float tap = taps[(input * s.kernel + s.kernel - 1 - i) * s.kernel + s.kernel - 1 - j];
        sum = detail::cuda::multiply_add(-tap, x[pixel + input * plane - std::int64_t{i} * s.width - j], sum);
      }
    }
  }
  x[pixel + channel * plane] = sum;
}

/// `after_each()` is called after each launch. No array is empty.
template <class AfterEach>
void solve_per_diagonal(const float* y, const float* weight, float* x, const PerDiagonalShape& s, void* stream,
                        AfterEach&& after_each) {
  constexpr std::int64_t threads = 256;
  for (int diagonal = 0; diagonal < s.height + s.width - 1; ++diagonal) {
    const int first = std::max(0, diagonal - (s.width - 1));
    const int pixels = std::min(diagonal, s.height - 1) - first + 1;
    const auto blocks = static_cast<unsigned>((std::int64_t{s.batch} * pixels + threads - 1) / threads);
    for (int channel = 0; channel < s.channels; ++channel) {
      detail::cuda::launch(solve_diagonal_of_channel, {blocks, threads, 0, stream}, y, weight, x, s, diagonal, first,
                           pixels, channel);
      after_each();
    }
  }
}

}  // namespace invconv::bench
