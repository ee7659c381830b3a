// The CUDA backend: turns a problem into the launches of its plan. It allocates nothing, waits for nothing and copies
// nothing to or from the host, so that a call can be captured in a graph.

#include <algorithm>
#include <bit>
#include <limits>
#include <string>

#include "conv_direct.cuh"
#include "conv_tiles.cuh"
#include "plan.hpp"
#include "solve_block.cuh"
#include "solve_image.cuh"
#include "solve_strips.cuh"
#include "weight_grad_sums.cuh"

namespace invconv::detail::cuda {

namespace {

/// The workspace of a plan.
template <class A>
struct Memory {
  std::byte* cleared;
  A* weights;
  void* rest;

  Memory(const Plan& plan, void* workspace)
      : cleared(static_cast<std::byte*>(workspace)),
        weights(reinterpret_cast<A*>(cleared + plan.cleared_bytes)),
        rest(cleared + plan.cleared_bytes + plan.weight_bytes) {}
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

template <class T, bool Solve>
void launch_pack(const Plan& plan, const Groups<FilterGroup<T>>& groups, int padded, Arithmetic<T>* packed,
                 void* stream) {
  const Index per_group = std::clamp<Index>(plan.weight_bytes / static_cast<std::size_t>(plan.groups) / 4096, 1, 64);
  launch(pack_weights<T, Solve>, {blocks(groups.count * per_group), 256, 0, stream}, groups, plan.shape, padded,
         packed);
}

template <class T, int Outputs>
void launch_block(const Plan& plan, const Filter<T>& problem, const Memory<Arithmetic<T>>& memory, void* stream) {
  using A = Arithmetic<T>;
  const BlockShape& of = plan.block;
  for_groups<FilterGroup<T>>(problem.groups, [&](const auto& groups, std::size_t) {
    BlockMemory<A> shared{};  // one launch after the other uses the same
    if (!of.weight_in_shared) {
      launch_pack<T, true>(plan, groups, of.padded, memory.weights, stream);
      shared.packed = memory.weights;
    }
    shared.kept = static_cast<A*>(memory.rest);
    if (of.strips > 1) {
      clear(memory.cleared, plan.cleared_bytes, stream);
      shared.ticket = reinterpret_cast<unsigned*>(memory.cleared);
      shared.progress = shared.ticket + 1;
      shared.edges = shared.kept;
      shared.kept += plan.edges_bytes / sizeof(A);
    }
    launch(solve_block<T, Outputs>,
           {blocks(Index{plan.batch} * groups.count * of.strips), static_cast<unsigned>(plan.threads),
            plan.shared_bytes, stream},
           groups, of, shared);
  });
}

template <class T, int Taps, int Outputs, int Inputs, int Substituted>
bool launch_variant(const Plan& plan, const Filter<T>& problem, void* stream) {
  if (plan.variant != ImageVariant{Taps, Outputs, Inputs, Substituted}) {
    return false;
  }
  for_groups<FilterGroup<T>>(problem.groups, [&](const auto& groups, std::size_t) {
    launch(solve_image<T, Taps, Outputs, Inputs, Substituted>,
           {blocks(Index{plan.batch} * groups.count), static_cast<unsigned>(plan.threads), plan.shared_bytes, stream},
           groups,
           ImageShape{plan.shape, plan.swapped, plan.pitch, plan.row_pitch, plan.row_threads, plan.row_groups,
                      plan.slices});
  });
  return true;
}

template <class T>
void launch_image(const Plan& plan, const Filter<T>& problem, void* stream) {
  bool is_launched =
      launch_variant<T, 3, 3, 3, 12>(plan, problem, stream) || launch_variant<T, 5, 3, 3, 12>(plan, problem, stream) ||
      launch_variant<T, 7, 3, 3, 12>(plan, problem, stream) || launch_variant<T, 3, 4, 4, 0>(plan, problem, stream) ||
      launch_variant<T, 5, 4, 4, 0>(plan, problem, stream);
  if constexpr (sizeof(Arithmetic<T>) == sizeof(float)) {  // in double they have no registers
    is_launched = is_launched || launch_variant<T, 3, 2, 2, 8>(plan, problem, stream) ||
                  launch_variant<T, 3, 4, 4, 16>(plan, problem, stream) ||
                  launch_variant<T, 7, 4, 4, 0>(plan, problem, stream);
  }
  if (!is_launched) {
    throw Error("[cuda] a kernel that the plan names is missing");
  }
}

template <class T, int C>
void launch_strips(const Plan& plan, const Filter<T>& problem, const Memory<Arithmetic<T>>& memory, void* stream) {
  using A = Arithmetic<T>;
  const StripsShape shape{plan.shape.height, plan.shape.width, plan.strips, plan.shape.unit_diagonal};
  for_groups<FilterGroup<T>>(problem.groups, [&](const auto& groups, std::size_t) {
    Strips<A> shared{};
    if (plan.strips > 1) {  // one launch after the other uses the same ones
      clear(memory.cleared, plan.cleared_bytes, stream);
      shared.ticket = reinterpret_cast<unsigned*>(memory.cleared);
      shared.progress = shared.ticket + 1;
      shared.edges = static_cast<A*>(memory.rest);
    }
    launch(solve_strips<T, C>,
           {blocks(Index{plan.batch} * groups.count * plan.strips), static_cast<unsigned>(plan.threads),
            plan.shared_bytes, stream},
           groups, shape, shared);
  });
}

template <class T>
bool is_in_place(const Filter<T>& problem) {
  const auto& any = problem.groups[0];
  return static_cast<const void*>(any.in.data) == static_cast<const void*>(any.out.data);
}

template <class T>
void launch_tiles(const Plan& plan, const Filter<T>& problem, void* stream) {
  const GroupShape& s = plan.shape;
  const Index per_image = Index{ceil_div(s.width, plan.tile_width)} * ceil_div(s.height, tile_rows * plan.row_groups) *
                          ceil_div(s.channels, tile_outputs * plan.output_groups);
  for_groups<FilterGroup<T>>(problem.groups, [&](const auto& groups, std::size_t) {
    launch(conv_tiles<T>,
           {blocks(Index{plan.batch} * groups.count * per_image), static_cast<unsigned>(plan.tile_threads()),
            plan.tile_bytes, stream},
           groups, TilesShape{s, plan.tile_width, plan.row_groups, plan.output_groups}, plan.batch);
  });
}

template <class T>
void launch_direct(const Plan& plan, const Filter<T>& problem, const Memory<Arithmetic<T>>& memory, void* stream,
                   std::size_t shared_bytes) {
  using A = Arithmetic<T>;
  const GroupShape& s = plan.shape;
  const std::size_t weight_size = plan.weight_bytes / static_cast<std::size_t>(plan.groups) / sizeof(A);
  const bool in_place = is_in_place(problem);
  const int pixels_at_once = plan.threads / plan.lanes;
  const Index pieces = ceil_div(Index{s.height} * s.width, pixels_at_once);
  // A few pieces to a block, so that a weight is not packed for each.
  const int per_image = in_place ? 1 : static_cast<int>(std::clamp<Index>(pieces / 4, 1, 1024));
  const std::size_t waiting = in_place ? plan.waiting_bytes : 0;
  if (plan.shared_bytes + waiting > shared_bytes) {
    throw Error("[conv] expected an output beside the input for so many channels, but got the input itself");
  }
  for_groups<FilterGroup<T>>(problem.groups, [&](const auto& groups, std::size_t first) {
    A* const packed = memory.weights + first * weight_size;
    if (!plan.weight_in_shared) {
      launch_pack<T, false>(plan, groups, plan.padded, packed, stream);
    }
    launch(conv_direct<T>,
           {blocks(Index{plan.batch} * groups.count * per_image), static_cast<unsigned>(plan.threads),
            plan.shared_bytes + waiting, stream},
           groups, DirectShape{s, plan.lanes, plan.padded, per_image, plan.weight_in_shared, in_place}, packed);
  });
}

/// Calls `each(problem)` for what can be launched at once: with one weight for each image the images of a group are
/// groups of a batch of one, at equal steps.
template <class T, template <class> class Problem, class Each>
void for_launched(const Problem<T>& problem, Each&& each) {
  if (problem.sizes.weights == 1) {
    return each(problem);
  }
  Problem<T> images = problem;
  for (const auto& group : problem.groups) {
    images.groups.clear();
    for (Index image = 0; image < problem.sizes.batch; ++image) {
      images.groups.push_back(group.from_image(image));
    }
    each(images);
  }
}

template <class T>
Plan plan_for(Operation operation, const Sizes& sizes, bool unit_diagonal, const Cuda& execution) {
  return plan({most_shared_bytes(execution.device)}, operation, clipped(sizes), unit_diagonal, sizeof(Arithmetic<T>));
}

template <class T>
void run_launched(const Filter<T>& problem, void* workspace, const Cuda& execution) {
  const Plan plan = plan_for<T>(problem.operation, problem.sizes, problem.unit_diagonal, execution);
  const Memory<Arithmetic<T>> memory(plan, workspace);
  switch (plan.kernel) {
    case Kernel::tiles:
      if (!is_in_place(problem)) {
        return launch_tiles(plan, problem, execution.stream);
      }
      [[fallthrough]];
    case Kernel::direct:
      return launch_direct(plan, problem, memory, execution.stream, most_shared_bytes(execution.device));
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
      return launch_image(plan, problem, execution.stream);
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
  plan.shape.channels = narrowed(sizes.channels, "channels");
  if (!is_empty(sizes)) {
    plan = plan_for<T>(Operation::weight_grad, sizes, problem.unit_diagonal, execution);
  }
  GroupShape full = plan.shape;
  full.kernel_height = narrowed(sizes.kernel_height, "rows of taps");
  full.kernel_width = narrowed(sizes.kernel_width, "columns of taps");
  const int entries =
      narrowed(Index{full.channels} * full.channels * full.kernel_height * full.kernel_width, "entries of a weight");
  const SumsShape shape{plan.shape,  plan.batch,   plan.parts,  plan.units, plan.span,
                        plan.inputs, plan.outputs, plan.slices, full,       problem.negative};
  auto* const sums = static_cast<double*>(workspace);
  for_groups<CorrelationGroup<T>>(problem.groups, [&](const auto& groups, std::size_t) {
    if (plan.parts > 0) {
      const GroupShape& s = plan.shape;
      const Index tiles = Index{ceil_div(s.channels, plan.inputs)} * ceil_div(s.channels, sums_outputs * plan.outputs) *
                          ceil_div(s.kernel_height, plan.square) * ceil_div(s.kernel_width, plan.square);
      launch(plan.square == 1 ? sum_parts<T, 1> : sum_parts<T, 3>,
             {blocks(tiles * groups.count * plan.parts), static_cast<unsigned>(plan.threads), plan.shared_bytes,
              execution.stream},
             groups, shape, sums);
    }
    // Threads that share an entry's parts.
    const int shares = static_cast<int>(std::bit_floor(static_cast<unsigned>(std::clamp(plan.parts, 1, 32))));
    const int at_once = std::min(sums_threads / shares, rounded_up(entries, 32));
    const int threads = shares * at_once;
    const Index per_group = ceil_div(entries, at_once);
    launch(add_parts<T>,
           {blocks(per_group * groups.count), static_cast<unsigned>(threads),
            static_cast<std::size_t>(threads) * sizeof(double), execution.stream},
           groups, shape, at_once, static_cast<unsigned>(per_group), static_cast<const double*>(sums));
  });
}

}  // namespace

template <class T>
std::size_t workspace_size(Operation operation, const Sizes& sizes, const Cuda& execution) {
  return is_empty(sizes) ? 0 : plan_for<T>(operation, sizes, true, execution).workspace_bytes();
}

template <class T>
void run(const Filter<T>& problem, void* workspace, const Cuda& execution) {
  if (is_empty(problem.sizes)) {
    return;
  }
  const DeviceGuard guard(execution.device);
  for_launched(problem, [&](const Filter<T>& part) { run_launched(part, workspace, execution); });
}

template <class T>
void run(const Correlation<T>& problem, void* workspace, const Cuda& execution) {
  if (problem.sizes.channels == 0) {
    return;
  }
  const DeviceGuard guard(execution.device);
  for_launched(problem, [&](const Correlation<T>& part) { run_launched(part, workspace, execution); });
}

int devices() { return count_devices(); }
bool has_kernels() { return true; }

#define INVCONV_INSTANTIATE(T)                                                  \
  template std::size_t workspace_size<T>(Operation, const Sizes&, const Cuda&); \
  template void run<T>(const Filter<T>&, void*, const Cuda&);                   \
  template void run<T>(const Correlation<T>&, void*, const Cuda&);
INVCONV_INSTANTIATE(float)
INVCONV_INSTANTIATE(double)
INVCONV_INSTANTIATE(float16)
INVCONV_INSTANTIATE(bfloat16)

}  // namespace invconv::detail::cuda
