// weight_grad: splits the sum into parts that depend on the shape alone, and adds them up in one order.

#include <algorithm>
#include <atomic>
#include <bit>
#include <functional>
#include <new>
#include <type_traits>

#include "cpu/sizes.hpp"
#include "pause.hpp"
#include "threads.hpp"

namespace invconv::detail::cpu {

namespace {

/// Sums of one output.
Index row_sums(const Sizes& s) { return s.channels * s.kernel_width * s.kernel_height; }

/// How many of a node's branches have been brought: each but the root has two. Node 0 is the root.
using Arrivals = std::atomic<int>;

/// What a correlation is split into: units of a few images, a band of their rows and a segment of these; the units are
/// dealt to a few parts, and the output channels to slices. Units and parts depend on the shape alone, never on the
/// threads: the order of the sum is part of the result.
template <class T>
struct CorrelationPlan {
  using A = Arithmetic<T>;
  CorrelationShape shape;
  Index images, rows, columns;    // of a unit; some have fewer
  Index blocks, bands, segments;  // blocks of images, bands of rows, segments of columns
  Index parts, slices, shares;    // shares: of the work at the end of a slice
  int threads;
  std::size_t column_bytes, sum_bytes, scratch_bytes;  // of one line, of one part of one group, of one worker

  CorrelationPlan(const Kernels<T>& table, const Sizes& s, int most_threads)
      : shape{s.channels, s.channels, s.kernel_height, s.kernel_width, false, false, s.channels, s.channels, 0, 0} {
    const Index lanes = table.lanes[0];
    shape.by_channels = suits_channels(s, lanes);
    sum_bytes = aligned_bytes<double>(s.channels * row_sums(s));
    if (shape.by_channels) {
      plan_channels(s, lanes, most_threads);
    } else {
      plan_pixels(s, lanes, most_threads);
    }
    threads = static_cast<int>(std::min<Index>(most_threads, tasks(s)));
    shares = std::min(ceil_div<Index>(threads, slices * s.groups), ceil_div<Index>(shape.outputs, correlation_outputs));
    column_bytes = shape.by_rows || shape.by_channels ? 0 : aligned_bytes<A>(shape.x_line);
    scratch_bytes = aligned_bytes<A>(correlation_scratch_size(shape));
  }

  /// Whether channels in the lanes are less work: some lanes may have no channel, but a tap meets only the pixels for
  /// which it is inside its row (both ways leave out the rows above the image). A lane adds up all pixels of an image,
  /// which must not be more than correlation_chain; images of fewer than 9 pixels have too short rows to pay.
  static bool suits_channels(const Sizes& s, Index lanes) {
    const Index pixels = s.height * s.width, columns_outside = s.kernel_width * (s.kernel_width - 1) / 2;
    return pixels >= 9 && pixels <= correlation_chain &&
           whole_vectors(s.channels, lanes) * (s.width * s.kernel_width - columns_outside) <=
               s.channels * s.width * s.kernel_width;
  }

  void plan_channels(const Sizes& s, Index lanes, int most_threads) {
    rows = s.height;
    columns = s.width;
    bands = segments = 1;
    // A unit is little more work than adding up its sums.
    deal_out(s, correlation_chain / (rows * columns), 2);
    shape.g_line = shape.x_line = images * rows * columns;
    shape.inputs_at_once = std::min(whole_vectors(s.channels, lanes), 3 * lanes);
    set_slices(s, slices_wanted(s, most_threads), correlation_channel_outputs);
  }

