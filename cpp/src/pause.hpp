#pragma once

#if defined(__unix__) || defined(__APPLE__)
#include <sched.h>
#endif

namespace invconv::detail {

/// One turn of a loop that waits for another thread: leaves the core to its other hardware thread for a moment.
/// Always inlined, since kernels of several instruction sets use it.
[[gnu::always_inline]] inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("yield");
#endif
}

/// Returns once done(), which another thread at work brings about; who waits long gives its core away.
template <class Done>
[[gnu::always_inline]] inline void wait_until(Done&& done) {
  for (int turns = 0; !done(); ++turns) {
    if (turns < 4000) {
      pause();
    } else {
#if defined(__unix__) || defined(__APPLE__)
      sched_yield();
#endif
    }
  }
}

}  // namespace invconv::detail
