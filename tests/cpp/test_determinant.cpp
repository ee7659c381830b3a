// logabsdet and growth against elimination on the dense matrix.

#include "support.hpp"

namespace invconv::test {
namespace {

/// The options of a trial, all kinds in turn.
Options options_of(int trial, Random& random) {
  Options options;
  options.groups = trial % 3 == 0 ? 2 : 1;
  options.unit_diagonal = trial % 2 == 0;
  options.corners.clear();
  for (Index group = 0; group < options.groups; ++group) {
    options.corners.push_back(random.pick(all_corners));
  }
  return options;
}

template <class T>
class Determinant : public ::testing::Test {};
TYPED_TEST_SUITE(Determinant, StorageTypes, );

TYPED_TEST(Determinant, LogAbsDetIsTheMatrixs) {
  Random random(1);
  for (int trial = 0; trial < 24; ++trial) {
    const Options options = options_of(trial, random);
    const Index channels = options.groups * random.integer(1, 3), height = random.integer(1, 4),
                width = random.integer(1, 4);
    const Problem problem =
        make_problem({1, channels, height, width}, random.integer(1, 3), random.integer(1, 3), options);
    SCOPED_TRACE(::testing::Message() << problem);
    const Array<TypeParam> weight(random_weight(random, problem.weight, options, 0.9), random.pick(layouts));
    const double result = logabsdet<TypeParam>(weight.view(), height, width, options);
    if (options.unit_diagonal) {
      EXPECT_EQ(result, 0);
    }
    // Both add up H W C logarithms of at most log 2, with a rounding each; the pivots of a matrix whose rows are
    // dominated by their diagonal (by 1 - 0.9) are exact to about 1 / (1 - 0.9) roundings for each of its columns.
    const double pixels = static_cast<double>(channels * height * width);
    const double tolerance = pixels * (pixels * 10 + 2) * 0x1p-52;
    EXPECT_NEAR(result, eliminate(matrix(weight.dense(), height, width, options)).log_abs_determinant, tolerance);
  }
}

TYPED_TEST(Determinant, LogAbsDetOfEmptyAndSingular) {
  Options options;
  options.unit_diagonal = false;
  const Array<TypeParam> weight({1, 1, 1, 1});
  weight.at(0, 0, 0, 0) = rounded<TypeParam>(-2);
  EXPECT_EQ(logabsdet<TypeParam>(weight.view(), 3, 5, options), 15 * std::log(2.0));
  EXPECT_EQ(logabsdet<TypeParam>(weight.view(), 0, 5, options), 0);
  EXPECT_EQ(logabsdet<TypeParam>(weight.view(), 5, 0, options), 0);
  weight.at(0, 0, 0, 0) = rounded<TypeParam>(0);
  EXPECT_EQ(logabsdet<TypeParam>(weight.view(), 3, 5, options), -std::numeric_limits<double>::infinity());
  EXPECT_EQ(logabsdet<TypeParam>(weight.view(), 3, 0, options), 0);
  const Array<TypeParam> none({0, 0, 2, 2});
  EXPECT_EQ(logabsdet<TypeParam>(none.view(), 3, 5, options), 0);
}

TYPED_TEST(Determinant, GrowthIsTheInverseMatrixsNorm) {
  Random random(2);
  for (int trial = 0; trial < 48; ++trial) {
    Options options = options_of(trial, random);
    options.transpose = trial % 4 < 2;
    const Index channels = options.groups * random.integer(1, 3), height = random.integer(1, 5),
                width = random.integer(1, 5);
    const Problem problem =
        make_problem({1, channels, height, width}, random.integer(1, 3), random.integer(1, 3), options);
    SCOPED_TRACE(::testing::Message() << problem);
    const Array<TypeParam> weight(random_weight(random, problem.weight, options, 0.9), random.pick(layouts));
    const double result = growth<TypeParam>(weight.view(), height, width, options, Cpu{2});
    // Rows are dominated by their diagonal, so the condition is at most 2 (1 + 0.9) / (1 - 0.9) = 38; a substitution
    // and an elimination in double of this size n each lose at most n roundings times that.
    const double unknowns = static_cast<double>(channels * height * width);
    const double expected = infinity_norm(eliminate(matrix(weight.dense(), height, width, options)).inverse);
    EXPECT_NEAR(result, expected, 2 * 38 * unknowns * 0x1p-53 * expected);
  }
}

// M = I - 3 S on a row of n pixels, with S the shift by one: the last row of its inverse is 1, 3, ..., 3^(n-1).
TYPED_TEST(Determinant, GrowthOfAGeometricSeries) {
  const Array<TypeParam> weight({1, 1, 1, 2});
  weight.at(0, 0, 0, 0) = rounded<TypeParam>(-3);
  weight.at(0, 0, 0, 1) = not_a_number<TypeParam>();  // the anchor, which a unit diagonal does not read
  EXPECT_EQ(growth<TypeParam>(weight.view(), 4, 20, {}), (std::pow(3.0, 20) - 1) / 2);
  // 3^1000 is more than a double holds.
  EXPECT_EQ(growth<TypeParam>(weight.view(), 1, 1000, {}), std::numeric_limits<double>::infinity());
}

TYPED_TEST(Determinant, GrowthOfTheIdentityAndOfNothing) {
  const Array<TypeParam> weight(Dense({2, 2, 2, 2}), contiguous);
  EXPECT_EQ(growth<TypeParam>(weight.view(), 6, 7, {}), 1);
  EXPECT_EQ(growth<TypeParam>(weight.view(), 0, 7, {}), 0);
  EXPECT_EQ(growth<TypeParam>(weight.view(), 7, 0, {}), 0);
  const Array<TypeParam> none({0, 0, 2, 2});
  EXPECT_EQ(growth<TypeParam>(none.view(), 3, 5, {}), 0);
  Options free;
  free.unit_diagonal = false;
  EXPECT_EQ(growth<TypeParam>(weight.view(), 2, 2, free), std::numeric_limits<double>::infinity())
      << "a singular matrix";
}

}  // namespace
}  // namespace invconv::test
