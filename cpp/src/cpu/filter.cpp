// solve and conv: carries out a plan.

#include <algorithm>
#include <cstring>

#include "cpu/plan.hpp"
#include "cpu/sizes.hpp"
#include "threads.hpp"

namespace invconv::detail::cpu {

namespace {

/// Where the pieces of a part lie in the workspace.
template <class A>
struct Pieces {
  std::size_t weight, worker, ring, edge, progress;        // bytes of one
  std::size_t weights, workers, rings, edges, progresses;  // how many

  Pieces(const Part& part, const FilterPlan& plan, Index groups)
      : weight(aligned_bytes<A>(part.weight_elements)),
        worker(aligned(static_cast<std::size_t>(part.scratch_bytes))),
        ring(aligned_bytes<A>(part.ring_elements)),
        edge(aligned_bytes<A>(part.edge_elements)),
        progress(sizeof(Progress)),
        weights(static_cast<std::size_t>(groups)),
        workers(static_cast<std::size_t>(plan.threads)) {
    // Bands in the making are at most as many as the threads, and follow each other; what the one below the last of
    // them reads is one more. A worker that has all the bands to itself needs two.
    const auto chains = static_cast<std::size_t>(part.image_groups() * groups);
    rings = part.shared ? chains : workers;
    edges = (part.shared ? chains * (workers + 1) : 2 * workers) + 1;
    progresses = part.shared ? chains * (workers + 1) : 0;
  }

  std::size_t bytes() const {
    return weight * weights + worker * workers + ring * rings + edge * edges + progress * progresses;
  }
};

/// One part at work.
template <class T>
class PartRun {
  using A = Arithmetic<T>;

 public:
  PartRun(const Part& part, const FilterPlan& plan, const Filter<T>& problem, std::byte* memory)
      : part_(of(part, problem)),
        problem_(problem),
        pieces_(part, plan, problem.sizes.groups),
        groups_(problem.sizes.groups),
        slots_(plan.threads + 1),
        weights_(memory),
        workers_(weights_ + pieces_.weight * pieces_.weights),
        rings_(workers_ + pieces_.worker * pieces_.workers),
        edges_(rings_ + pieces_.ring * pieces_.rings),
        progresses_(edges_ + pieces_.edge * pieces_.edges) {
    for (Index group = 0; group < groups_; ++group) {
      is_finite_ &= kernels<T>().pack_weight(part_.shape, problem.groups[static_cast<std::size_t>(group)].weight,
                                             at<A>(weights_, pieces_.weight, group));
    }
    // Beside their columns, and above the first band, edges are zeros.
    std::memset(edges_, 0, pieces_.edge * pieces_.edges);
    for (std::size_t i = 0; i < pieces_.progresses; ++i) {
      new (progresses_ + i * pieces_.progress) Progress{-1};
    }
    // A conv that writes over its input must read a row before anyone writes it.
    const auto& group = problem.groups[0];
    in_place_ =
        !part.shape.solve && static_cast<const void*>(group.in.data) == static_cast<const void*>(group.out.data);
  }

  /// Whether no tap that is not finite is multiplied by zeros outside the image.
  bool is_exact() const { return is_finite_ || (part_.layout == Layout::images && part_.shape.rows == 1); }

  std::size_t bytes() const { return pieces_.bytes(); }

  void run(Index task, int worker) const {
    const Index bands = part_.shared ? part_.bands : 1;
    const Index chain = task / bands, band = task % bands;
    const Index first = part_.first + chain / groups_ * part_.images, group = chain % groups_;
    const Index images = std::min(part_.images, part_.first + part_.batch - first);
    const auto& arrays = problem_.groups[static_cast<std::size_t>(group)];
    Images<const T> in = arrays.in;  // no structured binding: Clang captures those from version 16 on
    Images<T> out = arrays.out;
    in.data += first * in.batch;
    out.data += first * out.batch;
    const A* const packed = at<A>(weights_, pieces_.weight, group);
    void* const scratch = at<void>(workers_, pieces_.worker, worker);
    const Kernels<T>& table = kernels<T>();
    const FilterShape& shape = part_.shape;
    switch (part_.layout) {
      case Layout::images:
        table.filter_images(shape, part_.lanes, images, in, out, packed, scratch);
        break;
      case Layout::columns: {
        const bool whole = in_place_ || !part_.shared;
        if (!whole) {
          table.conv_columns(shape, part_.lanes, in, out, shape.height * band / bands,
                             shape.height * (band + 1) / bands, packed, scratch);
        } else if (band == 0) {
          table.conv_columns(shape, part_.lanes, in, out, 0, shape.height, packed, scratch);
        }
        break;
      }
      case Layout::rows:
        for_bands(chain, band, worker,
                  [&](const Band<A>& one) { table.solve_rows(shape, part_.lanes, in, out, packed, one, scratch); });
        break;
      case Layout::channels: {
        A* const ring = at<A>(rings_, pieces_.ring, part_.shared ? chain : worker);
        for_bands(chain, band, worker, [&](const Band<A>& one) {
          table.solve_channels(shape, part_.lanes, images, in, out, packed, one, ring, scratch);
        });
        break;
      }
    }
  }

