#pragma once

// The rest of what cuda/device.cuh declares.

#include <cmath>
#include <cstddef>
#include <cstring>

#include "cuda_on_host.hpp"

#define INVCONV_NOINLINE
#define INVCONV_UNROLL
#define INVCONV_UNROLL_BY(times)

namespace invconv::detail::cuda {

inline void sync_block() { __syncthreads(); }

inline float multiply_add(float a, float b, float c) { return std::fma(a, b, c); }
inline double multiply_add(double a, double b, double c) { return std::fma(a, b, c); }

inline int unforeseen(int value) { return value; }

inline void clear(void* memory, std::size_t bytes, void*) {
  ++cuda_on_host::launches;
  std::memset(memory, 0, bytes);
}

inline int count_devices() { return 1; }

inline std::size_t most_shared_bytes(int) { return cuda_on_host::most_shared_bytes; }

struct DeviceGuard {
  explicit DeviceGuard(int) {}
};

}  // namespace invconv::detail::cuda
