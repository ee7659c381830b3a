#pragma once

/// The 16-bit storage types. They hold bits and convert; arithmetic is done in float.
///
/// The conversions are always inlined, down to the bit casts: the CPU kernels compile this header once per instruction
/// set, and an out-of-line copy of one level must never be linked into another.

#include <cstdint>

namespace invconv {

/// IEEE 754 binary16: 11 significant bits, largest finite value 65504.
struct float16 {
  std::uint16_t bits = 0;
};

/// The upper half of a binary32: 8 significant bits, the range of float.
struct bfloat16 {
  std::uint16_t bits = 0;
};

[[gnu::always_inline]] constexpr float to_float(bfloat16 value) {
  return __builtin_bit_cast(float, std::uint32_t{value.bits} << 16);
}

[[gnu::always_inline]] constexpr float to_float(float16 value) {
  const std::uint32_t sign = (value.bits & 0x8000u) << 16;
  const std::uint32_t magnitude = value.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) {  // infinity and NaN
    return __builtin_bit_cast(float, sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
  }
  // Read as a float with a too small exponent, then scaled by 2^112: exact, subnormal numbers included.
  const float scaled = __builtin_bit_cast(float, magnitude << 13) * 0x1p112f;
  return __builtin_bit_cast(float, sign | __builtin_bit_cast(std::uint32_t, scaled));
}

/// Round to nearest, ties to even; NaN stays NaN.
[[gnu::always_inline]] constexpr bfloat16 to_bfloat16(float value) {
  const std::uint32_t bits = __builtin_bit_cast(std::uint32_t, value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    return {static_cast<std::uint16_t>((bits >> 16) | 0x40u)};
  }
  return {static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

/// Round to nearest, ties to even; values that round beyond 65504 become infinite, NaN stays NaN.
[[gnu::always_inline]] constexpr float16 to_float16(float value) {
  const std::uint32_t bits = __builtin_bit_cast(std::uint32_t, value);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  std::uint32_t half = 0;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u;
  } else if (magnitude >= 0x477ff000u) {  // 65520, halfway to the next binade's first value
    half = 0x7c00u;
  } else if (magnitude >= 0x38800000u) {  // 2^-14, the smallest normal number
    half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  } else {
    // Adding 0.5 puts the units of 2^-24 into the last bits of the sum, rounded by the hardware.
    half = __builtin_bit_cast(std::uint32_t, __builtin_bit_cast(float, magnitude) + 0.5f) - 0x3f000000u;
  }
  return {static_cast<std::uint16_t>(sign | half)};
}

}  // namespace invconv
