#pragma once

// What a device can do, apart from memory: kernels of nothing but multiply-adds, and one of nothing at all.

#include "device.cuh"

namespace invconv::bench {

/// Multiply-adds of a chain in one round: enough that the loop around them does not count.
inline constexpr int chain_length = 32;

/// In each thread, `Chains` chains of rounds * chain_length multiply-adds, x = x * a + b, each from its own beginning.
/// Many chains keep the arithmetic busy; one shows how long a multiply-add takes that needs the one before.
template <int Chains>
__global__ void multiply_adds(float* out, float a, float b, int rounds) {
  float x[Chains];
  INVCONV_UNROLL
  for (int chain = 0; chain < Chains; ++chain) {
    x[chain] = static_cast<float>(chain);
  }
  for (int round = 0; round < rounds; ++round) {
    INVCONV_UNROLL
    for (int link = 0; link < chain_length; ++link) {
      INVCONV_UNROLL
      for (int chain = 0; chain < Chains; ++chain) {
        x[chain] = detail::cuda::multiply_add(x[chain], a, b);
      }
    }
  }
  float sum = 0;
  INVCONV_UNROLL
  for (int chain = 0; chain < Chains; ++chain) {
    sum += x[chain];
  }
  out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

inline constexpr int many_chains = 8;

__global__ void nothing() {}

}  // namespace invconv::bench
