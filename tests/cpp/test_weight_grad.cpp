// weight_grad against the definition.

#include <algorithm>

#include "support.hpp"

namespace invconv::test {
namespace {

/// At most 256 products follow each other in a sum in the arithmetic of T, as invconv.hpp says: each product is rounded
/// once and passes at most as many additions as there are products; then up to 4 additions fold the 16 lanes of a
/// vector. The rest is summed in double, with at most two additions for every product; so does this reference, with
/// one. Last, the sum is stored as a T.
template <class T>
double error_factor(const Shape& image) {
  const double all = static_cast<double>(image[0] * image[2] * image[3]);
  return (std::min(all, 256.0) + 1 + 4) * arithmetic_roundoff<T> + (3 * all + 1) * 0x1p-53;
}

template <class T>
void check(const Problem& problem, Random& random, const Layout& x_layout = contiguous,
           const Layout& g_layout = contiguous, const Layout& dw_layout = contiguous) {
  SCOPED_TRACE(::testing::Message() << problem << ", x " << x_layout.name << ", g " << g_layout.name << ", dw "
                                    << dw_layout.name);
  const Array<T> x(random_images(random, problem.image), x_layout);
  const Array<T> g(random_images(random, problem.image), g_layout);
  const Array<T> dw(problem.weight, dw_layout);
  const std::vector<T> x_before = x.buffer(), g_before = g.buffer();
  weight_grad<T>(x.view(), g.view(), dw.view(), problem.options, {}, Cpu{static_cast<int>(random.integer(1, 3))});
  EXPECT_TRUE(same_bits(x.buffer(), x_before)) << "x was written";
  EXPECT_TRUE(same_bits(g.buffer(), g_before)) << "g was written";
  EXPECT_TRUE(dw.gaps_are_intact()) << "something was written between the output's elements";

  const Dense result = dw.dense();
  const Dense expected = weight_grad(x.dense(), g.dense(), problem.weight, problem.options);
  const Dense spread = weight_grad(magnitude(x.dense()), magnitude(g.dense()), problem.weight, problem.options);
  for (Index o = 0; o < problem.weight[0]; ++o) {
    for (Index c = 0; c < problem.weight[1]; ++c) {
      for (Index u = 0; u < problem.weight[2]; ++u) {
        for (Index v = 0; v < problem.weight[3]; ++v) {
          const double is = result(o, c, u, v);
          if (entry(problem.weight, problem.options, o, c, u, v) != Entry::read) {
            ASSERT_TRUE(is == 0 && !std::signbit(is)) << "an entry that is not read has the derivative " << is;
            continue;
          }
          const double stored = storage_roundoff<T> * std::abs(is) + storage_underflow<T>;
          const double bound = error_factor<T>(problem.image) * spread(o, c, u, v) + stored;
          ASSERT_TRUE(std::abs(is - expected(o, c, u, v)) <= bound)
              << "dw[" << o << ", " << c << ", " << u << ", " << v << "] = " << is << ", but expected "
              << expected(o, c, u, v) << " +- " << bound;
        }
      }
    }
  }
}

template <class T>
class WeightGrad : public ::testing::Test {};
TYPED_TEST_SUITE(WeightGrad, StorageTypes, );

TYPED_TEST(WeightGrad, RandomProblemsInRandomLayouts) {
  Random random(1);
  for (int trial = 0; trial < 300; ++trial) {
    Problem problem = random_problem(random);
    problem.options.transpose = false;
    const Layout g = random.integer(0, 3) == 0 ? random.pick(repeating_layouts) : random.pick(layouts);
    check<TypeParam>(problem, random, random.pick(layouts), g, random.pick(layouts));
    if (this->HasFatalFailure()) {
      return;
    }
  }
}

TYPED_TEST(WeightGrad, EveryBatch) {
  Random random(2);
  for (Index batch = 0; batch <= 33; ++batch) {
    check<TypeParam>(make_problem({batch, 3, 4, 5}, 2, 3, {}), random);
  }
}

// Tiles of 4 output channels by 6 taps, or fewer: every remainder of both.
TYPED_TEST(WeightGrad, EveryNumberOfChannels) {
  Random random(3);
  for (Index channels = 0; channels <= 17; ++channels) {
    for (Index kernel_width = 1; kernel_width <= 3; ++kernel_width) {
      Options options;
      options.corners = {random.pick(all_corners)};
      options.unit_diagonal = random.coin();
      check<TypeParam>(make_problem({3, channels, 3, 3}, 2, kernel_width, options), random);
    }
  }
}

TYPED_TEST(WeightGrad, KernelsLargerThanTheImage) {
  constexpr std::array<Index, 2> sizes[] = {{0, 0}, {0, 3}, {3, 0}, {1, 1}, {1, 7}, {7, 1}, {2, 2}};
  Random random(4);
  for (const auto& [height, width] : sizes) {
    for (const Corner corner : all_corners) {
      Options options;
      options.corners = {corner};
      check<TypeParam>(make_problem({3, 2, height, width}, 5, 4, options), random);
    }
  }
}

// More rows, and longer ones, than one unit holds.
TYPED_TEST(WeightGrad, ImagesOfSeveralUnits) {
  Random random(5);
  for (const Shape& image : {Shape{1, 2, 70, 40}, Shape{2, 1, 3, 1024}, Shape{1, 2, 2, 1025}, Shape{1, 1, 1, 2500}}) {
    Options options;
    options.corners = {random.pick(all_corners)};
    check<TypeParam>(make_problem(image, 3, 3, options), random);
  }
}

// So many units that one part has several: what a unit packed serves the one below it.
TYPED_TEST(WeightGrad, ManyUnits) {
  Random random(8);
  for (const Shape& image :
       {Shape{1, 1, 1100, 64}, Shape{1, 2, 1500, 40}, Shape{1, 1, 40, 4100}, Shape{90, 1, 28, 28}}) {
    Options options;
    options.corners = {random.pick(all_corners)};
    check<TypeParam>(make_problem(image, 3, 4, options), random);
  }
}

// Outputs in several slices; inputs packed a few at a time, and of these a few gone through together.
TYPED_TEST(WeightGrad, ManyChannels) {
  Random random(9);
  check<TypeParam>(make_problem({60, 21, 4, 4}, 3, 3, {}), random);
  check<TypeParam>(make_problem({2, 53, 4, 4}, 2, 2, {}), random);
  check<TypeParam>(make_problem({1, 24, 16, 40}, 5, 7, {}), random);
  check<TypeParam>(make_problem({1, 66, 12, 64}, 9, 1, {}), random);
}

// Channels enough to lie in the lanes, one to three vectors of them at a time: full ones, and some with a lane to
// spare.
TYPED_TEST(WeightGrad, ChannelsInTheLanes) {
  Random random(11);
  for (const Index channels : {8, 15, 16, 31, 32, 47, 48, 62, 64, 80, 96}) {
    for (const Index kernel_width : {1, 3, 6}) {
      Options options;
      options.corners = {random.pick(all_corners)};
      options.unit_diagonal = random.coin();
      const Index height = random.integer(3, 6), width = random.integer(3, 6);
      check<TypeParam>(make_problem({random.integer(1, 9), channels, height, width}, 3, kernel_width, options), random);
    }
  }
}

// A broadcast gradient of equal signs and a long sum: errors of one block must not pile up over the batch.
TYPED_TEST(WeightGrad, LongSums) {
  using T = TypeParam;
  Dense ones({300, 1, 16, 16});
  ones.data.assign(ones.data.size(), 1.0);
  const Array<T> x(ones, repeating_layouts[2]), g(ones, repeating_layouts[1]);
  Options options;
  options.unit_diagonal = false;
  const Array<T> dw({1, 1, 1, 2});
  weight_grad<T>(x.view(), g.view(), dw.view(), options, {}, Cpu{2});
  // Counts of pixels, which float and double hold exactly; the half types round once, float16 to infinity.
  EXPECT_EQ(value_of(dw.at(0, 0, 0, 1)), value_of(rounded<T>(300 * 16 * 16)));
  EXPECT_EQ(value_of(dw.at(0, 0, 0, 0)), value_of(rounded<T>(300 * 16 * 15)));
}

// A NaN in one channel of the last image, whose vector is not full, reaches the taps that read this channel alone.
TYPED_TEST(WeightGrad, NanStaysWhereItBelongs) {
  using T = TypeParam;
  Random random(6);
  const Problem problem = make_problem({5, 4, 5, 6}, 2, 2, {});
  const Array<T> x(random_images(random, problem.image), contiguous),
      g(random_images(random, problem.image), contiguous);
  const Array<T> clean(problem.weight), dw(problem.weight);
  weight_grad<T>(x.view(), g.view(), clean.view(), problem.options, {}, Cpu{});
  x.at(4, 2, 1, 1) = not_a_number<T>();
  weight_grad<T>(x.view(), g.view(), dw.view(), problem.options, {}, Cpu{});
  for (Index o = 0; o < 4; ++o) {
    for (Index c = 0; c < 4; ++c) {
      for (Index u = 0; u < 2; ++u) {
        for (Index v = 0; v < 2; ++v) {
          const bool depends = c == 2 && entry(problem.weight, problem.options, o, c, u, v) == Entry::read;
          const T is = dw.at(o, c, u, v), was = clean.at(o, c, u, v);
          EXPECT_EQ(std::isnan(value_of(is)), depends) << o << ' ' << c << ' ' << u << ' ' << v;
          EXPECT_TRUE(depends || std::memcmp(&is, &was, sizeof(T)) == 0) << o << ' ' << c << ' ' << u << ' ' << v;
        }
      }
    }
  }
}

/// An infinite pixel reaches the taps that pair it with a pixel of the image, and no others; where a tap pairs a pixel
/// of g with the padding the result may be NaN, as 0 times infinity is.
template <class T>
void check_infinite_pixel(const Problem& problem, Index image, Index row, Index column, Random& random) {
  SCOPED_TRACE(::testing::Message() << problem << ", pixel " << image << ' ' << row << ' ' << column);
  const Array<T> x(random_images(random, problem.image), contiguous);
  const Array<T> g(random_images(random, problem.image), contiguous);
  const Array<T> clean(problem.weight), dw(problem.weight);
  weight_grad<T>(x.view(), g.view(), clean.view(), problem.options, {}, Cpu{});
  const Index height = problem.image[2], width = problem.image[3];
  for (const bool in_x : {true, false}) {
    T& pixel = (in_x ? x : g).at(image, 0, row, column);
    const T before = pixel;
    pixel = rounded<T>(std::numeric_limits<double>::infinity());
    weight_grad<T>(x.view(), g.view(), dw.view(), problem.options, {}, Cpu{});
    pixel = before;
    for (Index o = 0; o < problem.weight[0]; ++o) {
      for (Index c = 0; c < problem.weight[1]; ++c) {
        for (Index i = 0; i < problem.weight[2]; ++i) {
          for (Index j = 0; j < problem.weight[3]; ++j) {
            const Index u = problem.weight[2] - 1 - i, v = problem.weight[3] - 1 - j;
            const bool is_read = entry(problem.weight, problem.options, o, c, u, v) == Entry::read;
            const bool reads = is_read && (in_x ? c == 0 : o == 0);
            const bool pairs = in_x ? row + i < height && column + j < width : row >= i && column >= j;
            const T is = dw.at(o, c, u, v), was = clean.at(o, c, u, v);
            if (reads && pairs) {
              ASSERT_FALSE(std::isfinite(value_of(is))) << in_x << ' ' << o << ' ' << c << ' ' << i << ' ' << j;
            } else if (in_x || !reads) {
              ASSERT_EQ(std::memcmp(&is, &was, sizeof(T)), 0) << in_x << ' ' << o << ' ' << c << ' ' << i << ' ' << j;
            }
          }
        }
      }
    }
  }
}

TYPED_TEST(WeightGrad, InfinitiesStayWhereTheyBelong) {
  Random random(7);
  Options options;
  options.unit_diagonal = false;
  for (const Shape& image :
       {Shape{5, 2, 4, 4}, Shape{3, 2, 5, 7}, Shape{2, 16, 4, 5}, Shape{2, 2, 3, 16}, Shape{2, 2, 3, 19}}) {
    for (Index row = 0; row < image[2]; ++row) {
      for (Index column = 0; column < image[3]; ++column) {
        check_infinite_pixel<TypeParam>(make_problem(image, 3, 3, options), random.integer(0, image[0] - 1), row,
                                        column, random);
        if (this->HasFatalFailure()) {
          return;
        }
      }
    }
  }
  // Units of a part of a row: around every place where one may end.
  for (const Index column : {0, 1, 255, 256, 257, 511, 512, 1023, 1024, 1289, 1290, 1291}) {
    check_infinite_pixel<TypeParam>(make_problem({1, 1, 20, 1292}, 2, 3, options), 0, 18, column, random);
    if (this->HasFatalFailure()) {
      return;
    }
  }
}

/// Infinite or not a number in the same way, or both finite.
bool same_kind(double a, double b) {
  return std::isnan(a) == std::isnan(b) && std::isinf(a) == std::isinf(b) &&
         (!std::isinf(a) || std::signbit(a) == std::signbit(b));
}

// Any shape: the same bits for every number of threads, in a workspace of exactly its size between two fences; and with
// infinite pixels in x, what the definition makes of them.
TYPED_TEST(WeightGrad, OfAnyShapeForAnyNumberOfThreads) {
  using T = TypeParam;
  constexpr Index extents[] = {1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 63, 64, 65, 70, 129};
  constexpr Index channels_of_a_group[] = {1, 1, 2, 3, 4, 5, 7, 12, 13, 16, 25, 33, 48, 50};
  constexpr std::size_t fence = 256;
  constexpr unsigned char canary = 0xa5;
#if defined(INVCONV_THREAD_SANITIZER)
  constexpr int trials = 4;
#else
  constexpr int trials = 40;
#endif
  Random random(10);
  for (int trial = 0; trial < trials;) {
    Options options;
    options.groups = random.pick(std::array<Index, 4>{1, 1, 2, 3});
    options.corners = {random.pick(all_corners)};
    options.unit_diagonal = random.coin();
    const Shape image{random.integer(1, 40), options.groups * random.pick(channels_of_a_group), random.pick(extents),
                      random.pick(extents)};
    const Problem problem = make_problem(image, random.integer(1, 7), random.integer(1, 7), options);
    const Shape& weight = problem.weight;
    if (image[0] * image[2] * image[3] * weight[0] * weight[1] * weight[2] * weight[3] > 1000000) {
      continue;
    }
    ++trial;
    SCOPED_TRACE(::testing::Message() << problem);
    Dense values = random_images(random, image);
    for (Index infinities = random.coin() ? 0 : random.integer(1, 3); infinities > 0; --infinities) {
      values.data[static_cast<std::size_t>(random.integer(0, static_cast<Index>(values.data.size()) - 1))] =
          random.coin() ? std::numeric_limits<double>::infinity() : -std::numeric_limits<double>::infinity();
    }
    const Array<T> x(values, random.pick(layouts)), g(random_images(random, image), random.pick(layouts));
    const Array<T> first(weight, random.pick(layouts));
    for (int threads = 1; threads <= 8; ++threads) {
      const std::size_t bytes = workspace_size<T>(Operation::weight_grad, image, weight, options, Cpu{threads});
      const Aligned memory(fence + bytes + fence);
      std::fill_n(memory.data(), fence + bytes + fence, canary);
      std::fill_n(memory.data() + fence, bytes, static_cast<unsigned char>(0xff));
      const Array<T> dw(weight);
      const Array<T>& out = threads == 1 ? first : dw;
      weight_grad<T>(x.view(), g.view(), out.view(), options, {memory.data() + fence, bytes}, Cpu{threads});
      const auto intact = [](unsigned char byte) { return byte == canary; };
      ASSERT_TRUE(std::all_of(memory.data(), memory.data() + fence, intact));
      ASSERT_TRUE(std::all_of(memory.data() + fence + bytes, memory.data() + fence + bytes + fence, intact));
      ASSERT_TRUE(same_bits(out.elements(), first.elements())) << threads << " threads";
    }
    ASSERT_TRUE(first.gaps_are_intact());
    const Dense is = first.dense(), expected = weight_grad(x.dense(), g.dense(), weight, options);
    const Dense spread = weight_grad(magnitude(x.dense()), magnitude(g.dense()), weight, options);
    for (std::size_t at = 0; at < is.data.size(); ++at) {
      ASSERT_TRUE(same_kind(is.data[at], expected.data[at])) << at << ": " << is.data[at] << ", " << expected.data[at];
      const double stored = storage_roundoff<T> * std::abs(is.data[at]) + storage_underflow<T>;
      ASSERT_TRUE(!std::isfinite(expected.data[at]) ||
                  std::abs(is.data[at] - expected.data[at]) <= error_factor<T>(image) * spread.data[at] + stored)
          << at << ": " << is.data[at] << ", but expected " << expected.data[at];
    }
  }
}

}  // namespace
}  // namespace invconv::test
