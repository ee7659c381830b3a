// The shim itself: what kernels may rely on, what it reports, and that it finds the mistakes it is made to find.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda_on_host.hpp"

namespace invconv::detail::cuda {
namespace {

using cuda_on_host::last_launch;
using cuda_on_host::options;
using cuda_on_host::Schedule;

constexpr unsigned all_lanes = 0xffffffff;
#ifdef CUDA_ON_HOST_THREAD_SANITIZER
constexpr unsigned most_threads = 128;  // barriers take it a time that grows with the square
#else
constexpr unsigned most_threads = 1024;
#endif

// ---- kernels ------------------------------------------------------------------------------------------------------

__global__ void __launch_bounds__(1024) add_up(const float* __restrict__ values, float* __restrict__ sums) {
  float* partial = shared_memory<float>();
  const unsigned t = threadIdx.x;
  partial[t] = values[blockIdx.x * blockDim.x + t];
  for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
    __syncthreads();
    if (t < half) {
      partial[t] += partial[t + half];
    }
  }
  if (t == 0) {
    sums[blockIdx.x] = partial[0];
  }
}

template <class T>
__device__ __forceinline__ T sum_up_to_lane(T value) {
  for (unsigned delta = 1; delta < 32; delta *= 2) {
    const T below = __shfl_up_sync(all_lanes, value, delta);
    value += threadIdx.x % 32 >= delta ? below : T(0);
  }
  return value;
}

template <class T>
__global__ void sum_up_to_each_lane(const T* in, T* out) {
  out[threadIdx.x] = sum_up_to_lane(in[threadIdx.x]);
}

/// Each lane takes the value of its neighbour, through memory.
__global__ void exchange_in_warp(unsigned* out) {
  unsigned* shared = shared_memory<unsigned>();
  const unsigned t = threadIdx.x;
  shared[t] = t;
  __syncwarp();
  const unsigned other = shared[t ^ 1];
  __syncwarp();
  shared[t] = 10 * other;
  __syncwarp();
  out[t] = shared[t ^ 1];
}

__device__ void wait_for(const unsigned* flag) {
  while (load_acquire(flag) == 0) {
    back_off();
  }
}

/// Each block adds its index to the sums that the block with the ticket before has left.
__global__ void chain(unsigned* ticket, unsigned* flags, unsigned* sums) {
  unsigned* place = shared_memory<unsigned>();
  if (threadIdx.x == 0) {
    *place = atomic_add(ticket, 1);
    if (*place > 0) {
      wait_for(flags + *place - 1);
    }
  }
  __syncthreads();
  const unsigned at = *place * blockDim.x + threadIdx.x;
  sums[at] = blockIdx.x + threadIdx.x + (*place > 0 ? sums[at - blockDim.x] : 0);
  __syncthreads();
  if (threadIdx.x == 0) {
    store_release(flags + *place, 1);
  }
}

/// The same by index: hangs unless blocks start in order.
__global__ void chain_by_index(unsigned* flags) {
  if (blockIdx.x > 0) {
    wait_for(flags + blockIdx.x - 1);
  }
  store_release(flags + blockIdx.x, 1);
}

/// A spin in which the whole block takes part.
__global__ void spin_with_barriers(const unsigned* flag) {
  unsigned* seen = shared_memory<unsigned>();
  do {
    __syncthreads();
    if (threadIdx.x == 0) {
      *seen = load_acquire(flag);
    }
    __syncthreads();
  } while (*seen == 0);
}

__global__ void half_returns_early(unsigned* out) {
  unsigned* shared = shared_memory<unsigned>();
  const unsigned t = threadIdx.x;
  if (t % 2 == 1) {
    return;
  }
  shared[t] = t;
  __syncthreads();
  out[t] = shared[(t + 2) % blockDim.x];
  __syncwarp();
}

__global__ void barrier_for_some() {
  if (threadIdx.x < 40) {
    __syncthreads();
  } else {
    __shfl_sync(all_lanes, 1, 0);
  }
}

__global__ void two_barriers() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void shuffle_with(unsigned mask, int lane, unsigned returns_early) {
  if (threadIdx.x != returns_early) {
    __shfl_sync(mask, threadIdx.x, lane);
  }
}

__global__ void shuffle_far(unsigned distance) { __shfl_up_sync(all_lanes, 1.0f, distance); }

__global__ void read_unwritten(unsigned* out) {
  unsigned* shared = shared_memory<unsigned>();
  out[blockIdx.x * blockDim.x + threadIdx.x] = shared[threadIdx.x];
  shared[threadIdx.x] = 0;
}

__global__ void throw_from(unsigned block, unsigned thread) {
  __syncthreads();
  if (blockIdx.x == block && threadIdx.x == thread) {
    throw std::out_of_range("thrown by a kernel");
  }
  __syncthreads();
}

__global__ void nothing() {}

__global__ void launch_from_kernel() { launch(nothing, {1, 1, 0, nullptr}); }

// ---- helpers ------------------------------------------------------------------------------------------------------

class CudaOnHost : public ::testing::Test {
 protected:
  void SetUp() override {
    options() = {};
    // The thread sanitizer is not fit for use after a fork, only in a process that begins anew.
    ::testing::GTEST_FLAG(death_test_style) = "threadsafe";
  }
  void TearDown() override { options() = {}; }
};

/// Calls `body` under many schedules: the two extreme ones and random ones, each with 1 to 4 resident blocks.
template <class Body>
void for_each_schedule(Body&& body) {
  for (std::uint64_t seed = 0; seed < 12; ++seed) {
    options().seed = seed;
    options().resident_blocks = static_cast<unsigned>(1 + seed % 4);
    options().schedule = seed < 4 ? Schedule::ascending : seed < 8 ? Schedule::descending : Schedule::random;
    SCOPED_TRACE(::testing::Message() << "schedule " << static_cast<int>(options().schedule) << ", seed " << seed);
    body();
  }
}

template <class Result, class Body>
bool is_the_same_in_each_schedule(const Result& expected, Body&& body) {
  bool same = true;
  for_each_schedule([&] { same = same && body() == expected; });
  return same;
}

/// What launch() throws; empty if nothing.
template <class Kernel, class... Arguments>
std::string error_of(Kernel kernel, const Launch& configuration, Arguments... arguments) {
  try {
    launch(kernel, configuration, arguments...);
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

::testing::AssertionResult says(const std::string& message, const std::vector<std::string>& parts) {
  for (const std::string& part : parts) {
    if (message.find(part) == std::string::npos) {
      return ::testing::AssertionFailure() << "no '" << part << "' in '" << message << "'";
    }
  }
  return ::testing::AssertionSuccess();
}

std::vector<float> sums_of_blocks(unsigned blocks, unsigned threads) {
  std::vector<float> values(blocks * threads), sums(blocks);
  std::iota(values.begin(), values.end(), 1.0f);
  launch(add_up, {blocks, threads, threads * sizeof(float), nullptr}, values.data(), sums.data());
  return sums;
}

std::vector<float> expected_sums(unsigned blocks, unsigned threads) {
  std::vector<float> sums(blocks);
  for (unsigned at = 0; at < blocks * threads; ++at) {
    sums[at / threads] += static_cast<float>(at + 1);  // exact: integers below 2^24
  }
  return sums;
}

// ---- what kernels may rely on -------------------------------------------------------------------------------------

TEST_F(CudaOnHost, BarriersOrderABlock) {
  for_each_schedule([] {
    EXPECT_EQ(sums_of_blocks(5, 64), expected_sums(5, 64));
    EXPECT_EQ(last_launch().barriers, 6);
    EXPECT_EQ(sums_of_blocks(3, most_threads), expected_sums(3, most_threads));
    EXPECT_EQ(sums_of_blocks(1, 1), expected_sums(1, 1));
    EXPECT_EQ(last_launch().barriers, 0);
  });
}

TEST_F(CudaOnHost, ShufflesSumUp) {
  for_each_schedule([] {
    std::vector<int> ints(64), int_sums(64);
    std::vector<double> doubles(64), double_sums(64);
    std::iota(ints.begin(), ints.end(), 1);
    std::iota(doubles.begin(), doubles.end(), 1);
    launch(sum_up_to_each_lane<int>, {1, 64, 0, nullptr}, ints.data(), int_sums.data());
    launch(sum_up_to_each_lane<double>, {1, 64, 0, nullptr}, doubles.data(), double_sums.data());
    for (int at = 0, sum = 0; at < 64; ++at) {
      sum = (at % 32 == 0 ? 0 : sum) + at + 1;
      EXPECT_EQ(int_sums[static_cast<std::size_t>(at)], sum);
      EXPECT_EQ(double_sums[static_cast<std::size_t>(at)], sum);
    }
  });
}

__global__ void every_shuffle(unsigned* out) {
  const unsigned t = threadIdx.x;
  const unsigned half = t < 16 ? 0x0000ffff : 0xffff0000;
  out[t] = __shfl_sync(all_lanes, t, 35);
  out[t] = 100 * out[t] + __shfl_xor_sync(half, t, 5);
  out[t] = 100 * out[t] + __shfl_up_sync(all_lanes, t, 31);
  if (t < 16) {  // the other half does something else meanwhile
    out[t] = 100 * out[t] + __shfl_sync(half, t, static_cast<int>(15 - t));
  }
}

TEST_F(CudaOnHost, ShufflesTakeTheLaneTheyName) {
  for_each_schedule([] {
    std::vector<unsigned> out(32);
    launch(every_shuffle, {1, 32, 0, nullptr}, out.data());
    for (unsigned t = 0; t < 32; ++t) {
      const unsigned sum = 10000 * 3 + 100 * (t ^ 5) + (t < 31 ? t : 0);
      EXPECT_EQ(out[t], t < 16 ? 100 * sum + 15 - t : sum);
    }
  });
}

TEST_F(CudaOnHost, WarpBarriersOrderAWarp) {
  for_each_schedule([] {
    for (const unsigned threads : {2u, 32u, 46u, 128u}) {
      std::vector<unsigned> out(threads);
      launch(exchange_in_warp, {1, threads, threads * sizeof(unsigned), nullptr}, out.data());
      for (unsigned t = 0; t < threads; ++t) {
        EXPECT_EQ(out[t], 10 * t);
      }
      EXPECT_EQ(last_launch().warp_syncs, 3);
    }
  });
}

TEST_F(CudaOnHost, BlocksWaitForTheTicketBefore) {
  constexpr unsigned blocks = 20, threads = 48;
  for_each_schedule([&] {
    std::vector<unsigned> ticket(1), flags(blocks), sums(blocks * threads);
    launch(chain, {blocks, threads, sizeof(unsigned), nullptr}, ticket.data(), flags.data(), sums.data());
    EXPECT_EQ(ticket[0], blocks);
    for (unsigned t = 0; t < threads; ++t) {
      EXPECT_EQ(sums[(blocks - 1) * threads + t], blocks * (blocks - 1) / 2 + blocks * t);
    }
  });
}

TEST_F(CudaOnHost, ThreadsThatReturnedNeedNotComeToABarrier) {
  for_each_schedule([] {
    std::vector<unsigned> out(64, 1000);
    launch(half_returns_early, {1, 64, 64 * sizeof(unsigned), nullptr}, out.data());
    for (unsigned t = 0; t < 64; ++t) {
      EXPECT_EQ(out[t], t % 2 == 1 ? 1000 : (t + 2) % 64);
    }
  });
}

TEST_F(CudaOnHost, SharedMemoryIsNanInEachBlock) {
  std::vector<unsigned> out(5 * 8);
  launch(read_unwritten, {5, 8, 8 * sizeof(unsigned), nullptr}, out.data());
  EXPECT_EQ(out, std::vector<unsigned>(5 * 8, 0xffffffff));
}

__global__ void note_start(unsigned* ticket, unsigned* order) { order[atomic_add(ticket, 1)] = blockIdx.x; }

TEST_F(CudaOnHost, BlocksStartInAnOrderDrawnFromTheSeed) {
  const auto order_of = [](std::uint64_t seed) {
    options().seed = seed;
    std::vector<unsigned> ticket(1), order(32);
    launch(note_start, {32, 1, 0, nullptr}, ticket.data(), order.data());
    return order;
  };
  const std::vector<unsigned> order = order_of(1);
  EXPECT_EQ(order_of(1), order);
  EXPECT_NE(order_of(2), order);
  std::vector<unsigned> sorted = order, indices(32);
  std::sort(sorted.begin(), sorted.end());
  std::iota(indices.begin(), indices.end(), 0u);
  EXPECT_EQ(sorted, indices);
  EXPECT_NE(order, indices);
}

#ifndef CUDA_ON_HOST_THREAD_SANITIZER  // it would fail the process, and has tests of its own below
// ---- missing barriers ---------------------------------------------------------------------------------------------

TEST_F(CudaOnHost, EachMissingBarrierIsFound) {
  sums_of_blocks(2, 128);
  const int barriers = last_launch().barriers;
  EXPECT_EQ(barriers, 7);
  for (int dropped = 0; dropped < barriers; ++dropped) {
    options().dropped_barrier = dropped;
    EXPECT_FALSE(is_the_same_in_each_schedule(expected_sums(2, 128), [] { return sums_of_blocks(2, 128); }))
        << "without barrier " << dropped;
  }
}

TEST_F(CudaOnHost, EachMissingWarpBarrierIsFound) {
  const auto exchanged = [] {
    std::vector<unsigned> out(64);
    launch(exchange_in_warp, {1, 64, 64 * sizeof(unsigned), nullptr}, out.data());
    return out;
  };
  const std::vector<unsigned> expected = exchanged();
  EXPECT_TRUE(is_the_same_in_each_schedule(expected, exchanged));
  for (int dropped = 0; dropped < 3; ++dropped) {
    options().dropped_warp_sync = dropped;
    EXPECT_FALSE(is_the_same_in_each_schedule(expected, exchanged)) << "without __syncwarp() " << dropped;
  }
}
#endif

// ---- what is reported ---------------------------------------------------------------------------------------------

TEST_F(CudaOnHost, ABlockThatWaitsByIndexSpinsForever) {
  options().most_polls = 10'000;
  int spins = 0;
  for_each_schedule([&] {
    std::vector<unsigned> flags(20);
    const std::string error = error_of(chain_by_index, {20, 1, 0, nullptr}, flags.data());
    spins += !error.empty();
    EXPECT_TRUE(error.empty() || says(error, {"block ", "thread 0, in ", "an endless spin", "test_shim.cpp:"}));
  });
  EXPECT_EQ(spins, 12);  // by chance a right order may be drawn, but not of 20 blocks
}

TEST_F(CudaOnHost, ASpinWithBarriersIsOne) {
  options().most_polls = 100;
  for_each_schedule([] {
    const std::vector<unsigned> flag(1);
    const std::string error = error_of(spin_with_barriers, {1, 64, sizeof(unsigned), nullptr}, flag.data());
    EXPECT_TRUE(says(error, {"block 0, thread 0, in load_acquire()", "an endless spin"}));
  });
}

TEST_F(CudaOnHost, ABarrierThatSomeDoNotReachIsADeadlock) {
  for_each_schedule([] {
    const std::string error = error_of(barrier_for_some, {1, 64, 0, nullptr});
    EXPECT_TRUE(says(error, {"deadlock: block 0, threads 0 to 39: waits in __syncthreads() (test_shim.cpp:",
                             "threads 40 to 63: waits in __shfl_sync() (test_shim.cpp:", "with mask 0xffffffff"}));
  });
}

TEST_F(CudaOnHost, DifferentBarriersDoNotMeet) {
  EXPECT_TRUE(says(error_of(two_barriers, {1, 64, 0, nullptr}), {"block 0, thread ", "wait in another barrier"}));
}

TEST_F(CudaOnHost, MasksThatDoNotFit) {
  for_each_schedule([] {
    constexpr unsigned none = 1000;
    EXPECT_EQ(error_of(shuffle_with, {2, 64, 0, nullptr}, all_lanes, 0, none), "");
    EXPECT_TRUE(says(error_of(shuffle_with, {1, 32, 0, nullptr}, 0xfffffffe, 1, none),
                     {"block 0, thread 0, in __shfl_sync() (", "the mask lacks the caller"}));
    EXPECT_TRUE(says(error_of(shuffle_with, {1, 31, 0, nullptr}, 0x7fffffff, 31, none),
                     {"block 0, thread ", "the mask lacks the source, lane 31"}));
    EXPECT_TRUE(says(error_of(shuffle_with, {1, 31, 0, nullptr}, all_lanes, 0, none),
                     {"block 0, thread ", "names lane 31, which the block lacks"}));
    EXPECT_TRUE(says(error_of(shuffle_with, {1, 64, 0, nullptr}, all_lanes, 0, 33u),
                     {"block 0, thread ", "names lane 1, which has returned"}));
  });
  EXPECT_TRUE(says(error_of(shuffle_far, {1, 32, 0, nullptr}, 32u), {"__shfl_up_sync()", "the mask lacks the source"}));
}

TEST_F(CudaOnHost, LaunchesThatTheDeviceRefuses) {
  EXPECT_TRUE(says(error_of(nothing, {0, 1, 0, nullptr}), {"at least 1 block", "got 0 of 1"}));
  EXPECT_TRUE(says(error_of(nothing, {1, 0, 0, nullptr}), {"1 to 1024 threads", "got 1 of 0"}));
  EXPECT_TRUE(says(error_of(nothing, {1, 1025, 0, nullptr}), {"1 to 1024 threads", "got 1 of 1025"}));
  EXPECT_TRUE(says(error_of(launch_from_kernel, {1, 1, 0, nullptr}), {"a kernel called it"}));
  EXPECT_EQ(error_of(nothing, {1, 1024, 0, nullptr}), "");
}

TEST_F(CudaOnHost, ExceptionsComeOutOfLaunch) {
  for_each_schedule([] {
    EXPECT_THROW(launch(throw_from, {3, 64, 0, nullptr}, 1u, 40u), std::out_of_range);
    EXPECT_EQ(error_of(throw_from, {3, 64, 0, nullptr}, 3u, 0u), "");
  });
}

// ---- what sanitizers find -----------------------------------------------------------------------------------------

#ifdef CUDA_ON_HOST_ADDRESS_SANITIZER
__global__ void write_shared(unsigned at) { shared_memory<float>()[at] = 1; }

TEST_F(CudaOnHost, AWriteBeyondSharedMemoryIsFound) {
  const Launch configuration{1, 1, 5 * sizeof(float), nullptr};
  launch(write_shared, configuration, 4u);
  EXPECT_DEATH(launch(write_shared, configuration, 5u), "heap-buffer-overflow");
}

__global__ void write_local(unsigned* out, unsigned at) {
  unsigned local[4] = {};
  unsigned* p = local;
  __syncthreads();
  p[at] = 1;
  __syncthreads();
  out[threadIdx.x] = local[threadIdx.x % 4];
}

TEST_F(CudaOnHost, AWriteBeyondALocalArrayIsFoundAfterABarrier) {
  std::vector<unsigned> out(64);
  launch(write_local, {1, 64, 0, nullptr}, out.data(), 3u);
  EXPECT_DEATH(launch(write_local, {1, 64, 0, nullptr}, out.data(), 4u), "stack-buffer-overflow|insufficient space");
}
#endif

#ifdef CUDA_ON_HOST_THREAD_SANITIZER
/// A race fails the process that has it, so each has its own.
#define EXPECT_RACE(...) EXPECT_DEATH(std::_Exit(error_of(__VA_ARGS__).empty() ? 0 : 1), "data race")

TEST_F(CudaOnHost, AMissingBarrierIsARace) {
  const std::vector<float> values(64);
  std::vector<float> sums(1);
  for (int dropped = 0; dropped < 6; ++dropped) {
    options().dropped_barrier = dropped;
    EXPECT_RACE(add_up, {1, 64, 64 * sizeof(float), nullptr}, values.data(), sums.data());
  }
}

TEST_F(CudaOnHost, AMissingWarpBarrierIsARace) {
  std::vector<unsigned> out(32);
  for (int dropped = 0; dropped < 3; ++dropped) {
    options().dropped_warp_sync = dropped;
    EXPECT_RACE(exchange_in_warp, {1, 32, 32 * sizeof(unsigned), nullptr}, out.data());
  }
}

__global__ void take_shuffle_for_barrier(unsigned* out) {
  unsigned* shared = shared_memory<unsigned>();
  shared[threadIdx.x] = threadIdx.x;
  out[threadIdx.x] = shared[__shfl_xor_sync(all_lanes, threadIdx.x, 1)];
}

TEST_F(CudaOnHost, AShuffleOrdersNoMemory) {
  std::vector<unsigned> out(32);
  EXPECT_RACE(take_shuffle_for_barrier, {1, 32, 32 * sizeof(unsigned), nullptr}, out.data());
}

/// The first block to come passes a value on; both ends need to say that they do.
__global__ void pass_on(unsigned* ticket, unsigned* flag, unsigned* value, bool releases, bool acquires) {
  if (atomic_add(ticket, 1) == 0) {
    *value = 1;
    releases ? store_release(flag, 1) : static_cast<void>(atomic_add(flag, 1));
  } else {
    while ((acquires ? load_acquire(flag) : atomic_add(flag, 0)) == 0) {
      back_off();
    }
    *value += 1;
  }
}

TEST_F(CudaOnHost, AFlagWithoutReleaseOrAcquireIsARace) {
  std::vector<unsigned> ticket(1), flag(1), value(1);
  const Launch configuration{2, 1, 0, nullptr};
  launch(pass_on, configuration, ticket.data(), flag.data(), value.data(), true, true);
  EXPECT_EQ(value[0], 2u);
  ticket[0] = flag[0] = 0;
  EXPECT_RACE(pass_on, configuration, ticket.data(), flag.data(), value.data(), false, true);
  EXPECT_RACE(pass_on, configuration, ticket.data(), flag.data(), value.data(), true, false);
}

__global__ void write_to_all(unsigned* out) { *out = blockIdx.x; }

TEST_F(CudaOnHost, BlocksThatWriteToOnePlaceRace) {
  unsigned out = 0;
  EXPECT_RACE(write_to_all, {2, 1, 0, nullptr}, &out);
}
#endif

}  // namespace
}  // namespace invconv::detail::cuda
