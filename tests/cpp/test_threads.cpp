// The pool: every task once, whoever calls; and the settings of the number of threads.

#include <atomic>
#include <chrono>
#include <thread>

#include "loops.hpp"
#include "support.hpp"

namespace invconv::test {
namespace {

using detail::Order;
using detail::parallel_for;
using detail::TaskList;

// The tests of share_openmp() need a process with an OpenMP runtime, and are in test_openmp.cpp.
TEST(ShareOpenMp, SaysThatThereIsNone) { EXPECT_FALSE(share_openmp()); }

TEST(ParallelFor, RunsEachTaskOnce) {
  for (const int threads : {1, 2, 3, 8, 40}) {
    for (const Index tasks : {0, 1, 2, 3, 7, 8, 9, 1000}) {
      for (const Order order : {Order::any, Order::given}) {
        EXPECT_TRUE(runs_each_task_once(threads, tasks, order)) << threads << " threads, " << tasks << " tasks";
      }
    }
  }
}

TEST(ParallelFor, RunsEachTaskOnceForSeveralCallers) {
  std::atomic<int> failures{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&failures, caller] {
      Random random(static_cast<std::uint64_t>(caller));
      for (int round = 0; round < 300; ++round) {
        failures += !runs_each_task_once(static_cast<int>(random.integer(1, 5)), random.integer(0, 40));
      }
    });
  }
  for (std::thread& caller : callers) {
    caller.join();
  }
  EXPECT_EQ(failures, 0);
}

// Two tasks that wait for each other end only if two threads run them.
TEST(ParallelFor, RunsTasksAtTheSameTime) {
  std::atomic<int> begun{0};
  parallel_for(2, {2, Order::any}, [&](Index, int) {
    ++begun;
    while (begun < 2) {
      std::this_thread::yield();
    }
  });
  EXPECT_EQ(begun, 2);
}

// The results of one loop are visible to its caller, and the next loop's tasks see them: no locks in the bodies.
TEST(ParallelFor, OrdersOneLoopBeforeTheNext) {
  std::vector<int> values(64);
  for (int round = 1; round <= 200; ++round) {
    parallel_for(4, {64, Order::any}, [&](Index task, int) {
      const auto at = static_cast<std::size_t>((task * 7 + round) % 64);
      values[at] += 1;
    });
    for (const int value : values) {
      ASSERT_EQ(value, round);
    }
  }
}

TEST(ParallelFor, BeginsTasksInTheGivenOrder) {
  std::atomic<int> begun{0}, failures{0};
  // Two by two: whatever the threads do, the tasks under way are neighbours.
  parallel_for(2, {200, Order::given}, [&](Index task, int) {
    const int ticket = begun++;
    while (begun < 2 * (ticket / 2 + 1)) {
      std::this_thread::yield();
    }
    failures += ticket / 2 != task / 2;
  });
  EXPECT_EQ(failures, 0);
}

// As the caches would have it: with nobody late, no worker does anything but its own share of each list.
TEST(ParallelFor, GivesEachWorkerTheSameShareInEveryCall) {
  const TaskList lists[] = {{6, Order::any}, {2, Order::any}};
  for (int round = 0; round < 20; ++round) {
    std::vector<std::thread::id> first(6), second(2);
    std::atomic<int> begun{0};
    parallel_for(2, lists, [&](int list, Index task, int worker) {
      EXPECT_EQ(worker, list == 0 ? task / 3 : task);
      (list == 0 ? first : second)[static_cast<std::size_t>(task)] = std::this_thread::get_id();
      // Each waits for the other one to have taken as many, so that none has the time to help.
      const int mine = list == 0 ? static_cast<int>(task % 3) + 1 : 4;
      ++begun;
      while (begun < 2 * mine) {
        std::this_thread::yield();
      }
    });
    EXPECT_EQ(first[0], std::this_thread::get_id());
    EXPECT_EQ(first[2], first[0]);
    EXPECT_EQ(first[5], first[3]);
    EXPECT_EQ(second[0], first[0]);
    EXPECT_EQ(second[1], first[3]);
  }
}

// More threads than there are shares, and lists of which some have no tasks.
TEST(ParallelFor, RunsEachTaskOfEveryListOnce) {
  for (const int threads : {1, 2, 5, 33, 70}) {
    for (const Order order : {Order::any, Order::given}) {
      for (const Index count : {0, 1, 31, 100}) {
        const TaskList lists[] = {{count, Order::any}, {7, order}};
        std::vector<std::atomic<int>> runs(static_cast<std::size_t>(count + 7));
        parallel_for(threads, lists, [&](int list, Index task, int) {
          ++runs[static_cast<std::size_t>(list == 0 ? task : count + task)];
        });
        for (const auto& times : runs) {
          EXPECT_EQ(times, 1);
        }
      }
    }
  }
}

