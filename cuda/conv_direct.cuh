#pragma once

// conv, any shape: the lanes of a group of `lanes` share a pixel, each an output channel; no output waits for another.
//
// A result may be written over its input: then one block has an image to itself and goes through it from the last pixel
// to the first, a piece at a time, since a pixel is read by later ones alone. The results of a piece wait in shared
// memory until all of it has been read.

#include "packed_weight.cuh"

namespace invconv::detail::cuda {

template <class T>
__global__ void __launch_bounds__(256, 1)
    conv_direct(Groups<FilterGroup<T>> groups, DirectShape of, const Arithmetic<T>* packed) {
  using A = Arithmetic<T>;
  const GroupShape& s = of.shape;
  const unsigned chain = blockIdx.x / static_cast<unsigned>(of.blocks_per_image);
  const int group_index = static_cast<int>(chain % static_cast<unsigned>(groups.count));
  const FilterGroup<T> group{groups.at(group_index).from_image(chain / static_cast<unsigned>(groups.count))};

  A* shared = shared_memory<A>();
  const Index weight_size = Index{s.kernel_height} * s.kernel_width * s.channels * of.padded;
  const A* const weight =
      block_weight<T, false>(s, group.weight, of.padded, of.weight_in_shared, packed, group_index, shared);
  A* const waiting = shared + (of.weight_in_shared ? weight_size : 0);  // [pixel][channel], in place alone

  const int lane = static_cast<int>(threadIdx.x) % of.lanes, place = static_cast<int>(threadIdx.x) / of.lanes;
  const int pixels_at_once = static_cast<int>(blockDim.x) / of.lanes;
  const Index tap_size = Index{s.channels} * of.padded;
  const A* const anchor = weight + (s.kernel_height * s.kernel_width - 1) * tap_size;
  const Index pixels = Index{s.height} * s.width;
  const Index pieces = (pixels + pixels_at_once - 1) / pixels_at_once;

  for (Index turn = blockIdx.x % static_cast<unsigned>(of.blocks_per_image); turn < pieces;
       turn += of.blocks_per_image) {
    const Index pixel = (pieces - 1 - turn) * pixels_at_once + place;
    const int row = static_cast<int>(pixel / s.width), column = static_cast<int>(pixel % s.width);
    const int rows = row < s.kernel_height - 1 ? row : s.kernel_height - 1;
    const int columns = column < s.kernel_width - 1 ? column : s.kernel_width - 1;
    for (int output = lane; output < s.channels && pixel < pixels; output += of.lanes) {
      A sum = 0;
      for (int i = rows; i >= 0; --i) {
        for (int j = columns; j >= 0; --j) {
          const T* const x = group.in.data + (row - i) * group.in.row + (column - j) * group.in.column;
          const A* const w = weight + tap_index(s, i, j) * tap_size + output;
          const int channels = i == 0 && j == 0 ? output : s.channels;
          for (int c = 0; c < channels; ++c) {
            sum = multiply_add(widen(x[c * group.in.channel]), w[c * Index{of.padded}], sum);
          }
        }
      }
      const A own = widen(group.in.data[output * group.in.channel + row * group.in.row + column * group.in.column]);
      sum = settled(s.unit_diagonal ? sum + own : multiply_add(own, anchor[output * Index{of.padded} + output], sum));
      if (of.in_place) {
        waiting[place * Index{s.channels} + output] = sum;
      } else {
        narrow(sum, group.out.data[output * group.out.channel + row * group.out.row + column * group.out.column]);
      }
    }
    if (of.in_place) {
      __syncthreads();
      for (int output = lane; output < s.channels && pixel < pixels; output += of.lanes) {
        narrow(waiting[place * Index{s.channels} + output],
               group.out.data[output * group.out.channel + row * group.out.row + column * group.out.column]);
      }
      // What the next piece writes into `waiting` is by the same threads; what it reads lies before this one.
    }
  }
}

}  // namespace invconv::detail::cuda
