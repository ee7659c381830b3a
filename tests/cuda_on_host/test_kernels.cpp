// The CUDA kernels, run on the host: against the CPU's, to the bit where the order of operations is the same, in random
// schedules of threads and blocks; and that these tests would find a missing barrier.

#include <algorithm>
#include <array>
#include <set>
#include <string>
#include <vector>

#include "cuda_on_host.hpp"
#include "device_on_host.hpp"
#include "plan.hpp"
#include "weights.hpp"

namespace invconv::test {
namespace {

using cuda_on_host::last_launch;
using cuda_on_host::most_shared_bytes;
using cuda_on_host::options;
using cuda_on_host::Schedule;
using detail::cuda::Kernel;

// Of each kernel and storage type, of which there are four.
#ifdef CUDA_ON_HOST_THREAD_SANITIZER
constexpr int trials = 8;  // it takes about fifty times as long
#else
constexpr int trials = 130;
#endif

detail::Sizes sizes_of(const Problem& problem) {
  detail::Sizes sizes{problem.image[0], problem.options.groups, problem.weight[1], problem.image[2],
                      problem.image[3], problem.weight[2],      problem.weight[3]};
  sizes.kernel_height = std::min(sizes.kernel_height, sizes.height);
  sizes.kernel_width = std::min(sizes.kernel_width, sizes.width);
  return sizes;
}

bool is_empty(const Problem& problem) {
  return std::any_of(problem.image.begin(), problem.image.end(), [](Index size) { return size == 0; });
}

template <class T>
constexpr std::size_t plan_element = std::is_same_v<T, double> ? 8 : 4;

template <class T>
detail::cuda::Plan plan_of(Operation operation, const Problem& problem) {
  return detail::cuda::plan({most_shared_bytes}, operation, sizes_of(problem), problem.options.unit_diagonal,
                            plan_element<T>);
}

void draw_schedule(Random& random) {
  options() = {};
  constexpr Schedule schedules[] = {Schedule::random, Schedule::random, Schedule::ascending, Schedule::descending};
  options().schedule = random.pick(schedules);
  options().seed = static_cast<std::uint64_t>(random.integer(0, 1 << 30));
  options().resident_blocks = static_cast<unsigned>(random.integer(1, 2));
}

/// solve or conv, as `out` has it afterwards.
template <class T>
void run(Operation operation, const View<T>& in, const View<T>& weight, const View<T>& out, const Options& how,
         const Execution& execution) {
  const CallerMemory memory(workspace_size<T>(operation, in.shape, weight.shape, how, execution));
  if (operation == Operation::solve) {
    solve<T>(in, weight, out, how, memory.workspace(), execution);
  } else {
    conv<T>(in, weight, out, how, memory.workspace(), execution);
  }
}

/// Whether products are fused on this CPU; else its results differ by rounding.
bool has_fused_products() { return std::string(instruction_set()) != "baseline"; }

/// Whether a kernel's order of operations is the CPU's.
bool has_order_of_cpu(Kernel kernel) { return kernel != Kernel::image && kernel != Kernel::wide; }

template <class T>
void check_filter(Operation operation, const Problem& problem, Random& random) {
  const bool in_place = random.integer(0, 3) == 0;
  const Layout& layout = random.pick(layouts);
  const Array<T> in(random_images(random, problem.image), layout);
  const Array<T> weight(random_weight(random, problem.weight, problem.options, 0.9), random.pick(layouts));
  const Array<T> expected(problem.image);
  run<T>(operation, in.view(), weight.view(), expected.view(), problem.options, Cpu{1});

  const std::vector<T> in_before = in.buffer(), weight_before = weight.buffer();
  const Array<T> out = in_place ? in : Array<T>(problem.image, random.pick(layouts));
  draw_schedule(random);
  run<T>(operation, in_place ? out.view() : in.view(), weight.view(), out.view(), problem.options, Cuda{});
  EXPECT_TRUE(same_bits(in.buffer(), in_before)) << "the input was written";
  EXPECT_TRUE(same_bits(weight.buffer(), weight_before)) << "the weight was written";
  EXPECT_TRUE(out.gaps_are_intact());
  const bool same_order = is_empty(problem) || has_order_of_cpu(plan_of<T>(operation, problem).kernel);
  if (same_order && has_fused_products()) {
    ASSERT_TRUE(same_bits(out.elements(), expected.elements())) << (in_place ? "in place" : "");
  } else {
    expect_within_bound<T>(operation, in.dense(), weight.dense(), out.dense(), problem.options);
  }
}

/// Of weight_grad the sums differ in their order: at most sums_chain products follow each other in the arithmetic of T,
/// each rounded once; such sums are added in double, with at most one addition for each product, and one for each part.
/// So does this reference. Last, the sum is stored as a T.
template <class T>
void expect_sums_within_bound(const Dense& is, const Dense& x, const Dense& g, const Problem& problem, double sign) {
  const Dense expected = weight_grad(x, g, problem.weight, problem.options);
  const Dense spread = weight_grad(magnitude(x), magnitude(g), problem.weight, problem.options);
  const double products = static_cast<double>(problem.image[0] * problem.image[2] * problem.image[3]);
  const double factor = (std::min(products, double{detail::cuda::sums_chain}) + 1) * arithmetic_roundoff<T> +
                        (2 * products + 512) * 0x1p-53;
  for (std::size_t at = 0; at < is.data.size(); ++at) {
    const double stored = (storage_roundoff<T> + arithmetic_roundoff<T>)*std::abs(is.data[at]) + storage_underflow<T>;
    ASSERT_TRUE(std::abs(is.data[at] - sign * expected.data[at]) <= factor * spread.data[at] + stored)
        << "entry " << at << ": " << is.data[at] << ", but expected " << sign * expected.data[at];
  }
}

template <class T>
void check_weight_grad(const Problem& problem, Random& random) {
  const Array<T> x(random_images(random, problem.image), random.pick(layouts));
  const Array<T> g(random_images(random, problem.image), random.pick(layouts));
  const Array<T> dw(problem.weight, random.pick(layouts));
  draw_schedule(random);
  const CallerMemory memory(
      workspace_size<T>(Operation::weight_grad, problem.image, problem.weight, problem.options, Cuda{}));
  weight_grad<T>(x.view(), g.view(), dw.view(), problem.options, memory.workspace(), Cuda{});
  EXPECT_TRUE(dw.gaps_are_intact());
  expect_sums_within_bound<T>(dw.dense(), x.dense(), g.dense(), problem, 1);
}

template <class T>
void run_gradients(const Array<T>& x, const Array<T>& g, const Array<T>& weight, const Array<T>& dy, const Array<T>& dw,
                   const Problem& problem) {
  const CallerMemory memory(
      workspace_size<T>(Operation::solve_backward, problem.image, problem.weight, problem.options, Cuda{}));
  solve_backward<T>(x.view(), g.view(), weight.view(), dy.view(), dw.view(), problem.options, memory.workspace(),
                    Cuda{});
}

/// Holds both gradients to the two operations that make them: dy to the bit, and dw where one kernel does not make
/// both, whose order of the sums is its own.
template <class T>
void check_gradients(const Problem& problem, Random& random) {
  const bool in_place = random.integer(0, 3) == 0;
  const Array<T> x(random_images(random, problem.image), random.pick(layouts));
  const Array<T> g(random_images(random, problem.image), random.pick(layouts));
  const Array<T> weight(random_weight(random, problem.weight, problem.options, 0.9), random.pick(layouts));
  const Array<T> expected_dy(problem.image), expected_dw(problem.weight);
  Options opposite = problem.options, upright = problem.options;
  opposite.transpose = !problem.options.transpose;
  upright.transpose = false;
  run<T>(Operation::solve, g.view(), weight.view(), expected_dy.view(), opposite, Cuda{});

  const std::vector<T> x_before = x.buffer(), g_before = g.buffer(), weight_before = weight.buffer();
  const Array<T> dy = in_place ? g : Array<T>(problem.image, random.pick(layouts));
  const Array<T> dw(problem.weight, random.pick(layouts));
  draw_schedule(random);
  run_gradients(x, in_place ? dy : g, weight, dy, dw, problem);
  EXPECT_TRUE(same_bits(x.buffer(), x_before)) << "x was written";
  EXPECT_TRUE(same_bits(g.buffer(), g_before)) << "g was written";
  EXPECT_TRUE(same_bits(weight.buffer(), weight_before)) << "the weight was written";
  EXPECT_TRUE(dy.gaps_are_intact());
  EXPECT_TRUE(dw.gaps_are_intact());
  ASSERT_TRUE(same_bits(dy.elements(), expected_dy.elements()));
  const Array<T>&a = problem.options.transpose ? dy : x, &b = problem.options.transpose ? x : dy;
  if (!is_empty(problem) && plan_of<T>(Operation::solve_backward, problem).kernel == Kernel::image_sums) {
    expect_sums_within_bound<T>(dw.dense(), a.dense(), b.dense(), problem, -1);
    return;
  }
  const CallerMemory sums(workspace_size<T>(Operation::weight_grad, problem.image, problem.weight, upright, Cuda{}));
  weight_grad<T>(a.view(), b.view(), expected_dw.view(), upright, sums.workspace(), Cuda{});
  const std::vector<T> negative = dw.elements(), positive = expected_dw.elements();
  for (std::size_t at = 0; at < negative.size(); ++at) {
    ASSERT_EQ(value_of(negative[at]), -value_of(positive[at])) << at;
  }
}

/// A problem for strips: 3 x 3 taps, up to 4 channels in a group, and several strips now and then.
Problem random_strips(Random& random) {
  const Options how = random_options(random, {1, 1, 1, 2, 3});
  const Index rows = random.integer(0, 3) > 0 ? random.integer(3, 40) : random.integer(60, 140);
  const Index columns = random.integer(0, 2) > 0 ? random.integer(3, 20) : random.integer(30, 70);
  return make_problem({random.integer(1, 3), how.groups * random.integer(1, 4), rows, columns}, 3, 3, how);
}

/// A problem for images: square kernels, and channels on both sides of every number that a variant or a warp ends at.
Problem random_image(Random& random) {
  constexpr Index channels[] = {1, 2, 3, 5, 6, 7, 8, 9, 11, 12, 13, 16, 17, 20, 24, 25, 31, 33, 40};
  const Options how = random_options(random, {1, 1, 1, 2, 3});
  const Index per_group = random.pick(channels), most = per_group > 12 ? 5 : random.integer(0, 3) > 0 ? 9 : 20;
  constexpr Index sides[] = {3, 3, 5, 7};
  const Index taps = random.pick(sides);
  const auto side = [&] { return random.integer(taps, std::max(most, taps + 1)); };
  return make_problem({random.integer(1, 2), how.groups * per_group, side(), side()}, taps, taps, how);
}

/// Channels on both sides of every number at which blocks deal them out to lanes otherwise.
Problem random_wide(Random& random) {
  constexpr Index channels[] = {16, 17, 24, 25, 32, 33, 48, 49, 64, 65, 96, 97, 128, 129, 192, 193};
  const Options how = random_options(random, {1, 1, 1, 1, 2});
  const Index per_group = random.pick(channels), most = per_group > 64 ? 3 : 5, taps = per_group > 64 ? 2 : 3;
  return make_problem({random.integer(1, 2), how.groups * per_group, random.integer(1, most), random.integer(1, most)},
                      random.integer(1, taps), random.integer(1, taps), how);
}

/// A problem for solve_wide: channels on both sides of every number at which units are otherwise; several images and
/// groups of the fewest, for the others take long. Now and then many more, or more rows than a strip has.
Problem random_many_channels(Random& random) {
  constexpr Index few[] = {65, 66, 68}, some[] = {95, 96, 97, 127, 128, 129},
                  many[] = {192, 193, 255, 256, 257, 288, 289, 384};
  const Index kind = random.integer(0, 9);
  const bool has_many = kind == 0, has_strips = kind == 1, has_few = kind < 6 && !has_many && !has_strips;
  const Index channels = has_many ? random.pick(many) : has_few || has_strips ? random.pick(few) : random.pick(some);
  const auto side = [&] { return has_strips ? random.integer(17, 18) : random.integer(1, has_many ? 3 : 5); };
  const auto taps = [&] { return random.integer(1, has_many || has_strips ? 2 : 3); };
  const Options how = random_options(random, {1, 1, 1, 1, has_few ? 2 : 1});
  return make_problem({random.integer(1, has_few ? 2 : 1), how.groups * channels, side(), side()}, taps(), taps(), how);
}

/// More rows and columns than a strip of a block has: of a few channels, of many, or with more rows of taps than a
/// strip has.
enum class StripsOf { few_channels, many_channels, many_taps };
Problem random_block_strips(StripsOf kind, Random& random) {
  const Options how = random_options(random, {1, 1, 1, 1, kind == StripsOf::few_channels ? 2 : 1});
  const bool is_wide = kind == StripsOf::many_channels;
  const auto side = [&] { return random.integer(65, is_wide ? 67 : 75); };
  const Index channels = is_wide ? random.integer(33, 36) : random.integer(1, kind == StripsOf::many_taps ? 2 : 5);
  const Index taps = kind == StripsOf::many_taps ? random.integer(60, 66) : random.integer(1, is_wide ? 2 : 4);
  return make_problem({1, how.groups * channels, side(), side()}, taps, random.integer(1, is_wide ? 2 : 4), how);
}

/// Images and kernels large enough that conv cuts them into tiles and weight_grad into units.
Problem random_tiled(Random& random) {
  const Options how = random_options(random, {1, 1, 1, 1, 2});
  const Index channels = random.integer(1, 20) / how.groups + 1, kernel = channels > 4 ? 4 : 7;
  return make_problem({random.integer(1, 2), how.groups * channels, random.integer(1, 20), random.integer(20, 70)},
                      random.integer(1, kernel), random.integer(1, kernel), how);
}

template <class T>
class Kernels : public ::testing::Test {
 protected:
  void TearDown() override {
    options() = {};
    most_shared_bytes = 48 * 1024;
  }
};
TYPED_TEST_SUITE(Kernels, StorageTypes, );

TYPED_TEST(Kernels, SolveByBlocks) {
  Random random(1);
  std::set<std::pair<bool, bool>> seen;
  for (int trial = 0, done = 0; done < trials; ++trial) {
    const Problem problem = trial % 8 == 0 ? random_wide(random) : random_problem(random);
    most_shared_bytes = 48 * 1024;
    if (!is_empty(problem)) {
      auto plan = plan_of<TypeParam>(Operation::solve, problem);
      if (plan.kernel == Kernel::wide) {  // which needs more
        most_shared_bytes = detail::cuda::block_header_bytes;
        plan = plan_of<TypeParam>(Operation::solve, problem);
      }
      if (plan.kernel != Kernel::block) {
        continue;
      }
      if (plan.block.weight_in_shared && plan.block.history_in_shared) {
        // Shared memory for everything, for the history alone, for the weight alone or for neither.
        constexpr std::size_t header = detail::cuda::block_header_bytes;
        const std::size_t history = static_cast<std::size_t>(plan.block.history_size()) * plan_element<TypeParam>;
        most_shared_bytes =
            random.pick(std::array{plan.shared_bytes, header + history, plan.shared_bytes - history, header});
        plan = plan_of<TypeParam>(Operation::solve, problem);
      }
      seen.emplace(plan.block.weight_in_shared, plan.block.history_in_shared);
    }
    SCOPED_TRACE(::testing::Message() << problem << ", shared memory " << most_shared_bytes);
    check_filter<TypeParam>(Operation::solve, problem, random);
    ++done;
    if (this->HasFatalFailure()) {
      return;
    }
  }
  EXPECT_GE(seen.size(), trials > 100 ? 4u : 1u);
}

/// With 17 channels the last lanes have none, and those in turn before them not all: for the address sanitizer.
TYPED_TEST(Kernels, SolveReadsNoWeightBehindTheLastChannel) {
  Random random(16);
  for (const std::size_t shared : {std::size_t{48 * 1024}, detail::cuda::block_header_bytes}) {
    most_shared_bytes = shared;
    const Problem problem = make_problem({1, 17, 1, 1}, 1, 1, {});
    ASSERT_EQ(plan_of<TypeParam>(Operation::solve, problem).kernel, Kernel::block);
    check_filter<TypeParam>(Operation::solve, problem, random);
  }
}

TYPED_TEST(Kernels, SolveByStripsOfBlocks) {
  constexpr int some = trials > 100 ? 15 : 2;
  constexpr StripsOf kinds[] = {StripsOf::few_channels, StripsOf::many_taps, StripsOf::few_channels,
                                StripsOf::many_channels, StripsOf::few_channels};
  Random random(15);
  std::set<std::array<bool, 4>> seen;
  for (int trial = 0, done = 0; done < some; ++trial) {
    constexpr std::size_t shared[] = {227 * 1024, 16 * 1024, 2048};
    most_shared_bytes = shared[done % 3];
    const Problem problem = random_block_strips(kinds[done % 5], random);
    SCOPED_TRACE(::testing::Message() << problem << ", shared memory " << most_shared_bytes);
    const auto plan = plan_of<TypeParam>(Operation::solve, problem);
    if (plan.kernel != Kernel::block) {
      continue;
    }
    ASSERT_GT(plan.block.strips, 1);
    seen.insert({plan.block.weight_in_shared, plan.block.history_in_shared, plan.shape.channels > 32,
                 plan.block.above() > plan.block.rows});
    check_filter<TypeParam>(Operation::solve, problem, random);
    ++done;
    if (this->HasFatalFailure()) {
      return;
    }
  }
  EXPECT_GE(seen.size(), trials > 100 ? 5u : 1u);
}

TYPED_TEST(Kernels, SolveOfManyChannels) {
  if (std::is_same_v<TypeParam, double>) {
    EXPECT_EQ(plan_of<double>(Operation::solve, make_problem({1, 65, 4, 4}, 3, 3, {})).kernel, Kernel::block);
    return;
  }
  Random random(17);
  std::set<int> outputs, units;
  std::set<std::string> seen;
  // With more rows of taps than a strip has; strips of eight rows, and of three.
  const Problem tall[] = {make_problem({1, 129, 9, 19}, 9, 1, {}), make_problem({1, 300, 9, 19}, 5, 1, {})};
  for (int done = 0; done < trials * 4 / 3;) {  // of three storage types
    const Problem problem = done < 2 ? tall[done] : random_many_channels(random);
    most_shared_bytes = random.pick(std::array<std::size_t, 3>{227 * 1024, 99 * 1024, 64 * 1024});
    SCOPED_TRACE(::testing::Message() << problem << ", shared memory " << most_shared_bytes);
    const auto plan = plan_of<TypeParam>(Operation::solve, problem);
    if (plan.kernel != Kernel::wide) {
      EXPECT_LT(most_shared_bytes, 227u * 1024);
      continue;
    }
    const auto& of = plan.wide;
    outputs.insert(of.strip.outputs);
    units.insert(of.units);
    seen.insert(of.strip.strips > 1 ? "strips" : "one strip");
    seen.insert(of.strip.swapped ? "swapped" : "as it is");
    seen.insert(of.units > of.row_groups ? "some outputs" : "all outputs");
    seen.insert(of.strip.strips > 1 && of.strip.above() > of.strip.rows ? "taps above strips" : "taps in strips");
    const int taps = plan.shape.kernel_height * plan.shape.kernel_width;
    seen.insert(of.first_line == 0                                  ? "all lines"
                : of.first_line <= (taps - 1) * plan.shape.channels ? "the anchor's lines"
                                                                    : "some of the anchor's lines");
    check_filter<TypeParam>(Operation::solve, problem, random);
    ++done;
    if (this->HasFatalFailure()) {
      return;
    }
  }
  if (trials > 100) {
    EXPECT_EQ(outputs.size(), 2u);
    EXPECT_EQ(units.size(), 4u);
    EXPECT_GE(seen.size(), 10u);
  }
}

TYPED_TEST(Kernels, SolveByImages) {
  Random random(11);
  std::set<std::array<int, 4>> variants;
  std::set<bool> swapped, rows_at_once;
  most_shared_bytes = 227 * 1024;
  for (int trial = 0, done = 0; done < trials; ++trial) {
    const Problem problem = random_image(random);
    SCOPED_TRACE(::testing::Message() << problem);
    const auto plan = plan_of<TypeParam>(Operation::solve, problem);
    if (plan.kernel != Kernel::image) {
      continue;
    }
    variants.insert({plan.image.variant.taps, plan.image.variant.outputs, plan.image.variant.inputs,
                     plan.image.variant.substituted});
    swapped.insert(plan.image.swapped);
    rows_at_once.insert(plan.image.row_groups < plan.image.shape.height);
    check_filter<TypeParam>(Operation::solve, problem, random);
    ++done;
    if (this->HasFatalFailure()) {
      return;
    }
  }
  if (trials > 100) {
    EXPECT_EQ(variants.size(), (std::is_same_v<TypeParam, double> ? 5u : 8u));
    EXPECT_EQ(swapped.size(), 2u);
    EXPECT_EQ(rows_at_once.size(), 2u);
  }
}

TYPED_TEST(Kernels, SolveOfImagesWithMoreRowsThanAWarp) {
  Random random(12);
  most_shared_bytes = 227 * 1024;
  for (const Problem& problem : {make_problem({1, 6, 33, 40}, 3, 3, {}), make_problem({1, 2, 40, 34}, 5, 5, {}),
                                 make_problem({1, 64, 3, 3}, 3, 3, {})}) {
    if (plan_of<TypeParam>(Operation::solve, problem).kernel == Kernel::image) {
      check_filter<TypeParam>(Operation::solve, problem, random);
    } else {
      EXPECT_TRUE((std::is_same_v<TypeParam, double>)) << problem;  // whose weight needs twice as much
    }
  }
}

TYPED_TEST(Kernels, NoBatchChangesABit) {
  using T = TypeParam;
  Random random(13);
  most_shared_bytes = 227 * 1024;
  for (const Problem& problem : {make_problem({3, 12, 6, 7}, 3, 3, {}), make_problem({3, 17, 4, 4}, 3, 3, {}),
                                 make_problem({3, 2, 40, 5}, 3, 3, {}), make_problem({3, 6, 4, 9}, 2, 3, {}),
                                 make_problem({3, 66, 4, 9}, 3, 3, {})}) {
    const Array<T> weight(random_weight(random, problem.weight, problem.options, 0.9), contiguous);
    const Array<T> in(random_images(random, problem.image), contiguous), out(problem.image);
    draw_schedule(random);
    run<T>(Operation::solve, in.view(), weight.view(), out.view(), {}, Cuda{});
    const std::vector<T> whole = out.elements();
    Problem one = problem;
    one.image[0] = 1;
    const std::size_t size = whole.size() / 3;
    for (Index image = 0; image < 3; ++image) {
      const Array<T> alone(one.image);
      const View<T> from{&in.at(image, 0, 0, 0), one.image, in.view().stride};
      draw_schedule(random);
      run<T>(Operation::solve, from, weight.view(), alone.view(), {}, Cuda{});
      const auto begin = whole.begin() + static_cast<std::ptrdiff_t>(size) * image;
      EXPECT_TRUE(same_bits(alone.elements(), std::vector<T>(begin, begin + static_cast<std::ptrdiff_t>(size))));
    }
  }
}

TYPED_TEST(Kernels, WeightsAreACallForEachImage) {
  Random random(14);
  for (int trial = 0; trial < trials / 8; ++trial) {
    most_shared_bytes = random.coin() ? 227 * 1024 : 48 * 1024;
    const int kind = trial % 5;
    const Problem problem = kind == 0   ? random_strips(random)
                            : kind == 1 ? random_image(random)
                            : kind == 2 ? random_tiled(random)
                            : kind == 3 ? random_many_channels(random)
                                        : random_problem(random);
    SCOPED_TRACE(::testing::Message() << problem << ", shared memory " << most_shared_bytes);
    draw_schedule(random);
    check_weights<TypeParam>(problem, random, Cuda{});
    if (this->HasFatalFailure()) {
      return;
    }
  }
}

TYPED_TEST(Kernels, SolveOfDiagonalsLongerThanABlock) {
  Random random(9);
  for (const Index channels : {5, 12}) {
    const Problem problem = make_problem({1, channels, 70, 66}, 2, 3, {});
    const auto plan = plan_of<TypeParam>(Operation::solve, problem);
    ASSERT_EQ(plan.block.strips, 2);
    check_filter<TypeParam>(Operation::solve, problem, random);
  }
}

TYPED_TEST(Kernels, BothGradients) {
  Random random(10);
  for (int trial = 0; trial < trials / 4; ++trial) {
    const Problem problem = trial % 2 == 0 ? random_strips(random) : random_problem(random);
    SCOPED_TRACE(::testing::Message() << problem);
    check_gradients<TypeParam>(problem, random);
    if (this->HasFatalFailure()) {
      return;
    }
  }
}

TYPED_TEST(Kernels, BothGradientsByImages) {
  if (std::is_same_v<TypeParam, double>) {
    return;  // which has no such kernel
  }
  Random random(18);
  std::set<std::array<int, 4>> variants;
  std::set<std::string> seen;
  for (int trial = 0, done = 0; done < trials * 4 / 3; ++trial) {  // of three storage types
    const Problem problem = random_image(random);
    most_shared_bytes = random.pick(std::array<std::size_t, 3>{227 * 1024, 227 * 1024, 48 * 1024});
    SCOPED_TRACE(::testing::Message() << problem << ", shared memory " << most_shared_bytes);
    const auto plan = plan_of<TypeParam>(Operation::solve_backward, problem);
    if (plan.kernel != Kernel::image_sums) {
      continue;
    }
    variants.insert({plan.image.variant.taps, plan.image.variant.outputs, plan.image.variant.inputs,
                     plan.image.variant.substituted});
    seen.insert(plan.image.swapped ? "swapped" : "as it is");
    seen.insert(plan.image_sums.slices > 1 ? "slices" : "one slice");
    seen.insert(plan.image_sums.rows > 1 ? "rows" : "one row");
    seen.insert(problem.options.transpose ? "transposed" : "upright");
    check_gradients<TypeParam>(problem, random);
    ++done;
    if (this->HasFatalFailure()) {
      return;
    }
  }
  if (trials > 100) {
    EXPECT_EQ(variants.size(), 8u);
    EXPECT_EQ(seen.size(), 8u);
  }
}

/// As WeightGradOfAnInfinitePixel, but here nothing outside the image is multiplied.
TYPED_TEST(Kernels, BothGradientsOfAnInfinitePixel) {
  if (std::is_same_v<TypeParam, double>) {
    return;  // which has no such kernel
  }
  using T = TypeParam;
  Random random(20);
  most_shared_bytes = 227 * 1024;
  for (const Problem& problem : {make_problem({1, 5, 5, 6}, 3, 3, {}), make_problem({1, 5, 8, 7}, 7, 7, {})}) {
    ASSERT_EQ(plan_of<T>(Operation::solve_backward, problem).kernel, Kernel::image_sums);
    const Index height = problem.image[2], width = problem.image[3], taps = problem.weight[2];
    const Array<T> x(random_images(random, problem.image), contiguous);
    const Array<T> g(random_images(random, problem.image), contiguous);
    const Array<T> weight(random_weight(random, problem.weight, {}, 0.9), contiguous);
    const Array<T> dy(problem.image);
    const auto gradient = [&] {
      const Array<T> dw(problem.weight);
      run_gradients(x, g, weight, dy, dw, problem);
      return dw;
    };
    const Array<T> clean = gradient();
    for (Index pixel = 0; pixel < height * width; pixel += trials > 100 ? 1 : 11) {
      const Index row = pixel / width, column = pixel % width;
      T& value = x.at(0, 1, row, column);
      const T before = value;
      value = rounded<T>(std::numeric_limits<double>::infinity());
      const Array<T> dw = gradient();
      value = before;
      for (Index o = 0; o < 5; ++o) {
        for (Index c = 0; c < 5; ++c) {
          for (Index tap = 0; tap < taps * taps; ++tap) {
            const Index i = tap / taps, j = tap % taps;
            const bool reads = c == 1 && row + i < height && column + j < width && (tap > 0 || c < o);
            const double is = value_of(dw.at(o, c, taps - 1 - i, taps - 1 - j));
            const double was = value_of(clean.at(o, c, taps - 1 - i, taps - 1 - j));
            ASSERT_TRUE(reads ? std::isinf(is) || std::isnan(is) : is == was)
                << row << ' ' << column << ": " << o << c << i << j;
          }
        }
      }
    }
    // An infinity in g spoils dy up to the pixel, and no tap pairs what is right of it with what is not.
    g.at(0, 0, 0, 0) = rounded<T>(std::numeric_limits<double>::infinity());
    const Array<T> dw = gradient();
    ASSERT_FALSE(std::isfinite(value_of(dy.at(0, 0, 0, 0))));
    for (Index o = 0; o < 5; ++o) {
      for (Index c = 0; c < 5; ++c) {
        for (Index tap = 1; tap < taps * taps; ++tap) {  // x[p - t] with p = 0 is outside for all but the anchor
          EXPECT_TRUE(std::isfinite(value_of(dw.at(o, c, taps - 1 - tap / taps, taps - 1 - tap % taps))));
        }
      }
    }
  }
}

TEST(Workspace, OfADeviceIsTheCallers) {
  const Problem problem = make_problem({1, 1, 70, 4}, 3, 3, {});
  const Array<float> y(problem.image), weight(problem.weight), x(problem.image);
  const std::size_t bytes = workspace_size<float>(Operation::solve, problem.image, problem.weight, {}, Cuda{});
  ASSERT_GT(bytes, 0u);
  for (const Workspace& given : {Workspace{}, Workspace{nullptr, bytes}}) {
    EXPECT_THROW(solve<float>(y.view(), weight.view(), x.view(), {}, given, Cuda{}), Error);
  }
}

TEST(Workspace, InPlaceOfTooManyChannelsIsRefused) {
  most_shared_bytes = 64;
  const Problem wide = make_problem({1, 40, 1, 2}, 1, 1, {});
  const Array<float> images(wide.image), taps(wide.weight), out(wide.image);
  run<float>(Operation::conv, images.view(), taps.view(), out.view(), {}, Cuda{});
  EXPECT_THROW(run<float>(Operation::conv, images.view(), taps.view(), images.view(), {}, Cuda{}), Error);
  most_shared_bytes = 48 * 1024;
}

TYPED_TEST(Kernels, SolveByStrips) {
  Random random(2);
  most_shared_bytes = 64 * 1024;  // as on the smallest devices
  for (int trial = 0; trial < trials; ++trial) {
    const Problem problem = random_strips(random);
    SCOPED_TRACE(::testing::Message() << problem);
    ASSERT_EQ(plan_of<TypeParam>(Operation::solve, problem).kernel, Kernel::strips);
    check_filter<TypeParam>(Operation::solve, problem, random);
    if (this->HasFatalFailure()) {
      return;
    }
  }
}

TYPED_TEST(Kernels, Conv) {
  Random random(3);
  std::set<std::string> seen;
  for (int trial = 0; trial < trials; ++trial) {
    most_shared_bytes = random.pick(std::array<std::size_t, 4>{48 * 1024, 48 * 1024, 4096, 2048});
    const Problem problem = trial % 8 == 0   ? random_wide(random)
                            : trial % 2 == 0 ? random_tiled(random)
                                             : random_problem(random);
    SCOPED_TRACE(::testing::Message() << problem << ", shared memory " << most_shared_bytes);
    if (!is_empty(problem)) {
      const auto plan = plan_of<TypeParam>(Operation::conv, problem);
      if (plan.kernel == Kernel::tiles) {
        seen.insert("tiles");
        seen.insert(plan.tiles.width < plan.shape.width ? "several across" : "one across");
        seen.insert(plan.tiles.row_groups * detail::cuda::tile_rows < plan.shape.height ? "several down" : "one down");
        seen.insert(plan.tiles.output_groups * detail::cuda::tile_outputs < plan.shape.channels ? "some outputs"
                                                                                                : "all");
      } else {
        seen.insert("direct");
      }
    }
    check_filter<TypeParam>(Operation::conv, problem, random);
    if (this->HasFatalFailure()) {
      return;
    }
  }
  EXPECT_GE(seen.size(), trials > 100 ? 8u : 1u);
}

TYPED_TEST(Kernels, WeightGrad) {
  Random random(4);
  std::set<std::string> seen;
  for (int trial = 0; trial < trials; ++trial) {
    Problem problem = trial % 8 == 0   ? random_wide(random)
                      : trial % 4 == 1 ? random_tiled(random)
                                       : random_problem(random);
    problem.options.transpose = false;
    SCOPED_TRACE(::testing::Message() << problem);
    if (!is_empty(problem)) {
      const auto plan = plan_of<TypeParam>(Operation::weight_grad, problem);
      seen.insert(plan.sums.parts > 1 ? "parts" : "one part");
      seen.insert(plan.sums.slices > 1 ? "slices" : "one slice");
      seen.insert(plan.sums.units % (plan.sums.parts * plan.sums.slices) > 0 ? "cut" : "whole");
      seen.insert(plan.sums.square == 1                        ? "one tap"
                  : plan.shape.kernel_width > plan.sums.square ? "tiles of taps"
                                                               : "one tile");
      seen.insert(plan.sums.inputs < plan.shape.channels ? "some inputs" : "all inputs");
      seen.insert(plan.sums.outputs * detail::cuda::sums_outputs < plan.shape.channels ? "some outputs"
                                                                                       : "all outputs");
    }
    check_weight_grad<TypeParam>(problem, random);
    if (this->HasFatalFailure()) {
      return;
    }
  }
  EXPECT_GE(seen.size(), trials > 100 ? 13u : 1u);
}

TYPED_TEST(Kernels, WeightGradOfManyPixels) {
  Random random(5);
  check_weight_grad<TypeParam>(make_problem({2, 1, 300, 40}, 3, 3, {}), random);
#ifndef CUDA_ON_HOST_THREAD_SANITIZER  // the barriers are those of smaller problems
  // More than one chain of products in each thread: so many groups leave one part for all pixels.
  Options how;
  how.groups = 133;
  const Problem problem = make_problem({1, how.groups * 9, 100, 32}, 1, 1, how);
  const auto plan = plan_of<TypeParam>(Operation::weight_grad, problem);
  ASSERT_EQ(plan.sums.parts, 1);
  ASSERT_GT(plan.sums.units / plan.sums.slices * detail::cuda::sums_rows * plan.sums.span, detail::cuda::sums_chain);
  check_weight_grad<TypeParam>(problem, random);
#endif
}

#ifndef CUDA_ON_HOST_THREAD_SANITIZER  // a thousand blocks that share nothing
TYPED_TEST(Kernels, ManyGroups) {      // more than a launch takes
  Random random(6);
  Options how;
  how.groups = 1030;
  how.corners.clear();
  for (Index group = 0; group < how.groups; ++group) {
    how.corners.push_back(random.pick(all_corners));
  }
  const Problem small = make_problem({1, how.groups, 3, 3}, 2, 2, how);
  check_filter<TypeParam>(Operation::solve, small, random);
  check_filter<TypeParam>(Operation::conv, small, random);
  check_filter<TypeParam>(Operation::solve, make_problem({1, how.groups, 65, 3}, 3, 3, how),
                          random);  // two strips each
  how.transpose = false;
  check_weight_grad<TypeParam>(make_problem({1, how.groups, 3, 3}, 2, 2, how), random);
}
#endif

TYPED_TEST(Kernels, InfinityMeetsNothingOutsideTheImage) {
  using T = TypeParam;
  most_shared_bytes = 227 * 1024;
  for (const Index channels : {2, 6, 18, 66}) {
    const Problem problem = make_problem({1, channels, 4, 5}, 3, 3, {});
    Random random(7);
    Dense taps = random_weight(random, problem.weight, problem.options, 0.9);
    taps(0, 1, 0, 0) = std::numeric_limits<double>::infinity();  // reaches two rows up and two columns to the left
    const Array<T> in(random_images(random, problem.image), contiguous), weight(taps, contiguous);
    const Array<T> expected(problem.image), out(problem.image);
    for (const Operation operation : {Operation::solve, Operation::conv}) {
      run<T>(operation, in.view(), weight.view(), expected.view(), {}, Cpu{1});
      run<T>(operation, in.view(), weight.view(), out.view(), {}, Cuda{});
      for (Index pixel = 0; pixel < 7; ++pixel) {  // up to (1, 1)
        EXPECT_TRUE(std::isfinite(value_of(out.at(0, 0, pixel / 5, pixel % 5))));
      }
      const std::vector<T> is = out.elements(), should = expected.elements();
      for (std::size_t at = 0; at < is.size(); ++at) {
        EXPECT_EQ(std::isfinite(value_of(is[at])), std::isfinite(value_of(should[at]))) << at;
      }
    }
  }
}

/// An infinite pixel reaches what the definition pairs it with, and nothing else: conv reads no entry above the
/// anchor's diagonal.
TYPED_TEST(Kernels, ConvOfAnInfinitePixel) {
  using T = TypeParam;
  Random random(11);
  const Problem problem = make_problem({1, 6, 6, 7}, 2, 3, {});
  const Array<T> weight(random_weight(random, problem.weight, problem.options, 0.9), contiguous);
  for (Index channel = 0; channel < 6; ++channel) {
    Dense images = random_images(random, problem.image);
    images(0, channel, 2, 3) = std::numeric_limits<double>::infinity();
    const Array<T> in(images, contiguous), out(problem.image);
    run<T>(Operation::conv, in.view(), weight.view(), out.view(), {}, Cuda{});
    for (Index o = 0; o < 6; ++o) {
      for (Index row = 0; row < 6; ++row) {
        for (Index column = 0; column < 7; ++column) {
          const Index i = row - 2, j = column - 3;
          const bool reads = i >= 0 && i < 2 && j >= 0 && j < 3 && (i > 0 || j > 0 || channel <= o);
          EXPECT_EQ(std::isfinite(value_of(out.at(0, o, row, column))), !reads) << channel << o << row << column;
        }
      }
    }
  }
}

/// As of the CPU (test_weight_grad.cpp): where a tap pairs an infinite pixel of g with the padding the result may be
/// NaN.
TYPED_TEST(Kernels, WeightGradOfAnInfinitePixel) {
  using T = TypeParam;
  Random random(12);
  Options how;
  how.unit_diagonal = false;
  const Index height = 6, width = 19;  // units that are cut on both axes
  const Problem problem = make_problem({2, 2, height, width}, 4, 3, how);
  const Array<T> x(random_images(random, problem.image), contiguous);
  const Array<T> g(random_images(random, problem.image), contiguous);
  const CallerMemory memory(workspace_size<T>(Operation::weight_grad, problem.image, problem.weight, how, Cuda{}));
  const auto sums = [&] {
    const Array<T> dw(problem.weight);
    weight_grad<T>(x.view(), g.view(), dw.view(), how, memory.workspace(), Cuda{});
    return dw;
  };
  const Array<T> clean = sums();
  const Index step = trials > 100 ? 1 : 37;
  for (Index pixel = 0; pixel < height * width; pixel += step) {
    const Index row = pixel / width, column = pixel % width;
    for (const bool in_x : {true, false}) {
      T& value = (in_x ? x : g).at(1, 0, row, column);
      const T before = value;
      value = rounded<T>(std::numeric_limits<double>::infinity());
      const Array<T> dw = sums();
      value = before;
      for (Index at = 0; at < 2 * 2 * 4 * 3; ++at) {
        const Index o = at / 24, c = at / 12 % 2, i = at / 3 % 4, j = at % 3;
        const bool is_read = i > 0 || j > 0 || c <= o, reads = is_read && (in_x ? c == 0 : o == 0);
        const bool pairs = in_x ? row + i < height && column + j < width : row >= i && column >= j;
        const double is = value_of(dw.at(o, c, 3 - i, 2 - j)), was = value_of(clean.at(o, c, 3 - i, 2 - j));
        if (reads && pairs) {
          ASSERT_FALSE(std::isfinite(is)) << in_x << row << ' ' << column << ": " << o << c << i << j;
        } else if (in_x || !reads) {
          ASSERT_EQ(is, was) << in_x << row << ' ' << column << ": " << o << c << i << j;
        }
      }
    }
  }
}

// ---- that these tests find mistakes -------------------------------------------------------------------------------

#ifndef CUDA_ON_HOST_THREAD_SANITIZER  // which ends the process at the first one
/// The bits of a result in several schedules, or none where a launch failed.
template <class Compute>
std::set<std::vector<float>> results(int dropped_barrier, int dropped_warp_sync, const Compute& compute) {
  std::set<std::vector<float>> seen;
  for (const Schedule schedule : {Schedule::ascending, Schedule::descending, Schedule::random, Schedule::random}) {
    options() = {};
    options().schedule = schedule;
    options().seed = seen.size();
    options().dropped_barrier = dropped_barrier;
    options().dropped_warp_sync = dropped_warp_sync;
    try {
      std::vector<float> bits = compute();
      // NaN is unequal to itself: its place is what counts.
      std::replace_if(bits.begin(), bits.end(), [](float value) { return std::isnan(value); }, 1e30f);
      seen.insert(bits);
    } catch (const std::runtime_error&) {
      seen.insert(std::vector<float>{});
    }
  }
  options() = {};
  return seen;
}

std::set<std::vector<float>> results(const Problem& problem, int dropped_barrier, int dropped_warp_sync,
                                     Operation operation = Operation::solve) {
  Random random(8);
  const Array<float> in(random_images(random, problem.image), contiguous);
  const Array<float> weight(random_weight(random, problem.weight, problem.options, 0.9), contiguous);
  return results(dropped_barrier, dropped_warp_sync, [&] {
    const Array<float> out(problem.image);
    run<float>(operation, in.view(), weight.view(), out.view(), problem.options, Cuda{});
    return out.elements();
  });
}

TEST(Mistakes, AMissingBarrierIsFound) {
  // Warps of four rows each; the first pixel needs an anchor that another warp packs.
  Options how;
  how.unit_diagonal = false;
  const Problem problem = make_problem({1, 20, 20, 20}, 3, 4, how);
  ASSERT_EQ(plan_of<float>(Operation::solve, problem).kernel, Kernel::block);
  const auto correct = results(problem, -1, -1);
  ASSERT_EQ(correct.size(), 1u);
  const int barriers = last_launch().barriers;
  ASSERT_EQ(barriers, 2 + 20 + 20 - 1);  // after the header, after the weight, and after each diagonal
  // Without the header's, threads would read from anywhere; nothing follows the last one.
  for (int dropped = 1; dropped + 1 < barriers; ++dropped) {
    const auto found = results(problem, dropped, -1);
    // After these diagonals a warp reads the last row of another.
    const int diagonal = dropped - 2;
    if (dropped == 1 || (diagonal >= 3 && diagonal <= 15 + 19)) {
      EXPECT_TRUE(found.size() > 1 || found != correct) << "barrier " << dropped;
    }
  }
}

TEST(Mistakes, AMissingBarrierBetweenStripsOfBlocksIsFound) {
  const Problem problem = make_problem({1, 5, 65, 66}, 2, 2, {});
  const auto plan = plan_of<float>(Operation::solve, problem);
  ASSERT_EQ(plan.kernel, Kernel::block);
  ASSERT_EQ(plan.block.strips, 2);
  const auto correct = results(problem, -1, -1);
  ASSERT_EQ(correct.size(), 1u);
  // Of the lower strip's: every 16 diagonals one before it reads what the upper one has handed down, and one after.
  for (int chunk = 0; chunk < 5; ++chunk) {
    const int before = 2 + chunk * (detail::cuda::block_columns + 2);
    EXPECT_NE(results(problem, before, -1), correct) << "before columns " << 16 * chunk;
    EXPECT_NE(results(problem, before + 1, -1), correct) << "after columns " << 16 * chunk;
  }
}

TEST(Mistakes, EachMissingBarrierOfManyChannelsIsFound) {
  most_shared_bytes = 227 * 1024;
  const Problem problem = make_problem({1, 66, 5, 6}, 3, 3, {});
  ASSERT_EQ(plan_of<float>(Operation::solve, problem).kernel, Kernel::wide);
  const auto correct = results(problem, -1, -1);
  ASSERT_EQ(correct.size(), 1u);
  const int barriers = last_launch().barriers;
  ASSERT_EQ(barriers, 1 + 2 * (5 + 6 - 1));  // after the header, and two for each diagonal
  for (int dropped = 1; dropped + 1 < barriers; ++dropped) {
    EXPECT_NE(results(problem, dropped, -1), correct) << "barrier " << dropped;
  }
  most_shared_bytes = 48 * 1024;
}

TEST(Mistakes, AMissingBarrierBetweenStripsOfManyChannelsIsFound) {
  most_shared_bytes = 227 * 1024;
  const Problem problem = make_problem({1, 65, 17, 18}, 2, 1, {});
  const auto plan = plan_of<float>(Operation::solve, problem);
  ASSERT_EQ(plan.kernel, Kernel::wide);
  ASSERT_EQ(plan.wide.strip.strips, 2);
  const auto correct = results(problem, -1, -1);
  ASSERT_EQ(correct.size(), 1u);
  // Of the lower strip: a barrier before it reads what the upper one has handed down, and one after; for the first
  // columns, and 15 diagonals later for the next.
  for (const int before : {1, 1 + 2 + 15 * 2}) {
    EXPECT_NE(results(problem, before, -1), correct) << "barrier " << before;
    EXPECT_NE(results(problem, before + 1, -1), correct) << "barrier " << before + 1;
  }
  most_shared_bytes = 48 * 1024;
}

TEST(Mistakes, EachMissingBarrierOfImagesIsFound) {
  // One thread for a pixel's channels, also with its parts added up before, and a warp for them; several rows at once.
  most_shared_bytes = 227 * 1024;
  for (const Problem& problem : {make_problem({1, 6, 8, 8}, 3, 3, {}), make_problem({1, 6, 6, 7}, 5, 5, {}),
                                 make_problem({1, 20, 5, 5}, 3, 3, {})}) {
    SCOPED_TRACE(::testing::Message() << problem);
    ASSERT_EQ(plan_of<float>(Operation::solve, problem).kernel, Kernel::image);
    const auto correct = results(problem, -1, -1);
    ASSERT_EQ(correct.size(), 1u);
    const int barriers = last_launch().barriers, diagonals = static_cast<int>(problem.image[2] + problem.image[3]) - 1;
    const int of_a_diagonal = (barriers - 3) / diagonals;
    for (int dropped = 0; dropped < barriers; ++dropped) {
      const auto found = results(problem, dropped, -1);
      if (dropped >= 2 && dropped + 1 < 3 + of_a_diagonal) {
        continue;  // on the first diagonal there is nothing to add: all parts are 0
      }
      EXPECT_TRUE(found.size() > 1 || found != correct) << "barrier " << dropped << " of " << barriers;
    }
  }
  most_shared_bytes = 48 * 1024;
}

TEST(Mistakes, EachMissingBarrierOfBothGradientsIsFound) {
  most_shared_bytes = 227 * 1024;
  const Problem problem = make_problem({2, 5, 3, 4}, 3, 3, {});
  const auto plan = plan_of<float>(Operation::solve_backward, problem);
  ASSERT_EQ(plan.kernel, Kernel::image_sums);
  ASSERT_GT(plan.image_sums.slices, 1);
  Random random(21);
  const Array<float> x(random_images(random, problem.image), contiguous);
  const Array<float> g(random_images(random, problem.image), contiguous), dy(problem.image);
  const Array<float> weight(random_weight(random, problem.weight, {}, 0.9), contiguous);
  run<float>(Operation::solve, g.view(), weight.view(), dy.view(), {}, Cuda{});
  const int solving = last_launch().barriers;
  const auto gradient = [&](int dropped) {
    return results(dropped, -1, [&] {
      const Array<float> dw(problem.weight);
      run_gradients(x, g, weight, dy, dw, problem);
      return dw.elements();
    });
  };
  const auto correct = gradient(-1);
  ASSERT_EQ(correct.size(), 1u);
  EXPECT_NE(gradient(solving), correct) << "before the sums";
  EXPECT_NE(gradient(solving + 1), correct) << "before the slices are added";
  most_shared_bytes = 48 * 1024;
}

TEST(Mistakes, MissingWarpBarriersOfStripsAreFound) {
  const Problem problem = make_problem({1, 2, 66, 20}, 3, 3, {});  // two strips
  ASSERT_EQ(plan_of<float>(Operation::solve, problem).kernel, Kernel::strips);
  const auto correct = results(problem, -1, -1);
  ASSERT_EQ(correct.size(), 1u);
  int is_found = 0;
  const int warp_syncs = last_launch().warp_syncs;
  for (int dropped = 0; dropped < warp_syncs; ++dropped) {
    const auto found = results(problem, -1, dropped);
    is_found += found.size() > 1 || found != correct;
  }
  // Not each: between two of them the shuffles of every step hold the lanes together.
  EXPECT_GE(is_found, 2) << "of " << warp_syncs;
}

TEST(Mistakes, AMissingBarrierOfConvIsFound) {
  const Problem problem = make_problem({1, 5, 12, 20}, 3, 3, {});
  ASSERT_EQ(plan_of<float>(Operation::conv, problem).kernel, Kernel::tiles);
  const auto correct = results(problem, -1, -1, Operation::conv);
  ASSERT_EQ(correct.size(), 1u);
  ASSERT_EQ(last_launch().barriers, 1);
  EXPECT_NE(results(problem, 0, -1, Operation::conv), correct);
}

/// The bits of weight_grad, as results() has them, where a part has `stages` stages of 5 units each.
std::set<std::vector<float>> sums(const Problem& problem, int stages, int dropped_barrier) {
  const auto plan = plan_of<float>(Operation::weight_grad, problem);
  EXPECT_EQ(plan.sums.parts, 1);
  EXPECT_EQ(plan.sums.slices, 5);
  EXPECT_EQ(plan.sums.units, 5 * stages);
  Random random(13);
  const Array<float> x(random_images(random, problem.image), contiguous);
  const Array<float> g(random_images(random, problem.image), contiguous);
  const CallerMemory memory(
      workspace_size<float>(Operation::weight_grad, problem.image, problem.weight, problem.options, Cuda{}));
  return results(dropped_barrier, -1, [&] {
    const Array<float> dw(problem.weight);
    weight_grad<float>(x.view(), g.view(), dw.view(), problem.options, memory.workspace(), Cuda{});
    return dw.elements();
  });
}

TEST(Mistakes, AMissingBarrierOfWeightGradIsFound) {
  const Problem one_stage = make_problem({1, 9, 20, 16}, 1, 2, {});
  const auto correct = sums(one_stage, 1, -1);
  ASSERT_EQ(correct.size(), 1u);
  // Two for the stage, one before and two for each step of the tree, of which nothing follows the last one.
  for (int dropped = 0; dropped < 2 + 1 + 2 * 3 - 1; ++dropped) {
    EXPECT_NE(sums(one_stage, 1, dropped), correct) << "barrier " << dropped;
  }
  Options how;
  how.groups = 133;  // leave one part for all stages
  how.unit_diagonal = false;
  const Problem two_stages = make_problem({1, how.groups * 9, 20, 32}, 1, 1, how);
  EXPECT_NE(sums(two_stages, 2, 2), sums(two_stages, 2, -1)) << "between the stages";
}

TEST(Mistakes, AMissingWarpBarrierIsFound) {
  const Problem problem = make_problem({1, 140, 2, 2}, 2, 2, {});  // the last 44 channels wait for the first 96
  const auto correct = results(problem, -1, -1);
  ASSERT_EQ(correct.size(), 1u);
  bool is_found = false;
  for (int dropped = 0; dropped < last_launch().warp_syncs; ++dropped) {
    const auto found = results(problem, -1, dropped);
    is_found |= found.size() > 1 || found != correct;
  }
  EXPECT_TRUE(is_found);
}
#endif

// ---- plans --------------------------------------------------------------------------------------------------------

TEST(Plans, DoNotDependOnTheBatch) {
  for (const Operation operation : {Operation::solve, Operation::conv, Operation::weight_grad}) {
    for (const Index channels : {1, 4, 5, 12, 48, 96}) {
      for (const Index kernel : {1, 3, 5}) {
        std::set<Kernel> kernels;
        for (const Index batch : {1, 7, 1000}) {
          kernels.insert(plan_of<float>(operation, make_problem({batch, channels, 16, 16}, kernel, kernel, {})).kernel);
        }
        EXPECT_EQ(kernels.size(), 1u);
      }
    }
  }
}

TEST(Plans, BothGradientsInOneWhereTheSumsAreFew) {
  most_shared_bytes = 227 * 1024;
  const auto kernel = [](const Problem& problem) { return plan_of<float>(Operation::solve_backward, problem).kernel; };
  EXPECT_EQ(kernel(make_problem({1, 12, 16, 16}, 3, 3, {})), Kernel::image_sums);
  EXPECT_EQ(kernel(make_problem({3000, 12, 16, 16}, 3, 3, {})), Kernel::image_sums);
  EXPECT_EQ(plan_of<double>(Operation::solve_backward, make_problem({1, 12, 16, 16}, 3, 3, {})).kernel, Kernel::image)
      << "in double";
  EXPECT_EQ(kernel(make_problem({4000, 12, 16, 16}, 3, 3, {})), Kernel::image) << "sums of all images";
  EXPECT_EQ(kernel(make_problem({1, 12, 32, 32}, 3, 3, {})), Kernel::image) << "products of an image";
  EXPECT_EQ(kernel(make_problem({1, 48, 4, 4}, 3, 3, {})), Kernel::image) << "entries of the weight";
  EXPECT_EQ(kernel(make_problem({1, 6, 3, 300}, 3, 3, {})), Kernel::image) << "products in a chain";
  most_shared_bytes = 48 * 1024;
}

TEST(Plans, ARowOfAnyLengthHasAKernel) {
  most_shared_bytes = 227 * 1024;
  const Problem problem = make_problem({1, 12, 3, 90'000'000}, 3, 3, {});
  EXPECT_EQ(plan_of<float>(Operation::solve, problem).kernel, Kernel::block);
  most_shared_bytes = 48 * 1024;
}

TEST(Plans, RefuseWhatKernelsCannotCount) {
  EXPECT_THROW(plan_of<float>(Operation::solve, make_problem({1, 1, 1, Index{1} << 31}, 1, 1, {})), Error);
}

}  // namespace
}  // namespace invconv::test
