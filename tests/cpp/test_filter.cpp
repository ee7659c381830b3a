// solve and conv against the definition, to the bound that invconv.hpp promises.

#include "support.hpp"

namespace invconv::test {
namespace {

template <class T>
void call(Operation operation, In<T> in, In<T> weight, View<T> out, const Options& options,
          const Execution& execution) {
  if (operation == Operation::solve) {
    solve<T>(in, weight, out, options, {}, execution);
  } else {
    conv<T>(in, weight, out, options, {}, execution);
  }
}

struct Layouts {
  Layout in = contiguous, weight = contiguous, out = contiguous;
};

template <class T>
void check(Operation operation, const Problem& problem, Random& random, const Layouts& where = {},
           double row_sum = 0.9) {
  SCOPED_TRACE(::testing::Message() << (operation == Operation::solve ? "solve, " : "conv, ") << problem << ", in "
                                    << where.in.name << ", weight " << where.weight.name << ", out " << where.out.name);
  const Array<T> weight(random_weight(random, problem.weight, problem.options, row_sum), where.weight);
  const Array<T> in(random_images(random, problem.image), where.in);
  const Array<T> out(problem.image, where.out);
  const std::vector<T> weight_before = weight.buffer(), in_before = in.buffer();
  call<T>(operation, in.view(), weight.view(), out.view(), problem.options,
          Cpu{static_cast<int>(random.integer(1, 3))});
  EXPECT_TRUE(same_bits(weight.buffer(), weight_before)) << "the weight was written";
  EXPECT_TRUE(same_bits(in.buffer(), in_before)) << "the input was written";
  EXPECT_TRUE(out.gaps_are_intact()) << "something was written between the output's elements";
  expect_within_bound<T>(operation, in.dense(), weight.dense(), out.dense(), problem.options);
}

constexpr Operation both[] = {Operation::solve, Operation::conv};

template <class T>
class Filter : public ::testing::Test {};
TYPED_TEST_SUITE(Filter, StorageTypes, );

TYPED_TEST(Filter, EveryCornerTransposeDiagonalAndKernel) {
  constexpr std::array<Index, 2> kernels[] = {{1, 1}, {1, 3}, {3, 1}, {2, 3}, {3, 2}, {4, 4}};
  Random random(1);
  for (const Operation operation : both) {
    for (const Corner corner : all_corners) {
      for (int choice = 0; choice < 8; ++choice) {
        Options options;
        options.corners = {corner};
        options.transpose = (choice & 1) != 0;
        options.unit_diagonal = (choice & 2) != 0;
        options.groups = (choice & 4) != 0 ? 2 : 1;
        for (const auto& [height, width] : kernels) {
          check<TypeParam>(operation, make_problem({2, 6, 5, 4}, height, width, options), random);
          if (this->HasFatalFailure()) {
            return;
          }
        }
      }
    }
  }
}

TYPED_TEST(Filter, RandomProblemsInRandomLayouts) {
  Random random(2);
  for (int trial = 0; trial < 300; ++trial) {
    const Problem problem = random_problem(random);
    const Layout in = random.integer(0, 3) == 0 ? random.pick(repeating_layouts) : random.pick(layouts);
    check<TypeParam>(random.pick(both), problem, random, {in, random.pick(layouts), random.pick(layouts)});
    if (this->HasFatalFailure()) {
      return;
    }
  }
}

// Every batch up to two of the widest vectors (16 floats) and one more.
TYPED_TEST(Filter, EveryBatch) {
  Random random(3);
  for (Index batch = 0; batch <= 33; ++batch) {
    for (const Operation operation : both) {
      check<TypeParam>(operation, make_problem({batch, 3, 4, 5}, 2, 3, {}), random);
    }
  }
}

// Output channels are computed in blocks of at most 8, 12 or 16: two full ones of each size, and one channel more.
TYPED_TEST(Filter, EveryNumberOfChannels) {
  Random random(4);
  for (Index channels = 0; channels <= 33; ++channels) {
    for (const Operation operation : both) {
      Options options;
      options.unit_diagonal = channels % 2 == 0;
      options.transpose = channels % 3 == 0;
      check<TypeParam>(operation, make_problem({5, channels, 3, 3}, 2, 2, options), random);
    }
  }
}

TYPED_TEST(Filter, EveryPairOfLayouts) {
  Random random(5);
  for (const Layout& in : layouts) {
    for (const Layout& out : layouts) {
      Options options;
      options.corners = {random.pick(all_corners)};
      // Rows of 9 and 3 pixels: more and fewer than the 4 that are packed at a time.
      check<TypeParam>(random.pick(both), make_problem({18, 2, 2, random.coin() ? 9 : 3}, 2, 2, options), random,
                       {in, contiguous, out});
    }
  }
}

TYPED_TEST(Filter, KernelsLargerThanTheImage) {
  constexpr std::array<Index, 2> sizes[] = {{0, 0}, {0, 3}, {3, 0}, {1, 1}, {1, 7}, {7, 1}, {2, 2}};
  Random random(6);
  for (const auto& [height, width] : sizes) {
    for (const Corner corner : all_corners) {
      for (const Operation operation : both) {
        Options options;
        options.corners = {corner};
        options.transpose = random.coin();
        check<TypeParam>(operation, make_problem({3, 2, height, width}, 5, 4, options), random);
      }
    }
  }
}

// An inverse that magnifies: the backward error must not care. Rows of M^-1 grow to about 1e10, which float16 lacks.
TYPED_TEST(Filter, ExpandingWeights) {
  if constexpr (!std::is_same_v<TypeParam, float16>) {
    Random random(7);
    for (const Corner corner : all_corners) {
      Options options;
      options.corners = {corner};
      check<TypeParam>(Operation::solve, make_problem({2, 3, 24, 24}, 3, 3, options), random, {}, 20.0);
    }
  }
}

TYPED_TEST(Filter, OneCornerForEachGroupIsOneCallForEachGroup) {
  using T = TypeParam;
  Random random(8);
  Options together;
  together.groups = 4;
  together.corners.assign(std::begin(all_corners), std::end(all_corners));
  const Problem problem = make_problem({5, 12, 6, 7}, 3, 2, together);
  for (const bool transpose : {false, true}) {
    together.transpose = transpose;
    const Array<T> weight(random_weight(random, problem.weight, together, 0.9), contiguous);
    const Array<T> y(random_images(random, problem.image), contiguous);
    const Array<T> x(problem.image);
    solve<T>(y.view(), weight.view(), x.view(), together, {}, Cpu{});
    const Array<T> apart(problem.image);
    for (Index group = 0; group < 4; ++group) {
      Options one;
      one.corners = {all_corners[group]};
      one.transpose = transpose;
      const auto channels = [&](View<T> view) {
        view.data += 3 * group * view.stride[1];
        view.shape[1] = 3;
        return view;
      };
      View<T> taps = weight.view();
      taps.data += 3 * group * taps.stride[0];
      taps.shape[0] = 3;
      solve<T>(channels(y.view()), taps, channels(apart.view()), one, {}, Cpu{});
    }
    EXPECT_TRUE(same_bits(x.elements(), apart.elements())) << (transpose ? "transposed" : "");
  }
}

TYPED_TEST(Filter, InPlace) {
  using T = TypeParam;
  Random random(9);
  for (const Operation operation : both) {
    for (const Layout& layout : layouts) {
      for (const Index batch : {1, 9, 17}) {
        Options options;
        options.corners = {random.pick(all_corners)};
        options.transpose = random.coin();
        const Problem problem = make_problem({batch, 3, 5, 6}, 3, 3, options);
        SCOPED_TRACE(::testing::Message() << problem << ", " << layout.name);
        const Array<T> weight(random_weight(random, problem.weight, options, 0.9), contiguous);
        const Array<T> in(random_images(random, problem.image), layout);
        const Array<T> out(problem.image), both_ways(in);
        call<T>(operation, in.view(), weight.view(), out.view(), options, Cpu{});
        call<T>(operation, both_ways.view(), weight.view(), both_ways.view(), options, Cpu{});
        EXPECT_TRUE(same_bits(both_ways.elements(), out.elements()));
        EXPECT_TRUE(both_ways.gaps_are_intact());
      }
    }
  }
}

// A NaN reaches what depends on it, and nothing else: no other image of its vector, no pixel before it, no lower
// channel of its own pixel.
TYPED_TEST(Filter, NanStaysWhereItBelongs) {
  using T = TypeParam;
  constexpr Index image = 1, channel = 1, row = 2, column = 3;
  Random random(10);
  for (const Corner corner : all_corners) {
    for (const bool transpose : {false, true}) {
      Options options;
      options.corners = {corner};
      options.transpose = transpose;
      const Problem problem = make_problem({5, 3, 5, 6}, 2, 2, options);
      SCOPED_TRACE(::testing::Message() << problem);
      const Array<T> weight(random_weight(random, problem.weight, options, 0.9), contiguous);
      const Array<T> y(random_images(random, problem.image), contiguous);
      const Array<T> clean(problem.image), x(problem.image);
      solve<T>(y.view(), weight.view(), clean.view(), options, {}, Cpu{});
      y.at(image, channel, row, column) = not_a_number<T>();
      solve<T>(y.view(), weight.view(), x.view(), options, {}, Cpu{});
      const bool downwards = pads_top(corner) != transpose, rightwards = pads_left(corner) != transpose;
      for (Index b = 0; b < 5; ++b) {
        for (Index c = 0; c < 3; ++c) {
          for (Index r = 0; r < 5; ++r) {
            for (Index s = 0; s < 6; ++s) {
              const Index rows_after = downwards ? r - row : row - r;
              const Index columns_after = rightwards ? s - column : column - s;
              const bool same_pixel = rows_after == 0 && columns_after == 0;
              const Index channels_after = transpose ? channel - c : c - channel;
              const bool depends =
                  b == image && rows_after >= 0 && columns_after >= 0 && (!same_pixel || channels_after >= 0);
              const T is = x.at(b, c, r, s), was = clean.at(b, c, r, s);
              EXPECT_EQ(std::isnan(value_of(is)), depends) << b << ' ' << c << ' ' << r << ' ' << s;
              EXPECT_TRUE(depends || std::memcmp(&is, &was, sizeof(T)) == 0) << b << ' ' << c << ' ' << r << ' ' << s;
            }
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace invconv::test
