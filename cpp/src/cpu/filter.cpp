// solve and conv: splits the images into blocks, one task each, and gives every worker its scratch.

#include "cpu/blocks.hpp"
#include "threads.hpp"

namespace invconv::detail::cpu {

namespace {

/// What a filter is split into. Results do not depend on it: each output is computed by one chain of operations.
template <class T>
struct FilterPlan {
  using A = Arithmetic<T>;
  FilterShape shape;
  Blocks blocks;
  int threads;
  std::size_t weight_bytes, scratch_bytes;  // of one group, of one worker

  FilterPlan(const Kernels<T>& table, Operation operation, const Sizes& s, bool unit_diagonal, const Cpu& execution)
      : shape{s.channels,   s.height, s.width, s.kernel_height, s.kernel_width, operation == Operation::solve,
              unit_diagonal},
        blocks{s.batch, table.lanes[0]},
        threads(useful_threads(s, execution)) {
    // Narrower vectors rather than threads without work.
    for (const Index lanes : table.lanes) {
      if (blocks.count() * s.groups >= threads || lanes < 4) {
        break;
      }
      blocks.lanes = lanes;
    }
    threads = static_cast<int>(std::min<Index>(threads, blocks.count() * s.groups));
    weight_bytes = aligned_bytes<A>(table.packed_weight_size(shape));
    scratch_bytes = aligned_bytes<A>(filter_scratch_size(shape, blocks.lanes));
  }

  std::size_t bytes(const Sizes& s) const {
    return weight_bytes * static_cast<std::size_t>(s.groups) + scratch_bytes * static_cast<std::size_t>(threads);
  }
};

}  // namespace

template <class T>
std::size_t filter_workspace(Operation operation, const Sizes& s, const Cpu& execution) {
  return FilterPlan<T>(kernels<T>(), operation, s, true, execution).bytes(s);
}

template <class T>
void run(const Filter<T>& problem, void* workspace, const Cpu& execution) {
  using A = Arithmetic<T>;
  const Sizes s = clipped(problem.sizes);
  if (is_empty(s)) {
    return;
  }
  const Kernels<T>& table = kernels<T>();
  const FilterPlan<T> plan(table, problem.operation, s, problem.unit_diagonal, execution);
  auto* const weights = static_cast<std::byte*>(workspace);
  auto* const scratch = weights + plan.weight_bytes * static_cast<std::size_t>(s.groups);
  const auto weight_of = [&](Index group) {
    return reinterpret_cast<A*>(weights + plan.weight_bytes * static_cast<std::size_t>(group));
  };
  for (Index group = 0; group < s.groups; ++group) {
    table.pack_weight(plan.shape, problem.groups[static_cast<std::size_t>(group)].weight, weight_of(group));
  }
  // Block after block, so that the one with the rest comes last and evens out the threads.
  parallel_for(plan.threads, plan.blocks.count() * s.groups, [&](Index task, int worker) {
    const Index block = task / s.groups, group = task % s.groups;
    const Index first = plan.blocks.first(block), images = plan.blocks.images(block);
    auto [in, out, weight] = problem.groups[static_cast<std::size_t>(group)];
    in.data += first * in.batch;
    out.data += first * out.batch;
    table.filter(plan.shape, fitting_lanes(table, images), images, in, out, weight_of(group),
                 reinterpret_cast<A*>(scratch + plan.scratch_bytes * static_cast<std::size_t>(worker)));
  });
}

#define INVCONV_INSTANTIATE(T)                                                   \
  template std::size_t filter_workspace<T>(Operation, const Sizes&, const Cpu&); \
  template void run<T>(const Filter<T>&, void*, const Cpu&);
INVCONV_INSTANTIATE(float)
INVCONV_INSTANTIATE(double)
INVCONV_INSTANTIATE(float16)
INVCONV_INSTANTIATE(bfloat16)

}  // namespace invconv::detail::cpu
