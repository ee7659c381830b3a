// weight_grad: splits the sum into parts that depend on the shape alone, and adds them up in one order.

#include <cstring>

#include "cpu/blocks.hpp"
#include "threads.hpp"

namespace invconv::detail::cpu {

namespace {

/// Splits `total` into the fewest equal shares of at most `most`, and returns what a share then holds.
Index fair_share(Index total, Index most) {
  const Index shares = (total + most - 1) / most;
  return (total + shares - 1) / shares;
}

/// What a correlation is split into: units of a few images, a band of their rows and a segment of these; the units are
/// dealt to a few parts, and the output channels to slices. It depends on the shape alone, never on the threads: the
/// order of the sum is part of the result.
template <class T>
struct CorrelationPlan {
  using A = Arithmetic<T>;
  CorrelationShape shape;
  Index images, rows, columns;     // of a unit; the last ones may have fewer
  Index blocks, bands, segments;   // blocks of images, bands of rows, segments of columns
  Index parts, slices;
  std::size_t column_bytes, sum_bytes, scratch_bytes;  // of one line, of one part of one group, of one worker

  CorrelationPlan(const Kernels<T>& table, const Sizes& s)
      : shape{s.channels, s.channels, s.kernel_height, s.kernel_width, false, s.channels, 0, 0} {
    const Index lanes = table.lanes[0], bytes = static_cast<Index>(sizeof(A));
    shape.by_rows = s.width >= 4 * lanes || s.width % lanes == 0;
    // Lines of 4 KB: long enough to make the folding of a tile's sums cheap, and a tile's lines stay in the first level
    // of cache. Few channels make do with longer ones, up to 16 KB, as long as the second level holds them all.
    const Index longest = std::clamp<Index>(256 * 1024 / (s.channels * (correlation_copies(shape) + 1)), 4096, 16384) / bytes;
    const Index pixels = std::min(longest, correlation_chain * lanes);
    columns = std::min(s.width, whole_vectors(fair_share(s.width, pixels), lanes));
    rows = fair_share(s.height, std::max<Index>(1, pixels / whole_vectors(columns, shape.by_rows ? lanes : 1)));
    images = fair_share(s.batch, std::max<Index>(1, pixels / (rows * columns)));
    blocks = (s.batch + images - 1) / images;
    bands = (s.height + rows - 1) / rows;
    segments = (s.width + columns - 1) / columns;
    parts = std::min<Index>(units(), 16);
    slices = 1;
    // A vector more than is used, and an odd number of them, against 4K aliasing.
    const auto line = [&](Index elements) { return ((whole_vectors(elements, lanes) / lanes + 1) | 1) * lanes; };
    shape.g_line = line(rows * images * correlation_g_row(shape, columns, lanes));
    shape.x_line = line((rows + s.kernel_height - 1) * images * correlation_x_row(shape, columns, lanes));
    const Index input_bytes = shape.x_line * correlation_copies(shape) * bytes;
    shape.inputs_at_once = fair_share(s.channels, std::max<Index>(1, 256 * 1024 / input_bytes));
    column_bytes = shape.by_rows ? 0 : aligned_bytes<A>(shape.x_line);
    sum_bytes = aligned_bytes<double>(s.kernel_height * s.kernel_width * s.channels * s.channels);
    scratch_bytes = aligned_bytes<A>(correlation_scratch_size(shape));
  }

  Index units() const { return blocks * bands * segments; }

  /// Unit `index`, counted by bands first.
  CorrelationUnit unit(const Sizes& s, Index index) const {
    const Index row = index % bands * rows, column = index / bands % segments * columns;
    return {std::min(images, s.batch - first_image(index)), row,
            std::min(rows, s.height - row),                 column,
            std::min(columns, s.width - column),            0, 0};
  }

  Index first_image(Index index) const { return index / bands / segments * images; }

