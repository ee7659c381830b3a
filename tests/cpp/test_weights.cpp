// One weight for each image is a call for each image, to the bit.

#include "weights.hpp"

namespace invconv::test {
namespace {

template <class T>
class Weights : public ::testing::Test {};
TYPED_TEST_SUITE(Weights, StorageTypes, );

TYPED_TEST(Weights, AreACallForEachImage) {
  Random random(1);
  for (int trial = 0; trial < 100; ++trial) {
    const Problem problem = random_problem(random);
    SCOPED_TRACE(::testing::Message() << problem);
    check_weights<TypeParam>(problem, random, Cpu{static_cast<int>(random.integer(1, 3))});
    if (this->HasFatalFailure()) {
      return;
    }
  }
}

TYPED_TEST(Weights, OfImagesForSeveralThreads) {
  Random random(2);
  check_weights<TypeParam>(make_problem({5, 3, 70, 41}, 3, 3, {}), random, Cpu{2});
  check_weights<TypeParam>(make_problem({3, 48, 9, 8}, 3, 3, {}), random, Cpu{3});
}

TEST(WeightsErrors, AreAsManyAsTheImages) {
  const View<float> images{nullptr, {2, 4, 8, 8}, {}};
  const auto message = [&](const WeightsShape& shape, Index groups) {
    Options options;
    options.groups = groups;
    try {
      workspace_size<float>(Operation::solve, images.shape, shape, options, Cpu{});
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  const std::string head = "[workspace_size] expected weight of shape (B, C, C/groups, kh, kw) with B = 2, C = 4, ";
  EXPECT_EQ(message({3, 4, 4, 3, 3}, 1), head + "groups = 1, but got (3, 4, 4, 3, 3)");
  EXPECT_EQ(message({2, 4, 4, 3, 3}, 2), head + "groups = 2, but got (2, 4, 4, 3, 3)");
  EXPECT_EQ(message({2, 4, 4, 3, 3}, 3), "[workspace_size] expected groups to divide C = 4, but got 3");
  EXPECT_EQ(message({2, 4, 4, 3, 3}, 1), "");
}

}  // namespace
}  // namespace invconv::test
