#pragma once

// solve, any shape: one thread block for an image and a group of channels. Anti-diagonal by anti-diagonal; of the
// results only the last kernel_height + kernel_width - 1 diagonals are kept, in shared memory where they fit.
//
// The lanes of a group of `lanes` share a pixel, each an output channel. Inside the pixel the channels are substituted
// one after the other by shuffles. One barrier for each diagonal.

#include "packed_weight.cuh"

namespace invconv::detail::cuda {

struct BlockShape {
  GroupShape shape;
  int lanes, padded, diagonals, line;
  bool weight_in_shared, history_in_shared;
};

/// Where the results of the last diagonals lie: [diagonal][pixel][channel]. The pixels of a diagonal are counted along
/// the shorter axis.
template <class A>
struct History {
  A* data;
  int diagonals, line, channels;
  bool by_rows;

  __device__ A* at(int row, int column) const {
    const int place = by_rows ? row : column;
    return data + (Index{(row + column) % diagonals} * line + place) * channels;
  }
};

template <class T>
__global__ void __launch_bounds__(512, 1)
    solve_block(Groups<FilterGroup<T>> groups, BlockShape of, const Arithmetic<T>* packed, Arithmetic<T>* histories) {
  using A = Arithmetic<T>;
  const GroupShape& s = of.shape;
  const int group_index = static_cast<int>(blockIdx.x) % groups.count;
  FilterGroup<T> group = groups.at(group_index);
  const Index image = blockIdx.x / static_cast<unsigned>(groups.count);
  group.in.data += image * group.in.batch;
  group.out.data += image * group.out.batch;

  const Index history_size = Index{of.diagonals} * of.line * s.channels;
  A* shared = shared_memory<A>();
  const History<A> history{of.history_in_shared ? shared : histories + blockIdx.x * history_size, of.diagonals, of.line,
                           s.channels, s.height <= s.width};
  const A* const weight = block_weight<T, true>(s, group.weight, of.padded, of.weight_in_shared, packed, group_index,
                                                shared + (of.history_in_shared ? history_size : 0));
  const int lane = static_cast<int>(threadIdx.x) % of.lanes, warp_lane = static_cast<int>(threadIdx.x) % 32;
  const int first_lane = warp_lane - lane;
  const int pixels_at_once = static_cast<int>(blockDim.x) / of.lanes;
  const Index padded = of.padded, tap_size = s.channels * padded;
  const A* const anchor = weight + (s.kernel_height * s.kernel_width - 1) * tap_size;

  for (int diagonal = 0; diagonal < s.height + s.width - 1; ++diagonal) {
    const int first_row = diagonal < s.width ? 0 : diagonal - s.width + 1;
    const int pixels = (diagonal < s.height ? diagonal + 1 : s.height) - first_row;
    // All lanes of a warp go through the loop together, since they shuffle.
    for (int begin = (static_cast<int>(threadIdx.x) - warp_lane) / of.lanes; begin < pixels; begin += pixels_at_once) {
      const int pixel = begin + first_lane / of.lanes;
      const bool inside = pixel < pixels;
      const int row = first_row + (inside ? pixel : 0), column = diagonal - row;
      A* const here = history.at(row, column);
      for (int first = 0; first < s.channels; first += of.lanes) {
        const int output = first + lane;
        const bool live = inside && output < s.channels;
        A sum = 0;
        if (live) {
          sum = widen(group.in.data[output * group.in.channel + row * group.in.row + column * group.in.column]);
          const int rows = row < s.kernel_height - 1 ? row : s.kernel_height - 1;
          const int columns = column < s.kernel_width - 1 ? column : s.kernel_width - 1;
          for (int i = rows; i >= 0; --i) {
            for (int j = columns; j >= (i == 0 ? 1 : 0); --j) {
              const A* const x = history.at(row - i, column - j);
              const A* const w = weight + tap_index(s, i, j) * tap_size + output;
              for (int c = 0; c < s.channels; ++c) {
                sum = multiply_add(x[c], w[c * padded], sum);
              }
            }
          }
          for (int c = 0; c < first; ++c) {
            sum = multiply_add(here[c], anchor[c * padded + output], sum);
          }
        }
        const int channels = s.channels - first < of.lanes ? s.channels - first : of.lanes;
        for (int c = 0; c < channels; ++c) {
          const A* const w = anchor + (first + c) * padded;
          A value = __shfl_sync(0xffffffff, sum, first_lane + c);
          value = settled(s.unit_diagonal ? value : value / w[first + c]);
          if (lane == c) {
            sum = value;
          } else if (lane > c && live) {
            sum = multiply_add(value, w[output], sum);
          }
        }
        if (live) {
          here[output] = sum;
          narrow(sum, group.out.data[output * group.out.channel + row * group.out.row + column * group.out.column]);
        }
        __syncwarp();  // the next channels of the pixel read these
      }
    }
    __syncthreads();
  }
}

}  // namespace invconv::detail::cuda
