#pragma once

// solve, any shape: one thread block for a strip of rows of an image and a group of channels. Anti-diagonal by
// anti-diagonal, with one barrier for each.
//
// `lanes` threads share a few pixels of a diagonal. Each has Outputs channels of them in registers, so that a weight is
// read once for Pixels pixels and a value once for Outputs outputs. Inside the pixels the channels are substituted lane
// after lane, by shuffles.

#include "block_strip.cuh"
#include "packed_weight.cuh"

namespace invconv::detail::cuda {

template <class T, int Outputs>
class BlockSolver {
 public:
  using A = Arithmetic<T>;
  static constexpr int Pixels = block_pixels(sizeof(A), Outputs);
  /// Blocks of a processor at a time, which leave 128 registers to a thread.
  static constexpr int resident = sizeof(A) == sizeof(float) && Outputs <= 4 ? 2 : 1;

  /// `thread` counts those that solve; `anchor` is the weight's part.
  __device__ BlockSolver(BlockStrip<T>& strip, const BlockShape& of, const A* weight, const A* anchor, int thread)
      : strip_(strip),
        of_(of),
        s_(of.shape),
        weight_(weight),
        anchor_(anchor),
        lane_(thread % of.lanes),
        first_lane_(thread % 32 - lane_),
        row_(thread / of.lanes * Pixels),
        warp_rows_(32 / of.lanes * Pixels),
        warp_row_(thread / 32 * warp_rows_) {}

  __device__ void solve() {
    A own[Pixels][Outputs] = {}, coming[Pixels][Outputs];
    load(0, 0, own);
    for (int diagonal = 0; diagonal < strip_.diagonals(); ++diagonal) {
      strip_.begin(diagonal);
      if (warp_row_ <= diagonal + 1 && has_pixels(diagonal)) {
        load(diagonal + 1, 0, coming);  // it is here when this diagonal is done
        for (int first = 0; first < s_.channels; first += of_.lanes * Outputs) {
          if (first > 0) {
            load(diagonal, first, own);
          }
          add_taps(diagonal, first + lane_ * Outputs, own);
          substitute(diagonal, first, own);
        }
        INVCONV_UNROLL
        for (int p = 0; p < Pixels; ++p) {
          INVCONV_UNROLL
          for (int o = 0; o < Outputs; ++o) {
            own[p][o] = coming[p][o];
          }
        }
      }
      strip_.advance();
      __syncthreads();
      strip_.hand_down(diagonal);
    }
  }

  /// Of the thread's warp, whose lanes go on together, since they shuffle: false when the diagonal is past its rows.
  __device__ bool has_pixels(int diagonal) const {
    return warp_row_ < strip_.rows() && diagonal - (warp_row_ + warp_rows_ - 1) < of_.width;
  }

  __device__ void load(int diagonal, int first, A (&to)[Pixels][Outputs]) const {
    strip_.load(row_, diagonal, first + lane_ * Outputs, to);
  }

  /// The thread's first row and, of the channels from `first` on, its first output.
  __device__ int row() const { return row_; }
  __device__ int output(int first) const { return first + lane_ * Outputs; }

  /// The thread's results from channel `first` on; before, `sum` has the own values and all products with other pixels.
  /// All of a warp's lanes pass here together.
  __device__ void substitute(int diagonal, int first, A (&sum)[Pixels][Outputs]) const {
    const int output = this->output(first);
    add_tap<4>(diagonal, 0, 0, first, anchor_ + output, sum);
    INVCONV_UNROLL_BY(1)
    for (int turn = 0; turn < of_.lanes && first + turn * Outputs < s_.channels; ++turn) {
      const int left = s_.channels - first - turn * Outputs;
      const A* const w = anchor_ + Index{first + turn * Outputs} * of_.padded + output;
      if (lane_ == turn) {
        INVCONV_UNROLL
        for (int k = 0; k < Outputs; ++k) {
          const Weights now = vector<Outputs>(w + (k < left ? k : 0) * of_.padded);
          INVCONV_UNROLL
          for (int p = 0; p < Pixels; ++p) {
            sum[p][k] = settled(s_.unit_diagonal ? sum[p][k] : sum[p][k] / now.at[k]);
            INVCONV_UNROLL
            for (int o = k + 1; o < Outputs; ++o) {
              sum[p][o] = multiply_add(sum[p][k], now.at[o], sum[p][o]);
            }
          }
        }
      }
      // Lanes behind this one have channels only if all of its own are some.
      const bool is_behind = lane_ > turn && output < s_.channels;
      INVCONV_UNROLL
      for (int k = 0; k < Outputs; ++k) {
        A theirs[Pixels];
        INVCONV_UNROLL
        for (int p = 0; p < Pixels; ++p) {
          theirs[p] = __shfl_sync(0xffffffff, sum[p][k], first_lane_ + turn);
        }
        if (is_behind) {
          const Weights now = vector<Outputs>(w + k * of_.padded);
          INVCONV_UNROLL
          for (int p = 0; p < Pixels; ++p) {
            INVCONV_UNROLL
            for (int o = 0; o < Outputs; ++o) {
              sum[p][o] = multiply_add(theirs[p], now.at[o], sum[p][o]);
            }
          }
        }
      }
    }
    strip_.store(row_, diagonal, output, sum);
    __syncwarp();  // the next channels of the pixels read these
  }

 private:
  using Weights = Vector<A, Outputs>;

  template <int AtOnce>
  __device__ void add_tap(int diagonal, int i, int j, int channels, const A* w, A (&sum)[Pixels][Outputs]) const {
    const A* x[Pixels];
    bool is_there[Pixels];
    if (strip_.find(row_, diagonal, i, j, x, is_there)) {
      add_products<AtOnce>(channels, x, is_there, w, of_.padded, sum);
    }
  }

  __device__ void add_taps(int diagonal, int output, A (&sum)[Pixels][Outputs]) const {
    const Index tap_size = Index{s_.channels} * of_.padded;
    for (int i = s_.kernel_height - 1; i >= 0; --i) {
      for (int j = s_.kernel_width - 1; j >= (i == 0 ? 1 : 0); --j) {
        add_tap<4>(diagonal, i, j, s_.channels, weight_ + tap_index(s_, i, j) * tap_size + output, sum);
      }
    }
  }

  BlockStrip<T>& strip_;
  const BlockShape& of_;
  const GroupShape& s_;
  const A *weight_, *anchor_;
  int lane_, first_lane_, row_;  // the lane in its group, the group's first lane in the warp, its first pixel
  int warp_rows_, warp_row_;     // of the warp
};

template <class T, int Outputs>
__global__ void __launch_bounds__(block_threads, BlockSolver<T, Outputs>::resident)
    solve_block(Groups<FilterGroup<T>> groups, BlockShape of, Pipeline<Arithmetic<T>> pipeline,
                const Arithmetic<T>* packed, Arithmetic<T>* histories) {
  using A = Arithmetic<T>;
  static_assert(sizeof(BlockHeader<T>) <= block_header_bytes);
  auto& header = *shared_memory<BlockHeader<T>>();
  claim_strip(header, groups, of, pipeline, histories);
  BlockStrip<T> strip(header, of, pipeline);
  const A* const weight = block_weight<T, true>(of.shape, strip.group().weight, of.padded, of.weight_in_shared, packed,
                                                strip.group_index(), strip.rest());
  BlockSolver<T, Outputs>(strip, of, weight, weight + anchor_at(of.shape, of.padded), static_cast<int>(threadIdx.x))
      .solve();
}

}  // namespace invconv::detail::cuda
