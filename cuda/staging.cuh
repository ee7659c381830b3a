#pragma once

// From global to shared memory: boxes of images, as they are stored, by all threads of a block.

#include "problem.cuh"

namespace invconv::detail::cuda {

/// Division by a multiplication. With m = floor((2^32 - 1) / d), floor((n + 1) m / 2^32) is floor(n / d) as long as
/// (n + 1) d <= 2^32: numbers count elements of shared memory.
class Divider {
 public:
  __device__ explicit Divider(int divisor)
      : divisor_(divisor), inverse_(0xffffffffu / static_cast<unsigned>(divisor)) {}

  __device__ int quotient(int number) const {
    return static_cast<int>((std::uint64_t{static_cast<unsigned>(number)} * inverse_ + inverse_) >> 32);
  }
  __device__ int remainder(int number, int quotient) const { return number - quotient * divisor_; }

 private:
  int divisor_;
  unsigned inverse_;
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

/// Where an element is read and written; what is not read is 0.
struct Copy {
  Index from;
  int to;
  bool is_read;
};

/// Copies `count` elements as `find(at)` says, `at_once` at a time, which take as many registers and more. `from[0]` is
/// any element.
template <int at_once, class T, class Find>
__device__ void stage(int count, const T* from, Arithmetic<T>* to, const Find& find) {
  const int threads = static_cast<int>(blockDim.x);
  for (int begin = static_cast<int>(threadIdx.x); begin < count; begin += at_once * threads) {
    T values[at_once];
    int places[at_once];
    INVCONV_UNROLL
    for (int k = 0; k < at_once; ++k) {  // without branches, so that no load waits for another
      const int at = begin + k * threads;
      const Copy copy = find(at < count ? at : begin);
      const T value = from[copy.is_read ? copy.from : 0];
      values[k] = copy.is_read ? value : T{};
      places[k] = copy.to;
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
