// solve and conv with images in the lanes, and the row of pixels that solves share. Part of kernels.inl.

#pragma once

#include <cstring>
#include <utility>

#include "cpu/packing.inl"

namespace invconv::detail::cpu {
namespace {

/// The packed weight, block after block of output channels, holds the operands in the order in which they are used: for
/// every row from the oldest, pixel from the oldest and channel, the block's coefficients; in the present pixel the
/// channels before the block; then a square, its diagonal the anchor's and its rest the coefficients inside the block.
/// A solve subtracts, so its coefficients are negated. The last block is padded with outputs that nothing reads.
/// Returns whether all that is read is finite.
template <class T>
bool pack_weight(const FilterShape& shape, const Taps<const T>& weight, Arithmetic<T>* packed) {
  using A = Arithmetic<T>;
  const Index channels = shape.channels, block = shape.block;
  const A sign = shape.solve ? A(-1) : A(1);
  bool is_finite = true;
  const auto at = [&](Index o, Index c, Index i, Index j) {
    const A tap = widen(weight.data[o * weight.out + c * weight.in + i * weight.row + j * weight.column]);
    is_finite &= tap - tap == A(0);
    return tap;
  };
  for (Index first = 0; first < channels; first += block) {
    const Index live = first + block <= channels ? block : channels - first;
    for (Index i = shape.kernel_height - 1; i >= 0; --i) {
      for (Index j = shape.kernel_width - 1; j >= 0; --j) {
        const Index inputs = i == 0 && j == 0 ? first : channels;
        for (Index c = 0; c < inputs; ++c) {
          for (Index o = 0; o < block; ++o) {
            *packed++ = o < live ? sign * at(first + o, c, i, j) : A(0);
          }
        }
      }
    }
    for (Index c = 0; c < block; ++c) {
      for (Index o = 0; o < block; ++o) {
        if (o == c) {
          *packed++ = o < live && !shape.unit_diagonal ? at(first + o, first + o, 0, 0) : A(1);
        } else {
          *packed++ = o < live && c < o ? sign * at(first + o, first + c, 0, 0) : A(0);
        }
      }
    }
  }
  return is_finite;
}

/// A row of pixels, each [channel][lane].
template <class A>
struct FilterRow {
  Index channels, width, kernel_height, kernel_width;
  bool unit_diagonal;
  const A* weight;
  const A* const* rows;  // of each age, at the oldest pixel that the first one reads
  A* here;               // the present pixels; a solve writes over them
  A* out;                // where a conv writes
  Index above, left;     // rows and pixels there are before the first one: taps that reach further are left out
};

/// Zeros get one sign, which would else tell whether taps outside the image were left out or met zeros.
template <class Vec>
[[gnu::always_inline]] inline Vec settled(Vec value) {
  return value + Vec{};
}

/// The last operations of a block: those of the present pixel's own channels `value`, which a solve finds.
template <class A, int V, int OB, bool Solve>
[[gnu::always_inline]] inline void filter_pixel(bool unit_diagonal, const A* w, Vector<A, V>* value,
                                                Vector<A, V>* sum) {
  INVCONV_UNROLL
  for (int c = 0; c < OB; ++c) {
    const Vector<A, V> diagonal = splat<A, V>(w[c * OB + c]);
    if constexpr (Solve) {
      sum[c] = settled(unit_diagonal ? sum[c] : sum[c] / diagonal);
      value[c] = sum[c];
    } else {
      sum[c] = settled(unit_diagonal ? sum[c] + value[c] : multiply_add<A, V>(value[c], diagonal, sum[c]));
    }
    INVCONV_UNROLL
    for (int o = c + 1; o < OB; ++o) {
      sum[o] = multiply_add<A, V>(value[c], splat<A, V>(w[c * OB + o]), sum[o]);
    }
  }
}

template <class A, int V, int OB, bool Solve, class After>
[[gnu::always_inline]] inline void filter_row(const FilterRow<A>& row, After&& after) {
  using Vec = Vector<A, V>;
  const Index channels = row.channels, pixel = channels * V, inputs = row.kernel_width * channels;
  const Index above = row.above < row.kernel_height - 1 ? row.above : row.kernel_height - 1;
  for (Index s = 0; s < row.width; ++s) {
    A* const here = row.here + s * pixel;
    A* const out = Solve ? here : row.out + s * pixel;
    const A* w = row.weight;
    const Index left = row.left + s < row.kernel_width - 1 ? row.left + s : row.kernel_width - 1;
    const Index outside = (row.kernel_width - 1 - left) * channels;
    for (Index first = 0; first < channels; first += OB) {
      const Index live = channels - first;
      Vec sum[OB];
      INVCONV_UNROLL
      for (int o = 0; o < OB; ++o) {
        sum[o] = Solve && o < live ? load<A, V>(here + (first + o) * V) : Vec{};
      }
      const auto add = [&](const A* x) {
        const Vec value = load<A, V>(x);
        INVCONV_UNROLL
        for (int o = 0; o < OB; ++o) {
          sum[o] = multiply_add<A, V>(value, splat<A, V>(w[o]), sum[o]);
        }
        w += OB;
      };
      w += (row.kernel_height - 1 - above) * inputs * OB;
      for (Index i = above; i >= 0; --i) {
        const A* x = row.rows[i] + s * pixel;
        const A* const end = x + (i > 0 ? inputs : inputs - channels + first) * V;
        w += outside * OB;
        for (x += outside * V; x < end; x += V) {
          add(x);
        }
      }
      Vec value[OB];
      if constexpr (!Solve) {
        INVCONV_UNROLL
        for (int o = 0; o < OB; ++o) {
          value[o] = o < live ? load<A, V>(here + (first + o) * V) : Vec{};
        }
      }
      filter_pixel<A, V, OB, Solve>(row.unit_diagonal, w, value, sum);
      w += OB * OB;
      INVCONV_UNROLL
      for (int o = 0; o < OB; ++o) {
        if (o < live) {
          after(s, first + o, sum[o]);
          store<A, V>(out + (first + o) * V, sum[o]);
        }
      }
    }
  }
}

template <class A, int V, int OB, bool Solve>
void filter_plain_row(const FilterRow<A>& row) {
  filter_row<A, V, OB, Solve>(row, [](Index, Index, const Vector<A, V>&) {});
}

/// filter_row for a small kernel and row.left = 0. With so little to do in a pixel, the next one would wait for its
/// result to come back from memory: the last pixels stay in registers.
template <class A, int V, int C, bool Solve>
void filter_small_row(const FilterRow<A>& row) {
  using Vec = Vector<A, V>;
  constexpr int pixel = C * V, tap = C * C, inputs = small_kernel * C;
  constexpr Index reach = small_kernel - 1;
  FilterRow<A> first = row;
  first.width = row.width < reach ? row.width : reach;
  filter_plain_row<A, V, C, Solve>(first);
  if (row.width <= reach) {
    return;
  }
  Vec older[C], last[C];
  INVCONV_UNROLL
  for (int c = 0; c < C; ++c) {
    older[c] = load<A, V>(row.here + c * V);
    last[c] = load<A, V>(row.here + pixel + c * V);
  }
  for (Index s = reach; s < row.width; ++s) {
    A* const here = row.here + s * pixel;
    A* const out = Solve ? here : row.out + s * pixel;
    Vec value[C], sum[C];
    INVCONV_UNROLL
    for (int c = 0; c < C; ++c) {
      value[c] = load<A, V>(here + c * V);
      sum[c] = Solve ? value[c] : Vec{};
    }
    const auto add = [&](Vec x, const A* w) {
      INVCONV_UNROLL
      for (int o = 0; o < C; ++o) {
        sum[o] = multiply_add<A, V>(x, splat<A, V>(w[o]), sum[o]);
      }
    };
    const A* w = row.weight;
    INVCONV_UNROLL
    for (int i = small_kernel - 1; i > 0; --i) {
      if (i <= row.above) {
        INVCONV_UNROLL
        for (int k = 0; k < inputs; ++k) {
          add(load<A, V>(row.rows[i] + s * pixel + k * V), w + k * C);
        }
      }
      w += inputs * C;
    }
    INVCONV_UNROLL
    for (int c = 0; c < C; ++c) {
      add(older[c], w + c * C);
    }
    INVCONV_UNROLL
    for (int c = 0; c < C; ++c) {
      add(last[c], w + tap + c * C);
    }
    filter_pixel<A, V, C, Solve>(row.unit_diagonal, w + 2 * tap, value, sum);
    INVCONV_UNROLL
    for (int c = 0; c < C; ++c) {
      older[c] = last[c];
      last[c] = value[c];
      store<A, V>(out + c * V, sum[c]);
    }
  }
}

template <class A>
using FilterRowFunction = void (*)(const FilterRow<A>&);

template <class A, int V, bool Solve, int... OB>
FilterRowFunction<A> plain_row_of(Index block, std::integer_sequence<int, OB...>) {
  static constexpr FilterRowFunction<A> table[] = {filter_plain_row<A, V, OB + 1, Solve>...};
  return table[block - 1];
}

template <class A, int V, bool Solve, int... C>
FilterRowFunction<A> small_row_of(Index channels, std::integer_sequence<int, C...>) {
  static constexpr FilterRowFunction<A> table[] = {filter_small_row<A, V, C + 1, Solve>...};
  return table[channels - 1];
}

template <class T, int V, bool Solve>
void filter_images(const FilterShape& shape, Index images, const Images<const T>& in, const Images<T>& out,
                   const Arithmetic<T>* packed, void* scratch) {
  using A = Arithmetic<T>;
  const Index channels = shape.channels, width = shape.width, kernel_height = shape.kernel_height;
  const Index margin = (shape.kernel_width - 1) * channels * V, pitch = margin + width * channels * V;
  const auto function = is_small(shape)
                            ? small_row_of<A, V, Solve>(channels, std::make_integer_sequence<int, small_channels>{})
                            : plain_row_of<A, V, Solve>(shape.block, std::make_integer_sequence<int, INVCONV_BLOCK>{});
  const A** const rows = static_cast<const A**>(scratch);
  A* const ring = static_cast<A*>(skip_pointers(scratch, kernel_height));
  A* const filtered = ring + shape.ring * pitch;
  // Row -1 is the ring's last. Zeros stand for the rows above the image, and in each row for the pixels before it.
  const auto at = [&](Index r) { return ring + (r + shape.ring) % shape.ring * pitch; };
  for (Index r = 1 - kernel_height; r < shape.ring - kernel_height + 1; ++r) {
    std::memset(at(r), 0, sizeof(A) * static_cast<std::size_t>(r < 0 ? pitch : margin));
  }
  FilterRow<A> row{
      channels, width, kernel_height, shape.kernel_width, shape.unit_diagonal, packed, rows, nullptr, nullptr, 0, 0};
  for (Index first = 0; first < shape.height; first += shape.band) {
    const Index band = first + shape.band <= shape.height ? shape.band : shape.height - first;
    A* const here = at(first) + margin;  // the ring is a whole number of bands, so a band is never broken
    pack_rows<T, A, V>(in, images, first, band, channels, width, here, pitch);
    for (Index r = 0; r < band; ++r) {
      for (Index i = 0; i < kernel_height; ++i) {
        rows[i] = at(first + r - i);
      }
      row.here = here + r * pitch;
      row.out = filtered + r * (pitch - margin);
      row.above = first + r;
      function(row);
    }
    unpack_rows<T, A, V>(out, images, first, band, channels, width, Solve ? here : filtered,
                         Solve ? pitch : pitch - margin);
  }
}

}  // namespace
}  // namespace invconv::detail::cpu
