// weight_grad: splits the sum into parts that depend on the shape alone, and adds them up in one order.

#include <cstring>

#include "cpu/blocks.hpp"
#include "threads.hpp"

namespace invconv::detail::cpu {

namespace {

/// What a correlation is split into: units of a block of images and a band of rows, dealt to a few parts. It depends on
/// the shape alone, never on the threads: the order of the sum is part of the result.
template <class T>
struct CorrelationPlan {
  using A = Arithmetic<T>;
  CorrelationShape shape;
  Blocks blocks;
  Index band, bands, parts;
  std::size_t sum_bytes, scratch_bytes;  // of one part of one group, of one worker

  CorrelationPlan(const Kernels<T>& table, const Sizes& s)
      : shape{s.channels, s.height, s.width, s.kernel_height, s.kernel_width, 0, 0}, blocks{s.batch, table.lanes[0]} {
    blocks.lanes = s.batch < blocks.lanes ? fitting_lanes(table, s.batch) : blocks.lanes;
    // A band's two images stay in a core's second level of cache, and its sums in the accuracy promised.
    constexpr Index cached = 512 * 1024 / static_cast<Index>(sizeof(A));
    const Index row = 2 * s.width * s.channels * blocks.lanes;
    band = std::clamp<Index>(std::min(cached / row, correlation_pixels / s.width), 1, s.height);
    bands = (s.height + band - 1) / band;
    parts = std::min<Index>(blocks.count() * bands, 16);
    shape.row_end = band;
    sum_bytes = aligned_bytes<double>(s.kernel_height * s.kernel_width * s.channels * s.channels);
    scratch_bytes = aligned_bytes<A>(correlation_scratch_size(shape, blocks.lanes));
  }

  std::size_t bytes(const Sizes& s, int threads) const {
    return sum_bytes * static_cast<std::size_t>(parts * s.groups) + scratch_bytes * static_cast<std::size_t>(threads);
  }
};

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
    auto* const scratch = sums + sum_bytes * static_cast<std::size_t>(parts * s.groups);
    const Index units = plan.blocks.count() * plan.bands;
    const int threads = correlation_threads(s, execution, parts * s.groups);
    parallel_for(threads, parts * s.groups, [&](Index task, int worker) {
      const Index group = task % s.groups, part = task / s.groups;
      double* const sum = sum_of(group, part);
      std::memset(sum, 0, sum_bytes);
      for (Index unit = units * part / parts; unit < units * (part + 1) / parts; ++unit) {
        const Index block = unit / plan.bands, band = unit % plan.bands;
        const Index first = plan.blocks.first(block), images = plan.blocks.images(block);
        CorrelationShape shape = plan.shape;
        shape.row_begin = band * plan.band;
        shape.row_end = std::min(shape.row_begin + plan.band, s.height);
        auto [x, g, dw] = problem.groups[static_cast<std::size_t>(group)];
        x.data += first * x.batch;
        g.data += first * g.batch;
        table.correlate(shape, fitting_lanes(table, images), images, x, g, sum,
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
              const Index at = ((i * s.channels + o) * s.kernel_width + s.kernel_width - 1 - j) * s.channels + c;
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
