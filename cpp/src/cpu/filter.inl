// solve and conv. Part of kernels.inl.

#pragma once

#include <cstring>
#include <utility>

#include "cpu/packing.inl"

namespace invconv::detail::cpu {
namespace {

/// Output channels are computed in blocks of one size, the last one padded.
Index block_size(Index channels) {
  const Index blocks = (channels + INVCONV_BLOCK - 1) / INVCONV_BLOCK;
  return (channels + blocks - 1) / blocks;
}

/// The packed weight, block after block, holds the operands in the order in which they are used: for every row from the
/// oldest, pixel from the oldest and channel, the block's coefficients; in the present pixel the channels before the
/// block; then a square, its diagonal the anchor's and its rest the coefficients inside the block. A solve subtracts,
/// so its coefficients are negated.
Index packed_weight_size(const FilterShape& shape) {
  const Index block = block_size(shape.channels);
  Index size = 0;
  for (Index first = 0; first < shape.channels; first += block) {
    size += (shape.kernel_height * shape.kernel_width - 1) * shape.channels + first + block;
  }
  return size * block;
}

template <class T>
void pack_weight(const FilterShape& shape, const Taps<const T>& weight, Arithmetic<T>* packed) {
  using A = Arithmetic<T>;
  const Index channels = shape.channels;
  const Index block = block_size(channels);
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

template <class A>
struct FilterRow {
  Index channels, width, kernel_height, kernel_width;
  bool unit_diagonal;
  const A* weight;
  A* ring;  // kernel_height rows of `pitch` elements, each led by kernel_width - 1 pixels of zeros
  Index pitch;
  Index slot;  // the present row's
  A* out;      // conv: where the row goes; a solve writes over the present row
};

template <class A, int V, int OB, bool Solve>
void filter_row(const FilterRow<A>& row) {
  using Vec = Vector<A, V>;
  const Index pixel = row.channels * V;
  const Index inputs = row.kernel_width * row.channels;
  A* here = row.ring + row.slot * row.pitch + (row.kernel_width - 1) * pixel;
  A* out = Solve ? here : row.out;
  for (Index s = 0; s < row.width; ++s, here += pixel, out += pixel) {
    const A* w = row.weight;
    for (Index first = 0; first < row.channels; first += OB) {
      const Index live = row.channels - first;
      Vec sum[OB];
      INVCONV_UNROLL
      for (int o = 0; o < OB; ++o) {
        sum[o] = Solve && o < live ? load<A, V>(here + (first + o) * V) : Vec{};
      }
      Index slot = row.slot;
      for (Index i = row.kernel_height - 1; i >= 0; --i) {
        slot = slot + 1 == row.kernel_height ? 0 : slot + 1;
        const A* x = row.ring + slot * row.pitch + s * pixel;
        const Index n = i > 0 ? inputs : inputs - row.channels + first;
        for (Index k = 0; k < n; ++k, x += V, w += OB) {
          const Vec value = load<A, V>(x);
          INVCONV_UNROLL
          for (int o = 0; o < OB; ++o) {
            sum[o] = multiply_add<A, V>(value, splat<A, V>(w[o]), sum[o]);
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
          store<A, V>(out + (first + o) * V, sum[o]);
        }
      }
    }
  }
}

template <class A>
using FilterRowFunction = void (*)(const FilterRow<A>&);

template <class A, int V, bool Solve, int... OB>
FilterRowFunction<A> filter_row_of(Index block, std::integer_sequence<int, OB...>) {
  static constexpr FilterRowFunction<A> table[] = {filter_row<A, V, OB + 1, Solve>...};
  return table[block - 1];
}

template <class T, int V, bool Solve>
void filter_block(const FilterShape& shape, Index images, const Images<const T>& in, const Images<T>& out,
                  const Arithmetic<T>* packed, Arithmetic<T>* scratch) {
  using A = Arithmetic<T>;
  const Index channels = shape.channels, width = shape.width;
  FilterRow<A> row{channels,
                   width,
                   shape.kernel_height,
                   shape.kernel_width,
                   shape.unit_diagonal,
                   packed,
                   scratch,
                   (width + shape.kernel_width - 1) * channels * V,
                   0,
                   nullptr};
  row.out = scratch + shape.kernel_height * row.pitch;
  const Index margin = (shape.kernel_width - 1) * channels * V;
  const auto function =
      filter_row_of<A, V, Solve>(block_size(channels), std::make_integer_sequence<int, INVCONV_BLOCK>{});
  std::memset(scratch, 0, sizeof(A) * static_cast<std::size_t>(shape.kernel_height * row.pitch));
  for (Index r = 0; r < shape.height; ++r) {
    A* here = row.ring + row.slot * row.pitch + margin;
    pack_row<T, A, V>(in, images, r, channels, width, here);
    function(row);
    unpack_row<T, A, V>(out, images, r, channels, width, Solve ? here : row.out);
    row.slot = row.slot + 1 == shape.kernel_height ? 0 : row.slot + 1;
  }
}

}  // namespace
}  // namespace invconv::detail::cpu
