// The kernels that bench/cuda compares with and measures by, run on the host: a baseline that is wrong proves nothing.

#include <string>
#include <vector>

#include "device_on_host.hpp"
#include "per_diagonal.cuh"
#include "probes.cuh"
#include "support.hpp"

namespace invconv::test {
namespace {

TEST(Baseline, SolvesEveryChannelOfEveryImage) {
  Random random(0);
  const Problem problems[] = {make_problem({3, 5, 7, 4}, 3, 3, {}),   make_problem({2, 1, 1, 9}, 3, 3, {}),
                              make_problem({1, 3, 40, 33}, 2, 2, {}), make_problem({2, 12, 8, 8}, 3, 3, {}),
                              make_problem({1, 2, 3, 3}, 5, 5, {}),   make_problem({300, 2, 2, 3}, 1, 1, {})};
  for (const Problem& problem : problems) {
    SCOPED_TRACE(::testing::Message() << problem);
    const Array<float> y(random_images(random, problem.image), contiguous), x(problem.image), expected(problem.image);
    const Array<float> weight(random_weight(random, problem.weight, problem.options, 0.9), contiguous);
    const auto [batch, channels, height, width] = problem.image;
    const bench::PerDiagonalShape shape{static_cast<int>(batch), static_cast<int>(channels), static_cast<int>(height),
                                        static_cast<int>(width), static_cast<int>(problem.weight[3])};
    cuda_on_host::options() = {};
    int launches = 0;
    bench::solve_per_diagonal(y.view().data, weight.view().data, x.view().data, shape, nullptr, [&] { ++launches; });
    EXPECT_EQ(launches, (height + width - 1) * channels);
    expect_within_bound<float>(Operation::solve, y.dense(), weight.dense(), x.dense(), problem.options);
    solve<float>(y.view(), weight.view(), expected.view(), problem.options, {}, Cpu{1});
    if (std::string(instruction_set()) != "baseline") {  // whose products are not fused
      EXPECT_TRUE(same_bits(x.elements(), expected.elements()));
    }
  }
}

TEST(Baseline, DoesAsManyMultiplyAddsAsAreCounted) {
  constexpr unsigned blocks = 2, threads = 32;
  std::vector<float> out(blocks * threads);
  for (const int rounds : {1, 3}) {
    const auto links = static_cast<float>(rounds * bench::chain_length);
    const auto run = [&](auto kernel, int chains) {
      out.assign(out.size(), 0);
      detail::cuda::launch(kernel, {blocks, threads, 0, nullptr}, out.data(), 1.0f, 1.0f, rounds);
      const float starts = static_cast<float>(chains * (chains - 1) / 2);
      EXPECT_EQ(out, std::vector<float>(out.size(), static_cast<float>(chains) * links + starts));
    };
    run(bench::multiply_adds<1>, 1);
    run(bench::multiply_adds<bench::many_chains>, bench::many_chains);
  }
}

}  // namespace
}  // namespace invconv::test
