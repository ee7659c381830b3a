#pragma once

// What kernels are handed: the groups' arrays in a form that fits among a kernel's parameters, storage types, and the
// order of operations.
//
// The order of operations that makes one output of solve and conv is that of the CPU kernels (cpu/kernels.hpp) in all
// kernels but solve_image and solve_wide, and every product is added by one fused operation: results have the bits of a
// CPU with fused products. No batch or stream changes a bit of any. Taps outside the image are left out everywhere.

#include <cstdint>
#include <vector>

#include "backend.hpp"
#include "device.cuh"
#include "plan.hpp"

namespace invconv::detail::cuda {

using Index = std::int64_t;

// ---- storage types ------------------------------------------------------------------------------------------------

__device__ inline float widen(float value) { return value; }
__device__ inline double widen(double value) { return value; }
__device__ inline float widen(float16 value) { return to_float(value); }
__device__ inline float widen(bfloat16 value) { return to_float(value); }

__device__ inline void narrow(float value, float& to) { to = value; }
__device__ inline void narrow(double value, double& to) { to = value; }
__device__ inline void narrow(float value, float16& to) { to = to_float16(value); }
__device__ inline void narrow(float value, bfloat16& to) { to = to_bfloat16(value); }

/// Whether a weight's tap (i, j) by age is read, for these channels.
__device__ inline bool is_read(bool unit_diagonal, int i, int j, int output, int input) {
  return i > 0 || j > 0 || input < output || (input == output && !unit_diagonal);
}

/// Zeros get one sign, as on the CPU.
template <class A>
__device__ A settled(A value) {
  return value + A(0);
}

/// Neighbours that are read and written at once.
template <class A, int N>
struct alignas(N % 4 == 0   ? 16
               : N % 2 == 0 ? 2 * sizeof(A)
                            : sizeof(A)) Vector {
  A at[N];
};
template <int N, class A>
__device__ Vector<A, N>& vector(A* at) {
  return *reinterpret_cast<Vector<A, N>*>(at);
}
template <int N, class A>
__device__ const Vector<A, N>& vector(const A* at) {
  return *reinterpret_cast<const Vector<A, N>*>(at);
}

// ---- groups -------------------------------------------------------------------------------------------------------

/// Elements from the arrays of one group to the next one's.
struct Steps {
  Index a = 0, b = 0, c = 0;
};

/// Rows become columns.
template <class Strided>
__device__ void swap_axes(Strided& of) {
  const Index row = of.row;
  of.row = of.column;
  of.column = row;
}

template <class T>
struct FilterGroup : Filter<T>::Group {
  __device__ void swap_images() {
    swap_axes(this->in);
    swap_axes(this->out);
  }
  __device__ void swap_weight() { swap_axes(this->weight); }
  __host__ __device__ void move(const Steps& steps, Index times) {
    this->in.data += steps.a * times;
    this->out.data += steps.b * times;
    this->weight.data += steps.c * times;
  }
  static Steps between(const FilterGroup& from, const FilterGroup& to, Index times) {
    return {(to.in.data - from.in.data) / times, (to.out.data - from.out.data) / times,
            (to.weight.data - from.weight.data) / times};
  }
};

template <class T>
struct CorrelationGroup : Correlation<T>::Group {
  __host__ __device__ void move(const Steps& steps, Index times) {
    this->x.data += steps.a * times;
    this->g.data += steps.b * times;
    this->dw.data += steps.c * times;
  }
  static Steps between(const CorrelationGroup& from, const CorrelationGroup& to, Index times) {
    return {(to.x.data - from.x.data) / times, (to.g.data - from.g.data) / times, (to.dw.data - from.dw.data) / times};
  }
};

/// Groups differ in their corner alone, of which there are four: groups of one corner follow each other at equal steps.
template <class Group>
struct Groups {
  static constexpr int most = 1024;

  struct Variant {
    Group first;
    int index;  // of the first one
    Steps steps;
  };
  int count;
  Variant variants[4];
  std::uint32_t variant_of[most / 16];  // two bits for each group

  __device__ Group at(int index) const {
    const Variant& variant = variants[variant_of[index / 16] >> index % 16 * 2 & 3];
    Group group = variant.first;
    group.move(variant.steps, index - variant.index);
    return group;
  }
};

template <class T>
bool same_strides(const Images<T>& a, const Images<T>& b) {
  return a.batch == b.batch && a.channel == b.channel && a.row == b.row && a.column == b.column;
}

template <class T>
bool same_corner(const FilterGroup<T>& a, const FilterGroup<T>& b) {
  return same_strides(a.in, b.in) && same_strides(a.out, b.out) && a.weight.row == b.weight.row &&
         a.weight.column == b.weight.column;
}

template <class T>
bool same_corner(const CorrelationGroup<T>& a, const CorrelationGroup<T>& b) {
  return same_strides(a.x, b.x) && same_strides(a.g, b.g) && a.dw.row == b.dw.row && a.dw.column == b.dw.column;
}

/// Groups [first, first + count) of a problem, at most Groups::most.
template <class Group, class Source>
Groups<Group> some_groups(const std::vector<Source>& all, std::size_t first, int count) {
  Groups<Group> groups{};
  groups.count = count;
  int variants = 0;
  for (int index = 0; index < count; ++index) {
    const Group group{all[first + static_cast<std::size_t>(index)]};
    int found = 0;
    while (found < variants && !same_corner(groups.variants[found].first, group)) {
      ++found;
    }
    auto& variant = groups.variants[found];
    if (found == variants) {
      ++variants;
      variant = {group, index, {}};
    } else {
      variant.steps = Group::between(variant.first, group, index - variant.index);
    }
    groups.variant_of[index / 16] |= static_cast<std::uint32_t>(found) << index % 16 * 2;
  }
  return groups;
}

}  // namespace invconv::detail::cuda
