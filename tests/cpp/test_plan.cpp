// How a filter is laid out in vectors and dealt to threads: no plan changes a bit, and which one is chosen.

#include <algorithm>

#include "cpu/plan.hpp"
#include "cpu/sizes.hpp"
#include "geometry.hpp"
#include "support.hpp"

namespace invconv::test {
namespace {

namespace cpu = detail::cpu;
using cpu::FilterPlan;
using cpu::Machine;
using cpu::Part;

// Under a sanitizer or an emulator, ten times slower and more, fewer problems.
#if defined(INVCONV_SLOW_TESTS)
constexpr bool is_slow = true;
#else
constexpr bool is_slow = false;
#endif

constexpr Operation both[] = {Operation::solve, Operation::conv};
constexpr const char* layout_names[] = {"images", "mixed", "rows", "channels", "columns", "flat"};

std::string description(const FilterPlan& plan) {
  std::string text;
  for (const Part& part : plan.parts) {
    text += (text.empty() ? "" : " + ") + std::to_string(part.batch) + " in " +
            layout_names[static_cast<int>(part.layout)] + " of " + std::to_string(part.lanes) + " lanes, bands of " +
            std::to_string(part.shape.band) + (part.shape.rows > 1 ? " by twos, " : ", ") +
            std::to_string(part.images) + " at once" + (part.shared ? ", bands shared" : "") +
            (part.shape.streamed ? ", streamed" : "");
  }
  return text + ", " + std::to_string(plan.threads) + " threads";
}

detail::Sizes sizes_of(const Problem& problem) {
  const Shape &image = problem.image, &weight = problem.weight;
  return {image[0], problem.options.groups, weight[1], image[2], image[3], weight[2], weight[3]};
}

/// The problem as the CPU backend is handed it.
template <class T>
detail::Filter<T> filter_of(Operation operation, const Problem& problem, const View<T>& in, const View<T>& weight,
                            const View<T>& out) {
  const Options& options = problem.options;
  detail::Filter<T> filter{operation, sizes_of(problem), options.unit_diagonal, {}};
  const Index channels = filter.sizes.channels;
  for (Index group = 0; group < options.groups; ++group) {
    const Corner corner = corner_of(options, group);
    filter.groups.push_back({detail::group_images(View<const T>(in), group, channels, corner, options.transpose),
                             detail::group_images(out, group, channels, corner, options.transpose),
                             detail::group_taps(View<const T>(weight), group, channels, corner, options.transpose)});
  }
  return filter;
}

/// Images in an array of their own, or in the midst of a larger one.
template <class T>
class Output {
 public:
  Output(const Shape& shape, const Layout& layout, bool framed)
      : margin_(framed ? 1 : 0),
        whole_({shape[0] + 2 * margin_, shape[1] + 2 * margin_, shape[2] + 2 * margin_, shape[3] + 2 * margin_},
               layout),
        view_(whole_.view()) {
    view_.shape = shape;
    for (const Index stride : view_.stride) {
      view_.data += margin_ * stride;
    }
  }

  const View<T>& view() const { return view_; }

  template <class Each>
  void for_each(Each&& each) const {
    for (Index i = 0; i < view_.shape[0]; ++i) {
      for (Index j = 0; j < view_.shape[1]; ++j) {
        for (Index k = 0; k < view_.shape[2]; ++k) {
          for (Index l = 0; l < view_.shape[3]; ++l) {
            each(view_.data[i * view_.stride[0] + j * view_.stride[1] + k * view_.stride[2] + l * view_.stride[3]]);
          }
        }
      }
    }
  }

  /// The elements in row-major order. Afterwards they are what the gaps are, so that is_blank() tells what else was
  /// written.
  std::vector<T> taken() const {
    std::vector<T> elements;
    for_each([&](T& element) {
      elements.push_back(element);
      std::memset(static_cast<void*>(&element), 0xff, sizeof(T));
    });
    return elements;
  }

