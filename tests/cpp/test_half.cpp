// The conversions of the 16-bit types: every bit pattern upwards, and downwards against rounding by definition.

#include <cstdint>

#include "support.hpp"

namespace invconv::test {
namespace {

/// A binary format of 16 bits: a sign, `exponent_bits`, and the rest.
struct Format {
  int exponent_bits;

  int fraction_bits() const { return 15 - exponent_bits; }
  int bias() const { return (1 << (exponent_bits - 1)) - 1; }
  /// The magnitude of the first pattern that is not a number: infinity's.
  int infinity() const { return ((1 << exponent_bits) - 1) << fraction_bits(); }

  /// What the format says that the bits are worth. Infinity's bits are worth the number that would follow the largest
  /// finite one, as IEEE 754 rounds.
  double value(int magnitude) const {
    const int exponent = magnitude >> fraction_bits();
    const int fraction = magnitude & ((1 << fraction_bits()) - 1);
    return exponent == 0 ? std::ldexp(fraction, 1 - bias() - fraction_bits())
                         : std::ldexp((1 << fraction_bits()) + fraction, exponent - bias() - fraction_bits());
  }

  /// The bits nearest to a number, by bisection over all of them; of two that are equally near, the even ones.
  int nearest(double number) const {
    const double target = std::abs(number);
    int low = 0, high = infinity();  // value(low) <= target, and value(high) > target or high is infinity
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (value(middle) <= target ? low : high) = middle;
    }
    const double below = target - value(low), above = value(high) - target;
    const int magnitude = below < above || (below == above && low % 2 == 0) ? low : high;
    return (std::signbit(number) ? 0x8000 : 0) | magnitude;
  }
};

template <class T>
struct Conversion;
template <>
struct Conversion<float16> {
  static constexpr Format format{5};
  static float16 from(float value) { return to_float16(value); }
};
template <>
struct Conversion<bfloat16> {
  static constexpr Format format{8};
  static bfloat16 from(float value) { return to_bfloat16(value); }
};

template <class T>
T of_bits(int bits) {
  return T{static_cast<std::uint16_t>(bits)};
}

template <class T>
class Half : public ::testing::Test {};
using HalfTypes = ::testing::Types<float16, bfloat16>;
TYPED_TEST_SUITE(Half, HalfTypes, );

TYPED_TEST(Half, EveryBitPatternHasItsValue) {
  const Format format = Conversion<TypeParam>::format;
  for (int bits = 0; bits < 0x10000; ++bits) {
    const int magnitude = bits & 0x7fff;
    const float value = to_float(of_bits<TypeParam>(bits));
    ASSERT_EQ(std::signbit(value), bits >= 0x8000) << std::hex << bits;
    if (magnitude > format.infinity()) {
      ASSERT_TRUE(std::isnan(value)) << std::hex << bits;
    } else if (magnitude == format.infinity()) {
      ASSERT_TRUE(std::isinf(value)) << std::hex << bits;
    } else {
      ASSERT_EQ(std::abs(static_cast<double>(value)), format.value(magnitude)) << std::hex << bits;
    }
  }
}

TYPED_TEST(Half, EveryBitPatternSurvivesTheWayThereAndBack) {
  const Format format = Conversion<TypeParam>::format;
  for (int bits = 0; bits < 0x10000; ++bits) {
    const TypeParam back = Conversion<TypeParam>::from(to_float(of_bits<TypeParam>(bits)));
    if ((bits & 0x7fff) > format.infinity()) {
      // A NaN stays one, and keeps its sign; its payload is nobody's.
      ASSERT_GT(back.bits & 0x7fff, format.infinity()) << std::hex << bits;
      ASSERT_EQ(back.bits & 0x8000, bits & 0x8000) << std::hex << bits;
    } else {
      ASSERT_EQ(back.bits, bits);
    }
  }
}

// Around every number of the format: itself, the middle to the next one (a tie), and the floats on both sides of each.
TYPED_TEST(Half, RoundsToNearestTiesToEven) {
  const Format format = Conversion<TypeParam>::format;
  const auto check = [&](float value) {
    ASSERT_EQ(Conversion<TypeParam>::from(value).bits, format.nearest(value)) << std::hexfloat << value;
  };
  for (int magnitude = 0; magnitude < format.infinity(); ++magnitude) {
    const double number = format.value(magnitude), next = format.value(magnitude + 1);
    for (const double centre : {number, number / 2 + next / 2}) {
      const auto exact = static_cast<float>(centre);
      for (const float value : {exact, std::nextafter(exact, 0.0f), std::nextafter(exact, INFINITY)}) {
        if (std::isfinite(value)) {
          check(value);
          check(-value);
          if (this->HasFatalFailure()) {
            return;
          }
        }
      }
    }
  }
}

// Floats at a stride that is odd, so that the low bits take every form: all exponents, subnormal and huge.
TYPED_TEST(Half, RoundsAnyFloat) {
  const Format format = Conversion<TypeParam>::format;
  for (std::uint64_t bits = 0; bits < 0x100000000; bits += 8191) {
    const float value = std::bit_cast<float>(static_cast<std::uint32_t>(bits));
    const int result = Conversion<TypeParam>::from(value).bits;
    if (std::isnan(value)) {
      ASSERT_GT(result & 0x7fff, format.infinity()) << std::hex << bits;
    } else {
      ASSERT_EQ(result, format.nearest(value)) << std::hexfloat << value;
    }
  }
}

TYPED_TEST(Half, SpecialValues) {
  const Format format = Conversion<TypeParam>::format;
  const auto bits = [](float value) { return static_cast<int>(Conversion<TypeParam>::from(value).bits); };
  constexpr float infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(bits(0.0f), 0);
  EXPECT_EQ(bits(-0.0f), 0x8000);
  EXPECT_EQ(bits(infinity), format.infinity());
  EXPECT_EQ(bits(-infinity), format.infinity() | 0x8000);
  EXPECT_EQ(bits(std::numeric_limits<float>::max()), format.infinity());
  // A signalling NaN whose payload lies in the bits that are cut off must not become infinity.
  EXPECT_GT(bits(std::bit_cast<float>(0x7f800001u)) & 0x7fff, format.infinity());
}

TEST(HalfLimits, TheLargestFloat16Is65504) {
  EXPECT_EQ(to_float16(65504.0f).bits, 0x7bff);
  EXPECT_EQ(to_float16(65519.996f).bits, 0x7bff);
  EXPECT_EQ(to_float16(65520.0f).bits, 0x7c00);
}

static_assert(to_float(to_float16(1.5f)) == 1.5f, "the conversions are constant expressions");
static_assert(to_float(to_bfloat16(1.5f)) == 1.5f, "the conversions are constant expressions");

}  // namespace
}  // namespace invconv::test
