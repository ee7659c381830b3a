// Plans in words: what they say is what a call does.

#include "device_on_host.hpp"
#include "support.hpp"

namespace invconv::test {
namespace {

constexpr Operation operations[] = {Operation::solve, Operation::conv, Operation::weight_grad,
                                    Operation::solve_backward};

const Problem problems[] = {
    make_problem({2, 12, 9, 8}, 3, 3, {}),  // in shared memory
    make_problem({1, 60, 5, 5}, 3, 3, {}),  // the weight is packed first
    make_problem({2, 2, 70, 5}, 3, 3, {}),  // more than one strip
    make_problem({1, 3, 20, 20}, 3, 3, {}),
};

TEST(Describe, TheWorkspaceIsThatOfACall) {
  for (const Problem& problem : problems) {
    for (const Operation operation : operations) {
      SCOPED_TRACE(problem);
      const PlanInfo info = describe_plan<float>(operation, problem.image, problem.weight, problem.options, Cuda{});
      EXPECT_EQ(info.workspace_bytes,
                workspace_size<float>(operation, problem.image, problem.weight, problem.options, Cuda{}));
      EXPECT_LE(info.shared_bytes, cuda_on_host::most_shared_bytes);
      EXPECT_EQ(info.threads % 32, 0);
    }
  }
}

TEST(Describe, LaunchesAreCounted) {
  for (const Problem& problem : problems) {
    for (const Operation operation : operations) {
      SCOPED_TRACE(problem);
      const PlanInfo info = describe_plan<float>(operation, problem.image, problem.weight, problem.options, Cuda{});
      const Aligned memory(info.workspace_bytes + 1);
      const Workspace workspace{memory.data(), info.workspace_bytes};
      const Array<float> a(problem.image), out(problem.image), weight(problem.weight);
      const int before = cuda_on_host::launches;
      if (operation == Operation::solve) {
        solve<float>(a.view(), weight.view(), out.view(), problem.options, workspace, Cuda{});
      } else if (operation == Operation::conv) {
        conv<float>(a.view(), weight.view(), out.view(), problem.options, workspace, Cuda{});
      } else if (operation == Operation::weight_grad) {
        weight_grad<float>(a.view(), a.view(), weight.view(), problem.options, workspace, Cuda{});
      } else {
        const Array<float> dw(problem.weight);
        solve_backward<float>(a.view(), a.view(), weight.view(), out.view(), dw.view(), problem.options, workspace,
                              Cuda{});
      }
      EXPECT_EQ(info.launches, cuda_on_host::launches - before) << info.kernel;
      if (operation == Operation::solve || operation == Operation::conv) {  // the others' last launch is the lesser one
        EXPECT_EQ(static_cast<unsigned>(info.threads), cuda_on_host::latest_threads) << info.kernel;
        EXPECT_EQ(info.shared_bytes, cuda_on_host::latest_shared_bytes) << info.kernel;
      }
    }
  }
}

TEST(Describe, BothGradientsAreOneKernelOrTwoOperations) {
  const auto kernel = [](const Problem& problem, const Execution& execution) {
    return describe_plan<float>(Operation::solve_backward, problem.image, problem.weight, problem.options, execution)
        .kernel;
  };
  EXPECT_EQ(kernel(problems[0], Cuda{}), "solve_image_sums, add_parts");
  EXPECT_EQ(kernel(problems[2], Cuda{}), "solve_strips, sum_parts, add_parts");
  const std::string on_cpu = kernel(problems[0], Cpu{1});
  EXPECT_EQ(on_cpu, describe_plan<float>(Operation::solve, problems[0].image, problems[0].weight, {}, Cpu{1}).kernel +
                        ", sums");
}

TEST(Describe, MoreSharedMemoryNeedsNoDevice) {
  const Problem& problem = problems[1];
  const auto launches = [&](std::size_t shared_bytes) {
    return describe_plan<float>(Operation::solve, problem.image, problem.weight, problem.options, Cuda{7}, shared_bytes)
        .launches;
  };
  EXPECT_EQ(launches(48 << 10), 2);
  EXPECT_EQ(launches(227 << 10), 1);
}

}  // namespace
}  // namespace invconv::test
