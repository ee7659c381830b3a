#pragma once

// weight_grad. The images are cut into units of sums_rows rows and a few columns, and the units are dealt out to parts.
// Each part has its own sums in the workspace, in double, which are added up in one order: no result depends on who is
// done first.
//
// A block has a part, a tile of channels and K x K taps of the kernel. A thread of it has one input and two outputs: it
// slides along a unit, with the K columns of x under the taps and all sums in registers. `slices` threads for each
// such triple have a unit each at a time; their sums are added in the order of a fixed tree.
//
// Units are cut from the last row and column, so that what is missing of one lies at the padded sides: there x and g
// are zeros together, and an infinity in x meets no zero that is not a pixel of g.

#include "staging.cuh"

namespace invconv::detail::cuda {

/// Blocks of a processor at a time, which leave 128 registers to a thread; from Blackwell on that would spill.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
inline constexpr int sums_resident = 1;
#else
inline constexpr int sums_resident = 2;
#endif

__device__ inline Index sums_size(const GroupShape& s) {
  return Index{s.channels} * s.channels * s.kernel_height * s.kernel_width;
}

/// The first row and column, and where the pixel there would lie in x and g. A row that no image reaches says that
/// there is no unit.
struct Unit {
  Index x, g;
  int row, column;
};
static_assert(sizeof(Unit) == sums_unit_bytes);

/// The sums are [part][group][i][j][output][input]. At most sums_chain products follow each other in float.
template <class T, int K>
__global__ void __launch_bounds__(sums_threads, sums_resident)
    sum_parts(Groups<CorrelationGroup<T>> groups, SumsShape of, double* sums) {
  using A = Arithmetic<T>;
  constexpr int R = sums_rows, O = sums_outputs, x_rows = R + K - 1;
  const GroupShape& s = of.shape;
  BlockDigits next;
  const int j0 = next((s.kernel_width + K - 1) / K) * K, i0 = next((s.kernel_height + K - 1) / K) * K;
  const int first_input = next((s.channels + of.inputs - 1) / of.inputs) * of.inputs;
  const int first_output = next((s.channels + O * of.outputs - 1) / (O * of.outputs)) * O * of.outputs;
  const int group_index = next(groups.count), part = next(of.parts);
  const CorrelationGroup<T> group = groups.at(group_index);

  const int x_pitch = of.span + K - 1;
  const int x_size = sums_line(x_rows, x_pitch), g_size = sums_line(R, of.span);
  auto* const units = shared_memory<Unit>();
  A* const xs = reinterpret_cast<A*>(units + of.slices);                // [slice][input][row][column]
  A* const gs = xs + of.slices * of.inputs * x_size;                    // [slice][output][row][column]
  double* const passed = reinterpret_cast<double*>(units + of.slices);  // in their place: [sum][thread]

  const int pairs = of.inputs * of.outputs, thread = static_cast<int>(threadIdx.x);
  const int slice = thread / pairs, input = thread % of.inputs, output = thread % pairs / of.inputs;
  const A* const x = xs + (slice * of.inputs + input) * x_size;
  const A* const g = gs + (slice * O * of.outputs + output) * g_size;

  const Walk x_walk(group.x, of.inputs, x_rows, x_pitch), g_walk(group.g, O * of.outputs, R, of.span);
  const int x_count = of.inputs * x_rows * x_pitch, g_count = O * of.outputs * R * of.span;
  const Divider x_unit(x_count), g_unit(g_count);
  const auto is_inside = [&](int channel, int row, int column) {
    return channel < s.channels && static_cast<unsigned>(row) < static_cast<unsigned>(s.height) &&
           static_cast<unsigned>(column) < static_cast<unsigned>(s.width);
  };

  A sum[O][K][K] = {};
  double total[O][K][K] = {};
  const auto settle = [&] {
    INVCONV_UNROLL
    for (int o = 0; o < O; ++o) {
      INVCONV_UNROLL
      for (int tap = 0; tap < K * K; ++tap) {
        total[o][tap / K][tap % K] += static_cast<double>(sum[o][tap / K][tap % K]);
        sum[o][tap / K][tap % K] = 0;
      }
    }
  };

  const int per_part = of.units / of.parts, more = of.units % of.parts;
  const int begin = per_part * part + (part < more ? part : more), end = begin + per_part + (part < more ? 1 : 0);
  const int across = (s.width + of.span - 1) / of.span, down = (s.height + R - 1) / R;
  int products = 0;
  for (int first = begin; first < end; first += of.slices) {
    if (thread < of.slices) {
      const int unit = first + thread, band = unit / across;
      const Index image = band / down;
      const int row = s.height - (band % down + 1) * R, column = s.width - (unit % across + 1) * of.span;
      units[thread] = {image * group.x.batch + row * group.x.row + column * group.x.column,
                       image * group.g.batch + row * group.g.row + column * group.g.column,
                       unit < end ? row : -(1 << 30), column};
    }
    __syncthreads();
    stage<4>(of.slices * x_count, group.x.data, xs, [&](int at) {
      const int from = x_unit.quotient(at);
      const Place place = x_walk(x_unit.remainder(at, from));
      const Unit& unit = units[from];
      const int channel = first_input + place.channel, row = place.row - i0 - (K - 1);
      const int column = place.column - j0 - (K - 1);
      return Copy{unit.x + channel * group.x.channel + row * group.x.row + column * group.x.column,
                  (from * of.inputs + place.channel) * x_size + place.row * x_pitch + place.column,
                  is_inside(channel, unit.row + row, unit.column + column)};
    });
    stage<4>(of.slices * g_count, group.g.data, gs, [&](int at) {
      const int from = g_unit.quotient(at);
      const Place place = g_walk(g_unit.remainder(at, from));
      const Unit& unit = units[from];
      const int channel = first_output + place.channel;
      return Copy{unit.g + channel * group.g.channel + place.row * group.g.row + place.column * group.g.column,
                  (from * O * of.outputs + place.channel) * g_size + place.row * of.span + place.column,
                  is_inside(channel, unit.row + place.row, unit.column + place.column)};
    });
    __syncthreads();
    products += R * of.span;
    if (sizeof(A) < sizeof(double) && products > sums_chain) {
      settle();
      products = R * of.span;
    }
    if (slice < of.slices) {
      A window[x_rows][K];  // of x: column c of the unit's line is window[.][c % K]
      INVCONV_UNROLL
      for (int row = 0; row < x_rows; ++row) {
        INVCONV_UNROLL
        for (int k = 0; k < K - 1; ++k) {
          window[row][k] = x[row * x_pitch + k];
        }
      }
      const auto add_column = [&](int column, int k) {
        INVCONV_UNROLL
        for (int row = 0; row < x_rows; ++row) {
          window[row][(k + K - 1) % K] = x[row * x_pitch + column + k + K - 1];
        }
        INVCONV_UNROLL
        for (int row = 0; row < R; ++row) {
          INVCONV_UNROLL
          for (int o = 0; o < O; ++o) {
            const A value = g[o * of.outputs * g_size + row * of.span + column + k];
            INVCONV_UNROLL
            for (int i = 0; i < K; ++i) {
              INVCONV_UNROLL
              for (int j = 0; j < K; ++j) {
                sum[o][i][j] = multiply_add(value, window[row + K - 1 - i][(k + K - 1 - j) % K], sum[o][i][j]);
              }
            }
          }
        }
      };
      int column = 0;
      for (; column + K <= of.span; column += K) {
        INVCONV_UNROLL
        for (int k = 0; k < K; ++k) {
          add_column(column, k);
        }
      }
      INVCONV_UNROLL
      for (int k = 0; k < K - 1; ++k) {
        if (column + k < of.span) {
          add_column(column, k);
        }
      }
    }
    // What the next stage writes before its first barrier is read by none of this one.
  }
  settle();

  __syncthreads();
  for (int left = of.slices; left > 1;) {
    const int half = (left + 1) / 2, place = thread - (slice >= half ? half * pairs : 0), line = left / 2 * pairs;
    if (slice >= half && slice < left) {
      INVCONV_UNROLL
      for (int k = 0; k < O * K * K; ++k) {
        passed[k * line + place] = total[k / (K * K)][k / K % K][k % K];
      }
    }
    __syncthreads();
    if (slice + half < left) {
      INVCONV_UNROLL
      for (int k = 0; k < O * K * K; ++k) {
        total[k / (K * K)][k / K % K][k % K] += passed[k * line + place];
      }
    }
    __syncthreads();
    left = half;
  }
  const int c = first_input + input;
  if (slice > 0 || c >= s.channels) {
    return;
  }
  double* const to = sums + (Index{part} * groups.count + group_index) * sums_size(s) + c;
  INVCONV_UNROLL
  for (int k = 0; k < O * K * K; ++k) {
    const int o = first_output + k / (K * K) * of.outputs + output, i = i0 + k / K % K, j = j0 + k % K;
    if (o < s.channels && i < s.kernel_height && j < s.kernel_width) {
      to[(Index{i * s.kernel_width + j} * s.channels + o) * s.channels] = total[k / (K * K)][k / K % K][k % K];
    }
  }
}

/// A block has `entries` of the result [i][j][output][input] of a group; the others of its threads share their parts.
template <class T>
__global__ void __launch_bounds__(sums_threads, 1)
    add_parts(Groups<CorrelationGroup<T>> groups, SumsShape of, int entries, unsigned blocks_per_group,
              const double* sums) {
  const GroupShape &s = of.shape, &full = of.full;
  const int group_index = static_cast<int>(blockIdx.x / blocks_per_group);
  const int place = static_cast<int>(threadIdx.x) % entries, share = static_cast<int>(threadIdx.x) / entries;
  const int shares = static_cast<int>(blockDim.x) / entries;
  const int entry = static_cast<int>(blockIdx.x % blocks_per_group) * entries + place;
  const int input = entry % s.channels, output = entry / s.channels % s.channels, tap = entry / s.channels / s.channels;
  const int i = tap / full.kernel_width, j = tap % full.kernel_width;
  const bool is_summed = i < s.kernel_height && j < s.kernel_width && is_read(s.unit_diagonal, i, j, output, input);
  double sum = 0;
  if (is_summed) {
    const Index size = sums_size(s);
    const double* const from = sums + group_index * size + (Index{i} * s.kernel_width + j) * s.channels * s.channels +
                               Index{output} * s.channels + input;
    for (int part = share; part < of.parts; part += shares) {
      sum += from[part * groups.count * size];
    }
  }
  double* const shared = shared_memory<double>();
  shared[threadIdx.x] = sum;
  __syncthreads();
  if (share > 0 || i >= full.kernel_height) {
    return;
  }
  for (int other = 1; other < shares; ++other) {
    sum += shared[other * entries + place];
  }
  sum = of.negative && is_summed ? -sum : sum;
  const CorrelationGroup<T> group = groups.at(group_index);
  narrow(static_cast<Arithmetic<T>>(sum),
         group.dw.data[output * group.dw.out + input * group.dw.in + i * group.dw.row + j * group.dw.column]);
}

}  // namespace invconv::detail::cuda
