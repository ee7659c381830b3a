// weight_grad of small images with enough channels. Part of kernels.inl.
//
// The input channels lie in the lanes, and a product is a vector of x times one number of g. So a tap meets only the
// pixels for which it lies inside the image: in 7 x 7 pixels three quarters of them, for 3 x 3 taps. With the pixels in
// the lanes (correlate.inl) only whole vectors of them are left out.

#pragma once

#include <type_traits>

#include "cpu/packing.inl"
#include "cpu/vectors.inl"

namespace invconv::detail::cpu {
namespace {

template <class A>
struct ChannelTile {
  const A* x;  // [image][row][column][vector of inputs]
  const A* g;  // [image][row][column][output]
  Index images, height, width;
  Index row, column;                   // by which the tap reaches up and to the left
  double* sums;                        // of the first output
  Index next_output, outputs, inputs;  // elements to the next output's sums; how many are wanted
};

template <class A, int V, int N, int O>
void correlate_channel_tile(const ChannelTile<A>& tile) {
  using Vec = Vector<A, V>;
  Vec sum[O][N] = {};
  const Index before = tile.row * tile.width + tile.column;
  for (Index image = 0; image < tile.images; ++image) {
    for (Index r = tile.row; r < tile.height; ++r) {
      const Index first = (image * tile.height + r) * tile.width + tile.column;
      const A* x = tile.x + (first - before) * (N * V);
      const A* g = tile.g + first * O;
      for (Index s = tile.column; s < tile.width; ++s, x += N * V, g += O) {
        Vec value[N];
        INVCONV_UNROLL
        for (int n = 0; n < N; ++n) {
          value[n] = load<A, V>(x + n * V);
        }
        INVCONV_UNROLL
        for (int o = 0; o < O; ++o) {
          const Vec derivative = splat<A, V>(g[o]);
          INVCONV_UNROLL
          for (int n = 0; n < N; ++n) {
            sum[o][n] = multiply_add<A, V>(value[n], derivative, sum[o][n]);
          }
        }
      }
    }
  }
  for (Index o = 0; o < tile.outputs; ++o) {
    A sums[N * V];
    INVCONV_UNROLL
    for (int n = 0; n < N; ++n) {
      store_unaligned<A, V>(sums + n * V, sum[o][n]);
    }
    double* const to = tile.sums + o * tile.next_output;
    if (tile.inputs == N * V) {
      for (int k = 0; k < N * V; ++k) {
        to[k] += static_cast<double>(sums[k]);
      }
    } else {
      for (Index k = 0; k < tile.inputs; ++k) {
        to[k] += static_cast<double>(sums[k]);
      }
    }
  }
}

/// Packs channels [first, first + count) of a unit: [image][row][column][channel], `pixel` elements to a pixel. To
/// pack_rows they are images, V at a time. What lies behind the last one is anything: its sums are not kept.
template <class T, int V>
void pack_channels(const CorrelationUnit& unit, const Images<const T>& from, Index first, Index count,
                   Arithmetic<T>* to, Index pixel) {
  for (Index image = 0; image < unit.images; ++image) {
    for (Index c = 0; c < count; c += V) {
      const Images<const T> streams{from.data + image * from.batch + (first + c) * from.channel, from.channel, 0,
                                    from.row, from.column};
      pack_rows<T, Arithmetic<T>, V>(streams, count - c < V ? count - c : V, 0, unit.rows, 1, unit.columns,
                                     to + image * unit.rows * unit.columns * pixel + c,
                                     {unit.columns * pixel, pixel, 0});
    }
  }
}

/// See Kernels::correlate. More than one vector of inputs are gone through two or three at a time.
template <class T, int V, bool Single>
void correlate_channels(const CorrelationShape& shape, const CorrelationUnit& unit, const Images<const T>& x,
                        const Images<const T>& g, double* sums, Arithmetic<T>* scratch) {
  using A = Arithmetic<T>;
  // Accumulators enough to hide how long an addition takes, as far as there are registers.
  constexpr int O = (few_registers ? 8 : 16) / (Single ? 1 : 2);
  static_assert(correlation_channel_outputs % O == 0);
  const Index pixels = unit.images * unit.rows * unit.columns, taps = shape.kernel_height * shape.kernel_width;
  A* const packed_x = scratch;
  A* const packed_g = packed_x + pixels * shape.inputs_at_once;
  const auto outputs_from = [&](Index o) { return shape.outputs - o < O ? shape.outputs - o : O; };
  for (Index o = 0; o < shape.outputs; o += O) {
    pack_channels<T, (O < V ? O : V)>(unit, g, o, outputs_from(o), packed_g + o * pixels, O);
  }
  const auto correlate_inputs = [&](Index first, Index inputs, auto vectors) {
    constexpr int N = decltype(vectors)::value;
    pack_channels<T, V>(unit, x, first, inputs, packed_x, N * V);
    for (Index o = 0; o < shape.outputs; o += O) {
      for (Index k = 0; k < taps; ++k) {
        correlate_channel_tile<A, V, N, O>({packed_x, packed_g + o * pixels, unit.images, unit.rows, unit.columns,
                                            k / shape.kernel_width, k % shape.kernel_width,
                                            sums + (o * taps + k) * shape.inputs + first, taps * shape.inputs,
                                            outputs_from(o), inputs});
      }
    }
  };
  if constexpr (Single) {
    correlate_inputs(0, shape.inputs, std::integral_constant<int, 1>{});
  } else {
    for (Index first = 0; first < shape.inputs;) {
      // So that none is left alone.
      const Index left = shape.inputs - first, vectors = (left + V - 1) / V;
      const bool two = vectors == 2 || vectors == 4;
      const Index most = (two ? 2 : 3) * V, inputs = left < most ? left : most;
      if (two) {
        correlate_inputs(first, inputs, std::integral_constant<int, 2>{});
      } else {
        correlate_inputs(first, inputs, std::integral_constant<int, 3>{});
      }
      first += inputs;
    }
  }
}

}  // namespace
}  // namespace invconv::detail::cpu