  bool is_blank() const {
    const auto* bytes = reinterpret_cast<const unsigned char*>(whole_.buffer().data());
    return std::all_of(bytes, bytes + whole_.buffer().size() * sizeof(T), [](unsigned char b) { return b == 0xff; });
  }

 private:
  Index margin_;
  Array<T> whole_;
  View<T> view_;
};

/// Carries out a plan in a workspace of exactly the size it needs, whose contents are NaN, between two fences; those of
/// the address sanitizer also see what is read.
template <class T>
void carry_out(const detail::Filter<T>& filter, const FilterPlan& plan) {
#if defined(INVCONV_ADDRESS_SANITIZER)
  constexpr std::size_t fence = 0;
#else
  constexpr std::size_t fence = 256;
#endif
  constexpr unsigned char canary = 0xa5;
  const std::size_t bytes = cpu::workspace_size<T>(plan, detail::clipped(filter.sizes));
  const Aligned memory(fence + bytes + fence);
  std::fill_n(memory.data(), fence + bytes + fence, canary);
  std::fill_n(memory.data() + fence, bytes, static_cast<unsigned char>(0xff));
  cpu::run(filter, plan, memory.data() + fence);
  const auto intact = [](unsigned char byte) { return byte == canary; };
  EXPECT_TRUE(std::all_of(memory.data(), memory.data() + fence, intact)) << "written before the workspace";
  const unsigned char* const end = memory.data() + fence + bytes;
  EXPECT_TRUE(std::all_of(end, end + fence, intact)) << "written behind the workspace";
}

/// One image after the other, in scalars.
FilterPlan plain_plan(const Machine& machine, Operation operation, const detail::Sizes& sizes) {
  for (const Part& part : cpu::possible_parts(machine, operation, sizes, 1, false)) {
    if (part.layout == cpu::Layout::images && part.lanes == 1) {
      return cpu::make_plan({part}, sizes.groups, 1);
    }
  }
  ADD_FAILURE() << "no plan without vectors";
  return {};
}

/// Every plan of one part, also as if its output were too large for the caches; the chosen one; and one of two parts.
template <class T>
std::vector<FilterPlan> plans_of(Operation operation, const detail::Sizes& sizes, int threads, bool flat,
                                 Random& random) {
  const Machine machine = cpu::this_machine<T>();
  std::vector<FilterPlan> plans{cpu::plan_filter(machine, operation, sizes, threads, flat)};
  for (Part part : cpu::possible_parts(machine, operation, sizes, threads, flat)) {
    plans.push_back(cpu::make_plan({part}, sizes.groups, threads));
    if (part.layout == cpu::Layout::rows || part.layout == cpu::Layout::columns || part.layout == cpu::Layout::flat) {
      part.shape.streamed = true;
      plans.push_back(cpu::make_plan({part}, sizes.groups, threads));
    }
  }
  if (sizes.batch > 1) {
    detail::Sizes first = sizes, rest = sizes;
    first.batch = random.integer(1, sizes.batch - 1);
    rest.batch = sizes.batch - first.batch;
    const Part a = random.pick(cpu::possible_parts(machine, operation, first, threads, flat));
    Part b = random.pick(cpu::possible_parts(machine, operation, rest, threads, flat));
    b.first = first.batch;
    plans.push_back(cpu::make_plan({a, b}, sizes.groups, threads));
  }
  return plans;
}

/// The same bits, where NaN is NaN.
template <class T>
bool same_values(const std::vector<T>& a, const std::vector<T>& b) {
  for (std::size_t at = 0; at < a.size(); ++at) {
    const bool nan = std::isnan(value_of(a[at]));
    if (nan != std::isnan(value_of(b[at])) || (!nan && std::memcmp(&a[at], &b[at], sizeof(T)) != 0)) {
      return false;
    }
  }
  return a.size() == b.size();
}

struct Where {
  Layout in = contiguous, weight = contiguous, out = contiguous;
  bool framed = false, in_place = false;
};

template <class T>
class NoPlan : public ::testing::Test {
 protected:
  /// Every plan gives the bits of the plain one, and these are right.
  void check(Operation operation, const Problem& problem, const Where& where = {}, bool is_finite = true,
             const Dense* images = nullptr, const Dense* taps = nullptr) {
    SCOPED_TRACE(::testing::Message() << (operation == Operation::solve ? "solve, " : "conv, ") << problem << ", in "
                                      << where.in.name << ", weight " << where.weight.name << ", out " << where.out.name
                                      << (where.framed ? ", framed" : "") << (where.in_place ? ", in place" : ""));
    const detail::Sizes sizes = detail::clipped(sizes_of(problem));
    const Array<T> weight(taps != nullptr ? *taps : random_weight(random_, problem.weight, problem.options, 0.9),
                          where.weight);
    const Array<T> in(images != nullptr ? *images : random_images(random_, problem.image), where.in);
    const std::vector<T> in_before = in.buffer(), values = in.elements();
    const Array<T> plain(problem.image);
    carry_out<T>(filter_of<T>(operation, problem, in.view(), weight.view(), plain.view()),
                 plain_plan(cpu::this_machine<T>(), operation, sizes));
    const std::vector<T> expected = plain.elements();
    if (is_finite) {
      expect_within_bound<T>(operation, in.dense(), weight.dense(), plain.dense(), problem.options);
    }
    const Output<T> out(problem.image, where.out, where.framed);
    const detail::Filter<T> filter =
        filter_of<T>(operation, problem, where.in_place ? out.view() : in.view(), weight.view(), out.view());
    for (const int threads : {1, 2, 3, 8}) {
      for (const FilterPlan& plan : plans_of<T>(operation, sizes, threads, cpu::is_flat(filter), random_)) {
        SCOPED_TRACE(description(plan));
        if (where.in_place) {
          std::size_t at = 0;
          out.for_each([&](T& element) { element = values[at++]; });
        }
        carry_out<T>(filter, plan);
        ASSERT_TRUE(same_values(out.taken(), expected));
        ASSERT_TRUE(out.is_blank()) << "something was written beside the output";
        ASSERT_FALSE(this->HasFailure());
      }
    }
    ASSERT_TRUE(same_bits(in.buffer(), in_before)) << "the input was written";
  }

