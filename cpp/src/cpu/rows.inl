// solve with the rows of a band in the lanes, each one column behind the one above it: a step is a piece of an
// anti-diagonal. Part of kernels.inl.

#pragma once

#include <cstring>
#include <utility>

#include "cpu/filter.inl"
#include "cpu/wait.inl"

namespace invconv::detail::cpu {
namespace {

/// Output channels computed together.
inline constexpr int rows_block = 8;

/// {first, v[0], ..., v[V-2]}
template <class A, int V, int... J>
[[gnu::always_inline]] inline Vector<A, V> shift_in(A first, Vector<A, V> v, std::integer_sequence<int, J...>) {
  return __builtin_shufflevector(splat<A, V>(first), v, (J == 0 ? 0 : V + J - 1)...);
}

/// Lane l of `mask(t)` is all ones from step l on, when the row in it has begun.
template <class A, int V>
[[gnu::always_inline]] inline Vector<A, V> begun(Vector<A, V> value, Index step) {
  if (step < V - 1) {
    A lanes[V];
    store_unaligned<A, V>(lanes, value);
    for (Index lane = step < 0 ? 0 : step + 1; lane < V; ++lane) {
      lanes[lane] = A(0);
    }
    return load_unaligned<A, V>(lanes);
  }
  return value;
}

/// The pixel that lane l works on in step t is (l, t - l). The tap (i, j) of lane l then reads pixel (l - i, t - l -
/// j), which lane l - i had in step t - i - j. So with X_0[t] the results of step t and X_i[t] = X_0[t] moved up by i
/// lanes, the operand is X_i[t - i - j], and what moves in from below lane 0 are the last rows of the band above: row
/// -m at column t + m. With X_i in place of the row of age i this is the row of pixels of filter.inl.
template <class A>
struct Shift {
  Index count;     // kernel_height - 1
  Index pitch;     // from X_i to X_{i+1}
  const A* above;  // [m = 1, 2, ...][channel][column]
  Index row_pitch, channel_pitch;
  Index step;  // of the first pixel
};

template <class A, int V, int OB, int Small>
void solve_skewed_row(const FilterRow<A>& row, const Shift<A>& shift) {
  constexpr auto all = std::make_integer_sequence<int, V>{};
  const Index pixel = row.channels * V, count = Small > 0 ? Small - 1 : shift.count;
  filter_row<A, V, OB, true, Small>(row, [&](Index s, Index c, Vector<A, V>& value) {
    const Index step = shift.step + s;
    value = begun<A, V>(value, step);
    Vector<A, V> moved = value;
    A* to = row.here + s * pixel + c * V;
    const A* from = shift.above + c * shift.channel_pitch + step;
    INVCONV_UNROLL
    for (Index i = 1; i <= count; ++i) {
      to += shift.pitch;
      moved = shift_in<A, V>(from[(i - 1) * shift.row_pitch + i], moved, all);
      store<A, V>(to, moved);
    }
  });
}

template <class A>
using SkewedRowFunction = void (*)(const FilterRow<A>&, const Shift<A>&);

template <class A, int V, int Small, int... OB>
SkewedRowFunction<A> skewed_row_of(Index block, std::integer_sequence<int, OB...>) {
  static constexpr SkewedRowFunction<A> table[] = {solve_skewed_row<A, V, OB + 1, Small>...};
  return table[block - 1];
}

/// Columns [first, first + n) of a row of `width`, those outside of it 0.
template <class A, int V, class T>
void copy_columns_in(const T* row, Index step, Index first, Index n, Index width, A* to) {
  const Index begin = first < 0 ? -first : 0, end = width - first < n ? width - first : n;
  std::memset(to, 0, sizeof(A) * static_cast<std::size_t>(begin < n ? begin : n));
  if (begin < end) {
    copy_in<A, V>(row + (first + begin) * step, step, end - begin, to + begin);
  }
  const Index rest = end < begin ? begin : end;
  if (rest < n) {
    std::memset(to + rest, 0, sizeof(A) * static_cast<std::size_t>(n - rest));
  }
}

/// Asks for their memory.
template <class T>
void prefetch_columns(const T* row, Index step, Index first, Index n, Index width) {
  constexpr Index line = 64 / static_cast<Index>(sizeof(T));
  const Index begin = first < 0 ? 0 : first, end = first + n < width ? first + n : width;
  for (Index k = begin; k < end && (step == 1 || step == -1); k += line) {
    __builtin_prefetch(row + k * step, 0, 3);
  }
}

template <class A, int V, class T>
void copy_columns_out(T* row, Index step, Index first, Index n, Index width, const A* from, bool streamed = false) {
  const Index begin = first < 0 ? -first : 0, end = width - first < n ? width - first : n;
  if (begin < end) {
    copy_out<A, V>(row + (first + begin) * step, step, end - begin, from + begin, streamed);
  }
}

/// One band, rows [V band, V band + V) of one image.
template <class T, int V>
void solve_rows(const FilterShape& shape, const Images<const T>& in, const Images<T>& out, const Arithmetic<T>* packed,
                const Band<Arithmetic<T>>& band, void* scratch) {
  using A = Arithmetic<T>;
  const Index channels = shape.channels, width = shape.width, kernel_height = shape.kernel_height;
  const Index first = band.index * V, live = first + V <= shape.height ? V : shape.height - first;
  const Index pixel = channels * V, lead = kernel_height - 1 + shape.kernel_width - 1, pitch = (lead + V) * pixel;
  const auto function =
      is_small(shape) ? skewed_row_of<A, V, small_kernel>(channels, std::make_integer_sequence<int, small_channels>{})
                      : skewed_row_of<A, V, 0>(shape.block, std::make_integer_sequence<int, rows_block>{});
  const A** const rows = static_cast<const A**>(scratch);
  A* const steps = static_cast<A*>(skip_pointers(scratch, kernel_height));  // X_0, X_1, ..., `lead` older steps first
  A* const here = steps + lead * pixel;
  for (Index i = 0; i < kernel_height; ++i) {
    rows[i] = here + i * pitch - (i + shape.kernel_width - 1) * pixel;
  }
  const FilterRow<A> row{channels, V,    kernel_height, shape.kernel_width, shape.unit_diagonal, packed,
                         rows,     here, nullptr};
  Shift<A> shift{kernel_height - 1, pitch, band.above, channels * band.pitch, band.pitch, 0};

  // Before the first step only the band above has pixels.
  wait_for(band, kernel_height, width);
  std::memset(steps, 0, sizeof(A) * static_cast<std::size_t>(kernel_height * pitch));
  for (Index t = -lead; t < 0; ++t) {
    for (Index i = 1; i < kernel_height; ++i) {
      for (Index c = 0; c < channels; ++c) {
        A* const to = here + i * pitch + t * pixel + c * V;
        for (Index lane = 0; lane < i && lane < V; ++lane) {
          const Index m = i - lane;
          to[lane] = band.above[((m - 1) * channels + c) * band.pitch + t + m];
        }
      }
    }
  }

  // The rows are read and written in long pieces, by way of a window that lies well in the cache whatever their
  // strides.
  const Index total = (width + live - 1 + V - 1) / V * V;
  A* const window = steps + kernel_height * pitch;  // [channel][lane][step]
  for (Index start = 0; start < total; start += shape.pitch) {
    const Index n = total - start < shape.pitch ? total - start : shape.pitch;
    const auto line = [&](Index c, Index lane) { return window + (c * V + lane) * (shape.pitch + V); };
    for (Index c = 0; c < channels; ++c) {
      const T* from = in.data + first * in.row + c * in.channel;
      for (Index lane = 0; lane < V; ++lane) {
        if (lane < live) {
          if (lane + 1 < live) {
            prefetch_columns(from + (lane + 1) * in.row, in.column, start - lane - 1, n, width);
          }
          copy_columns_in<A, V>(from + lane * in.row, in.column, start - lane, n, width, line(c, lane));
        } else {
          std::memset(line(c, lane), 0, sizeof(A) * static_cast<std::size_t>(n));
        }
      }
    }
    for (Index t = start; t < start + n; t += V) {
      for (Index c = 0; c < channels; ++c) {
        Vector<A, V> tile[V];
        INVCONV_UNROLL
        for (int lane = 0; lane < V; ++lane) {
          tile[lane] = load_unaligned<A, V>(line(c, lane) + t - start);
        }
        transpose<A, V>(tile);
        INVCONV_UNROLL
        for (int s = 0; s < V; ++s) {
          store<A, V>(here + s * pixel + c * V, tile[s]);
        }
      }
      wait_for(band, t + V - 1 + kernel_height, width);
      shift.step = t;
      function(row, shift);
      for (Index c = 0; c < channels; ++c) {
        Vector<A, V> tile[V];
        INVCONV_UNROLL
        for (int s = 0; s < V; ++s) {
          tile[s] = load<A, V>(here + s * pixel + c * V);
        }
        transpose<A, V>(tile);
        INVCONV_UNROLL
        for (int lane = 0; lane < V; ++lane) {
          store_unaligned<A, V>(line(c, lane) + t - start, tile[lane]);
        }
        // The last rows, for the band below.
        for (Index m = 1; m < kernel_height; ++m) {
          copy_columns_out<A, V>(band.below + ((m - 1) * channels + c) * band.pitch, Index{1}, t - (V - m), Index{V},
                                 width, line(c, V - m) + t - start);
        }
      }
      finished(band, t + 1 < width ? t + 1 : width - 1, width);
      // The older steps of the next ones.
      for (Index i = 0; i < kernel_height; ++i) {
        std::memmove(steps + i * pitch, steps + i * pitch + V * pixel,
                     sizeof(A) * static_cast<std::size_t>(lead * pixel));
      }
    }
    for (Index c = 0; c < channels; ++c) {
      T* to = out.data + first * out.row + c * out.channel;
      for (Index lane = 0; lane < live; ++lane) {
        copy_columns_out<A, V>(to + lane * out.row, out.column, start - lane, n, width, line(c, lane), shape.streamed);
      }
    }
  }
  finish_streams();
  finished(band, width, width);
}

}  // namespace
}  // namespace invconv::detail::cpu
