#pragma once

// What is compiled once for each instruction set: the machine's own limits, and the plain loop.

#include <cstdint>

namespace invconv::bench {

struct MachineCode {
  const char* level;
  /// Operations (a product or a sum) of one round of burst().
  std::int64_t burst_operations;
  /// Independent multiply-adds that never leave the registers: as many operations a second as the core can do.
  float (*burst)(std::int64_t rounds);
  /// Multiply-adds that each wait for the one before.
  float (*chain)(std::int64_t rounds);
  /// The solve as a plain program has it, for the top-left corner and a unit diagonal: one loop inside the other over
  /// images of (batch, channels, height, width) and a weight of (channels, channels, kernel, kernel). Threads share the
  /// images of the batch, where the compiler has OpenMP.
  void (*plain_solve)(const float* y, const float* weight, float* x, const std::int64_t (&image)[4],
                      std::int64_t kernel, int threads);
};

MachineCode baseline();
MachineCode avx2();
MachineCode avx512();

}  // namespace invconv::bench
