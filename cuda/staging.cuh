#pragma once

// From global to shared memory: boxes of images, as they are stored, by all threads of a block.

#include "problem.cuh"

namespace invconv::detail::cuda {

/// Division by a multiplication, exact while number * divisor < 2^32: numbers count elements of shared memory.
class Divider {
 public:
  __device__ explicit Divider(int divisor)
      : divisor_(static_cast<unsigned>(divisor)), inverse_(0xffffffffu / divisor_ + 1) {}

  __device__ int quotient(int number) const {
    const auto high = static_cast<int>(std::uint64_t{static_cast<unsigned>(number)} * inverse_ >> 32);
    return divisor_ == 1 ? number : high;
  }
  __device__ int remainder(int number, int quotient) const { return number - quotient * static_cast<int>(divisor_); }

 private:
  unsigned divisor_, inverse_;  // of 1 the inverse is out of range
};

/// What a block is for: the digits of its index, the lowest first.
class BlockDigits {
 public:
  __device__ int operator()(int base) {
    const unsigned all = rest_;
    rest_ /= static_cast<unsigned>(base);
    return static_cast<int>(all - rest_ * static_cast<unsigned>(base));
  }

 private:
  unsigned rest_ = blockIdx.x;
};

struct Place {
  int channel, row, column;
};

/// The elements of a box of images, counted along the fastest axis of the array first, so that neighbours in a warp
/// read neighbours in memory.
class Walk {
 public:
  template <class T>
  __device__ Walk(const Images<const T>& images, int channels, int rows, int columns)
      : fastest_(fastest_axis(images)),
        first_(fastest_ == column ? columns
               : fastest_ == row  ? rows
                                  : channels),
        second_(fastest_ == column ? rows : columns) {}

  __device__ Place operator()(int at) const {
    const int rest = first_.quotient(at), a = first_.remainder(at, rest);
    const int c = second_.quotient(rest), b = second_.remainder(rest, c);
    return fastest_ == column ? Place{c, b, a} : fastest_ == row ? Place{c, a, b} : Place{a, c, b};
  }

 private:
  enum Axis { channel, row, column };

  template <class T>
  __device__ static Axis fastest_axis(const Images<const T>& images) {
    const auto size = [](Index stride) { return stride < 0 ? -stride : stride; };
    if (size(images.column) <= size(images.row) && size(images.column) <= size(images.channel)) {
      return column;
    }
    return size(images.row) <= size(images.channel) ? row : channel;
  }

  Axis fastest_;
  Divider first_, second_;
};

/// Copies `count` elements: `find(at, place)` says where the element lies, null for a zero, and sets its place in `to`.
/// Several are on their way at a time.
template <class T, class Find>
__device__ void stage(int count, Arithmetic<T>* to, const Find& find) {
  constexpr int at_once = 8;
  const int threads = static_cast<int>(blockDim.x);
  for (int begin = static_cast<int>(threadIdx.x); begin < count; begin += at_once * threads) {
    T values[at_once];
    int places[at_once];
    INVCONV_UNROLL
    for (int k = 0; k < at_once; ++k) {
      const int at = begin + k * threads;
      const T* const from = at < count ? find(at, places[k]) : nullptr;
      values[k] = T{};
      if (from != nullptr) {
        values[k] = *from;
      }
    }
    INVCONV_UNROLL
    for (int k = 0; k < at_once; ++k) {
      if (begin + k * threads < count) {
        to[places[k]] = widen(values[k]);
      }
    }
  }
}

}  // namespace invconv::detail::cuda
