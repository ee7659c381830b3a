#pragma once

// solve, any shape: one thread block for a strip of rows of an image and a group of channels. Anti-diagonal by
// anti-diagonal, with one barrier for each; of the results only those that later pixels of the strip read are kept, in
// shared memory where they fit.
//
// `lanes` threads share a few pixels of a diagonal. Each has Outputs channels of them in registers, so that a weight is
// read once for Pixels pixels and a value once for Outputs outputs. Inside the pixels the channels are substituted lane
// after lane, by shuffles.
//
// An image is one strip if either of its sides is short enough: that one is then called its rows. Otherwise its strips
// follow each other in a pipeline, to which each hands down its last rows, so many columns at a time:
// [strip of all][row][column][channel].

#include "packed_weight.cuh"
#include "pipeline.cuh"

namespace invconv::detail::cuda {

/// A block's own: in shared memory, where it takes no registers.
template <class T>
struct BlockHeader {
  FilterGroup<T> group;  // of the image
  Index task;
};

template <class T, int Outputs>
class BlockSolver {
 public:
  using A = Arithmetic<T>;
  static constexpr int Pixels = block_pixels(sizeof(A), Outputs);
  /// Blocks of a processor at a time, which leave 128 registers to a thread.
  static constexpr int resident = sizeof(A) == sizeof(float) && Outputs <= 4 ? 2 : 1;

  __device__ BlockSolver(const FilterGroup<T>& group, const BlockShape& of, int strip, const A* weight, A* kept,
                         const A* edges, A* below)
      : group_(group),
        of_(of),
        s_(of.shape),
        history_(kept),
        ring_(kept + of.history_size()),
        weight_(weight),
        edges_(edges),
        below_(below),
        first_row_(strip * of.rows),
        rows_(of.height - first_row_ < of.rows ? of.height - first_row_ : of.rows),
        lane_(static_cast<int>(threadIdx.x) % of.lanes),
        first_lane_(static_cast<int>(threadIdx.x) % 32 - lane_),
        row_(static_cast<int>(threadIdx.x) / of.lanes * Pixels) {}

  /// Calls `wait(columns)` before it reads as many of the strip above, and `done(columns)` when as many of the last row
  /// are there for the strip below.
  template <class Wait, class Done>
  __device__ void solve(Wait&& wait, Done&& done) {
    const int warp_rows = 32 / of_.lanes * Pixels;
    const int warp_row = static_cast<int>(threadIdx.x) / 32 * warp_rows;
    const int diagonals = of_.above() + of_.before() + 1;
    A own[Pixels][Outputs] = {}, coming[Pixels][Outputs];
    load(0, 0, own);
    for (int diagonal = 0; diagonal < rows_ + of_.width - 1; ++diagonal) {
      if (edges_ != nullptr && diagonal % block_columns == 0 && diagonal < of_.width) {
        const int end = diagonal + block_columns < of_.width ? diagonal + block_columns : of_.width;
        wait(end);
        fetch(diagonal, end);
        __syncthreads();
      }
      // All lanes of a warp go on together, since they shuffle.
      if (warp_row <= diagonal + 1 && warp_row < rows_ && diagonal - (warp_row + warp_rows - 1) < of_.width) {
        load(diagonal + 1, 0, coming);  // it is here when this diagonal is done
        for (int first = 0; first < s_.channels; first += of_.lanes * Outputs) {
          if (first > 0) {
            load(diagonal, first, own);
          }
          solve_pixels(diagonal, first, own);
          __syncwarp();  // the next channels of the pixels read these
        }
        INVCONV_UNROLL
        for (int p = 0; p < Pixels; ++p) {
          INVCONV_UNROLL
          for (int o = 0; o < Outputs; ++o) {
            own[p][o] = coming[p][o];
          }
        }
      }
      slot_ = slot_ + 1 < diagonals ? slot_ + 1 : 0;
      __syncthreads();
      const int columns = diagonal - rows_ + 2;
      if (below_ != nullptr && columns > 0 && (columns % block_columns == 0 || columns == of_.width)) {
        done(columns);
      }
    }
  }

 private:
  using Weights = Vector<A, Outputs>;

  __device__ bool is_active(int p, int diagonal) const {
    const int row = row_ + p;
    return row < rows_ && row <= diagonal && diagonal - row < of_.width;
  }

  /// The pixel's place among those of the strip: [diagonal][row][channel].
  __device__ A* pixel(int age, int row) const {
    const int slot = slot_ - age;
    return history_ + (Index{slot < 0 ? slot + of_.above() + of_.before() + 1 : slot} * of_.rows + row) * of_.pitch;
  }
  /// Of the strip above: [the nearest row first][column][channel].
  __device__ A* edge(int rows_up, int column) const {
    return ring_ + (Index{rows_up - 1} * of_.edge_columns + (column & (of_.edge_columns - 1))) * of_.pitch;
  }

