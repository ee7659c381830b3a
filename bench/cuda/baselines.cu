// The shared library that bench/gpu/native.py loads: functions in C on device memory and a stream of the present
// device. Each returns null, or what went wrong, which stays until the thread's next call.

#include <exception>
#include <string>

#include "per_diagonal.cuh"
#include "probes.cuh"

namespace {

using invconv::detail::cuda::check;
using invconv::detail::cuda::launch;

template <class Function>
const char* message_of(Function&& function) {
  thread_local std::string message;
  try {
    function();
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}

}  // namespace

extern "C" {

/// With `synchronise` the host waits for the device after each launch, as the method's first code did.
const char* invconv_bench_solve_per_diagonal(const float* y, const float* weight, float* x, int batch, int channels,
                                             int height, int width, int kernel, int synchronise, void* stream) {
  return message_of([&] {
    invconv::bench::solve_per_diagonal(y, weight, x, {batch, channels, height, width, kernel}, stream, [&] {
      if (synchronise != 0) {
        check(cudaDeviceSynchronize(), "waiting for the device");
      }
    });
  });
}

/// A thread has 8 chains if `many`, else one, of 32 `rounds` multiply-adds; `out` has one element for each thread.
const char* invconv_bench_multiply_adds(float* out, int blocks, int threads, int many, int rounds, void* stream) {
  return message_of([&] {
    const auto kernel =
        many != 0 ? invconv::bench::multiply_adds<invconv::bench::many_chains> : invconv::bench::multiply_adds<1>;
    launch(kernel, {static_cast<unsigned>(blocks), static_cast<unsigned>(threads), 0, stream}, out, 0.5f, 1.0f, rounds);
  });
}

const char* invconv_bench_nothing(void* stream) {
  return message_of([&] { launch(invconv::bench::nothing, {1, 32, 0, stream}); });
}

}  // extern "C"
