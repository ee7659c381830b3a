#pragma once

// weight_grad, any shape: the rows of all images are dealt out to parts. Each part has its own sums in the workspace,
// in double, which are added up in one order: no result depends on who is done first.

#include "problem.cuh"

namespace invconv::detail::cuda {

struct SumsShape {
  GroupShape shape;
  int batch, parts;
  GroupShape full;  // with taps outside of every image, whose derivatives are 0
  bool negative;
};

__device__ inline Index sums_size(const GroupShape& s) {
  return Index{s.channels} * s.channels * s.kernel_height * s.kernel_width;
}

/// A thread has one entry [output][input][i][j] of a part's sums. At most sums_chain products follow each other in the
/// arithmetic of T.
template <class T>
__global__ void __launch_bounds__(256, 1)
    sum_parts(Groups<CorrelationGroup<T>> groups, SumsShape of, Index blocks_per_part, double* sums) {
  using A = Arithmetic<T>;
  const GroupShape& s = of.shape;
  const Index size = sums_size(s);
  const Index entry = blockIdx.x % blocks_per_part * static_cast<Index>(blockDim.x) + threadIdx.x;
  const Index rest = blockIdx.x / blocks_per_part;
  const int group_index = static_cast<int>(rest % groups.count);
  const Index part = rest / groups.count;
  if (entry >= size) {
    return;
  }
  const int j = static_cast<int>(entry % s.kernel_width),
            i = static_cast<int>(entry / s.kernel_width % s.kernel_height);
  const Index pair = entry / s.kernel_width / s.kernel_height;
  const int input = static_cast<int>(pair % s.channels), output = static_cast<int>(pair / s.channels);
  const CorrelationGroup<T> group = groups.at(group_index);
  const Index rows = Index{of.batch} * s.height;
  const Index begin = rows * part / of.parts, end = rows * (part + 1) / of.parts;
  double total = 0;
  A sum = 0;
  int products = 0;
  for (Index at = begin; at < end; ++at) {
    const Index image = at / s.height, row = at % s.height;
    if (row < i) {
      continue;
    }
    const T* const g = group.g.data + image * group.g.batch + output * group.g.channel + row * group.g.row;
    const T* const x = group.x.data + image * group.x.batch + input * group.x.channel + (row - i) * group.x.row;
    for (int column = j; column < s.width; ++column) {
      sum = multiply_add(widen(g[column * group.g.column]), widen(x[(column - j) * group.x.column]), sum);
      if (++products == sums_chain) {
        total += static_cast<double>(sum);
        sum = 0;
        products = 0;
      }
    }
  }
  sums[(part * groups.count + group_index) * size + entry] = total + static_cast<double>(sum);
}

/// A thread has one entry of the result.
template <class T>
__global__ void __launch_bounds__(256, 1)
    add_parts(Groups<CorrelationGroup<T>> groups, SumsShape of, Index blocks_per_group, const double* sums) {
  const GroupShape &s = of.shape, &full = of.full;
  const Index entry = blockIdx.x % blocks_per_group * static_cast<Index>(blockDim.x) + threadIdx.x;
  const int group_index = static_cast<int>(blockIdx.x / blocks_per_group);
  if (entry >= sums_size(full)) {
    return;
  }
  const int j = static_cast<int>(entry % full.kernel_width);
  const int i = static_cast<int>(entry / full.kernel_width % full.kernel_height);
  const Index pair = entry / full.kernel_width / full.kernel_height;
  const int input = static_cast<int>(pair % s.channels), output = static_cast<int>(pair / s.channels);
  double sum = 0;
  if (is_read(s.unit_diagonal, i, j, output, input) && i < s.kernel_height && j < s.kernel_width) {
    const Index size = sums_size(s), at = (pair * s.kernel_height + i) * s.kernel_width + j;
    for (Index part = 0; part < of.parts; ++part) {
      sum += sums[(part * groups.count + group_index) * size + at];
    }
    sum = of.negative ? -sum : sum;
  }
  const CorrelationGroup<T> group = groups.at(group_index);
  narrow(static_cast<Arithmetic<T>>(sum),
         group.dw.data[output * group.dw.out + input * group.dw.in + i * group.dw.row + j * group.dw.column]);
}

}  // namespace invconv::detail::cuda
