#pragma once

// solve, 3 x 3 taps and C <= 4 channels, images of any size: a warp has a strip of 32 rows in its lanes, each one
// column behind the one above it, so that a step is a piece of an anti-diagonal and the neighbours above come by
// shuffles. The strips of an image follow each other in a pipeline: the last two rows of each go to the one below by
// way of the workspace, strip_columns columns at a time.
//
// A warp claims its strip by a ticket, image by image from the top: the strip above has then been claimed before, so
// that whoever waits for it waits for a warp that runs. (Nobody promises the order in which blocks start.)

#include "problem.cuh"

namespace invconv::detail::cuda {

struct StripsShape {
  int height, width, strips;
  bool unit_diagonal;
};

/// The strips' shared state: null where there is one strip to an image.
template <class A>
struct Strips {
  unsigned* ticket;
  unsigned* progress;  // [image and group][strip]: columns of its last rows that are done
  A* edges;            // [image and group][strip][the nearest first][channel][column]
};

template <class T, int C>
__global__ void __launch_bounds__(32, 1)
    solve_strips(Groups<FilterGroup<T>> groups, StripsShape s, Strips<Arithmetic<T>> shared) {
  using A = Arithmetic<T>;
  constexpr int K = strips_kernel, V = strip_rows;
  const int lane = static_cast<int>(threadIdx.x);
  Index task = blockIdx.x;
  if (shared.ticket != nullptr) {
    unsigned ticket = lane == 0 ? atomic_add(shared.ticket, 1) : 0;
    task = __shfl_sync(0xffffffff, ticket, 0);
  }
  const Index chain = task / s.strips;
  const int strip = static_cast<int>(task % s.strips);
  FilterGroup<T> group = groups.at(static_cast<int>(chain % groups.count));
  const Index image = chain / groups.count;
  const int row = strip * V + lane;
  const bool live = row < s.height;
  const T* in = group.in.data + image * group.in.batch + (live ? row : 0) * group.in.row;
  T* out = group.out.data + image * group.out.batch + (live ? row : 0) * group.out.row;
  const Index edge_size = Index{K - 1} * C * s.width;
  const bool has_above = strip > 0, has_below = strip + 1 < s.strips;
  A* const below = has_below ? shared.edges + (chain * s.strips + strip) * edge_size : nullptr;
  const A* const above = has_above ? shared.edges + (chain * s.strips + strip - 1) * edge_size : nullptr;

  // By age: [i][j][output][input]. More of them than this would leave no registers for the rest.
  constexpr bool in_registers = K * K * C * C * sizeof(A) <= 100 * sizeof(float);
  A own[in_registers ? K : 1][in_registers ? K : 1][in_registers ? C : 1][in_registers ? C : 1];
  const auto weight = [&](int i, int j, int o, int c) -> auto& {
    if constexpr (in_registers) {
      return own[i][j][o][c];
    } else {
      // Read where it is used: all of them at once would spill.
      volatile A* const all = shared_memory<A>();
      return all[((i * K + j) * C + o) * C + c];
    }
  };
  INVCONV_UNROLL
  for (int i = 0; i < K; ++i) {
    INVCONV_UNROLL
    for (int j = 0; j < K; ++j) {
      INVCONV_UNROLL
      for (int o = 0; o < C; ++o) {
        INVCONV_UNROLL
        for (int c = 0; c < C; ++c) {
          A value = 0;
          if (is_read(s.unit_diagonal, i, j, o, c)) {
            value = widen(group.weight.data[o * group.weight.out + c * group.weight.in + i * group.weight.row +
                                            j * group.weight.column]);
            value = i == 0 && j == 0 && c == o ? value : -value;
          }
          if (in_registers || lane == 0) {
            weight(i, j, o, c) = value;
          }
        }
      }
    }
  }

  __syncwarp();

  // x[i][j] is the result for the pixel i rows up and j + 1 columns to the left.
  A x[K][K - 1][C] = {};
  A incoming[K - 1][C] = {};  // lane l: of the rows above the strip, column `chunk + l`
  int chunk = 0;
  for (int step = 0; step < s.width + V - 1; ++step) {
    if (has_above && step % strip_columns == 0 && step < s.width) {
      chunk = step;
      const int enough = chunk + strip_columns < s.width ? chunk + strip_columns : s.width;
      if (lane == 0) {
        while (load_acquire(shared.progress + chain * s.strips + strip - 1) < static_cast<unsigned>(enough)) {
          back_off();
        }
      }
      __syncwarp();
      const int column = chunk + lane;
      INVCONV_UNROLL
      for (int m = 0; m < K - 1; ++m) {
        INVCONV_UNROLL
        for (int c = 0; c < C; ++c) {
          incoming[m][c] =
              lane < strip_columns && column < s.width ? above[(Index{m} * C + c) * s.width + column] : A(0);
        }
      }
    }
    const int column = step - lane;
    const bool inside = live && column >= 0 && column < s.width;
    A sum[C];
    INVCONV_UNROLL
    for (int c = 0; c < C; ++c) {
      sum[c] = inside ? widen(in[c * group.in.channel + column * group.in.column]) : A(0);
    }
    // The row i rows up was in this step's column i steps ago.
    A next[K][C] = {};
    INVCONV_UNROLL
    for (int i = K - 1; i > 0; --i) {
      INVCONV_UNROLL
      for (int c = 0; c < C; ++c) {
        const A moved = __shfl_up_sync(0xffffffff, x[i - 1][0][c], 1);
        const A first = __shfl_sync(0xffffffff, incoming[i - 1][c], step - chunk);
        next[i][c] = lane == 0 ? (step < s.width ? first : A(0)) : moved;
      }
    }
    INVCONV_UNROLL
    for (int i = K - 1; i >= 0; --i) {
      INVCONV_UNROLL
      for (int j = K - 1; j >= (i > 0 ? 0 : 1); --j) {
        if (row >= i && column >= j) {
          INVCONV_UNROLL
          for (int c = 0; c < C; ++c) {
            const A value = j > 0 ? x[i][j - 1][c] : next[i][c];
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
    }
    INVCONV_UNROLL
    for (int i = 0; i < K; ++i) {
      INVCONV_UNROLL
      for (int c = 0; c < C; ++c) {
        INVCONV_UNROLL
        for (int j = K - 2; j > 0; --j) {
          x[i][j][c] = x[i][j - 1][c];
        }
        x[i][0][c] = i > 0 ? next[i][c] : sum[c];
      }
    }
    if (inside) {
      INVCONV_UNROLL
      for (int c = 0; c < C; ++c) {
        narrow(sum[c], out[c * group.out.channel + column * group.out.column]);
      }
    }
    if (has_below) {
      if (inside && lane > V - K) {
        INVCONV_UNROLL
        for (int c = 0; c < C; ++c) {
          below[(Index{V - 1 - lane} * C + c) * s.width + column] = sum[c];
        }
      }
      const int done = step - (V - 1) + 1;  // columns of the last row
      if (done > 0 && (done % strip_columns == 0 || done == s.width)) {
        __syncwarp();
        if (lane == 0) {
          store_release(shared.progress + chain * s.strips + strip, static_cast<unsigned>(done));
        }
      }
    }
  }
}

}  // namespace invconv::detail::cuda
