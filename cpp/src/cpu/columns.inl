// conv with columns in the lanes: nothing is transposed. Part of kernels.inl.

#pragma once

#include <cstring>
#include <utility>

#include "cpu/filter.inl"

namespace invconv::detail::cpu {
namespace {

/// A line of pixels, each channel on its own.
template <class A>
struct FilterLine {
  Index channels, length, kernel_height, kernel_width;
  bool unit_diagonal;
  const A* weight;
  const A* const* rows;  // of each age, at the oldest pixel that the first one reads
  Index pitch;           // from channel to channel, of both
  A* out;
  Index above;  // rows there are above: taps that reach further are left out
};

/// U vectors of pixels, from `at` on.
template <class A, int V, int OB, int U>
[[gnu::always_inline]] inline void filter_vectors(const FilterLine<A>& line, Index at) {
  using Vec = Vector<A, V>;
  const A* w = line.weight;
  for (Index first = 0; first < line.channels; first += OB) {
    const Index live = line.channels - first;
    Vec sum[OB][U] = {};
    w += (line.kernel_height - 1 - line.above) * line.kernel_width * line.channels * OB;
    for (Index i = line.above; i >= 0; --i) {
      for (Index j = 0; j < line.kernel_width; ++j) {
        const A* x = line.rows[i] + at + j;
        const Index n = i == 0 && j == line.kernel_width - 1 ? first : line.channels;
        for (Index c = 0; c < n; ++c, x += line.pitch, w += OB) {
          Vec value[U];
          INVCONV_UNROLL
          for (int u = 0; u < U; ++u) {
            value[u] = load_unaligned<A, V>(x + u * V);
          }
          INVCONV_UNROLL
          for (int o = 0; o < OB; ++o) {
            const Vec tap = splat<A, V>(w[o]);
            INVCONV_UNROLL
            for (int u = 0; u < U; ++u) {
              sum[o][u] = multiply_add<A, V>(value[u], tap, sum[o][u]);
            }
          }
        }
      }
    }
    const A* here = line.rows[0] + at + line.kernel_width - 1;
    INVCONV_UNROLL
    for (int c = 0; c < OB; ++c) {
      if (c >= live) {
        break;
      }
      INVCONV_UNROLL
      for (int u = 0; u < U; ++u) {
        const Vec value = load_unaligned<A, V>(here + (first + c) * line.pitch + u * V);
        sum[c][u] = settled(line.unit_diagonal ? sum[c][u] + value
                                               : multiply_add<A, V>(value, splat<A, V>(w[c * OB + c]), sum[c][u]));
        INVCONV_UNROLL
        for (int o = c + 1; o < OB; ++o) {
          sum[o][u] = multiply_add<A, V>(value, splat<A, V>(w[c * OB + o]), sum[o][u]);
        }
        store_unaligned<A, V>(line.out + (first + c) * line.pitch + at + u * V, sum[c][u]);
      }
    }
    w += OB * OB;
  }
}

/// As many vectors at once as leave room for the operands.
template <int OB>
inline constexpr int vectors_at_once = most_sums < 4 * OB ? (most_sums < 2 * OB ? 1 : 2) : 4;

template <class A, int V, int OB>
void filter_line(const FilterLine<A>& line) {
  constexpr int U = vectors_at_once<OB>;
  Index at = 0;
  for (; at + (U - 1) * V < line.length; at += U * V) {
    filter_vectors<A, V, OB, U>(line, at);
  }
  for (; at < line.length; at += V) {
    filter_vectors<A, V, OB, 1>(line, at);
  }
}

template <class A>
using FilterLineFunction = void (*)(const FilterLine<A>&);

template <class A, int V, int... OB>
FilterLineFunction<A> line_of(Index block, std::integer_sequence<int, OB...>) {
  static constexpr FilterLineFunction<A> table[] = {filter_line<A, V, OB + 1>...};
  return table[block - 1];
}

/// Rows [begin, end) of one image. They are copied, a band at a time, behind zeros for the pixels before each of them,
/// so that a tap is a constant distance in one long line; where the rows fill the lanes badly, the line goes on over
/// their ends, and what comes out for the zeros is left out.
template <class T, int V>
void conv_columns(const FilterShape& shape, const Images<const T>& in, const Images<T>& out, Index begin, Index end,
                  const Arithmetic<T>* packed, void* scratch) {
  using A = Arithmetic<T>;
  const Index channels = shape.channels, width = shape.width, kernel_height = shape.kernel_height;
  const Index margin = shape.kernel_width - 1, row = margin + width, older = kernel_height - 1;
  const Index pitch = shape.pitch;
  const auto function = line_of<A, V>(shape.block, std::make_integer_sequence<int, INVCONV_BLOCK>{});
  const A** const rows = static_cast<const A**>(scratch);
  A* const lines = static_cast<A*>(skip_pointers(scratch, kernel_height));
  A* const filtered = lines + channels * pitch;
  const bool joined = (width + V - 1) / V * V > row;

  const auto read = [&](Index c, Index r, Index place) {
    A* const to = lines + c * pitch + place * row;
    std::memset(to, 0, sizeof(A) * static_cast<std::size_t>(r < 0 ? row : margin));
    if (r >= 0) {
      const T* const from = in.data + c * in.channel + r * in.row;
      copy_in<A, V>(from, in.column, width, to + margin);
    }
  };
  for (Index c = 0; c < channels; ++c) {
    std::memset(lines + c * pitch, 0, sizeof(A) * static_cast<std::size_t>(pitch));
    for (Index r = 0; r < older; ++r) {
      read(c, begin - older + r, r);
    }
  }
  for (Index first = begin; first < end; first += shape.band) {
    const Index band = first + shape.band <= end ? shape.band : end - first;
    for (Index c = 0; c < channels; ++c) {
      for (Index r = 0; r < band; ++r) {
        read(c, first + r, older + r);
      }
    }
    FilterLine<A> line{channels,
                       joined ? band * row - margin : width,
                       kernel_height,
                       shape.kernel_width,
                       shape.unit_diagonal,
                       packed,
                       rows,
                       pitch,
                       filtered,
                       0};
    for (Index r = 0; r < (joined ? 1 : band); ++r) {
      for (Index i = 0; i < kernel_height; ++i) {
        rows[i] = lines + (older + r - i) * row;
      }
      line.out = filtered + r * row;
      const Index last = first + (joined ? band - 1 : r);
      line.above = last < older ? last : older;
      function(line);
    }
    for (Index c = 0; c < channels; ++c) {
      for (Index r = 0; r < band; ++r) {
        const A* const from = filtered + c * pitch + r * row;
        T* const to = out.data + c * out.channel + (first + r) * out.row;
        copy_out<A, V>(to, out.column, width, from, shape.streamed);
      }
      std::memmove(lines + c * pitch, lines + c * pitch + band * row,
                   sizeof(A) * static_cast<std::size_t>(older * row));
    }
  }
  finish_streams();
}

}  // namespace
}  // namespace invconv::detail::cpu