  /// These columns of the rows above, which may be of more than one strip.
  __device__ void fetch(int begin, int end) const {
    const int rows = of_.above() < first_row_ ? of_.above() : first_row_, edge_rows = of_.edge_rows();
    const int line = (end - begin) * of_.pitch;
    for (int index = static_cast<int>(threadIdx.x); index < rows * line; index += static_cast<int>(blockDim.x)) {
      const int up = index / line + 1, at = index % line, row = first_row_ - up;
      const int strip = row / of_.rows, place = row % of_.rows - (of_.rows - edge_rows);
      edge(up, begin + at / of_.pitch)[at % of_.pitch] =
          edges_[(Index{strip} * edge_rows + place) * of_.width * of_.pitch + Index{begin} * of_.pitch + at];
    }
  }

  /// The image's own values, 0 where there are none.
  __device__ void load(int diagonal, int first, A (&to)[Pixels][Outputs]) const {
    const int output = first + lane_ * Outputs;
    INVCONV_UNROLL
    for (int p = 0; p < Pixels; ++p) {
      const int row = row_ + p, column = diagonal - row;
      const T* const from = group_.in.data + (first_row_ + row) * group_.in.row + column * group_.in.column;
      INVCONV_UNROLL
      for (int o = 0; o < Outputs; ++o) {
        const bool is_there = is_active(p, diagonal) && output + o < s_.channels;
        to[p][o] = is_there ? widen(from[(output + o) * group_.in.channel]) : A(0);
      }
    }
  }

  /// Adds the products of `channels` values of each pixel that is there.
  __device__ void add(int channels, const A* const (&x)[Pixels], const bool (&is_there)[Pixels], const A* w,
                      A (&sum)[Pixels][Outputs]) const {
    const Index padded = of_.padded;
    const auto add_channel = [&](const A(&value)[Pixels], const A* at) {
      const Weights now = vector<Outputs>(at);
      INVCONV_UNROLL
      for (int p = 0; p < Pixels; ++p) {
        INVCONV_UNROLL
        for (int o = 0; o < Outputs; ++o) {
          sum[p][o] = is_there[p] ? multiply_add(value[p], now.at[o], sum[p][o]) : sum[p][o];
        }
      }
    };
    int c = 0;
    for (; c + 4 <= channels; c += 4, w += 4 * padded) {
      Vector<A, 4> values[Pixels];
      INVCONV_UNROLL
      for (int p = 0; p < Pixels; ++p) {
        values[p] = vector<4>(x[p] + c);
      }
      INVCONV_UNROLL
      for (int k = 0; k < 4; ++k) {
        A value[Pixels];
        INVCONV_UNROLL
        for (int p = 0; p < Pixels; ++p) {
          value[p] = values[p].at[k];
        }
        add_channel(value, w + k * padded);
      }
    }
    for (; c < channels; ++c, w += padded) {
      A value[Pixels];
      INVCONV_UNROLL
      for (int p = 0; p < Pixels; ++p) {
        value[p] = x[p][c];
      }
      add_channel(value, w);
    }
  }

