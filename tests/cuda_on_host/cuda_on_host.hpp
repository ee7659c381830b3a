#pragma once

// Runs CUDA kernels with 1-D grids on the host, for tests: their source, compiled as C++. The threads of a block are
// fibers of one host thread. A fiber runs until it comes to a barrier, a warp operation, an atomic or back_off(); the
// schedule then picks the next. launch() throws a std::runtime_error where the device would hang or where what it does
// is undefined.
//
// In a build with the thread sanitizer each fiber is a thread to it, and barriers, __syncwarp() and atomics order them
// as on the device: it reports each race, whatever the schedule. (Shuffles order no memory.)
//
// Limits: one host thread at a time; a spin without load_acquire(), atomic_add() or back_off() hangs.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

#if defined(__SANITIZE_ADDRESS__)
#define CUDA_ON_HOST_ADDRESS_SANITIZER
#elif defined(__SANITIZE_THREAD__)
#define CUDA_ON_HOST_THREAD_SANITIZER
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CUDA_ON_HOST_ADDRESS_SANITIZER
#elif __has_feature(thread_sanitizer)
#define CUDA_ON_HOST_THREAD_SANITIZER
#endif
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

namespace cuda_on_host {

/// Which of the fibers that can run goes on. In the first two the first or the last thread gets as far ahead of the
/// others as it can.
enum class Schedule { ascending, descending, random };

/// What a block can have of shared memory; a launch that asks for more is an error.
inline std::size_t most_shared_bytes = 48 * 1024;

struct Options {
  Schedule schedule = Schedule::random;
  /// Draws the random schedule and, in every schedule, the order in which blocks start.
  std::uint64_t seed = 0;
  unsigned resident_blocks = 2;
  /// More polls in a row are an endless spin: atomics that change nothing and calls of back_off() (an atomic is two
  /// polls), while no thread returns.
  std::size_t most_polls = 1'000'000;
  /// To test tests: the barrier, or the __syncwarp(), that does nothing, as each thread counts them from 0 in its
  /// block; -1 for none.
  int dropped_barrier = -1;
  int dropped_warp_sync = -1;
};
Options& options();

/// The most barriers and calls of __syncwarp() of any thread, dropped ones included, and all switches to a fiber.
struct Counts {
  int barriers = 0;
  int warp_syncs = 0;
  std::size_t switches = 0;
};
/// Of the latest launch, even one that failed.
const Counts& last_launch();

/// Of all calls so far: of kernels, and of clear().
inline int launches = 0;
inline unsigned latest_threads = 0;
inline std::size_t latest_shared_bytes = 0;

/// Where a kernel calls: as a default argument, here() is evaluated there.
struct Place {
  const char* file = nullptr;
  int line = 0;
};
constexpr Place here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }

struct Coordinate {
  unsigned x;
};

std::uint64_t shuffle(const char* call, unsigned mask, std::uint64_t value, unsigned source, Place place);

template <class T>
T shuffle(const char* call, unsigned mask, T value, unsigned source, Place place) {
  static_assert(std::is_trivially_copyable_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = shuffle(call, mask, bits, source, place);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

void* shared_memory();
void run(unsigned blocks, unsigned threads, std::size_t shared_bytes, const std::function<void()>& kernel);

}  // namespace cuda_on_host

// ---- what CUDA declares -------------------------------------------------------------------------------------------

inline cuda_on_host::Coordinate threadIdx, blockIdx, blockDim, gridDim;

void __syncthreads(cuda_on_host::Place place = cuda_on_host::here());
void __syncwarp(unsigned mask = 0xffffffff, cuda_on_host::Place place = cuda_on_host::here());

template <class T>
T __shfl_sync(unsigned mask, T value, int lane, cuda_on_host::Place place = cuda_on_host::here()) {
  return cuda_on_host::shuffle("__shfl_sync()", mask, value, static_cast<unsigned>(lane) % 32, place);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, cuda_on_host::Place place = cuda_on_host::here()) {
  const unsigned lane = threadIdx.x % 32;
  const unsigned source = delta > lane && delta < 32 ? lane : lane - delta;
  return cuda_on_host::shuffle("__shfl_up_sync()", mask, value, source, place);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, cuda_on_host::Place place = cuda_on_host::here()) {
  const unsigned source = threadIdx.x % 32 ^ static_cast<unsigned>(lane_mask);
  return cuda_on_host::shuffle("__shfl_xor_sync()", mask, value, source, place);
}

// ---- what cuda/device.cuh declares --------------------------------------------------------------------------------

namespace invconv::detail::cuda {

/// The block's dynamic shared memory. When a block starts all its bytes are 0xff: a NaN in every type.
template <class T>
T* shared_memory() {
  static_assert(alignof(T) <= 16);
  return static_cast<T*>(cuda_on_host::shared_memory());
}

unsigned load_acquire(const unsigned* p, cuda_on_host::Place place = cuda_on_host::here());
void store_release(unsigned* p, unsigned value, cuda_on_host::Place place = cuda_on_host::here());
/// Relaxed, as on the device.
unsigned atomic_add(unsigned* p, unsigned value, cuda_on_host::Place place = cuda_on_host::here());
void back_off(cuda_on_host::Place place = cuda_on_host::here());

struct Launch {
  unsigned blocks;
  unsigned threads;
  std::size_t shared_bytes;
  void* stream;
};

/// Runs the whole grid. Each thread has its own copy of the arguments.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), const Launch& launch, Arguments&&... arguments) {
  static_assert((!std::is_reference_v<Parameters> && ...), "a kernel's parameters are passed by value");
  ++cuda_on_host::launches;
  cuda_on_host::latest_threads = launch.threads;
  cuda_on_host::latest_shared_bytes = launch.shared_bytes;
  cuda_on_host::run(launch.blocks, launch.threads, launch.shared_bytes, [&] { kernel(arguments...); });
}

}  // namespace invconv::detail::cuda
