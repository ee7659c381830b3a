// The same bits for any number of threads, any batch that an image sits in, and any layout.

#include "cpu/plan.hpp"
#include "cpu/sizes.hpp"
#include "support.hpp"

namespace invconv::test {
namespace {

constexpr int thread_counts[] = {1, 2, 3, 8};

/// Enough work for 8 threads: a helper thread is woken for each 10 microseconds of it (about 0.5 million operations).
Problem busy_problem() {
  Options options;
  options.groups = 2;
  options.corners = {Corner::tr, Corner::bl};
  options.unit_diagonal = false;
  return make_problem({37, 6, 17, 19}, 3, 3, options);
}

template <class T>
std::vector<T> solved(const Dense& y, const Dense& weight, const Options& options, const Execution& execution,
                      const Layout& layout = contiguous) {
  const Array<T> in(y, layout), taps(weight, layout), out(y.shape, layout);
  solve<T>(in.view(), taps.view(), out.view(), options, {}, execution);
  return out.elements();
}

template <class T>
std::vector<T> convolved(const Dense& x, const Dense& weight, const Options& options, const Execution& execution,
                         const Layout& layout = contiguous) {
  const Array<T> in(x, layout), taps(weight, layout), out(x.shape, layout);
  conv<T>(in.view(), taps.view(), out.view(), options, {}, execution);
  return out.elements();
}

template <class T>
std::vector<T> differentiated(const Dense& x, const Dense& g, const Shape& weight, const Options& options,
                              const Execution& execution, const Layout& layout = contiguous) {
  const Array<T> inputs(x, layout), outputs(g, layout), dw(weight, layout);
  weight_grad<T>(inputs.view(), outputs.view(), dw.view(), options, {}, execution);
  return dw.elements();
}

/// Images [first, last) of a batch.
Dense slice(const Dense& images, Index first, Index last) {
  Dense part({last - first, images.shape[1], images.shape[2], images.shape[3]});
  const auto begin = images.data.begin() + static_cast<std::ptrdiff_t>(images.index(first, 0, 0, 0));
  part.data.assign(begin, begin + static_cast<std::ptrdiff_t>(part.data.size()));
  return part;
}

/// A product and a sum are one operation with one rounding wherever the instruction set has it, in every lane; and
/// nowhere else, so that the compiler has no say.
template <class A>
void expect_fused_products() {
  const bool fused = std::string(instruction_set()) != "baseline";
  const A w = 1 + std::numeric_limits<A>::epsilon();
  const A product = w * w, rest = std::fma(w, w, -product);
  ASSERT_NE(rest, A(0));
  for (const Index batch : {1, 2, 3, 4, 8, 16, 31}) {
    Dense y({batch, 1, 1, 2}), weight({1, 1, 1, 2});
    for (Index b = 0; b < batch; ++b) {
      y(b, 0, 0, 0) = w;
      y(b, 0, 0, 1) = product;
    }
    weight(0, 0, 0, 0) = w;
    const std::vector<A> x = solved<A>(y, weight, {}, Cpu{1});
    for (Index b = 0; b < batch; ++b) {
      EXPECT_EQ(x[static_cast<std::size_t>(2 * b + 1)], fused ? -rest : A(0)) << "image " << b << " of " << batch;
    }
  }
}

TEST(Fused, ProductsOfFloat) { expect_fused_products<float>(); }
TEST(Fused, ProductsOfDouble) { expect_fused_products<double>(); }

template <class T>
class Reproducible : public ::testing::Test {
 protected:
  Random random_{1};
  Problem problem_ = busy_problem();
  Dense a_ = random_images(random_, problem_.image), b_ = random_images(random_, problem_.image);
  Dense weight_ = random_weight(random_, problem_.weight, problem_.options, 0.9);
};
TYPED_TEST_SUITE(Reproducible, StorageTypes, );

TYPED_TEST(Reproducible, ForAnyNumberOfThreads) {
  using T = TypeParam;
  // The threads are there to disagree.
  const Shape &image = this->problem_.image, &weight = this->problem_.weight;
  const detail::Sizes sizes{image[0], this->problem_.options.groups, weight[1], image[2], image[3], weight[2],
                            weight[3]};
  for (const Operation operation : {Operation::solve, Operation::conv}) {
    const int threads = detail::cpu::useful_threads(sizes, Cpu{8});
    ASSERT_GT(detail::cpu::plan_filter(detail::cpu::this_machine<T>(), operation, sizes, threads, true).threads, 1);
  }
  const auto scratch = [&](int threads) {
    return workspace_size<T>(Operation::weight_grad, image, weight, this->problem_.options, Cpu{threads});
  };
  ASSERT_LT(scratch(1), scratch(8));  // each thread has scratch memory of its own
  const auto x = solved<T>(this->a_, this->weight_, this->problem_.options, Cpu{1});
  const auto y = convolved<T>(this->a_, this->weight_, this->problem_.options, Cpu{1});
  const auto dw = differentiated<T>(this->a_, this->b_, this->problem_.weight, this->problem_.options, Cpu{1});
  for (const int threads : thread_counts) {
    SCOPED_TRACE(threads);
    EXPECT_TRUE(same_bits(x, solved<T>(this->a_, this->weight_, this->problem_.options, Cpu{threads})));
    EXPECT_TRUE(same_bits(y, convolved<T>(this->a_, this->weight_, this->problem_.options, Cpu{threads})));
    EXPECT_TRUE(same_bits(
        dw, differentiated<T>(this->a_, this->b_, this->problem_.weight, this->problem_.options, Cpu{threads})));
    const int before = num_threads();
    set_num_threads(threads);
    EXPECT_TRUE(same_bits(x, solved<T>(this->a_, this->weight_, this->problem_.options, Cpu{})));
    EXPECT_TRUE(
        same_bits(dw, differentiated<T>(this->a_, this->b_, this->problem_.weight, this->problem_.options, Cpu{})));
    set_num_threads(before);
  }
}

TYPED_TEST(Reproducible, InAnyBatch) {
  using T = TypeParam;
  const Index batch = this->problem_.image[0];
  const auto x = solved<T>(this->a_, this->weight_, this->problem_.options, Cpu{2});
  const auto y = convolved<T>(this->a_, this->weight_, this->problem_.options, Cpu{2});
  for (const Index size : {1, 2, 3, 5, 8, 16, 17, 36}) {
    std::vector<T> x_parts, y_parts;
    for (Index first = 0; first < batch; first += size) {
      const Dense part = slice(this->a_, first, std::min(first + size, batch));
      const auto x_part = solved<T>(part, this->weight_, this->problem_.options, Cpu{2});
      const auto y_part = convolved<T>(part, this->weight_, this->problem_.options, Cpu{2});
      x_parts.insert(x_parts.end(), x_part.begin(), x_part.end());
      y_parts.insert(y_parts.end(), y_part.begin(), y_part.end());
    }
    EXPECT_TRUE(same_bits(x, x_parts)) << "solve in batches of " << size;
    EXPECT_TRUE(same_bits(y, y_parts)) << "conv in batches of " << size;
  }
}

TYPED_TEST(Reproducible, InAnyLayout) {
  using T = TypeParam;
  const auto x = solved<T>(this->a_, this->weight_, this->problem_.options, Cpu{2});
  const auto y = convolved<T>(this->a_, this->weight_, this->problem_.options, Cpu{2});
  const auto dw = differentiated<T>(this->a_, this->b_, this->problem_.weight, this->problem_.options, Cpu{2});
  for (const Layout& layout : layouts) {
    SCOPED_TRACE(layout.name);
    EXPECT_TRUE(same_bits(x, solved<T>(this->a_, this->weight_, this->problem_.options, Cpu{2}, layout)));
    EXPECT_TRUE(same_bits(y, convolved<T>(this->a_, this->weight_, this->problem_.options, Cpu{2}, layout)));
    EXPECT_TRUE(same_bits(
        dw, differentiated<T>(this->a_, this->b_, this->problem_.weight, this->problem_.options, Cpu{2}, layout)));
  }
}

}  // namespace
}  // namespace invconv::test
