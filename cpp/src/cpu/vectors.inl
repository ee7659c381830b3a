// Vectors of lanes, and the storage types. Part of kernels.inl.

#pragma once

#include <cstdint>
#include <utility>

#if defined(__FMA__)
#include <immintrin.h>
#elif defined(__aarch64__) && defined(__ARM_FEATURE_FMA)
#include <arm_neon.h>
#endif

#include "cpu/kernels.hpp"

namespace invconv::detail::cpu {
namespace {

using Index = std::int64_t;

#if defined(__clang__)
#define INVCONV_UNROLL _Pragma("clang loop unroll(full)")
#else
#define INVCONV_UNROLL _Pragma("GCC unroll 32")
#endif

/// What follows n pointers, on a cache line of its own.
[[gnu::always_inline]] inline void* skip_pointers(void* scratch, Index n) {
  return static_cast<char*>(scratch) + (n * static_cast<Index>(sizeof(void*)) + 63) / 64 * 64;
}

/// Whether there are 16 vector registers, and not 32.
#if defined(__x86_64__) && !defined(__AVX512F__)
inline constexpr bool few_registers = true;
#else
inline constexpr bool few_registers = false;
#endif

template <class A, int V>
struct VectorOf {
  typedef A type __attribute__((vector_size(V * sizeof(A))));
};
template <class A>
struct VectorOf<A, 1> {
  using type = A;
};
template <class A, int V>
using Vector = typename VectorOf<A, V>::type;

template <class A, int V>
[[gnu::always_inline]] inline Vector<A, V> load(const A* from) {
  return *reinterpret_cast<const Vector<A, V>*>(from);
}

template <class A, int V>
[[gnu::always_inline]] inline void store(A* to, Vector<A, V> value) {
  *reinterpret_cast<Vector<A, V>*>(to) = value;
}

template <class A, int V>
[[gnu::always_inline]] inline Vector<A, V> load_unaligned(const A* from) {
  Vector<A, V> value;
  __builtin_memcpy(&value, from, sizeof(value));
  return value;
}

template <class A, int V>
[[gnu::always_inline]] inline void store_unaligned(A* to, Vector<A, V> value) {
  __builtin_memcpy(to, &value, sizeof(value));
}

#if defined(__AVX2__)
template <class A, int V>
inline constexpr bool can_stream = V * sizeof(A) >= 32;

/// Writes a whole cache line past the caches; only when all of it is written at once is it not read before.
template <class A, int V>
[[gnu::always_inline]] inline void stream_line(A* to, const A* from) {
#if defined(__AVX512F__)
  if constexpr (V * sizeof(A) == 64) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to), (__m512i)load_unaligned<A, V>(from));
    return;
  }
#endif
  constexpr int half = 32 / static_cast<int>(sizeof(A));
  _mm256_stream_si256(reinterpret_cast<__m256i*>(to), (__m256i)load_unaligned<A, half>(from));
  _mm256_stream_si256(reinterpret_cast<__m256i*>(to + half), (__m256i)load_unaligned<A, half>(from + half));
}

[[gnu::always_inline]] inline void finish_streams() { _mm_sfence(); }
#else
template <class A, int V>
inline constexpr bool can_stream = false;

template <class A, int V>
[[gnu::always_inline]] inline void stream_line(A*, const A*) {}

[[gnu::always_inline]] inline void finish_streams() {}
#endif

template <class A, int V, int... J>
[[gnu::always_inline]] inline Vector<A, V> reversed(Vector<A, V> value, std::integer_sequence<int, J...>) {
  return __builtin_shufflevector(value, value, (V - 1 - J)...);
}

template <class A, int V>
[[gnu::always_inline]] inline Vector<A, V> reversed(Vector<A, V> value) {
  return reversed<A, V>(value, std::make_integer_sequence<int, V>{});
}

template <class A, int V>
[[gnu::always_inline]] inline Vector<A, V> splat(A value) {
  if constexpr (V == 1) {
    return value;
  } else {
    return value - Vector<A, V>{};  // GCC and Clang know this as a broadcast
  }
}

/// a * b + c, rounded once where the instruction set can and twice elsewhere; never left to the compiler's choice.
template <class A, int V>
[[gnu::always_inline]] inline Vector<A, V> multiply_add(Vector<A, V> a, Vector<A, V> b, Vector<A, V> c) {
#if defined(__FMA__)
  using R = Vector<A, V>;
  if constexpr (V == 1 && sizeof(A) == 4) {
    return __builtin_fmaf(a, b, c);
  } else if constexpr (V == 1) {
    return __builtin_fma(a, b, c);
  } else if constexpr (sizeof(A) == 4 && V == 4) {
    return (R)_mm_fmadd_ps((__m128)a, (__m128)b, (__m128)c);
  } else if constexpr (sizeof(A) == 4 && V == 8) {
    return (R)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
  } else if constexpr (sizeof(A) == 8 && V == 2) {
    return (R)_mm_fmadd_pd((__m128d)a, (__m128d)b, (__m128d)c);
  } else if constexpr (sizeof(A) == 8 && V == 4) {
    return (R)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#if defined(__AVX512F__)
  } else if constexpr (sizeof(A) == 4 && V == 16) {
    return (R)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
  } else if constexpr (sizeof(A) == 8 && V == 8) {
    return (R)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#endif
  }
#elif defined(__aarch64__) && defined(__ARM_FEATURE_FMA)
  using R = Vector<A, V>;
  if constexpr (V == 1 && sizeof(A) == 4) {
    return __builtin_fmaf(a, b, c);
  } else if constexpr (V == 1) {
    return __builtin_fma(a, b, c);
  } else if constexpr (sizeof(A) == 4 && V == 4) {
    return (R)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
  } else if constexpr (sizeof(A) == 8 && V == 2) {
    return (R)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
  }
#else
  return a * b + c;
#endif
}

[[gnu::always_inline]] inline float widen(float value) { return value; }
[[gnu::always_inline]] inline double widen(double value) { return value; }
[[gnu::always_inline]] inline float widen(float16 value) { return to_float(value); }
[[gnu::always_inline]] inline float widen(bfloat16 value) { return to_float(value); }

[[gnu::always_inline]] inline void narrow(float value, float& to) { to = value; }
[[gnu::always_inline]] inline void narrow(double value, double& to) { to = value; }
[[gnu::always_inline]] inline void narrow(float value, float16& to) { to = to_float16(value); }
[[gnu::always_inline]] inline void narrow(float value, bfloat16& to) { to = to_bfloat16(value); }

}  // namespace
}  // namespace invconv::detail::cpu
