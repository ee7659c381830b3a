// Bands of rows that follow each other on several threads. Part of kernels.inl.

#pragma once

#include "cpu/vectors.inl"
#include "pause.hpp"

namespace invconv::detail::cpu {
namespace {

/// The places of progress are used by one band after another, so it counts on from band to band.
[[gnu::always_inline]] inline Index progress_of(Index band, Index columns, Index width) {
  return band * (width + 1) + columns;
}

/// The band above. It has begun, since bands are dealt out in order.
template <class A>
class BandAbove {
 public:
  BandAbove(const Band<A>& band, Index width) : band_(band), width_(width) {}

  /// Returns once it has finished `columns` columns. What it has been seen to have finished is remembered: to look
  /// again is to fetch a cache line from another core.
  void wait_for(Index columns) {
    if (band_.before == nullptr) {
      return;
    }
    const Index enough = progress_of(band_.index - 1, columns < width_ ? columns : width_, width_);
    if (seen_ < enough) {
      wait_until([&]() __attribute__((always_inline)) {
        seen_ = __atomic_load_n(&band_.before->columns, __ATOMIC_ACQUIRE);
        return seen_ >= enough;
      });
    }
  }

 private:
  const Band<A>& band_;
  Index width_, seen_ = -1;
};

template <class A>
void finished(const Band<A>& band, Index columns, Index width) {
  if (band.done != nullptr) {
    __atomic_store_n(&band.done->columns, progress_of(band.index, columns, width), __ATOMIC_RELEASE);
  }
}

}  // namespace
}  // namespace invconv::detail::cpu
