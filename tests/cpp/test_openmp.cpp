// share_openmp() in a process that has an OpenMP runtime. An executable of its own: the sharing cannot be taken back.

#include <omp.h>

#include "loops.hpp"
#include "support.hpp"

namespace invconv::test {
namespace {

/// Makes the runtime start its threads.
void use_openmp() {
  std::atomic<int> threads{0};
#pragma omp parallel num_threads(3)
  ++threads;
  ASSERT_EQ(threads, 3);
}

// In a process that has run nothing but OpenMP itself so far. The runtime's threads do not exist in the child, which
// must not ask for them.
TEST(OpenMp, AForkBeforeTheFirstLoopIsNoticed) {
  use_openmp();
  ASSERT_TRUE(share_openmp());
  EXPECT_TRUE(in_a_child([] { return runs_each_task_once(3, 100); }));
}

TEST(OpenMp, AForkAfterALoopIsNoticed) {
  ASSERT_TRUE(share_openmp());
  EXPECT_TRUE(runs_each_task_once(3, 100));
  EXPECT_TRUE(in_a_child([] { return runs_each_task_once(3, 100); }));
  EXPECT_TRUE(runs_each_task_once(3, 100));
}

TEST(OpenMp, RunsEachTaskOnce) {
  ASSERT_TRUE(share_openmp());
  for (const int threads : {1, 2, 3, 8, 17}) {
    for (const Index tasks : {0, 1, 2, 3, 7, 8, 9, 1000}) {
      for (const auto order : {detail::Order::any, detail::Order::given}) {
        EXPECT_TRUE(runs_each_task_once(threads, tasks, order)) << threads << " threads, " << tasks << " tasks";
      }
    }
  }
}

TEST(OpenMp, AChildHasNothingToShare) {
  use_openmp();
  EXPECT_TRUE(in_a_child([] { return !share_openmp() && runs_each_task_once(3, 100); }));
}

// The tasks really run on the runtime's threads: it counts those of the innermost parallel region.
TEST(OpenMp, LendsItsThreads) {
  ASSERT_TRUE(share_openmp());
  std::atomic<int> most{0};
  detail::parallel_for(3, {3, detail::Order::any}, [&](Index, int) { most = omp_get_num_threads(); });
  EXPECT_EQ(most, 3);
}

// Inside a parallel region of the program there are no threads to be had, and none are needed.
TEST(OpenMp, WorksInsideAParallelRegion) {
  ASSERT_TRUE(share_openmp());
  std::atomic<int> failures{0};
#pragma omp parallel num_threads(3)
  failures += !runs_each_task_once(4, 100);
  EXPECT_EQ(failures, 0);
}

TEST(OpenMp, GivesTheSameBits) {
  Random random(1);
  const Problem problem = make_problem({37, 6, 17, 19}, 3, 3, {});
  const Array<float> y(random_images(random, problem.image), contiguous);
  const Array<float> weight(random_weight(random, problem.weight, problem.options, 0.9), contiguous);
  const Array<float> alone(problem.image), together(problem.image);
  solve<float>(y.view(), weight.view(), alone.view(), {}, {}, Cpu{1});
  ASSERT_TRUE(share_openmp());
  solve<float>(y.view(), weight.view(), together.view(), {}, {}, Cpu{4});
  EXPECT_TRUE(same_bits(alone.buffer(), together.buffer()));
}

// ctest runs this without INVCONV_NUM_THREADS, which would come first.
TEST(OpenMp, SaysHowManyThreads) {
  ASSERT_TRUE(share_openmp());
  omp_set_num_threads(5);
  EXPECT_EQ(num_threads(), 5);
  set_num_threads(2);
  EXPECT_EQ(num_threads(), 2);
}

}  // namespace
}  // namespace invconv::test
