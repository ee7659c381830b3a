#include "machine_code.hpp"

#if defined(__clang__)
#define INVCONV_BENCH_UNROLL _Pragma("clang loop unroll(full)")
#else
#define INVCONV_BENCH_UNROLL _Pragma("GCC unroll 12")
#endif

namespace invconv::bench {
namespace {

#if defined(__AVX512F__)
constexpr int vector_bytes = 64;
#elif defined(__AVX__)
constexpr int vector_bytes = 32;
#else
constexpr int vector_bytes = 16;
#endif
typedef float Vector __attribute__((vector_size(vector_bytes)));
constexpr int lanes = vector_bytes / sizeof(float);

// Enough to hide a latency of 5 cycles at two a cycle, and with both operands they fit 16 registers.
constexpr int accumulators = 12;

constexpr float factor = 0.999f, summand = 0.001f;  // towards 1: no overflow, no subnormal numbers

float burst(std::int64_t rounds) {
  const Vector a = Vector{} + factor, b = Vector{} + summand;
  Vector sums[accumulators];
  for (int i = 0; i < accumulators; ++i) {
    sums[i] = Vector{} + static_cast<float>(rounds + i);  // unknown to the compiler: it would fold constants
  }
  for (; rounds > 0; --rounds) {
    INVCONV_BENCH_UNROLL
    for (int i = 0; i < accumulators; ++i) {
      sums[i] = sums[i] * a + b;
    }
  }
  float total = 0;
  for (const Vector& sum : sums) {
    total += sum[0];
  }
  return total;
}

float chain(std::int64_t rounds) {
  float sum = static_cast<float>(rounds);
  for (; rounds > 0; --rounds) {
    sum = sum * factor + summand;
  }
  return sum;
}

void plain_solve(const float* y, const float* weight, float* x, const std::int64_t (&image)[4], std::int64_t kernel,
                 [[maybe_unused]] int threads) {
  const std::int64_t batch = image[0], channels = image[1], height = image[2], width = image[3];
  const std::int64_t plane = height * width, taps = kernel * kernel;
#if defined(_OPENMP)
#pragma omp parallel for num_threads(threads)
#endif
  for (std::int64_t b = 0; b < batch; ++b) {
    const float* from = y + b * channels * plane;
    float* to = x + b * channels * plane;
    for (std::int64_t i = 0; i < height; ++i) {
      const std::int64_t rows = i < kernel ? i + 1 : kernel;
      for (std::int64_t j = 0; j < width; ++j) {
        const std::int64_t columns = j < kernel ? j + 1 : kernel;
        for (std::int64_t o = 0; o < channels; ++o) {
          float sum = from[o * plane + i * width + j];
          for (std::int64_t c = 0; c < channels; ++c) {
            const float* w = weight + (o * channels + c) * taps + taps - 1;  // the tap of the pixel itself, its last
            const float* at = to + c * plane + i * width + j;
            for (std::int64_t u = 0; u < rows; ++u) {
              for (std::int64_t v = u == 0 && c >= o ? 1 : 0; v < columns; ++v) {
                sum -= w[-u * kernel - v] * at[-u * width - v];
              }
            }
          }
          to[o * plane + i * width + j] = sum;
        }
      }
    }
  }
}

}  // namespace

#define INVCONV_BENCH_TEXT_OF(level) #level
#define INVCONV_BENCH_TEXT(level) INVCONV_BENCH_TEXT_OF(level)

MachineCode INVCONV_BENCH_LEVEL() {
  return {INVCONV_BENCH_TEXT(INVCONV_BENCH_LEVEL), 2 * accumulators * lanes, burst, chain, plain_solve};
}

}  // namespace invconv::bench