  std::size_t bytes(const Sizes& s, int threads) const {
    return sum_bytes * static_cast<std::size_t>(parts * s.groups) + column_bytes +
           scratch_bytes * static_cast<std::size_t>(threads);
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

int correlation_threads(const Sizes& s, const Cpu& execution, Index tasks) {
  return static_cast<int>(std::min<Index>(useful_threads(s, execution), tasks));
}

}  // namespace

template <class T>
std::size_t correlation_workspace(const Sizes& s, const Cpu& execution) {
  const CorrelationPlan<T> plan(kernels<T>(), s);
  return plan.bytes(s, correlation_threads(s, execution, plan.parts * s.groups));
}

template <class T>
void run(const Correlation<T>& problem, void* workspace, const Cpu& execution) {
  using A = Arithmetic<T>;
  const Kernels<T>& table = kernels<T>();
  const Sizes s = clipped(problem.sizes);
  Index parts = 0;
  std::size_t sum_bytes = 0;
  auto* const sums = static_cast<std::byte*>(workspace);
  const auto sum_of = [&](Index group, Index part) {
    return reinterpret_cast<double*>(sums + sum_bytes * static_cast<std::size_t>(group * parts + part));
  };

  if (!is_empty(s)) {
    const CorrelationPlan<T> plan(table, s);
    parts = plan.parts;
    sum_bytes = plan.sum_bytes;
    auto* const columns = reinterpret_cast<A*>(sums + sum_bytes * static_cast<std::size_t>(parts * s.groups));
    auto* const scratch = reinterpret_cast<std::byte*>(columns) + plan.column_bytes;
    if (!plan.shape.by_rows) {
      number_columns(plan.columns, plan.shape.x_line, columns);
    }
    const int threads = correlation_threads(s, execution, parts * s.groups);
    parallel_for(threads, parts * s.groups, [&](Index task, int worker) {
      const Index group = task % s.groups, part = task / s.groups;
      const Index begin = plan.units() * part / parts, end = plan.units() * (part + 1) / parts;
      double* const sum = sum_of(group, part);
      std::memset(sum, 0, sum_bytes);
      for (Index index = begin; index < end; ++index) {
        CorrelationUnit unit = plan.unit(s, index);
        const bool follows = index > begin && unit.row > 0 && plan.shape.inputs_at_once == s.channels;
        unit.rows_before = follows ? plan.rows : 0;
        unit.rows_after = index + 1 < end ? std::min(plan.rows, s.height - unit.row - unit.rows) : 0;
        const Index first = plan.first_image(index);
        auto [x, g, dw] = problem.groups[static_cast<std::size_t>(group)];
        x.data += first * x.batch;
        g.data += first * g.batch;
        table.correlate(plan.shape, unit, x, g, columns, sum,
                        reinterpret_cast<A*>(scratch + plan.scratch_bytes * static_cast<std::size_t>(worker)));
      }
    });
  }

  for (Index group = 0; group < s.groups; ++group) {
    const Taps<T>& dw = problem.groups[static_cast<std::size_t>(group)].dw;
    for (Index o = 0; o < s.channels; ++o) {
      for (Index c = 0; c < s.channels; ++c) {
        for (Index i = 0; i < problem.sizes.kernel_height; ++i) {
          for (Index j = 0; j < problem.sizes.kernel_width; ++j) {
            const bool anchor = i == 0 && j == 0;
            const bool is_read = !anchor || c < o || (c == o && !problem.unit_diagonal);
            double total = 0;
            if (is_read && i < s.kernel_height && j < s.kernel_width) {
              const Index at = ((o * s.channels + c) * s.kernel_width + j) * s.kernel_height + i;
              for (Index part = 0; part < parts; ++part) {
                total += sum_of(group, part)[at];
              }
            }
            T& to = dw.data[o * dw.out + c * dw.in + i * dw.row + j * dw.column];
            if constexpr (std::is_same_v<T, float16>) {
              to = to_float16(static_cast<float>(total));
            } else if constexpr (std::is_same_v<T, bfloat16>) {
              to = to_bfloat16(static_cast<float>(total));
            } else {
              to = static_cast<T>(total);
            }
          }
        }
      }
    }
  }
}

#define INVCONV_INSTANTIATE(T)                                             \
  template std::size_t correlation_workspace<T>(const Sizes&, const Cpu&); \
  template void run<T>(const Correlation<T>&, void*, const Cpu&);
INVCONV_INSTANTIATE(float)
INVCONV_INSTANTIATE(double)
INVCONV_INSTANTIATE(float16)
INVCONV_INSTANTIATE(bfloat16)

}  // namespace invconv::detail::cpu