  /// The lane's outputs from `first` on; before, `sum` has the own values.
  __device__ void solve_pixels(int diagonal, int first, A (&sum)[Pixels][Outputs]) const {
    const int output = first + lane_ * Outputs;
    const Index tap_size = Index{s_.channels} * of_.padded;
    const A* const anchor = weight_ + (s_.kernel_height * s_.kernel_width - 1) * tap_size;
    const auto add_tap = [&](int i, int j, int channels, const A* w) {
      const int up = of_.swapped ? j : i, left = of_.swapped ? i : j;
      bool is_there[Pixels];
      const A *x[Pixels], *any = nullptr;
      INVCONV_UNROLL
      for (int p = 0; p < Pixels; ++p) {
        const int row = row_ + p, column = diagonal - row;
        is_there[p] = is_active(p, diagonal) && first_row_ + row >= up && column >= left;
        x[p] = row >= up ? pixel(i + j, row - up) : edge(up - row, column - left);
        any = is_there[p] ? x[p] : any;
      }
      if (any != nullptr) {
        INVCONV_UNROLL
        for (int p = 0; p < Pixels; ++p) {
          x[p] = is_there[p] ? x[p] : any;  // what is not there is not read
        }
        add(channels, x, is_there, w, sum);
      }
    };
    for (int i = s_.kernel_height - 1; i >= 0; --i) {
      for (int j = s_.kernel_width - 1; j >= (i == 0 ? 1 : 0); --j) {
        add_tap(i, j, s_.channels, weight_ + tap_index(s_, i, j) * tap_size + output);
      }
    }
    add_tap(0, 0, first, anchor + output);

    for (int turn = 0; turn < of_.lanes && first + turn * Outputs < s_.channels; ++turn) {
      A value[Pixels][Outputs];
      INVCONV_UNROLL
      for (int p = 0; p < Pixels; ++p) {
        INVCONV_UNROLL
        for (int k = 0; k < Outputs; ++k) {
          value[p][k] = sum[p][k];
        }
      }
      // Each lane solves its own channels, and one has its turn.
      INVCONV_UNROLL
      for (int k = 0; k < Outputs; ++k) {
        const int own = output + k < s_.channels ? output + k : 0;
        const Weights now = vector<Outputs>(anchor + Index{own} * of_.padded + output);
        INVCONV_UNROLL
        for (int p = 0; p < Pixels; ++p) {
          value[p][k] = settled(s_.unit_diagonal ? value[p][k] : value[p][k] / now.at[k]);
          INVCONV_UNROLL
          for (int o = k + 1; o < Outputs; ++o) {
            value[p][o] = multiply_add(value[p][k], now.at[o], value[p][o]);
          }
        }
      }
      INVCONV_UNROLL
      for (int p = 0; p < Pixels; ++p) {
        INVCONV_UNROLL
        for (int k = 0; k < Outputs; ++k) {
          const A theirs = __shfl_sync(0xffffffff, value[p][k], first_lane_ + turn);
          sum[p][k] = lane_ == turn ? value[p][k] : sum[p][k];
          value[p][k] = theirs;
        }
      }
      if (lane_ > turn && output < s_.channels) {  // else some of the turn may be no channels
        const A* const w = anchor + Index{first + turn * Outputs} * of_.padded + output;
        INVCONV_UNROLL
        for (int k = 0; k < Outputs; ++k) {
          const Weights now = vector<Outputs>(w + Index{k} * of_.padded);
          INVCONV_UNROLL
          for (int p = 0; p < Pixels; ++p) {
            INVCONV_UNROLL
            for (int o = 0; o < Outputs; ++o) {
              sum[p][o] = multiply_add(value[p][k], now.at[o], sum[p][o]);
            }
          }
        }
      }
    }

    INVCONV_UNROLL
    for (int p = 0; p < Pixels; ++p) {
      if (is_active(p, diagonal)) {
        const int row = row_ + p, column = diagonal - row, place = row - (of_.rows - of_.edge_rows());
        A* const here = pixel(0, row);
        A* const down =
            below_ != nullptr && place >= 0 ? below_ + (Index{place} * of_.width + column) * of_.pitch : nullptr;
        T* const out = group_.out.data + (first_row_ + row) * group_.out.row + column * group_.out.column;
        INVCONV_UNROLL
        for (int o = 0; o < Outputs; ++o) {
          if (output + o < s_.channels) {
            here[output + o] = sum[p][o];
            if (down != nullptr) {
              down[output + o] = sum[p][o];
            }
            narrow(sum[p][o], out[(output + o) * group_.out.channel]);
          }
        }
      }
    }
  }

  const FilterGroup<T>& group_;
  const BlockShape& of_;
  const GroupShape& s_;
  A *history_, *ring_;
  const A *weight_, *edges_;  // of the strips above; null where no pixel reads them
  A* below_;                  // null likewise
  int first_row_, rows_;
  int lane_, first_lane_, row_;  // the lane in its group, the group's first lane in the warp, its first pixel
  int slot_ = 0;                 // where the present diagonal is kept
};

template <class T, int Outputs>
__global__ void __launch_bounds__(block_threads, BlockSolver<T, Outputs>::resident)
    solve_block(Groups<FilterGroup<T>> groups, BlockShape of, Pipeline<Arithmetic<T>> pipeline,
                const Arithmetic<T>* packed, Arithmetic<T>* histories) {
  using A = Arithmetic<T>;
  static_assert(sizeof(BlockHeader<T>) <= block_header_bytes);
  auto& header = *shared_memory<BlockHeader<T>>();
  if (threadIdx.x == 0) {
    const Index task = pipeline.claim(), chain = task / of.strips;
    header.task = task;
    header.group = {groups.at(static_cast<int>(chain % groups.count)).from_image(chain / groups.count)};
    if (of.swapped) {
      header.group.swap_images();
    }
  }
  __syncthreads();
  const Index task = header.task, chain = task / of.strips;
  const int strip = static_cast<int>(task % of.strips), group_index = static_cast<int>(chain % groups.count);
  A* const shared = shared_memory<A>() + block_header_bytes / sizeof(A);

  const Index kept_size = of.history_size() + of.ring_size();
  A* const kept = of.history_in_shared ? shared : histories + task * kept_size;
  const A* const weight = block_weight<T, true>(of.shape, header.group.weight, of.padded, of.weight_in_shared, packed,
                                                group_index, shared + (of.history_in_shared ? kept_size : 0));
  A *edges = nullptr, *below = nullptr;
  if (of.strips > 1 && of.above() > 0) {
    edges = pipeline.edges + chain * of.strips * of.edge_size();
    below = strip + 1 < of.strips ? edges + strip * of.edge_size() : nullptr;
  }
  BlockSolver<T, Outputs> solver(header.group, of, strip, weight, kept, strip > 0 ? edges : nullptr, below);
  solver.solve(
      [&](int columns) {
        if (threadIdx.x == 0) {
          pipeline.wait(task, columns);
        }
        __syncthreads();
      },
      [&](int columns) {
        if (threadIdx.x == 0) {
          pipeline.hand_down(task, columns);
        }
      });
}

}  // namespace invconv::detail::cuda