// A loop may find the helper of the one before it spinning, asleep, or about to fall asleep, which it does after 50 us.
TEST(ParallelFor, RunsEachTaskOnceWheneverItIsCalled) {
  Random random(1);
  for (int round = 0; round < 2000; ++round) {
    ASSERT_TRUE(runs_each_task_once(2, 8));
    const auto pause = std::chrono::microseconds(random.integer(0, 100));
    for (const auto begin = std::chrono::steady_clock::now(); std::chrono::steady_clock::now() - begin < pause;) {
    }
  }
}

TEST(Threads, SeveralCallersSolveAtOnce) {
  Random random(1);
  const Problem problem = make_problem({37, 6, 17, 19}, 3, 3, {});
  const Array<float> y(random_images(random, problem.image), contiguous);
  const Array<float> weight(random_weight(random, problem.weight, problem.options, 0.9), contiguous);
  const Array<float> expected(problem.image), gradient(problem.weight);
  solve<float>(y.view(), weight.view(), expected.view(), {}, {}, Cpu{1});
  weight_grad<float>(expected.view(), y.view(), gradient.view(), {}, {}, Cpu{1});
  std::atomic<int> failures{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&, caller] {
      for (int round = 0; round < 5; ++round) {
        const Array<float> x(problem.image), dw(problem.weight);
        solve<float>(y.view(), weight.view(), x.view(), {}, {}, Cpu{1 + caller});
        weight_grad<float>(x.view(), y.view(), dw.view(), {}, {}, Cpu{1 + caller});
        failures += !same_bits(x.buffer(), expected.buffer()) || !same_bits(dw.buffer(), gradient.buffer());
      }
    });
  }
  for (std::thread& caller : callers) {
    caller.join();
  }
  EXPECT_EQ(failures, 0);
}

// The thread sanitizer does not know that the child of a fork lacks its parent's threads; its build leaves these out.
#if (defined(__unix__) || defined(__APPLE__)) && !defined(INVCONV_THREAD_SANITIZER)

TEST(ThreadsAfterFork, TheChildHasAPoolOfItsOwn) {
  ASSERT_TRUE(runs_each_task_once(3, 100));
  EXPECT_TRUE(
      in_a_child([] { return runs_each_task_once(3, 100) && in_a_child([] { return runs_each_task_once(3, 100); }); }));
  EXPECT_TRUE(runs_each_task_once(3, 100));
}

// The fork falls into a loop of another thread, which holds the pool; in the child that thread does not exist.
TEST(ThreadsAfterFork, TheChildDoesNotWaitForTheParentsLoop) {
  std::atomic<int> begun{0};
  std::atomic<bool> may_end{false};
  std::thread other([&] {
    parallel_for(2, {2, Order::any}, [&](Index, int) {
      ++begun;
      while (!may_end) {
        std::this_thread::yield();
      }
    });
  });
  while (begun < 2) {
    std::this_thread::yield();
  }
  EXPECT_TRUE(in_a_child([] { return runs_each_task_once(2, 100); }));
  may_end = true;
  other.join();
  EXPECT_TRUE(runs_each_task_once(2, 100));
}

#endif

TEST(NumThreads, AreWhatWasSet) {
  const int before = num_threads();
  for (const int threads : {1, 2, 7, 1024}) {
    set_num_threads(threads);
    EXPECT_EQ(num_threads(), threads);
  }
  set_num_threads(before);
}

TEST(NumThreads, AreValidated) {
  const int before = num_threads();
  // The last one is 1 in 32 bits.
  for (const Index threads : {Index{0}, Index{-1}, Index{1025}, Index{std::numeric_limits<int>::min()},
                              std::numeric_limits<Index>::max(), (Index{1} << 32) + 1}) {
    try {
      set_num_threads(threads);
      ADD_FAILURE() << threads << " was taken";
    } catch (const Error& error) {
      EXPECT_EQ(error.what(), "[set_num_threads] expected threads from 1 to 1024, but got " + std::to_string(threads));
    }
  }
  EXPECT_EQ(num_threads(), before);
}

}  // namespace
}  // namespace invconv::test
