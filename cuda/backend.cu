// The CUDA backend: turns a problem into the launches of its plan. It allocates nothing, waits for nothing and copies
// nothing to or from the host, so that a call can be captured in a graph.

#include <algorithm>
#include <bit>
#include <limits>
#include <string>

#include "conv_direct.cuh"
#include "conv_tiles.cuh"
#include "plan.hpp"
#include "solve_image_sums.cuh"
#include "solve_strips.cuh"
#include "solve_wide.cuh"
#include "weight_grad_sums.cuh"

namespace invconv::detail::cuda {

namespace {

/// The workspace of a plan.
template <class A>
struct Memory {
  std::byte* cleared;
  A *weights, *edges;
  void* rest;

  Memory(const Plan& plan, void* workspace)
      : cleared(static_cast<std::byte*>(workspace)),
        weights(reinterpret_cast<A*>(cleared + plan.cleared_bytes)),
        edges(weights + plan.weight_bytes / sizeof(A)),
        rest(edges + plan.edges_bytes / sizeof(A)) {}
};

/// Calls `each(groups, first)` for as many groups at a time as a launch can have.
template <class Group, class Source, class Each>
void for_groups(const std::vector<Source>& all, Each&& each) {
  for (std::size_t first = 0; first < all.size(); first += Groups<Group>::most) {
    const std::size_t left = all.size() - first;
    each(some_groups<Group>(all, first, static_cast<int>(std::min<std::size_t>(left, Groups<Group>::most))), first);
  }
}

unsigned blocks(Index count) {
  if (count > std::numeric_limits<int>::max()) {
    throw Error("[cuda] expected a problem of fewer than 2^31 thread blocks, but got " + std::to_string(count) +
                "; split its batch");
  }
  return static_cast<unsigned>(count);
}

Error missing_kernel() { return Error("[cuda] a kernel that the plan names is missing"); }

template <class T, bool Solve>
void launch_pack(const Plan& plan, const Groups<FilterGroup<T>>& groups, int padded, Arithmetic<T>* packed,
                 void* stream) {
  const Index per_group = std::clamp<Index>(plan.weight_bytes / static_cast<std::size_t>(plan.groups) / 4096, 1, 64);
  launch(pack_weights<T, Solve>, {blocks(groups.count * per_group), 256, 0, stream}, groups, plan.shape, padded,
         packed);
}

/// For one launch after the other.
template <class A>
Pipeline<A> cleared_pipeline(const Plan& plan, const Memory<A>& memory, void* stream) {
  if (plan.cleared_bytes == 0) {
    return {};
  }
  clear(memory.cleared, plan.cleared_bytes, stream);
  auto* const ticket = reinterpret_cast<unsigned*>(memory.cleared);
  return {ticket, ticket + 1, memory.edges};
}

/// Calls `each(groups, launch, pipeline, packed)`, where `packed` is null if blocks pack the weight themselves.
template <class T, class Each>
void for_block_strips(const Plan& plan, const BlockShape& of, const Filter<T>& problem,
                      const Memory<Arithmetic<T>>& memory, void* stream, Each&& each) {
  for_groups<FilterGroup<T>>(problem.groups, [&](const auto& groups, std::size_t) {
    const Arithmetic<T>* packed = nullptr;  // one launch after the other uses the same
    if (plan.weight_bytes > 0) {
      launch_pack<T, true>(plan, groups, of.padded, memory.weights, stream);
      packed = memory.weights;
    }
    const auto pipeline = cleared_pipeline(plan, memory, stream);
    each(groups,
         Launch{blocks(Index{plan.batch} * groups.count * of.strips), static_cast<unsigned>(plan.threads),
                plan.shared_bytes, stream},
         pipeline, packed);
  });
}

template <class T, int Outputs>
void launch_block(const Plan& plan, const Filter<T>& problem, const Memory<Arithmetic<T>>& memory, void* stream) {
  using A = Arithmetic<T>;
  const auto each = [&](const auto& groups, const Launch& how, const Pipeline<A>& pipeline, const A* packed) {
    launch(solve_block<T, Outputs>, how, groups, plan.block, pipeline, packed, static_cast<A*>(memory.rest));
  };
  for_block_strips(plan, plan.block, problem, memory, stream, each);
}

template <class T, int Outputs>
void launch_wide(const Plan& plan, const Filter<T>& problem, const Memory<Arithmetic<T>>& memory, void* stream) {
  using A = Arithmetic<T>;
  const auto each = [&](const auto& groups, const Launch& how, const Pipeline<A>& pipeline, const A* packed) {
    launch(solve_wide<T, Outputs>, how, groups, plan.wide, pipeline, packed);
  };
  for_block_strips(plan, plan.wide.strip, problem, memory, stream, each);
}

/// The parts of weight_grad's sums, which lie at the beginning of the workspace.
template <class T>
void launch_add_parts(const Groups<CorrelationGroup<T>>& groups, const SumsShape& of, const double* sums,
                      void* stream) {
  const int entries = narrowed(
      Index{of.full.channels} * of.full.channels * of.full.kernel_height * of.full.kernel_width, "entries of a weight");
  // Threads that share an entry's parts.
  const int shares = static_cast<int>(std::bit_floor(static_cast<unsigned>(std::clamp(of.parts, 1, 32))));
  const int at_once = std::min(sums_threads / shares, rounded_up(entries, 32));
  const int threads = shares * at_once;
  const Index per_group = ceil_div(entries, at_once);
  launch(add_parts<T>,
         {blocks(per_group * groups.count), static_cast<unsigned>(threads),
          static_cast<std::size_t>(threads) * sizeof(double), stream},
         groups, of, at_once, static_cast<unsigned>(per_group), sums);
}

/// What add_parts must know of the result.
template <class T>
SumsShape with_full_kernel(SumsShape of, const Correlation<T>& problem) {
  of.negative = problem.negative;
  of.full = of.shape;
  of.full.kernel_height = narrowed(problem.sizes.kernel_height, "rows of taps");
  of.full.kernel_width = narrowed(problem.sizes.kernel_width, "columns of taps");
  return of;
}

/// With the derivative by the weight, where there is a problem of it.
template <class T, int Taps, int Outputs, int Inputs, int Substituted>
bool launch_variant(const Plan& plan, const Filter<T>& problem, const Correlation<T>* sums, void* workspace,
                    void* stream) {
  if (plan.image.variant != ImageVariant{Taps, Outputs, Inputs, Substituted}) {
    return false;
  }
  for_groups<FilterGroup<T>>(problem.groups, [&](const auto& groups, std::size_t first) {
    const Launch how{blocks(Index{plan.batch} * groups.count), static_cast<unsigned>(plan.threads), plan.shared_bytes,
                     stream};
    if (sums == nullptr) {
      return launch(solve_image<T, Taps, Outputs, Inputs, Substituted>, how, groups, plan.image);
    }
    if constexpr (has_image_sums(sizeof(Arithmetic<T>))) {
      const auto correlations = some_groups<CorrelationGroup<T>>(sums->groups, first, groups.count);
      auto* const parts = static_cast<double*>(workspace);
      launch(solve_image_sums<T, Taps, Outputs, Inputs, Substituted>, how, groups, correlations, plan.image,
             plan.image_sums, parts);
      launch_add_parts(correlations, with_full_kernel(plan.sums, *sums), parts, stream);
    } else {
      throw missing_kernel();
    }
  });
  return true;
}

template <class T>
void launch_image(const Plan& plan, const Filter<T>& problem, const Correlation<T>* sums, void* workspace,
                  void* stream) {
  bool is_launched = launch_variant<T, 3, 3, 3, 12>(plan, problem, sums, workspace, stream) ||
                     launch_variant<T, 5, 3, 3, 12>(plan, problem, sums, workspace, stream) ||
                     launch_variant<T, 7, 3, 3, 12>(plan, problem, sums, workspace, stream) ||
                     launch_variant<T, 3, 4, 4, 0>(plan, problem, sums, workspace, stream) ||
                     launch_variant<T, 5, 4, 4, 0>(plan, problem, sums, workspace, stream);
  if constexpr (sizeof(Arithmetic<T>) == sizeof(float)) {  // in double they have no registers
    is_launched = is_launched || launch_variant<T, 3, 2, 2, 8>(plan, problem, sums, workspace, stream) ||
                  launch_variant<T, 3, 4, 4, 16>(plan, problem, sums, workspace, stream) ||
                  launch_variant<T, 7, 4, 4, 0>(plan, problem, sums, workspace, stream);
  }
  if (!is_launched) {
    throw missing_kernel();
  }
}

template <class T, int C>
void launch_strips(const Plan& plan, const Filter<T>& problem, const Memory<Arithmetic<T>>& memory, void* stream) {
  const StripsShape& of = plan.strips;
  for_groups<FilterGroup<T>>(problem.groups, [&](const auto& groups, std::size_t) {
    const auto pipeline = cleared_pipeline(plan, memory, stream);
    launch(solve_strips<T, C>,
           {blocks(Index{plan.batch} * groups.count * of.strips), static_cast<unsigned>(plan.threads),
            plan.shared_bytes, stream},
           groups, of, pipeline);
  });
}

template <class T>
void launch_tiles(const Plan& plan, const Filter<T>& problem, void* stream) {
  const TilesShape& of = plan.tiles;
  const GroupShape& s = of.shape;
  const Index per_image = Index{ceil_div(s.width, of.width)} * ceil_div(s.height, tile_rows * of.row_groups) *
                          ceil_div(s.channels, tile_outputs * of.output_groups);
  for_groups<FilterGroup<T>>(problem.groups, [&](const auto& groups, std::size_t) {
    launch(conv_tiles<T>,
           {blocks(Index{plan.batch} * groups.count * per_image), static_cast<unsigned>(plan.threads),
            plan.shared_bytes, stream},
           groups, of, plan.batch);
  });
}

template <class T>
void launch_direct(const Plan& plan, const Filter<T>& problem, const Memory<Arithmetic<T>>& memory,
                   const Device& device, void* stream) {
  const DirectShape& of = plan.direct;
  if (plan.shared_bytes > device.shared_bytes) {
    throw Error("[conv] expected an output beside the input for so many channels, but got the input itself");
  }
  for_groups<FilterGroup<T>>(problem.groups, [&](const auto& groups, std::size_t) {
    const Arithmetic<T>* packed = nullptr;  // one launch after the other uses the same
    if (!of.weight_in_shared) {
      launch_pack<T, false>(plan, groups, of.padded, memory.weights, stream);
      packed = memory.weights;
    }
    launch(conv_direct<T>,
           {blocks(Index{plan.batch} * groups.count * of.blocks_per_image), static_cast<unsigned>(plan.threads),
            plan.shared_bytes, stream},
           groups, of, packed);
  });
}

/// The images of a group as groups of a batch of one, at equal steps.
template <class Problem>
Problem images_of(const Problem& problem, std::size_t group) {
  Problem images = problem;
  images.groups.clear();
  for (Index image = 0; image < problem.sizes.batch; ++image) {
    images.groups.push_back(problem.groups[group].from_image(image));
  }
  return images;
}

/// Calls `each(problem, ...)` for what can be launched at once: with one weight for each image that is a group.
template <class Each, class Problem, class... Problems>
void for_launched(Each&& each, const Problem& problem, const Problems&... others) {
  if (problem.sizes.weights == 1) {
    return each(problem, others...);
  }
  for (std::size_t group = 0; group < problem.groups.size(); ++group) {
    each(images_of(problem, group), images_of(others, group)...);
  }
}

Device device(const Cuda& execution) { return {most_shared_bytes(execution.device)}; }

template <class T>
bool is_in_place(const Filter<T>& problem) {
  const auto& any = problem.groups[0];
  return static_cast<const void*>(any.in.data) == static_cast<const void*>(any.out.data);
}

template <class T>
void run_launched(const Filter<T>& problem, void* workspace, const Cuda& execution) {
  const Device device = cuda::device(execution);
  const Plan plan = cuda::plan(device, problem.operation, clipped(problem.sizes), problem.unit_diagonal,
                               sizeof(Arithmetic<T>), is_in_place(problem));
  const Memory<Arithmetic<T>> memory(plan, workspace);
  switch (plan.kernel) {
    case Kernel::tiles:
      return launch_tiles(plan, problem, execution.stream);
    case Kernel::direct:
      return launch_direct(plan, problem, memory, device, execution.stream);
    case Kernel::strips:
      switch (plan.shape.channels) {
        case 1:
          return launch_strips<T, 1>(plan, problem, memory, execution.stream);
        case 2:
          return launch_strips<T, 2>(plan, problem, memory, execution.stream);
        case 3:
          return launch_strips<T, 3>(plan, problem, memory, execution.stream);
        default:
          return launch_strips<T, 4>(plan, problem, memory, execution.stream);
      }
    case Kernel::image:
      return launch_image<T>(plan, problem, nullptr, nullptr, execution.stream);
    case Kernel::wide:
      if constexpr (sizeof(Arithmetic<T>) == sizeof(float)) {
        return plan.wide.strip.outputs == 6 ? launch_wide<T, 3>(plan, problem, memory, execution.stream)
                                            : launch_wide<T, 4>(plan, problem, memory, execution.stream);
      } else {
        throw missing_kernel();
      }
    default:
      switch (plan.block.outputs) {
        case 3:
          return launch_block<T, 3>(plan, problem, memory, execution.stream);
        case 4:
          return launch_block<T, 4>(plan, problem, memory, execution.stream);
        case 6:
          return launch_block<T, 6>(plan, problem, memory, execution.stream);
        default:
          return launch_block<T, 8>(plan, problem, memory, execution.stream);
      }
  }
}

template <class T>
void run_launched(const Correlation<T>& problem, void* workspace, const Cuda& execution) {
  const Sizes& sizes = problem.sizes;
  Plan plan{};  // without pixels there is nothing to sum, and the result is 0
  plan.sums.shape.channels = narrowed(sizes.channels, "channels");
  if (!is_empty(sizes)) {
    plan = cuda::plan(device(execution), Operation::weight_grad, clipped(sizes), problem.unit_diagonal,
                      sizeof(Arithmetic<T>));
  }
  const SumsShape of = with_full_kernel(plan.sums, problem);
  auto* const sums = static_cast<double*>(workspace);
  for_groups<CorrelationGroup<T>>(problem.groups, [&](const auto& groups, std::size_t) {
    if (of.parts > 0) {
      const GroupShape& s = of.shape;
      const Index tiles = Index{ceil_div(s.channels, of.inputs)} * ceil_div(s.channels, sums_outputs * of.outputs) *
                          ceil_div(s.kernel_height, of.square) * ceil_div(s.kernel_width, of.square);
      launch(of.square == 1 ? sum_parts<T, 1> : sum_parts<T, 3>,
             {blocks(tiles * groups.count * of.parts), static_cast<unsigned>(plan.threads), plan.shared_bytes,
              execution.stream},
             groups, of, sums);
    }
    launch_add_parts(groups, of, sums, execution.stream);
  });
}

}  // namespace

template <class T>
std::size_t workspace_size(Operation operation, const Sizes& sizes, const Cuda& execution) {
  return is_empty(sizes) ? 0 : workspace_bytes(device(execution), operation, clipped(sizes), sizeof(Arithmetic<T>));
}

template <class T>
void run(const Filter<T>& problem, void* workspace, const Cuda& execution) {
  if (is_empty(problem.sizes)) {
    return;
  }
  const DeviceGuard guard(execution.device);
  for_launched([&](const Filter<T>& part) { run_launched(part, workspace, execution); }, problem);
}

template <class T>
void run(const Correlation<T>& problem, void* workspace, const Cuda& execution) {
  if (problem.sizes.channels == 0) {
    return;
  }
  const DeviceGuard guard(execution.device);
  for_launched([&](const Correlation<T>& part) { run_launched(part, workspace, execution); }, problem);
}

template <class T>
bool has_both_gradients(const Sizes& sizes, const Cuda& execution, std::size_t shared_bytes) {
  const Device device = shared_bytes > 0 ? Device{shared_bytes} : cuda::device(execution);
  return !is_empty(sizes) &&
         plan(device, Operation::solve_backward, clipped(sizes), true, sizeof(Arithmetic<T>)).kernel ==
             Kernel::image_sums;
}

template <class T>
void run(const Filter<T>& problem, const Correlation<T>& sums, void* workspace, const Cuda& execution) {
  const DeviceGuard guard(execution.device);
  const Plan plan = cuda::plan(device(execution), Operation::solve_backward, clipped(problem.sizes),
                               problem.unit_diagonal, sizeof(Arithmetic<T>));
  for_launched(
      [&](const Filter<T>& part, const Correlation<T>& its_sums) {
        launch_image(plan, part, &its_sums, workspace, execution.stream);
      },
      problem, sums);
}

int devices() { return count_devices(); }
bool has_kernels() { return true; }

#define INVCONV_INSTANTIATE(T)                                                  \
  template std::size_t workspace_size<T>(Operation, const Sizes&, const Cuda&); \
  template bool has_both_gradients<T>(const Sizes&, const Cuda&, std::size_t);  \
  template void run<T>(const Filter<T>&, void*, const Cuda&);                   \
  template void run<T>(const Correlation<T>&, void*, const Cuda&);              \
  template void run<T>(const Filter<T>&, const Correlation<T>&, void*, const Cuda&);
INVCONV_INSTANTIATE(float)
INVCONV_INSTANTIATE(double)
INVCONV_INSTANTIATE(float16)
INVCONV_INSTANTIATE(bfloat16)

}  // namespace invconv::detail::cuda