  /// Of many cases one in eight stays where they are slow: others for each storage type.
  bool is_left_out() { return is_slow && random_.integer(0, 7) > 0; }

  Random random_{static_cast<unsigned>(1 + sizeof(T) + 8 * is_half<T> + 16 * std::is_same_v<T, bfloat16>)};
};
TYPED_TEST_SUITE(NoPlan, StorageTypes, );

/// A problem of at most about `most` multiplications.
Problem problem_of(Random& random, Index most) {
  constexpr std::array<Index, 2> kernels[] = {{1, 1}, {1, 3}, {3, 1}, {2, 4}, {3, 3}, {3, 3}, {5, 5}, {7, 7}, {6, 2}};
  constexpr Index channels_of_a_group[] = {1, 1, 2, 3, 3, 4, 5, 7, 8, 9, 12, 13, 16, 17, 24, 31, 33, 48, 50};
  constexpr Index sizes[] = {1, 2, 3, 4, 5, 7, 8, 9, 13, 15, 16, 17, 18, 31, 32, 33, 47, 64, 65, 70};
  constexpr Index batches[] = {1, 1, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 20, 33, 40};
  for (;;) {
    const Options options = random_options(random, {1, 1, 1, 2, 3});
    const Index channels = random.pick(channels_of_a_group);
    const auto [kernel_height, kernel_width] = random.pick(kernels);
    const Shape image{random.pick(batches), options.groups * channels, random.pick(sizes), random.pick(sizes)};
    if (image[0] * image[1] * image[2] * image[3] * channels * kernel_height * kernel_width <= most) {
      return make_problem(image, kernel_height, kernel_width, options);
    }
  }
}

TYPED_TEST(NoPlan, ChangesABitOfRandomProblems) {
  for (int trial = 0; trial < (is_slow ? 8 : 100); ++trial) {
    const Problem problem = problem_of(this->random_, is_slow ? 20000 : 200000);
    const Layout in =
        this->random_.integer(0, 5) == 0 ? this->random_.pick(repeating_layouts) : this->random_.pick(layouts);
    this->check(this->random_.pick(both), problem,
                {in, this->random_.pick(layouts), this->random_.pick(layouts), this->random_.coin(),
                 this->random_.integer(0, 2) == 0});
    if (this->HasFailure()) {
      return;
    }
  }
}

// Both sides of every number of lanes and of several bands.
TYPED_TEST(NoPlan, ChangesABitOfAnyHeightOrWidth) {
  for (Index size = 1; size <= 70; size += is_slow ? 13 : (size < 36 ? 1 : 3)) {
    for (const bool is_height : {true, false}) {
      Options options;
      options.unit_diagonal = this->random_.coin();
      const Index other = this->random_.integer(1, 9), channels = this->random_.integer(1, 5);
      const Shape image{this->random_.integer(1, 3), channels, is_height ? size : other, is_height ? other : size};
      const Index kernel = this->random_.integer(1, 4);
      this->check(this->random_.pick(both), make_problem(image, kernel, this->random_.coin() ? kernel : 3, options));
      if (this->HasFailure()) {
        return;
      }
    }
  }
}

TYPED_TEST(NoPlan, ChangesABitOfAnyNumberOfChannels) {
  for (Index channels = 1; channels <= 50; channels += is_slow ? 11 : 1) {
    Options options;
    options.unit_diagonal = this->random_.coin();
    options.transpose = this->random_.coin();
    this->check(this->random_.pick(both),
                make_problem({this->random_.integer(1, 5), channels, this->random_.integer(1, 6), 3}, 2, 2, options));
    if (this->HasFailure()) {
      return;
    }
  }
}

// Rows of several windows, several bands of lines, rings of few rows, kernels as high as a vector has lanes, images a
// multiple of 4096 bytes apart.
TYPED_TEST(NoPlan, ChangesABitOfLargerImages) {
  struct {
    Shape image;
    Index kernel_height, kernel_width;
  } constexpr larger[] = {{{1, 2, 18, 700}, 3, 3},  {{1, 3, 120, 100}, 3, 2}, {{1, 8, 70, 70}, 2, 3},
                          {{2, 13, 3, 129}, 2, 2},  {{1, 33, 9, 33}, 2, 1},   {{9, 17, 3, 70}, 1, 2},
                          {{1, 1, 300, 40}, 17, 2}, {{3, 2, 50, 20}, 9, 3},   {{1, 3, 40, 9}, 16, 1},
                          {{2, 5, 30, 17}, 18, 2},  {{1, 13, 70, 4}, 7, 4},   {{1, 1, 3, 2100}, 2, 9},
                          {{3, 2, 40, 45}, 36, 33}, {{17, 1, 32, 64}, 3, 3}};
  for (const auto& [image, kernel_height, kernel_width] : larger) {
    for (const Operation operation : both) {
      if (this->is_left_out()) {
        continue;
      }
      Options options;
      options.unit_diagonal = this->random_.coin();
      options.corners = {this->random_.pick(all_corners)};
      this->check(operation, make_problem(image, kernel_height, kernel_width, options),
                  {contiguous, contiguous, contiguous, this->random_.coin(), this->random_.integer(0, 2) == 0},
                  std::is_same_v<TypeParam, float>);
      if (this->HasFailure()) {
        return;
      }
    }
  }
}

// Bands of one and of two vectors of rows, whole and not, and rows of no, one or several windows without an end.
TYPED_TEST(NoPlan, ChangesABitOfSmallKernels) {
  const Index lanes = cpu::this_machine<TypeParam>().lanes[0];
  for (const Index height : {lanes, 2 * lanes, 2 * lanes + 1, 4 * lanes + 3}) {
    for (const Index width : {Index{1}, lanes - 1, lanes + 2, 3 * lanes, Index{700}}) {
      for (Index channels = 1; channels <= (width == 700 ? 2 : 4); ++channels) {
        if (this->is_left_out()) {
          continue;
        }
        Options options;
        options.unit_diagonal = this->random_.coin();
        options.corners = {width == 700 ? Corner::tl : this->random_.pick(all_corners)};
        this->check(Operation::solve, make_problem({1, channels, height, width}, 3, 3, options),
                    {contiguous, contiguous, contiguous, this->random_.coin(), this->random_.integer(0, 2) == 0},
                    width != 700);
        if (this->HasFailure()) {
          return;
        }
      }
    }
  }
}

TYPED_TEST(NoPlan, ChangesABitInAnyLayoutOrInPlace) {
  Problem problem = make_problem({5, 3, 9, 19}, 3, 3, {});
  for (const Operation operation : both) {
    for (const Layout& layout : layouts) {
      if (this->is_left_out()) {
        continue;
      }
      problem.options.corners = {this->random_.pick(all_corners)};
      this->check(operation, problem, {layout, contiguous, layout});
      this->check(operation, problem, {contiguous, layout, layout, true});
      this->check(operation, problem, {layout, contiguous, layout, this->random_.coin(), true});
      if (this->HasFailure()) {
        return;
      }
    }
  }
}

// Whether a tap outside the image is left out or meets a zero must not be seen: x + 0 is +0 where x is -0.
TYPED_TEST(NoPlan, ChangesTheSignOfAZero) {
  for (int trial = 0; trial < (is_slow ? 4 : 40); ++trial) {
    const Problem problem = problem_of(this->random_, is_slow ? 10000 : 50000);
    Dense images = random_images(this->random_, problem.image);
    for (double& value : images.data) {
      value = this->random_.integer(0, 9) > 0 ? -0.0 : value;
    }
    this->check(this->random_.pick(both), problem, {}, false, &images);  // the bound knows no underflow
    if (this->HasFailure()) {
      return;
    }
  }
}

// NaN and infinities, of the images and of the weight, come out in the same places.
TYPED_TEST(NoPlan, ChangesWhereNanAndInfinitiesGo) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  constexpr double special[] = {std::numeric_limits<double>::quiet_NaN(), infinity, -infinity};
  for (int trial = 0; trial < (is_slow ? 4 : 60); ++trial) {
    const Problem problem = problem_of(this->random_, is_slow ? 10000 : 50000);
    Dense images = random_images(this->random_, problem.image);
    Dense taps = random_weight(this->random_, problem.weight, problem.options, 0.9);
    const bool in_images = this->random_.coin(), in_taps = !in_images || this->random_.coin();
    const auto spoil = [&](Dense& array) {
      for (Index count = this->random_.integer(1, 2); count > 0; --count) {
        const Index at = this->random_.integer(0, static_cast<Index>(array.data.size()) - 1);
        array.data[static_cast<std::size_t>(at)] = this->random_.pick(special);
      }
    };
    if (in_images) {
      spoil(images);
    }
    if (in_taps) {
      spoil(taps);
    }
    this->check(this->random_.pick(both), problem, {}, false, &images, &taps);
    if (this->HasFailure()) {
      return;
    }
  }
}

// ---- bands that follow each other on several threads ----------------------------------------------------------------

/// Every plan whose bands are tasks, many times: with more bands than threads and more threads than bands.
template <class T>
void check_pipelines(Operation operation, const Problem& problem, int rounds) {
  SCOPED_TRACE(::testing::Message() << (operation == Operation::solve ? "solve, " : "conv, ") << problem);
  Random random(2);
  const Array<T> weight(random_weight(random, problem.weight, problem.options, 0.9), contiguous);
  const Array<T> in(random_images(random, problem.image), contiguous);
  const detail::Sizes sizes = detail::clipped(sizes_of(problem));
  const Machine machine = cpu::this_machine<T>();
  const Array<T> plain(problem.image), out(problem.image);
  carry_out<T>(filter_of<T>(operation, problem, in.view(), weight.view(), plain.view()),
               plain_plan(machine, operation, sizes));
  const detail::Filter<T> filter = filter_of<T>(operation, problem, in.view(), weight.view(), out.view());
  int shared = 0, flat = 0;
  for (const int threads : {2, 3, 8, 16}) {
    for (const Part& part : cpu::possible_parts(machine, operation, sizes, threads, true)) {
      if (!part.shared) {
        continue;
      }
      ++shared;
      flat += part.layout == cpu::Layout::flat ? 1 : 0;
      const FilterPlan plan = cpu::make_plan({part}, sizes.groups, threads);
      SCOPED_TRACE(description(plan));
      for (int round = 0; round < (is_slow ? 2 : rounds); ++round) {
        for (T* element = out.view().data; element != out.view().data + out.buffer().size(); ++element) {
          *element = not_a_number<T>();
        }
        carry_out<T>(filter, plan);
        ASSERT_TRUE(same_bits(out.buffer(), plain.buffer())) << "round " << round;
        ASSERT_FALSE(::testing::Test::HasFailure());
      }
    }
  }
  EXPECT_GT(shared, 0);
  EXPECT_EQ(flat > 0, machine.has_flat && operation == Operation::conv);
}

TEST(Pipelines, OfBandsGiveTheSameBitsEveryTime) {
  constexpr int rounds = 20;
  for (const Shape& image : {Shape{1, 1, 300, 16}, Shape{1, 3, 16, 300}, Shape{1, 3, 300, 16}, Shape{1, 2, 17, 40},
                             Shape{1, 12, 40, 24}, Shape{2, 20, 21, 9}, Shape{3, 5, 70, 3}, Shape{1, 3, 65, 1}}) {
    for (const Index kernel : {1, 3, 5}) {
      Options options;
      options.unit_diagonal = kernel == 3;
      check_pipelines<float>(Operation::solve, make_problem(image, kernel, kernel, options), rounds);
      check_pipelines<float>(Operation::conv, make_problem(image, kernel, kernel, options), rounds);
    }
    if (::testing::Test::HasFailure()) {
      return;
    }
  }
}

TEST(Pipelines, OfSeveralGroupsAndTypes) {
  constexpr int rounds = 10;
  Options options;
  options.groups = 2;
  options.corners = {Corner::tr, Corner::bl};
  for (const Operation operation : both) {
    check_pipelines<double>(operation, make_problem({1, 6, 50, 30}, 2, 3, options), rounds);
    check_pipelines<bfloat16>(operation, make_problem({2, 6, 50, 30}, 3, 2, options), rounds);
    check_pipelines<float16>(operation, make_problem({1, 26, 30, 11}, 3, 2, options), rounds);
    // A weight that is packed once for all threads.
    check_pipelines<float>(operation, make_problem({1, 300, 9, 5}, 3, 3, options), 2);
  }
}

// ---- which plan is chosen -------------------------------------------------------------------------------------------

/// Machines with the numbers of lanes of float, whatever this one is.
constexpr Machine avx512_like{{16, 8, 4, 1}, 24, 6, 2, 4, true};
constexpr Machine avx2_like{{8, 4, 1, 1}, 12, 2, 2, 4};

/// The standard shapes of bench/shapes.py.
constexpr detail::Sizes mnist_l1{100, 1, 4, 14, 14, 3, 3};
constexpr detail::Sizes mnist_l2{100, 1, 16, 7, 7, 3, 3};
constexpr detail::Sizes cifar_l1{100, 1, 12, 16, 16, 3, 3};
constexpr detail::Sizes cifar_l2{100, 1, 24, 8, 8, 3, 3};
constexpr detail::Sizes cifar_l3{100, 1, 48, 4, 4, 3, 3};
constexpr detail::Sizes imagenet64_l1{100, 1, 12, 32, 32, 3, 3};
constexpr detail::Sizes gray{100, 1, 1, 28, 28, 3, 3};
constexpr detail::Sizes wide{32, 1, 96, 16, 16, 3, 3};
constexpr detail::Sizes k5{100, 1, 12, 16, 16, 5, 5};
constexpr detail::Sizes k7{100, 1, 12, 16, 16, 7, 7};
constexpr detail::Sizes one_small{1, 1, 12, 32, 32, 3, 3};
constexpr detail::Sizes one_large{1, 1, 1, 2048, 2048, 3, 3};
constexpr detail::Sizes one_4k{1, 1, 3, 4096, 4096, 3, 3};

/// As in "96 images, 4 channels".
std::string choice(const Machine& machine, Operation operation, const detail::Sizes& sizes, int threads,
                   bool flat = false) {
  std::string text;
  for (const Part& part : cpu::plan_filter(machine, operation, sizes, threads, flat).parts) {
    text += (text.empty() ? "" : ", ") + std::to_string(part.batch) + ' ' + layout_names[static_cast<int>(part.layout)];
  }
  return text;
}

// Only what must hold, however the cost of a layout is estimated.
TEST(ChosenPlan, OfTheStandardShapes) {
  struct {
    const char* name;
    Operation operation;
    detail::Sizes sizes;
    const char* choice;
  } constexpr table[] = {
      // Full vectors of images.
      {"wide", Operation::solve, wide, "32 images"},
      // What is left beside full vectors of images: a few rows of each, or channels enough.
      {"cifar-l1", Operation::solve, cifar_l1, "96 images, 4 mixed"},
      {"imagenet64-l1", Operation::solve, imagenet64_l1, "96 images, 4 mixed"},
      {"cifar-l3", Operation::solve, cifar_l3, "96 images, 4 channels"},
      // One image of few channels.
      {"one-large", Operation::solve, one_large, "1 rows"},
      {"one-4k", Operation::solve, one_4k, "1 rows"},
      // A conv of rows that fill the lanes moves nothing, but images leave out the taps left of the first column.
      {"imagenet64-l1", Operation::conv, imagenet64_l1, "96 images, 4 columns"},
      {"one-small", Operation::conv, one_small, "1 columns"},
      {"one-large", Operation::conv, one_large, "1 columns"},
      {"one-4k", Operation::conv, one_4k, "1 columns"},
  };
  for (const auto& line : table) {
    for (const int threads : {1, 2}) {
      EXPECT_EQ(choice(avx512_like, line.operation, line.sizes, threads), line.choice) << line.name << ", AVX-512";
      EXPECT_EQ(choice(avx2_like, line.operation, line.sizes, threads), line.choice) << line.name << ", AVX2";
    }
  }
}

TEST(ChosenPlan, OfFlatArraysMovesNothingWhereThereAreMasks) {
  for (const detail::Sizes& sizes : {cifar_l1, imagenet64_l1, one_small, one_large, one_4k}) {
    const std::string all = std::to_string(sizes.batch) + " flat";
    for (const int threads : {1, 2}) {
      EXPECT_EQ(choice(avx512_like, Operation::conv, sizes, threads, true), all);
      EXPECT_EQ(choice(avx2_like, Operation::conv, sizes, threads, true),
                choice(avx2_like, Operation::conv, sizes, threads, false));
    }
  }
}

TEST(ChosenPlan, OfABatchSolvesFullVectorsOfImages) {
  for (const detail::Sizes& sizes : {mnist_l1, mnist_l2, cifar_l1, cifar_l2, cifar_l3, imagenet64_l1, gray, k5, k7}) {
    for (const Machine& machine : {avx512_like, avx2_like}) {
      for (const int threads : {1, 2}) {
        const FilterPlan plan = cpu::plan_filter(machine, Operation::solve, sizes, threads, false);
        const Part& part = plan.parts[0];
        EXPECT_EQ(part.layout, cpu::Layout::images) << description(plan);
        EXPECT_EQ(part.lanes, machine.lanes[0]) << description(plan);
        EXPECT_GE(part.batch, 96) << description(plan);
        EXPECT_EQ(plan.threads, threads) << description(plan);
      }
    }
  }
}

TEST(ChosenPlan, OfOneImageUsesVectorsAndAllThreads) {
  for (const Operation operation : both) {
    for (const detail::Sizes& sizes : {one_small, one_large, one_4k}) {
      for (const Machine& machine : {avx512_like, avx2_like}) {
        for (const int threads : {1, 2, 8}) {
          const FilterPlan plan = cpu::plan_filter(machine, operation, sizes, threads, true);
          // A small image may have fewer bands.
          EXPECT_GE(plan.threads, operation == Operation::solve && sizes == one_small ? std::min(threads, 2) : threads)
              << description(plan);
          EXPECT_NE(plan.parts[0].layout, cpu::Layout::images) << description(plan);
          EXPECT_GE(plan.parts[0].lanes, 4) << description(plan);
          EXPECT_TRUE(plan.parts[0].shared || threads == 1) << description(plan);
        }
      }
    }
  }
}

TEST(ChosenPlan, OfFewImagesOfManyChannelsHasChannelsInTheLanes) {
  for (const Index batch : {1, 2, 4}) {
    for (const Machine& machine : {avx512_like, avx2_like}) {
      const detail::Sizes sizes{batch, 1, 48, 8, 8, 3, 3};
      EXPECT_EQ(choice(machine, Operation::solve, sizes, 1), std::to_string(batch) + " channels");
    }
  }
}

// A band of rows leaves the next one no more rows than it has.
TEST(ChosenPlan, HasNoRowsInTheLanesForAVeryHighKernel) {
  for (const Index kernel_height : {17, 18, 40}) {
    for (const Part& part :
         cpu::possible_parts(avx512_like, Operation::solve, {1, 1, 1, 50, 50, kernel_height, 3}, 2, false)) {
      EXPECT_TRUE(part.layout != cpu::Layout::rows || part.lanes >= kernel_height - 1);
    }
  }
}

TEST(ChosenPlan, HoldsEachImageOnceAndAsksForNoIdleThreads) {
  Random random(3);
  for (int trial = 0; trial < 1000; ++trial) {
    const detail::Sizes sizes =
        detail::clipped({random.integer(1, 130), random.integer(1, 3), random.integer(1, 60), random.integer(1, 90),
                         random.integer(1, 90), random.integer(1, 90), random.integer(1, 90)});
    const int threads = static_cast<int>(random.integer(1, 16));
    for (const Operation operation : both) {
      const FilterPlan plan =
          cpu::plan_filter(random.coin() ? avx512_like : avx2_like, operation, sizes, threads, random.coin());
      SCOPED_TRACE(description(plan));
      Index images = 0, tasks = 0;
      for (const Part& part : plan.parts) {
        ASSERT_EQ(part.first, images);
        // Pipelines are for threads that would else have no image.
        ASSERT_TRUE(!part.is_pipeline() || part.batch * sizes.groups < threads);
        ASSERT_GT(part.batch, 0);
        images += part.batch;
        tasks += part.tasks(sizes.groups);
      }
      ASSERT_EQ(images, sizes.batch);
      ASSERT_GE(plan.threads, 1);
      ASSERT_LE(plan.threads, std::min<Index>(threads, tasks));
    }
  }
}

}  // namespace
}  // namespace invconv::test
