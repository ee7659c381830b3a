#pragma once

// What kernels need of a device, each a function of one line, so that the same source runs on the host under the test
// shim of tests/cuda_on_host, which defines the same functions.

#include <cstddef>

#if defined(__CUDACC__)
#include <cuda_runtime.h>

#include <string>

#include "invconv/invconv.hpp"

namespace invconv::detail::cuda {

/// The block's dynamic shared memory.
template <class T>
__device__ T* shared_memory() {
  extern __shared__ __align__(16) unsigned char memory[];
  return reinterpret_cast<T*>(memory);
}

/// __syncthreads(), which warps may call from different places.
__device__ inline void sync_block() { asm volatile("barrier.sync.aligned 0;" ::: "memory"); }

/// Of all threads of the device: what was written before a release is seen after an acquire of the value.
__device__ inline unsigned load_acquire(const unsigned* from) {
  unsigned value;
  asm volatile("ld.acquire.gpu.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}
__device__ inline void store_release(unsigned* to, unsigned value) {
  asm volatile("st.release.gpu.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}
__device__ inline unsigned atomic_add(unsigned* to, unsigned value) { return atomicAdd(to, value); }

/// In a loop that waits.
__device__ inline void back_off() { __nanosleep(32); }

/// Rounded once.
__device__ inline float multiply_add(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ inline double multiply_add(double a, double b, double c) { return __fma_rn(a, b, c); }

/// A value of which the compiler knows nothing before: what follows from it is computed there, and no register keeps it
/// from earlier on.
__device__ inline int unforeseen(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 700
#error "invconv's kernels need architectures of 70 or newer: set CMAKE_CUDA_ARCHITECTURES"
#endif

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) {
    cudaGetLastError();  // or the next call would be told of it
    throw DeviceError(std::string("[cuda] ") + what + ": " + cudaGetErrorString(status));
  }
}

/// Of one block, at most.
inline std::size_t most_shared_bytes(int device) {
  int bytes = 0;
  check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "the device");
  return static_cast<std::size_t>(bytes);
}

struct Launch {
  unsigned blocks, threads;
  std::size_t shared_bytes;
  void* stream;
};

/// On the present device.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), const Launch& how, Arguments&&... arguments) {
  constexpr std::size_t always_allowed = 48 * 1024;
  if (how.shared_bytes > always_allowed) {
    // The kernel's, for all threads of the process: so it is the most there can be, and never this launch's own.
    int device = 0;
    check(cudaGetDevice(&device), "the device");
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(most_shared_bytes(device))),
          "shared memory");
  }
  cudaLaunchConfig_t config{};
  config.gridDim = how.blocks;
  config.blockDim = how.threads;
  config.dynamicSmemBytes = how.shared_bytes;
  config.stream = static_cast<cudaStream_t>(how.stream);
  check(cudaLaunchKernelEx(&config, kernel, arguments...), "launch");
}

inline void clear(void* memory, std::size_t bytes, void* stream) {
  check(cudaMemsetAsync(memory, 0, bytes, static_cast<cudaStream_t>(stream)), "clearing the workspace");
}

/// Any error means that there is none.
inline int count_devices() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  return count;
}

/// Makes a device the present one, for as long as it lives. Where it is that already nothing is touched: to make
/// another one the present one again may create a context there, which takes hundreds of megabytes.
class DeviceGuard {
 public:
  explicit DeviceGuard(int index) : index_(index) {
    check(cudaGetDevice(&before_), "the device");
    if (before_ != index_) {
      check(cudaSetDevice(index_), "the device");
    }
  }
  ~DeviceGuard() {
    if (before_ != index_) {
      cudaSetDevice(before_);
    }
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int index_, before_ = 0;
};

}  // namespace invconv::detail::cuda

#define INVCONV_NOINLINE __noinline__
#define INVCONV_UNROLL _Pragma("unroll")
#define INVCONV_PRAGMA(text) _Pragma(#text)
#define INVCONV_UNROLL_BY(times) INVCONV_PRAGMA(unroll times)

#else
#include "device_on_host.hpp"
#endif