  /// Makes blocks of so many images at most, and parts of so many units at least, where that leaves two parts.
  void deal_out(const Sizes& s, Index most_images, Index least_units) {
    blocks = ceil_div(s.batch, std::max<Index>(1, most_images));
    // An even number of units, and of parts, for threads are mostly that many.
    blocks += blocks > 1 && blocks < s.batch && units() % 2 == 1 ? 1 : 0;
    images = ceil_div(s.batch, blocks);
    const Index most_parts = std::max(units() / least_units, std::min<Index>(units(), 2));
    // The sums of all parts take a few megabytes at most, unless one part alone takes more.
    parts = std::clamp<Index>((4 << 20) / static_cast<Index>(sum_bytes), 1, std::min<Index>(most_parts, 16));
    parts -= parts > 1 ? parts % 2 : 0;
  }

  /// Each slice packs x anew: there are only as many as give each thread a task, of 24 outputs at least.
  Index slices_wanted(const Sizes& s, int most_threads) const {
    return std::min(ceil_div<Index>(most_threads, parts * s.groups), std::max<Index>(1, s.channels / 24));
  }

  /// Makes about so many slices of a multiple of `multiple` outputs.
  void set_slices(const Sizes& s, Index wanted, Index multiple) {
    shape.outputs = std::min(s.channels, ceil_div(ceil_div(s.channels, wanted), multiple) * multiple);
    slices = ceil_div(s.channels, shape.outputs);
  }

  void plan_pixels(const Sizes& s, Index lanes, int most_threads) {
    const Index bytes = static_cast<Index>(sizeof(A));
    // Runs of one or two vectors pay where a tile does enough with each, in the 24 accumulators of AVX-512.
    shape.by_rows = s.width >= 4 * lanes || (s.width % lanes == 0 && lanes * bytes == 64);
    // Lines of 4 KB: long enough to make the folding of a tile's sums cheap, and a tile's lines stay in the first level
    // of cache. Few channels make do with longer ones, as long as the second level holds them all.
    const Index cached = 256 * 1024 / (s.channels * (correlation_copies(shape) + 1));
    const Index longest = std::clamp<Index>(cached, 4096, shape.by_rows ? 16384 : 8192) / bytes;
    // Two units at least, if they are not too short.
    const Index half = std::max(s.batch * s.height * s.width / 2, 32 * lanes);
    const Index pixels = std::min({longest, half, correlation_chain * lanes});
    columns = std::min(s.width, whole_vectors(fair_share(s.width, pixels), lanes));
    const Index row = correlation_g_row(shape, columns, lanes);
    rows = fair_share(s.height, std::max<Index>(1, pixels / row));
    bands = ceil_div(s.height, rows);
    segments = ceil_div(s.width, columns);
    deal_out(s, pixels / (rows * row), 1);
    // A vector more than is used, and an odd number of them, against 4K aliasing.
    const auto line = [&](Index elements) { return ((whole_vectors(elements, lanes) / lanes + 1) | 1) * lanes; };
    shape.g_line = line(rows * images * row);
    shape.x_line = line((rows + s.kernel_height - 1) * images * correlation_x_row(shape, columns, lanes));
    // The lines of g stay in the second level of cache.
    const Index wanted =
        std::max(slices_wanted(s, most_threads), ceil_div(s.channels * shape.g_line * bytes, 512 * 1024));
    set_slices(s, wanted, correlation_outputs);
    const Index input_bytes = shape.x_line * correlation_copies(shape) * bytes;
    const auto fits = [&](Index cache) { return std::max<Index>(1, cache / input_bytes); };
    // Their lines take about half of the first level of cache. The taps of an even number of them fill tiles better.
    shape.inputs_together = std::min(s.channels, ceil_div(fits(24 * 1024), 2) * 2);
    const Index rounds = ceil_div(s.channels, shape.inputs_together);
    shape.inputs_at_once =
        shape.inputs_together * fair_share(rounds, std::max<Index>(1, fits(256 * 1024) / shape.inputs_together));
  }

  Index units() const { return blocks * bands * segments; }
  Index tasks(const Sizes& s) const { return parts * slices * s.groups; }
  std::size_t arrivals_bytes(const Sizes& s) const { return aligned_bytes<Arrivals>(tasks(s)); }

