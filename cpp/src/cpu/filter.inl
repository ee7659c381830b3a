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
template <class T>
void pack_weight(const FilterShape& shape, const Taps<const T>& weight, Arithmetic<T>* packed) {
  using A = Arithmetic<T>;
  const Index channels = shape.channels, block = shape.block;
  const A sign = shape.solve ? A(-1) : A(1);
  const auto at = [&](Index o, Index c, Index i, Index j) {
    return widen(weight.data[o * weight.out + c * weight.in + i * weight.row + j * weight.column]);
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
};

/// `Small` is 0, or a kernel of Small x Small taps of so few channels that one block of constant sizes holds them.
template <class A, int V, int OB, bool Solve, int Small, class After>
[[gnu::always_inline]] inline void filter_row(const FilterRow<A>& row, After&& after) {
  using Vec = Vector<A, V>;
  const Index channels = Small > 0 ? OB : row.channels;
  const Index kernel_height = Small > 0 ? Small : row.kernel_height;
  const Index kernel_width = Small > 0 ? Small : row.kernel_width;
  const Index pixel = channels * V, inputs = kernel_width * channels;
  for (Index s = 0; s < row.width; ++s) {
    A* const here = row.here + s * pixel;
    A* const out = Solve ? here : row.out + s * pixel;
    const A* w = row.weight;
    for (Index first = 0; first < channels; first += OB) {
      const Index live = Small > 0 ? OB : channels - first;
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
      if constexpr (Small > 0) {
        INVCONV_UNROLL
        for (int i = Small - 1; i > 0; --i) {
          const A* x = row.rows[i] + s * pixel;
          INVCONV_UNROLL
          for (int k = 0; k < Small * OB; ++k) {
            add(x + k * V);
          }
        }
        INVCONV_UNROLL
        for (int k = 0; k < (Small - 1) * OB; ++k) {
          add(row.rows[0] + s * pixel + k * V);
        }
      } else {
        for (Index i = kernel_height - 1; i >= 0; --i) {
          const A* x = row.rows[i] + s * pixel;
          const A* const end = x + (i > 0 ? inputs : inputs - channels + first) * V;
          for (; x < end; x += V) {
            add(x);
          }
        }
      }
      INVCONV_UNROLL
      for (int c = 0; c < OB; ++c) {
        Vec value;
        if constexpr (Solve) {
          if (!row.unit_diagonal) {
            sum[c] = sum[c] / splat<A, V>(w[c * OB + c]);
          }
          value = sum[c];
        } else {
          value = c < live ? load<A, V>(here + (first + c) * V) : Vec{};
          sum[c] = row.unit_diagonal ? sum[c] + value : multiply_add<A, V>(value, splat<A, V>(w[c * OB + c]), sum[c]);
        }
        INVCONV_UNROLL
        for (int o = c + 1; o < OB; ++o) {
          sum[o] = multiply_add<A, V>(value, splat<A, V>(w[c * OB + o]), sum[o]);
        }
      }
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

/// Kernels with a row of constant sizes.
inline constexpr int small_kernel = 3, small_channels = 4;

inline bool is_small(const FilterShape& shape) {
  return shape.kernel_height == small_kernel && shape.kernel_width == small_kernel && shape.channels <= small_channels;
}

template <class A, int V, int OB, bool Solve, int Small>
void filter_plain_row(const FilterRow<A>& row) {
  filter_row<A, V, OB, Solve, Small>(row, [](Index, Index, const Vector<A, V>&) {});
}

template <class A>
using FilterRowFunction = void (*)(const FilterRow<A>&);

template <class A, int V, bool Solve, int Small, int... OB>
FilterRowFunction<A> plain_row_of(Index block, std::integer_sequence<int, OB...>) {
  static constexpr FilterRowFunction<A> table[] = {filter_plain_row<A, V, OB + 1, Solve, Small>...};
  return table[block - 1];
}

template <class T, int V, bool Solve>
void filter_images(const FilterShape& shape, Index images, const Images<const T>& in, const Images<T>& out,
                   const Arithmetic<T>* packed, void* scratch) {
  using A = Arithmetic<T>;
  const Index channels = shape.channels, width = shape.width, kernel_height = shape.kernel_height;
  const Index margin = (shape.kernel_width - 1) * channels * V, pitch = margin + width * channels * V;
  const auto function =
      is_small(shape)
          ? plain_row_of<A, V, Solve, small_kernel>(channels, std::make_integer_sequence<int, small_channels>{})
          : plain_row_of<A, V, Solve, 0>(shape.block, std::make_integer_sequence<int, INVCONV_BLOCK>{});
  const A** const rows = static_cast<const A**>(scratch);
  A* const ring = static_cast<A*>(skip_pointers(scratch, kernel_height));
  A* const filtered = ring + shape.ring * pitch;
  // Row -1 is the ring's last. Zeros stand for the rows above the image, and in each row for the pixels before it.
  const auto at = [&](Index r) { return ring + (r + shape.ring) % shape.ring * pitch; };
  for (Index r = 1 - kernel_height; r < shape.ring - kernel_height + 1; ++r) {
    std::memset(at(r), 0, sizeof(A) * static_cast<std::size_t>(r < 0 ? pitch : margin));
  }
  FilterRow<A> row{channels, width,   kernel_height, shape.kernel_width, shape.unit_diagonal, packed,
                   rows,     nullptr, nullptr};
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
      function(row);
    }
    unpack_rows<T, A, V>(out, images, first, band, channels, width, Solve ? here : filtered,
                         Solve ? pitch : pitch - margin);
  }
}

}  // namespace
}  // namespace invconv::detail::cpu
