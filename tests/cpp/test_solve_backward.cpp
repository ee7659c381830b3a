// solve_backward is solve, with the other transpose, and the negative of weight_grad: to the bit, so that what is known
// of these holds for it.

#include <algorithm>

#include "support.hpp"

namespace invconv::test {
namespace {

template <class T>
void check(const Problem& problem, Random& random, bool in_place) {
  const Options& options = problem.options;
  const Layout& layout = in_place ? random.pick(layouts) : contiguous;
  const Array<T> x(random_images(random, problem.image), random.pick(layouts));
  const Array<T> g(random_images(random, problem.image), in_place ? layout : random.pick(layouts));
  const Array<T> weight(random_weight(random, problem.weight, options, 0.9), random.pick(layouts));
  const Cpu execution{static_cast<int>(random.integer(1, 3))};

  Options opposite = options, upright = options;
  opposite.transpose = !options.transpose;
  upright.transpose = false;
  const Array<T> expected_dy(problem.image), expected_dw(problem.weight);
  solve<T>(g.view(), weight.view(), expected_dy.view(), opposite, {}, execution);
  const View<T>&a = options.transpose ? expected_dy.view() : x.view(),
        &b = options.transpose ? x.view() : expected_dy.view();
  weight_grad<T>(a, b, expected_dw.view(), upright, {}, execution);

  const Array<T> dy = in_place ? g : Array<T>(problem.image, random.pick(layouts));
  const Array<T> dw(problem.weight, random.pick(layouts));
  const std::vector<T> x_before = x.buffer(), g_before = g.buffer(), weight_before = weight.buffer();
  solve_backward<T>(x.view(), in_place ? dy.view() : g.view(), weight.view(), dy.view(), dw.view(), options, {},
                    execution);
  EXPECT_TRUE(same_bits(x.buffer(), x_before)) << "x was written";
  EXPECT_TRUE(same_bits(g.buffer(), g_before)) << "g was written";
  EXPECT_TRUE(same_bits(weight.buffer(), weight_before)) << "the weight was written";
  EXPECT_TRUE(dy.gaps_are_intact());
  EXPECT_TRUE(dw.gaps_are_intact());
  ASSERT_TRUE(same_bits(dy.elements(), expected_dy.elements()));
  const Dense is = dw.dense(), positive = expected_dw.dense();
  for (Index o = 0; o < problem.weight[0]; ++o) {
    for (Index c = 0; c < problem.weight[1]; ++c) {
      for (Index u = 0; u < problem.weight[2]; ++u) {
        for (Index v = 0; v < problem.weight[3]; ++v) {
          const double derivative = is(o, c, u, v);
          ASSERT_EQ(derivative, -positive(o, c, u, v));
          if (entry(problem.weight, options, o, c, u, v) != Entry::read) {
            ASSERT_TRUE(derivative == 0 && !std::signbit(derivative));
          }
        }
      }
    }
  }
}

template <class T>
class SolveBackward : public ::testing::Test {};
TYPED_TEST_SUITE(SolveBackward, StorageTypes, );

TYPED_TEST(SolveBackward, IsBothGradients) {
  Random random(1);
  for (int trial = 0; trial < 200; ++trial) {
    const Problem problem = random_problem(random);
    SCOPED_TRACE(::testing::Message() << problem);
    check<TypeParam>(problem, random, trial % 4 == 3);
    if (this->HasFatalFailure()) {
      return;
    }
  }
}

TYPED_TEST(SolveBackward, OfImagesForSeveralThreads) {
  Random random(2);
  for (const bool transpose : {false, true}) {
    Options options;
    options.transpose = transpose;
    check<TypeParam>(make_problem({37, 6, 17, 19}, 3, 3, options), random, transpose);
  }
}

}  // namespace
}  // namespace invconv::test
