#pragma once

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

}  // namespace invconv::detail
