// solve and conv: carries out a plan.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <utility>

#include "cpu/plan.hpp"
#include "cpu/sizes.hpp"
#include "threads.hpp"

namespace invconv::detail::cpu {

namespace {

/// What is packed; behind it are the numbers. Each worker packs for itself, which takes no longer than to get them from
/// another core. A weight too large for one core's cache is packed once for all, beforehand, unless there are groups
/// enough to keep all workers busy with their own.
struct alignas(64) PackedWeight {
  Index group;
};
constexpr std::size_t most_own_weight = 512 * 1024;

/// The first part that packs the weight in the same way.
const Part* same_weight(const FilterPlan& plan, const Part& part) {
  return &*std::find_if(plan.parts.begin(), plan.parts.end(),
                        [&](const Part& other) { return other.shape.block == part.shape.block; });
}

/// Where the pieces of a part lie in the workspace.
template <class A>
struct Pieces {
  std::size_t weight, worker, ring, edge, progress;        // bytes of one
  bool for_all;                                            // weights are packed beforehand, one for each group
  std::size_t weights, workers, rings, edges, progresses;  // how many

  Pieces(const FilterPlan& plan, const Part& part, Index groups)
      : weight(sizeof(PackedWeight) + aligned_bytes<A>(part.weight_elements)),
        worker(aligned(static_cast<std::size_t>(part.scratch_bytes))),
        ring(aligned_bytes<A>(part.ring_elements)),
        edge(aligned_bytes<A>(part.edge_elements)),
        progress(sizeof(Progress)),
        for_all(weight > most_own_weight && groups < plan.threads),
        weights(same_weight(plan, part) != &part ? 0 : static_cast<std::size_t>(for_all ? groups : plan.threads)),
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
  /// `first` is the one that packs the weight in the same way, or null.
  PartRun(const FilterPlan& plan, const Part& part, const Filter<T>& problem, const PartRun* first, std::byte* memory)
      : part_(of(part, problem)),
        problem_(problem),
        pieces_(plan, part, problem.sizes.groups),
        groups_(problem.sizes.groups),
        threads_(plan.threads),
        weights_(first != nullptr ? first->weights_ : memory),
        workers_(memory + pieces_.weight * pieces_.weights),
        rings_(workers_ + pieces_.worker * pieces_.workers),
        edges_(rings_ + pieces_.ring * pieces_.rings),
        progresses_(edges_ + pieces_.edge * pieces_.edges) {
    for (std::size_t i = 0; i < pieces_.weights; ++i) {
      new (weights_ + i * pieces_.weight) PackedWeight{-1};
    }
    for (Index group = 0; pieces_.for_all && group < groups_; ++group) {
      packed_weight(group, 0);
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

  std::size_t bytes() const { return pieces_.bytes(); }

  void run(Index task, int worker) const {
    const Index bands = part_.shared ? part_.bands : 1;
    const Index chain = task / bands, band = task % bands;
    const Index group = chain / part_.image_groups();
    const Index first = part_.first + chain % part_.image_groups() * part_.images;
    const Index images = std::min(part_.images, part_.first + part_.batch - first);
    const auto& arrays = problem_.groups[static_cast<std::size_t>(group)];
    Images<const T> in = arrays.in;  // no structured binding: Clang captures those from version 16 on
    Images<T> out = arrays.out;
    in.data += first * in.batch;
    out.data += first * out.batch;
    const A* const packed = packed_weight(group, worker);
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
      case Layout::flat: {
        const Index vectors = ceil_div(shape.height * shape.width, part_.lanes);
        table.conv_flat(shape, images, in, out, vectors * band / bands, vectors * (band + 1) / bands, packed, scratch);
        break;
      }
      case Layout::mixed:
        for_bands(chain, band, worker, [&](const Band<A>& one) {
          table.solve_mixed(shape, part_.lanes, images, in, out, packed, one, scratch);
        });
        break;
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

  const A* packed_weight(Index group, int worker) const {
    const Index slot = pieces_.for_all ? group : worker;
    auto* const packed = at<PackedWeight>(weights_, pieces_.weight, slot);
    A* const numbers = reinterpret_cast<A*>(packed + 1);
    if (packed->group != group) {
      kernels<T>().pack_weight(part_.shape, problem_.groups[static_cast<std::size_t>(group)].weight, numbers);
      packed->group = group;
    }
    return numbers;
  }

  /// Calls `each` for one band of a chain, or for all of them one after the other.
  template <class Each>
  void for_bands(Index chain, Index band, int worker, Each&& each) const {
    const Index slots = part_.shared ? threads_ + 1 : 2, first_slot = (part_.shared ? chain : worker) * slots;
    // The edge after all the slots' is never written. What lies left of a row's first column is part of its edge.
    const auto edge = [&](Index index) {
      const Index slot = index < 0 ? static_cast<Index>(pieces_.edges) - 1 : first_slot + index % slots;
      return at<A>(edges_, pieces_.edge, slot) + part_.edge_first;
    };
    const auto progress = [&](Index index) {
      return part_.shared && index >= 0 ? at<Progress>(progresses_, pieces_.progress, first_slot + index % slots)
                                        : nullptr;
    };
    const Index end = part_.shared ? band + 1 : part_.bands, stride = part_.shared ? threads_ : 1;
    for (Index index = band; index < end; ++index) {
      each(
          Band<A>{index, edge(index - 1), edge(index), part_.edge_pitch, progress(index - 1), progress(index), stride});
    }
  }

  const Part part_;
  const Filter<T>& problem_;
  Pieces<A> pieces_;
  Index groups_, threads_;
  std::byte *weights_, *workers_, *rings_, *edges_, *progresses_;
  bool in_place_;
};

/// Whether no tap meets a zero outside the image.
bool leaves_taps_out(const FilterPlan& plan) {
  return std::ranges::all_of(plan.parts,
                             [](const Part& part) { return part.layout == Layout::images && part.shape.rows == 1; });
}

template <class T>
bool is_finite(const Filter<T>& problem, const FilterPlan& plan) {
  FilterShape shape = plan.parts[0].shape;
  shape.unit_diagonal = problem.unit_diagonal;
  return std::ranges::all_of(problem.groups,
                             [&](const auto& group) { return kernels<T>().is_finite(shape, group.weight); });
}

}  // namespace

template <class T>
Machine this_machine() {
  const Kernels<T>& table = kernels<T>();
  return {{table.lanes[0], table.lanes[1], table.lanes[2], table.lanes[3]},
          table.block,
          table.channel_vectors,
          table.rows,
          sizeof(Arithmetic<T>),
          table.conv_flat != nullptr};
}

template <class T>
bool is_flat(const Filter<T>& problem) {
  const Sizes& s = problem.sizes;
  return std::ranges::all_of(problem.groups, [&](const auto& group) {
    const auto& in = group.in;
    const auto& out = group.out;
    const bool columns = s.width == 1 || (std::abs(in.column) == 1 && in.column == out.column);
    const bool rows = s.height == 1 || (std::abs(in.row) == s.width && in.row == out.row);
    return columns && rows && static_cast<const void*>(in.data) != static_cast<const void*>(out.data);
  });
}

template <class T>
std::size_t workspace_size(const FilterPlan& plan, const Sizes& s) {
  const auto size = [&](const FilterPlan& one) {
    std::size_t bytes = 0;
    for (const Part& part : one.parts) {
      bytes += Pieces<Arithmetic<T>>(one, part, s.groups).bytes();
    }
    return bytes;
  };
  return std::max(size(plan), size(careful_plan(this_machine<T>(), s, plan)));
}

template <class T>
void run(const Filter<T>& problem, const FilterPlan& plan, void* workspace) {
  if (!leaves_taps_out(plan) && !is_finite(problem, plan)) {
    return run(problem, careful_plan(this_machine<T>(), clipped(problem.sizes), plan), workspace);
  }
  auto* memory = static_cast<std::byte*>(workspace);
  std::vector<PartRun<T>> parts;
  parts.reserve(plan.parts.size());
  std::vector<TaskList> tasks;
  for (const Part& part : plan.parts) {
    const std::ptrdiff_t same = same_weight(plan, part) - plan.parts.data();
    parts.emplace_back(plan, part, problem, same < std::ssize(parts) ? &parts[static_cast<std::size_t>(same)] : nullptr,
                       memory);
    memory += parts.back().bytes();
    tasks.push_back({part.tasks(problem.sizes.groups), part.is_pipeline() ? Order::given : Order::any});
  }
  parallel_for(plan.threads, tasks,
               [&](int part, Index task, int worker) { parts[static_cast<std::size_t>(part)].run(task, worker); });
}

namespace {

/// What a call needs to know beforehand: a plan for arrays that are not flat, and one for those that are.
struct Preparation {
  Operation operation;
  Sizes sizes;
  int threads = 0;
  FilterPlan plans[2];
  std::size_t workspace;
};

/// Kept for the last few kinds of calls of this thread, since a plan takes as long as a small call.
template <class T>
const Preparation& prepared(Operation operation, const Sizes& s, const Cpu& execution) {
  thread_local std::array<Preparation, 8> recent;
  thread_local std::size_t oldest = 0;
  const int threads = useful_threads(s, execution);
  for (const Preparation& one : recent) {
    if (one.threads == threads && one.operation == operation && one.sizes == s) {
      return one;
    }
  }
  const auto plan = [&](bool flat) { return plan_filter(this_machine<T>(), operation, s, threads, flat); };
  Preparation made{operation, s, threads, {plan(false)}, 0};
  made.plans[1] = operation == Operation::conv ? plan(true) : made.plans[0];
  made.workspace = std::max(workspace_size<T>(made.plans[0], s), workspace_size<T>(made.plans[1], s));
  Preparation& one = recent[oldest];
  oldest = (oldest + 1) % recent.size();
  one = std::move(made);
  return one;
}

}  // namespace

template <class T>
std::size_t filter_workspace(Operation operation, const Sizes& s, const Cpu& execution) {
  return prepared<T>(operation, s, execution).workspace;
}

template <class T>
void run(const Filter<T>& problem, void* workspace, const Cpu& execution) {
  if (problem.sizes.weights > 1) {
    return run(images_as_groups(problem), workspace, execution);
  }
  const Sizes s = clipped(problem.sizes);
  if (!is_empty(s)) {
    run(problem, prepared<T>(problem.operation, s, execution).plans[is_flat(problem) ? 1 : 0], workspace);
  }
}

#define INVCONV_INSTANTIATE(T)                                                   \
  template Machine this_machine<T>();                                            \
  template bool is_flat<T>(const Filter<T>&);                                    \
  template std::size_t workspace_size<T>(const FilterPlan&, const Sizes&);       \
  template void run<T>(const Filter<T>&, const FilterPlan&, void*);              \
  template std::size_t filter_workspace<T>(Operation, const Sizes&, const Cpu&); \
  template void run<T>(const Filter<T>&, void*, const Cpu&);
INVCONV_INSTANTIATE(float)
INVCONV_INSTANTIATE(double)
INVCONV_INSTANTIATE(float16)
INVCONV_INSTANTIATE(bfloat16)

}  // namespace invconv::detail::cpu
