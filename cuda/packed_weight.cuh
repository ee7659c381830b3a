#pragma once

// A group's weight as kernels read it: [tap][input][output], the taps from the oldest to the anchor, `padded` outputs
// to a line, so that lanes read neighbours. A solve subtracts, so its coefficients are negated, but for the anchor's
// diagonal. What is not read is 0.

#include "problem.cuh"

namespace invconv::detail::cuda {

__device__ inline int tap_index(const GroupShape& s, int i, int j) {
  return (s.kernel_height - 1 - i) * s.kernel_width + s.kernel_width - 1 - j;
}

/// Where the anchor begins.
__device__ inline Index anchor_at(const GroupShape& s, int padded) {
  return Index{s.kernel_height * s.kernel_width - 1} * s.channels * padded;
}

template <class T, bool Solve>
__device__ void pack(const GroupShape& s, const Taps<const T>& weight, int padded, Arithmetic<T>* to, Index begin,
                     Index step) {
  using A = Arithmetic<T>;
  const Index size = Index{s.kernel_height} * s.kernel_width * s.channels * padded;
  for (Index at = begin; at < size; at += step) {
    const int output = static_cast<int>(at % padded), input = static_cast<int>(at / padded % s.channels);
    const int tap = static_cast<int>(at / padded / s.channels);
    const int i = s.kernel_height - 1 - tap / s.kernel_width, j = s.kernel_width - 1 - tap % s.kernel_width;
    const bool is_anchor = i == 0 && j == 0;
    A value = 0;
    if (output < s.channels && is_read(s.unit_diagonal, i, j, output, input)) {
      value = widen(weight.data[output * weight.out + input * weight.in + i * weight.row + j * weight.column]);
      value = Solve && !(is_anchor && input == output) ? -value : value;
    }
    to[at] = value;
  }
}

/// For weights that do not fit in shared memory.
template <class T, bool Solve>
__global__ void __launch_bounds__(256, 1)
    pack_weights(Groups<FilterGroup<T>> groups, GroupShape shape, int padded, Arithmetic<T>* packed) {
  const Index size = Index{shape.kernel_height} * shape.kernel_width * shape.channels * padded;
  const Index blocks = gridDim.x / static_cast<unsigned>(groups.count);
  const int group = static_cast<int>(blockIdx.x) % groups.count;
  const Index block = blockIdx.x / static_cast<unsigned>(groups.count);
  pack<T, Solve>(shape, groups.at(group).weight, padded, packed + group * size,
                 block * static_cast<Index>(blockDim.x) + threadIdx.x, blocks * static_cast<Index>(blockDim.x));
}

/// The block's weight: packed by its threads into shared memory, or where pack_weights() has left it.
template <class T, bool Solve>
__device__ const Arithmetic<T>* block_weight(const GroupShape& s, const Taps<const T>& weight, int padded,
                                             bool in_shared, const Arithmetic<T>* packed, int group,
                                             Arithmetic<T>* shared) {
  if (!in_shared) {
    return packed + group * (Index{s.kernel_height} * s.kernel_width * s.channels * padded);
  }
  pack<T, Solve>(s, weight, padded, shared, threadIdx.x, blockDim.x);
  __syncthreads();
  return shared;
}

}  // namespace invconv::detail::cuda
