#pragma once

// solve, 3 x 3 taps and C <= 4 channels, images of any size: a warp has a strip of rows in its lanes, one or two to a
// lane, each lane one column behind the one above it, so that a step is a piece of an anti-diagonal and the neighbours
// above come by shuffles. The strips of an image follow each other in a pipeline, to which each hands down its last two
// rows: [strip of all][the nearest first][channel][column].
//
// Every strip_columns steps the warp moves a window of columns on: it writes to global memory those that all lanes have
// left, results by now, and reads new ones, in whole sectors; what it reads it asks for so many steps before.

#include "pipeline.cuh"

namespace invconv::detail::cuda {

template <class T, int C>
__global__ void __launch_bounds__(32, 1)
    solve_strips(Groups<FilterGroup<T>> groups, StripsShape s, Pipeline<Arithmetic<T>> pipeline) {
  using A = Arithmetic<T>;
  constexpr int K = strips_kernel, Lanes = 32, R = rows_of_lane(sizeof(A), C), V = Lanes * R;
  constexpr int Chunk = strip_columns, RowsAtOnce = Lanes / Chunk, Edge = (K - 1) * C * Chunk;
  const int lane = static_cast<int>(threadIdx.x);
  const Index task = __shfl_sync(0xffffffff, lane == 0 ? pipeline.claim() : 0, 0);
  const Index chain = task / s.strips;
  const int strip = static_cast<int>(task % s.strips);
  const FilterGroup<T> group{groups.at(static_cast<int>(chain % groups.count)).from_image(chain / groups.count)};
  const int first_row = strip * V;
  const T* const in = group.in.data;
  T* const out = group.out.data;
  const Index edge_size = Index{K - 1} * C * s.width;
  const bool has_above = strip > 0, has_below = strip + 1 < s.strips;
  A* const below = has_below ? pipeline.edges + task * edge_size : nullptr;
  const A* const above = has_above ? pipeline.edges + (task - 1) * edge_size : nullptr;

  A* const window = shared_memory<A>();          // [channel][row][column % strip_window]
  A* const edge = window + C * V * strip_pitch;  // [the nearest row first][channel][column % Chunk], of the strip above
  volatile A* const stored = edge + Edge;

  // By age: [i][j][output][input]; these rows of taps in registers, of which more would leave none for the rest.
  constexpr std::size_t row_bytes = K * C * C * sizeof(A);
  constexpr int in_registers = K * row_bytes <= 200 ? K : row_bytes <= 108 ? K - 1 : 0;
  A own[in_registers > 0 ? in_registers : 1][K][C][C] = {};
  const auto weight = [&](int i, int j, int o, int c) {
    // volatile, since all of them at once would spill
    return i < in_registers ? own[i < in_registers ? i : 0][j][o][c] : A(stored[((i * K + j) * C + o) * C + c]);
  };
  for (int index = lane; index < K * K * C * C; index += Lanes) {
    const int c = index % C, o = index / C % C, j = index / C / C % K, i = index / C / C / K;
    A value = 0;
    if (is_read(s.unit_diagonal, i, j, o, c)) {
      value =
          widen(group.weight
                    .data[o * group.weight.out + c * group.weight.in + i * group.weight.row + j * group.weight.column]);
      value = i == 0 && j == 0 && c == o ? value : -value;
    }
    stored[index] = value;
  }
  __syncwarp();
  INVCONV_UNROLL
  for (int i = 0; i < in_registers; ++i) {
    INVCONV_UNROLL
    for (int j = 0; j < K; ++j) {
      INVCONV_UNROLL
      for (int o = 0; o < C; ++o) {
        INVCONV_UNROLL
        for (int c = 0; c < C; ++c) {
          own[i][j][o][c] = stored[((i * K + j) * C + o) * C + c];
        }
      }
    }
  }

  // A chunk of columns in passing, of the image and of the strip above: a lane has one column of some rows.
  const int own_column = lane % Chunk, own_row = lane / Chunk;
  A coming[C][V / RowsAtOnce], coming_edge[(Edge + Lanes - 1) / Lanes] = {};
  unsigned seen = 0;  // of the strip above's progress
  const auto fetch = [&](int chunk) {
    const int column = chunk * Chunk + own_column;
    INVCONV_UNROLL
    for (int c = 0; c < C; ++c) {
      Index from = c * group.in.channel + (first_row + own_row) * group.in.row + column * group.in.column;
      INVCONV_UNROLL
      for (int t = 0; t < V / RowsAtOnce; ++t) {
        const bool is_there = first_row + t * RowsAtOnce + own_row < s.height && column < s.width;
        coming[c][t] = is_there ? widen(in[from]) : A(0);
        from += RowsAtOnce * group.in.row;
      }
    }
    if (has_above && chunk * Chunk < s.width) {
      const int enough = (chunk + 1) * Chunk < s.width ? (chunk + 1) * Chunk : s.width;
      if (lane == 0 && seen < static_cast<unsigned>(enough)) {
        seen = pipeline.wait(task, enough);
      }
      __syncwarp();
      INVCONV_UNROLL
      for (int t = 0; t < (Edge + Lanes - 1) / Lanes; ++t) {
        const int line = t * RowsAtOnce + own_row;
        coming_edge[t] = line < (K - 1) * C && column < s.width ? above[Index{line} * s.width + column] : A(0);
      }
    }
  };
  const auto keep = [&](int chunk) {
    const int place = chunk * Chunk % strip_window + own_column;
    INVCONV_UNROLL
    for (int c = 0; c < C; ++c) {
      INVCONV_UNROLL
      for (int t = 0; t < V / RowsAtOnce; ++t) {
        window[(c * V + t * RowsAtOnce + own_row) * strip_pitch + place] = coming[c][t];
      }
    }
    INVCONV_UNROLL
    for (int t = 0; t < (Edge + Lanes - 1) / Lanes; ++t) {
      if (has_above && t * Lanes + lane < Edge) {
        edge[t * Lanes + lane] = coming_edge[t];
      }
    }
  };
  const auto give = [&](int chunk) {
    const int place = chunk * Chunk % strip_window + own_column, column = chunk * Chunk + own_column;
    for (int c = 0; c < C; ++c) {
      Index to = c * group.out.channel + (first_row + own_row) * group.out.row + column * group.out.column;
      INVCONV_UNROLL_BY(2)
      for (int line = own_row; line < V; line += RowsAtOnce) {
        if (first_row + line < s.height && column < s.width) {
          narrow(window[(c * V + line) * strip_pitch + place], out[to]);
        }
        to += RowsAtOnce * group.out.row;
      }
    }
    if (has_below) {
      for (int line = own_row; line < (K - 1) * C; line += RowsAtOnce) {
        if (column < s.width) {
          below[Index{line} * s.width + column] = window[(line % C * V + V - 1 - line / C) * strip_pitch + place];
        }
      }
      __syncwarp();
      if (lane == 0) {
        const int done = (chunk + 1) * Chunk < s.width ? (chunk + 1) * Chunk : s.width;
        pipeline.hand_down(task, done);
      }
    }
  };

  // x[m][j] is the result for a pixel j + 1 columns to the left, of the second row above the lane's own for m = 0, of
  // the one above for m = 1, and then of its own rows.
  A x[K - 1 + R][K - 1][C] = {};
  const int row = first_row + lane * R;
  int place = (strip_window - lane) % strip_window;
  const int chunks = (s.width + Chunk - 1) / Chunk;
  fetch(0);
  for (int chunk = 0; chunk < chunks + strip_delay; ++chunk) {
    __syncwarp();
    if (chunk >= strip_delay) {
      give(chunk - strip_delay);
    }
    keep(chunk);
    __syncwarp();
    fetch(chunk + 1);
    INVCONV_UNROLL_BY(C * sizeof(A) > 8 ? 1 : 2)  // with more of them it would spill
    for (int u = 0; u < Chunk; ++u) {
      const int step = chunk * Chunk + u, column = step - lane;
      const bool inside = column >= 0 && column < s.width;
      A next[K - 1 + R][C];
      INVCONV_UNROLL
      for (int m = 0; m < K - 1; ++m) {
        INVCONV_UNROLL
        for (int c = 0; c < C; ++c) {
          const A moved = __shfl_up_sync(0xffffffff, x[m + R][0][c], 1);
          next[m][c] = lane > 0 ? moved : has_above ? edge[((K - 2 - m) * C + c) * Chunk + u] : A(0);
        }
      }
      INVCONV_UNROLL
      for (int r = 0; r < R; ++r) {
        A sum[C];
        INVCONV_UNROLL
        for (int c = 0; c < C; ++c) {
          sum[c] = inside ? window[(c * V + lane * R + r) * strip_pitch + place] : A(0);
        }
        INVCONV_UNROLL
        for (int i = K - 1; i >= 0; --i) {
          INVCONV_UNROLL
          for (int j = K - 1; j >= (i > 0 ? 0 : 1); --j) {
            if (row + r >= i && column >= j) {
              INVCONV_UNROLL
              for (int c = 0; c < C; ++c) {
                const A value = j > 0 ? x[K - 1 + r - i][j > 0 ? j - 1 : 0][c] : next[K - 1 + r - i][c];
                INVCONV_UNROLL
                for (int o = 0; o < C; ++o) {
                  sum[o] = multiply_add(value, weight(i, j, o, c), sum[o]);
                }
              }
            }
          }
        }
        INVCONV_UNROLL
        for (int c = 0; c < C; ++c) {
          sum[c] = settled(s.unit_diagonal ? sum[c] : sum[c] / weight(0, 0, c, c));
          INVCONV_UNROLL
          for (int o = c + 1; o < C; ++o) {
            sum[o] = multiply_add(sum[c], weight(0, 0, o, c), sum[o]);
          }
          next[K - 1 + r][c] = sum[c];
          if (inside) {
            window[(c * V + lane * R + r) * strip_pitch + place] = sum[c];
          }
        }
      }
      INVCONV_UNROLL
      for (int m = 0; m < K - 1 + R; ++m) {
        INVCONV_UNROLL
        for (int c = 0; c < C; ++c) {
          INVCONV_UNROLL
          for (int j = K - 2; j > 0; --j) {
            x[m][j][c] = x[m][j - 1][c];
          }
          x[m][0][c] = next[m][c];
        }
      }
      place = place + 1 < strip_window ? place + 1 : 0;
    }
  }
}

}  // namespace invconv::detail::cuda