 private:
  /// No plan depends on what the diagonal is.
  static Part of(Part part, const Filter<T>& problem) {
    part.shape.unit_diagonal = problem.unit_diagonal;
    return part;
  }

  template <class P>
  static P* at(std::byte* memory, std::size_t bytes, Index index) {
    return reinterpret_cast<P*>(memory + bytes * static_cast<std::size_t>(index));
  }

  /// Calls `each` for one band of a chain, or for all of them one after the other.
  template <class Each>
  void for_bands(Index chain, Index band, int worker, Each&& each) const {
    const Index slots = part_.shared ? slots_ : 2, first_slot = (part_.shared ? chain : worker) * slots;
    // The edge after all the slots' is never written. What lies left of a row's first column is part of its edge.
    const auto edge = [&](Index index) {
      const Index slot = index < 0 ? static_cast<Index>(pieces_.edges) - 1 : first_slot + index % slots;
      return at<A>(edges_, pieces_.edge, slot) + part_.shape.kernel_height + part_.shape.kernel_width - 2;
    };
    const auto progress = [&](Index index) {
      return part_.shared && index >= 0 ? at<Progress>(progresses_, pieces_.progress, first_slot + index % slots)
                                        : nullptr;
    };
    for (Index index = band; index < (part_.shared ? band + 1 : part_.bands); ++index) {
      each(Band<A>{index, edge(index - 1), edge(index), part_.edge_pitch, progress(index - 1), progress(index)});
    }
  }

  const Part part_;
  const Filter<T>& problem_;
  Pieces<A> pieces_;
  Index groups_, slots_;
  std::byte *weights_, *workers_, *rings_, *edges_, *progresses_;
  bool is_finite_ = true, in_place_;
};

}  // namespace

template <class T>
Machine this_machine() {
  const Kernels<T>& table = kernels<T>();
  return {{table.lanes[0], table.lanes[1], table.lanes[2], table.lanes[3]},
          table.block,
          table.channel_vectors,
          table.rows,
          sizeof(Arithmetic<T>)};
}

template <class T>
std::size_t workspace_size(const FilterPlan& plan, const Sizes& s) {
  const auto size = [&](const FilterPlan& one) {
    std::size_t bytes = 0;
    for (const Part& part : one.parts) {
      bytes += Pieces<Arithmetic<T>>(part, one, s.groups).bytes();
    }
    return bytes;
  };
  return std::max(size(plan), size(careful_plan(this_machine<T>(), s, plan)));
}

template <class T>
void run(const Filter<T>& problem, const FilterPlan& plan, void* workspace) {
  auto* memory = static_cast<std::byte*>(workspace);
  std::vector<PartRun<T>> parts;
  parts.reserve(plan.parts.size());
  std::vector<TaskList> tasks;
  for (const Part& part : plan.parts) {
    parts.emplace_back(part, plan, problem, memory);
    memory += parts.back().bytes();
    tasks.push_back({part.tasks(problem.sizes.groups), part.is_pipeline() ? Order::given : Order::any});
    if (!parts.back().is_exact()) {
      return run(problem, careful_plan(this_machine<T>(), clipped(problem.sizes), plan), workspace);
    }
  }
  parallel_for(plan.threads, tasks,
               [&](int part, Index task, int worker) { parts[static_cast<std::size_t>(part)].run(task, worker); });
}

template <class T>
std::size_t filter_workspace(Operation operation, const Sizes& s, const Cpu& execution) {
  return workspace_size<T>(plan_filter(this_machine<T>(), operation, s, useful_threads(s, execution)), s);
}

template <class T>
void run(const Filter<T>& problem, void* workspace, const Cpu& execution) {
  if (problem.sizes.weights > 1) {
    return run(images_as_groups(problem), workspace, execution);
  }
  const Sizes s = clipped(problem.sizes);
  if (!is_empty(s)) {
    run(problem, plan_filter(this_machine<T>(), problem.operation, s, useful_threads(s, execution)), workspace);
  }
}

#define INVCONV_INSTANTIATE(T)                                                   \
  template Machine this_machine<T>();                                            \
  template std::size_t workspace_size<T>(const FilterPlan&, const Sizes&);       \
  template void run<T>(const Filter<T>&, const FilterPlan&, void*);              \
  template std::size_t filter_workspace<T>(Operation, const Sizes&, const Cpu&); \
  template void run<T>(const Filter<T>&, void*, const Cpu&);
INVCONV_INSTANTIATE(float)
INVCONV_INSTANTIATE(double)
INVCONV_INSTANTIATE(float16)
INVCONV_INSTANTIATE(bfloat16)

}  // namespace invconv::detail::cpu
