// Bands of rows that follow each other on several threads. Part of kernels.inl.

#pragma once

#if defined(__unix__) || defined(__APPLE__)
#include <sched.h>
#endif

#include "cpu/vectors.inl"
#include "pause.hpp"

namespace invconv::detail::cpu {
namespace {

/// The places of progress are used by one band after another, so it counts on from band to band.
[[gnu::always_inline]] inline Index progress_of(Index band, Index columns, Index width) {
  return band * (width + 1) + columns;
}

/// Returns once the band above has finished `columns` columns. It has begun, since bands are dealt out in order, so
/// this ends; a thread that waits long gives its core away.
template <class A>
void wait_for(const Band<A>& band, Index columns, Index width) {
  if (band.before == nullptr) {
    return;
  }
  const Index enough = progress_of(band.index - 1, columns < width ? columns : width, width);
  for (int turns = 0; __atomic_load_n(&band.before->columns, __ATOMIC_ACQUIRE) < enough; ++turns) {
    if (turns < 4000) {
      pause();
    } else {
#if defined(__unix__) || defined(__APPLE__)
      sched_yield();
#endif
    }
  }
}

template <class A>
void finished(const Band<A>& band, Index columns, Index width) {
  if (band.done != nullptr) {
    __atomic_store_n(&band.done->columns, progress_of(band.index, columns, width), __ATOMIC_RELEASE);
  }
}

}  // namespace
}  // namespace invconv::detail::cpu
