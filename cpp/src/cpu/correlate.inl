// weight_grad. Part of kernels.inl.

#pragma once

#include <cstring>

#include "cpu/packing.inl"

namespace invconv::detail::cpu {
namespace {

// Accumulators of a tile: outputs x inputs, and room for the operands.
inline constexpr int tile_outputs = 4;
inline constexpr int tile_inputs = INVCONV_VECTOR_BYTES == 64 ? 6 : 3;

template <class A>
struct Tile {
  Index rows, columns;  // pixels to sum over
  const A* g;           // [row][column][channel][lane], at the first pixel
  Index g_pitch;
  const A* x;  // the same, at the oldest pixel that the first one reads
  Index x_pitch;
  Index pixel;                 // elements of a pixel in both
  Index output[tile_outputs];  // offsets of the tile's operands
  Index input[tile_inputs];
};

template <class A, int V, int TO, int TK>
void correlate_tile(const Tile<A>& tile, A* sums) {
  using Vec = Vector<A, V>;
  Vec sum[TO][TK] = {};
  for (Index r = 0; r < tile.rows; ++r) {
    const A* g = tile.g + r * tile.g_pitch;
    const A* x = tile.x + r * tile.x_pitch;
    for (Index s = 0; s < tile.columns; ++s, g += tile.pixel, x += tile.pixel) {
      Vec inputs[TK];
      INVCONV_UNROLL
      for (int k = 0; k < TK; ++k) {
        inputs[k] = load<A, V>(x + tile.input[k]);
      }
      INVCONV_UNROLL
      for (int o = 0; o < TO; ++o) {
        const Vec output = load<A, V>(g + tile.output[o]);
        INVCONV_UNROLL
        for (int k = 0; k < TK; ++k) {
          sum[o][k] = multiply_add<A, V>(output, inputs[k], sum[o][k]);
        }
      }
    }
  }
  for (int o = 0; o < TO; ++o) {
    for (int k = 0; k < TK; ++k) {
      sums[o * TK + k] = sum_lanes<A, V>(sum[o][k]);
    }
  }
}

template <class T, int V>
void correlate_block(const CorrelationShape& shape, Index images, const Images<const T>& x, const Images<const T>& g,
                     double* sum, Arithmetic<T>* scratch) {
  using A = Arithmetic<T>;
  const Index channels = shape.channels, width = shape.width, rows = shape.row_end - shape.row_begin;
  const Index pixel = channels * V, margin = (shape.kernel_width - 1) * pixel;
  const Index g_pitch = width * pixel, x_pitch = width * pixel + margin;
  A* packed_g = scratch;
  A* packed_x = scratch + rows * g_pitch;
  std::memset(packed_x, 0, sizeof(A) * static_cast<std::size_t>((rows + shape.kernel_height - 1) * x_pitch));
  for (Index r = 0; r < rows; ++r) {
    pack_row<T, A, V>(g, images, shape.row_begin + r, channels, width, packed_g + r * g_pitch);
  }
  for (Index r = -(shape.kernel_height - 1); r < rows; ++r) {
    if (shape.row_begin + r >= 0) {
      pack_row<T, A, V>(x, images, shape.row_begin + r, channels, width,
                        packed_x + (r + shape.kernel_height - 1) * x_pitch + margin);
    }
  }
  // A lane without an image must add nothing.
  if (images < V) {
    for (Index at = 0; at < rows * g_pitch; at += V) {
      for (Index lane = images; lane < V; ++lane) {
        packed_g[at + lane] = A(0);
      }
    }
    for (Index at = 0; at < (rows + shape.kernel_height - 1) * x_pitch; at += V) {
      for (Index lane = images; lane < V; ++lane) {
        packed_x[at + lane] = A(0);
      }
    }
  }

  using Function = void (*)(const Tile<A>&, A*);
  static constexpr int half = tile_inputs == 6 ? 3 : 1;
  static constexpr Function wide[] = {correlate_tile<A, V, 1, tile_inputs>, correlate_tile<A, V, 2, tile_inputs>,
                                      correlate_tile<A, V, 3, tile_inputs>, correlate_tile<A, V, 4, tile_inputs>};
  static constexpr Function slim[] = {correlate_tile<A, V, 1, half>, correlate_tile<A, V, 2, half>,
                                      correlate_tile<A, V, 3, half>, correlate_tile<A, V, 4, half>};

  const Index inputs = shape.kernel_width * channels;
  const Index segment = width < correlation_pixels ? width : correlation_pixels;
  for (Index i = 0; i < shape.kernel_height; ++i) {
    for (Index first_o = 0; first_o < channels; first_o += tile_outputs) {
      const Index live_o = first_o + tile_outputs <= channels ? tile_outputs : channels - first_o;
      for (Index first_k = 0; first_k < inputs;) {
        const Index left = inputs - first_k;
        const Index size = left > half ? tile_inputs : half;
        const Index live_k = left < size ? left : size;
        Tile<A> tile{};
        for (Index o = 0; o < tile_outputs; ++o) {
          tile.output[o] = (first_o + (o < live_o ? o : live_o - 1)) * V;
        }
        for (Index k = 0; k < tile_inputs; ++k) {
          tile.input[k] = (first_k + (k < live_k ? k : live_k - 1)) * V;
        }
        tile.rows = rows;
        tile.g_pitch = g_pitch;
        tile.x_pitch = x_pitch;
        tile.pixel = pixel;
        const Function function = (size == tile_inputs ? wide : slim)[live_o - 1];
        for (Index s = 0; s < width; s += segment) {
          tile.columns = s + segment <= width ? segment : width - s;
          tile.g = packed_g + s * pixel;
          tile.x = packed_x + (shape.kernel_height - 1 - i) * x_pitch + s * pixel;
          A sums[tile_outputs * tile_inputs];
          function(tile, sums);
          for (Index o = 0; o < live_o; ++o) {
            double* to = sum + (i * channels + first_o + o) * inputs + first_k;
            for (Index k = 0; k < live_k; ++k) {
              to[k] += static_cast<double>(sums[o * size + k]);
            }
          }
        }
        first_k += size;
      }
    }
  }
}

}  // namespace
}  // namespace invconv::detail::cpu
