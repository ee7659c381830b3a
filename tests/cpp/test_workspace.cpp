// The caller's scratch memory: enough when workspace_size() says so, never overrun, refused when it does not fit.

#include <algorithm>

#include "support.hpp"

namespace invconv::test {
namespace {

constexpr Operation operations[] = {Operation::solve, Operation::conv, Operation::weight_grad,
                                    Operation::solve_backward};
constexpr const char* names[] = {"solve", "conv", "weight_grad", "solve_backward"};

/// One problem and everything that a call of any operation needs.
template <class T>
struct Fixture {
  Problem problem;
  Array<T> a, b, weight;

  Fixture(const Problem& p, Random& random)
      : problem(p),
        a(random_images(random, p.image), contiguous),
        b(random_images(random, p.image), contiguous),
        weight(random_weight(random, p.weight, p.options, 0.9), contiguous) {}

  std::size_t bytes(Operation operation, const Execution& execution) const {
    return workspace_size<T>(operation, problem.image, problem.weight, problem.options, execution);
  }

  Array<T> run(Operation operation, const Workspace& workspace, const Execution& execution) const {
    Array<T> out(operation == Operation::weight_grad ? problem.weight : problem.image);
    run_into(out, operation, workspace, execution);
    return out;
  }

  void run_into(const Array<T>& out, Operation operation, const Workspace& workspace,
                const Execution& execution) const {
    if (operation == Operation::solve) {
      solve<T>(a.view(), weight.view(), out.view(), problem.options, workspace, execution);
    } else if (operation == Operation::conv) {
      conv<T>(a.view(), weight.view(), out.view(), problem.options, workspace, execution);
    } else if (operation == Operation::weight_grad) {
      weight_grad<T>(a.view(), b.view(), out.view(), problem.options, workspace, execution);
    } else {
      const Array<T> dw(problem.weight);
      solve_backward<T>(a.view(), b.view(), weight.view(), out.view(), dw.view(), problem.options, workspace,
                        execution);
    }
  }
};

template <class T>
class WorkspaceOf : public ::testing::Test {};
TYPED_TEST_SUITE(WorkspaceOf, StorageTypes, );

TYPED_TEST(WorkspaceOf, IsNeverOverrunAndItsContentsDoNotMatter) {
  using T = TypeParam;
  constexpr std::size_t fence = 256;
  constexpr unsigned char canary = 0xa5, poison = 0xff;  // 0xff...: NaN in every type
  Random random(1);
  for (int trial = 0; trial < 60; ++trial) {
    Problem problem = random_problem(random);
    problem.options.transpose = false;
    if (trial < 3) {
      problem = make_problem({37, 6, 17, 19}, 3, 3, {});  // enough work for several threads
    }
    const Fixture<T> fixture(problem, random);
    for (const Operation operation : operations) {
      const Cpu execution{static_cast<int>(random.integer(1, 8))};
      SCOPED_TRACE(::testing::Message() << names[static_cast<int>(operation)] << ", " << problem << ", "
                                        << execution.threads << " threads");
      const std::size_t bytes = fixture.bytes(operation, execution);
      const Array<T> expected = fixture.run(operation, {}, execution);

      const Aligned fenced(fence + bytes + fence);
      std::fill_n(fenced.data(), fence + bytes + fence, canary);
      std::fill_n(fenced.data() + fence, bytes, poison);
      const Array<T> out = fixture.run(operation, {fenced.data() + fence, bytes}, execution);
      EXPECT_TRUE(same_bits(out.elements(), expected.elements()));
      const auto intact = [](unsigned char byte) { return byte == canary; };
      EXPECT_TRUE(std::all_of(fenced.data(), fenced.data() + fence, intact)) << "written before the workspace";
      const unsigned char* const end = fenced.data() + fence + bytes;
      EXPECT_TRUE(std::all_of(end, end + fence, intact)) << "written behind the workspace";

      const Aligned exact(std::max<std::size_t>(bytes, 1));
      EXPECT_TRUE(same_bits(fixture.run(operation, {exact.data(), bytes}, execution).elements(), expected.elements()));
    }
  }
}

TYPED_TEST(WorkspaceOf, IsRefusedWhenTooSmallOrMisaligned) {
  using T = TypeParam;
  Random random(2);
  const Fixture<T> fixture(make_problem({5, 3, 6, 7}, 3, 3, {}), random);
  for (const Operation operation : operations) {
    const std::string name = names[static_cast<int>(operation)];
    SCOPED_TRACE(name);
    const std::size_t bytes = fixture.bytes(operation, Cpu{1});
    ASSERT_GT(bytes, 0u);
    const Aligned memory(bytes + 64);
    const Array<T> out(operation == Operation::weight_grad ? fixture.problem.weight : fixture.problem.image);
    const std::vector<T> before = out.buffer();
    const auto message = [&](const Workspace& workspace) -> std::string {
      try {
        fixture.run_into(out, operation, workspace, Cpu{1});
      } catch (const Error& error) {
        return error.what();
      }
      return "no error";
    };
    EXPECT_EQ(message({memory.data(), bytes - 1}), "[" + name + "] expected a workspace of at least " +
                                                       std::to_string(bytes) + " bytes, but got " +
                                                       std::to_string(bytes - 1));
    for (const std::size_t offset : {1, 4, 32, 63}) {
      EXPECT_EQ(message({memory.data() + offset, bytes}),
                "[" + name + "] expected a workspace aligned to 64 bytes, but got one that is not");
    }
    EXPECT_TRUE(same_bits(out.buffer(), before)) << "the output was written before the workspace was refused";
    EXPECT_EQ(message({memory.data(), bytes}), "no error");
  }
}

TYPED_TEST(WorkspaceOf, IsNotNeededForEmptyImages) {
  for (const Shape& image : {Shape{0, 3, 4, 5}, Shape{2, 3, 0, 5}, Shape{2, 3, 4, 0}}) {
    for (const Operation operation : operations) {
      EXPECT_EQ(workspace_size<TypeParam>(operation, image, {3, 3, 2, 2}, {}, Cpu{}), 0u);
    }
  }
}

TYPED_TEST(WorkspaceOf, DoesNotDependOnCornersTransposeOrDiagonal) {
  for (const Operation operation : operations) {
    const auto bytes = [&](const Options& options) {
      return workspace_size<TypeParam>(operation, {40, 6, 17, 19}, {6, 3, 3, 2}, options, Cpu{3});
    };
    Options options;
    options.groups = 2;
    const std::size_t plain = bytes(options);
    for (const Corner corner : all_corners) {
      options.corners = {corner, Corner::br};
      options.transpose = !options.transpose;
      options.unit_diagonal = options.transpose;
      EXPECT_EQ(bytes(options), plain);
    }
  }
}

}  // namespace
}  // namespace invconv::test