  /// Unit `index`, counted by bands first.
  CorrelationUnit unit(const Sizes& s, Index index) const {
    const Index row = index % bands * rows, column = index / bands % segments * columns;
    return {first_image(s, index + bands * segments) - first_image(s, index),
            row,
            std::min(rows, s.height - row),
            column,
            std::min(columns, s.width - column),
            0,
            0};
  }

  /// The blocks have as many images as each other, or one more.
  Index first_image(const Sizes& s, Index index) const { return s.batch * (index / bands / segments) / blocks; }

  std::size_t bytes(const Sizes& s) const {
    return sum_bytes * static_cast<std::size_t>(parts * s.groups) + arrivals_bytes(s) +
           (column_bytes + scratch_bytes) * static_cast<std::size_t>(threads);
  }
};

template <class A>
void number_columns(Index columns, Index elements, A* line) {
  for (Index at = 0; at < std::min(columns, elements); ++at) {
    line[at] = static_cast<A>(at);
  }
  for (Index done = columns; done < elements; done *= 2) {
    std::copy_n(line, std::min(done, elements - done), line + done);
  }
}

template <class T>
T narrowed(double value) {
  if constexpr (std::is_same_v<T, float16>) {
    return to_float16(static_cast<float>(value));
  } else if constexpr (std::is_same_v<T, bfloat16>) {
    return to_bfloat16(static_cast<float>(value));
  } else {
    return static_cast<T>(value);
  }
}

/// Sets to 0 an output's derivatives that are not read: those of taps beyond height x width, and those of the anchor's
/// upper triangle. After the others have been stored, for these include the triangle.
template <class T>
void clear_unread(const Correlation<T>& problem, const Taps<T>& dw, Index height, Index width, Index o) {
  const Sizes& all = problem.sizes;
  if (height < all.kernel_height || width < all.kernel_width) {
    for (Index c = 0; c < all.channels; ++c) {
      for (Index i = 0; i < all.kernel_height; ++i) {
        for (Index j = i < height ? width : 0; j < all.kernel_width; ++j) {
          dw.data[o * dw.out + c * dw.in + i * dw.row + j * dw.column] = narrowed<T>(0);
        }
      }
    }
  }
  for (Index c = problem.unit_diagonal ? o : o + 1; c < all.channels; ++c) {
    dw.data[o * dw.out + c * dw.in] = narrowed<T>(0);
  }
}

/// Stores the derivatives of N outputs, `output` and those after it. sum(k) are the sums, [i][c][j][output] for
/// `together` inputs after the others.
template <int N, class T, class Sum>
void store(const Taps<T>& dw, const Sizes& s, Index output, Index together, const Sum& sum) {
  for (Index c = 0; c < s.channels; ++c) {
    const Index first = c / together * together, inputs = std::min(together, s.channels - first);
    T* const to = dw.data + output * dw.out + c * dw.in;
    for (Index i = 0; i < s.kernel_height; ++i) {
      Index from = (first * s.kernel_height + i * inputs + c - first) * s.kernel_width * N;
      for (Index j = 0; j < s.kernel_width; ++j, from += N) {
        for (Index n = 0; n < N; ++n) {
          to[n * dw.out + i * dw.row + j * dw.column] = narrowed<T>(sum(from + n));
        }
      }
    }
  }
}

/// The same for `outputs` outputs, where the sums are [output][i][j][c].
template <class T, class Sum>
void store_by_channels(const Taps<T>& dw, const Sizes& s, Index output, Index outputs, const Sum& sum) {
  Index from = 0;
  for (Index o = output; o < output + outputs; ++o) {
    for (Index i = 0; i < s.kernel_height; ++i) {
      for (Index j = 0; j < s.kernel_width; ++j, from += s.channels) {
        T* const to = dw.data + o * dw.out + i * dw.row + j * dw.column;
        for (Index c = 0; c < s.channels; ++c) {
          to[c * dw.in] = narrowed<T>(sum(from + c));
        }
      }
    }
  }
}

/// Stores the sums, or the sums of two, of a block of `outputs` outputs.
template <class T>
void store(const Correlation<T>& problem, const Taps<T>& dw, const Sizes& s, const CorrelationShape& shape,
           Index output, Index outputs, const double* left, const double* right) {
  const auto block = [&](const auto& sum) {
    static_assert(correlation_outputs == 4);
    const Index together = shape.inputs_together;
    shape.by_channels ? store_by_channels(dw, s, output, outputs, sum)
    : outputs == 4    ? store<4>(dw, s, output, together, sum)
    : outputs == 3    ? store<3>(dw, s, output, together, sum)
    : outputs == 2    ? store<2>(dw, s, output, together, sum)
                      : store<1>(dw, s, output, together, sum);
  };
  const double sign = problem.negative ? -1 : 1;
  if (right == nullptr) {
    block([&](Index k) { return sign * left[k]; });
  } else {
    block([&](Index k) { return sign * (left[k] + right[k]); });
  }
  for (Index o = output; o < output + outputs; ++o) {
    clear_unread(problem, dw, s.kernel_height, s.kernel_width, o);
  }
}

}  // namespace

template <class T>
std::size_t correlation_workspace(const Sizes& s, const Cpu& execution) {
  const CorrelationPlan<T> plan(kernels<T>(), s, useful_threads(s, execution));
  return plan.bytes(s);
}

template <class T>
void run(const Correlation<T>& problem, void* workspace, const Cpu& execution) {
  if (problem.sizes.weights > 1) {
    return run(images_as_groups(problem), workspace, execution);
  }
  using A = Arithmetic<T>;
  const Kernels<T>& table = kernels<T>();
  const Sizes s = clipped(problem.sizes);
  if (is_empty(s)) {
    for (const auto& group : problem.groups) {
      for (Index o = 0; o < s.channels; ++o) {
        clear_unread(problem, group.dw, 0, 0, o);
      }
    }
    return;
  }
  const CorrelationPlan<T> plan(table, s, useful_threads(s, execution));
  const Index parts = plan.parts, slices = plan.slices, shares = plan.shares;
  auto* const sums = static_cast<std::byte*>(workspace);
  std::byte* const arrivals = sums + plan.sum_bytes * static_cast<std::size_t>(parts * s.groups);
  std::byte* const workers = arrivals + plan.arrivals_bytes(s);
  for (Index k = 0; k < plan.tasks(s); ++k) {
    new (reinterpret_cast<Arrivals*>(arrivals) + k) Arrivals{0};
  }
  // Of a slice of the outputs of a group.
  const auto outputs_of = [&](Index slice) {
    return std::min(plan.shape.outputs, s.channels - slice * plan.shape.outputs);
  };
  const auto sum_of = [&](Index group, Index slice, Index part) {
    return reinterpret_cast<double*>(sums + plan.sum_bytes * static_cast<std::size_t>(group * parts + part)) +
           slice * plan.shape.outputs * row_sums(s);
  };
  const auto arrivals_of = [&](Index group, Index slice) {
    return reinterpret_cast<Arrivals*>(arrivals) + (group * slices + slice) * parts;
  };
  // The root of the tree of sums: the parts whose sums are the left branch's and, if there is one, the right one's.
  const Index right_branch = parts > 1 ? static_cast<Index>(std::bit_floor(static_cast<std::size_t>(parts - 1))) : 0;
  const int branches = parts > 1 ? 2 : 1;
  const auto finish = [&](Index group, Index slice, Index share) {
    const Index outputs = outputs_of(slice), blocks = ceil_div<Index>(outputs, correlation_outputs);
    for (Index block = blocks * share / shares; block < blocks * (share + 1) / shares; ++block) {
      const Index o = block * correlation_outputs, at = o * row_sums(s);
      store(problem, problem.groups[static_cast<std::size_t>(group)].dw, s, plan.shape, slice * plan.shape.outputs + o,
            correlation_block(outputs, o), sum_of(group, slice, 0) + at,
            branches > 1 ? sum_of(group, slice, right_branch) + at : nullptr);
    }
  };
  // Parts follow each other, so that a thread adds up most of its own.
  const auto run_part = [&](Index task, int worker) {
    const Index part = task % parts, slice = task / parts % slices, group = task / parts / slices;
    const Index output = slice * plan.shape.outputs;
    CorrelationShape shape = plan.shape;
    shape.outputs = outputs_of(slice);
    auto* const columns =
        reinterpret_cast<A*>(workers + (plan.column_bytes + plan.scratch_bytes) * static_cast<std::size_t>(worker));
    auto* const scratch = columns + plan.column_bytes / sizeof(A);
    if (plan.column_bytes > 0) {
      number_columns(plan.columns, shape.x_line, columns);
    }
    const Index count = shape.outputs * row_sums(s);
    double* const sum = sum_of(group, slice, part);
    std::fill_n(sum, count, 0.0);
    const Index begin = plan.units() * part / parts, end = plan.units() * (part + 1) / parts;
    for (Index index = begin; index < end; ++index) {
      CorrelationUnit unit = plan.unit(s, index);
      const bool follows = index > begin && unit.row > 0 && shape.inputs_at_once >= s.channels;
      unit.rows_before = follows ? plan.rows : 0;
      unit.rows_after = index + 1 < end ? std::min(plan.rows, s.height - unit.row - unit.rows) : 0;
      const Index image = plan.first_image(s, index);
      auto [x, g, dw] = problem.groups[static_cast<std::size_t>(group)];
      x.data += image * x.batch;
      g.data += image * g.batch + output * g.channel;
      table.correlate(shape, unit, x, g, columns, sum, scratch);
    }
    // The sums of two neighbours are added up by the thread that is done last, and so on, in an order that no thread
    // changes: a binary tree. Each part but the first is the first one of the right branch of one node.
    Arrivals* const nodes = arrivals_of(group, slice);
    Index left = part;
    for (Index size = 1; 2 * size < parts; size *= 2) {
      left = left / (2 * size) * (2 * size);
      const Index right = left + size;
      if (right < parts) {
        if (nodes[right].fetch_add(1, std::memory_order_acq_rel) == 0) {
          return;
        }
        const double* const from = sum_of(group, slice, right);
        double* const to = sum_of(group, slice, left);
        std::transform(to, to + count, from, to, std::plus<>());
      }
    }
    if (nodes[0].fetch_add(1, std::memory_order_acq_rel) == branches - 1 && shares == 1) {
      finish(group, slice, 0);
    }
  };
  // Where threads are more than slices of all groups, they share the work at the root. Parts wait for nothing, and when
  // a share begins, all parts have begun.
  const auto run_share = [&](Index task) {
    const Index share = task % shares, slice = task / shares % slices, group = task / shares / slices;
    wait_until(
        [root = arrivals_of(group, slice), branches] { return root->load(std::memory_order_acquire) == branches; });
    finish(group, slice, share);
  };
  const TaskList lists[] = {{plan.tasks(s), Order::any}, {shares > 1 ? shares * slices * s.groups : 0, Order::any}};
  parallel_for(plan.threads, lists,
               [&](int list, Index task, int worker) { list == 0 ? run_part(task, worker) : run_share(task); });
}

#define INVCONV_INSTANTIATE(T)                                             \
  template std::size_t correlation_workspace<T>(const Sizes&, const Cpu&); \
  template void run<T>(const Correlation<T>&, void*, const Cpu&);
INVCONV_INSTANTIATE(float)
INVCONV_INSTANTIATE(double)
INVCONV_INSTANTIATE(float16)
INVCONV_INSTANTIATE(bfloat16)

}  // namespace invconv::detail::cpu
