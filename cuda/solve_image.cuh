#pragma once

// solve, square kernels of 3, 5 and 7 taps, images that fit in shared memory: one thread block for an image and a
// group, the weight in registers. Anti-diagonal by anti-diagonal.
//
// A sum is shared by `slices` threads, each of which has the weights of some outputs, inputs and rows of taps. Taps are
// split by age: what reaches two or more diagonals back is summed while the diagonal before is being finished, so that
// (0, 1) and (1, 0) alone wait for it. Then the parts are added up and the channels of a pixel substituted, by one
// thread for each pixel in warps of its own, or where there are many channels by a warp for each pixel.
//
// An output's sum is the own value, then the parts in their order, then the channels of the pixel upwards: by the
// shape alone, but another order than the CPU's. No product passes through more roundings than there are terms.

#include "problem.cuh"

namespace invconv::detail::cuda {

/// Calls `each(row, column, channel)` for all of an image, a warp with 4 channels of 8 columns at a time: whole sectors
/// of global memory, and all banks of shared memory.
template <class Each>
__device__ void for_image(const GroupShape& s, int channels, bool channels_last, Each&& each) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32, warps = static_cast<int>(blockDim.x) / 32;
  const int own_column = channels_last ? lane / 4 : lane % 8, own_channel = channels_last ? lane % 4 : lane / 8;
  const int wide = (s.width + 7) / 8, deep = (channels + 3) / 4;
  INVCONV_UNROLL_BY(2)
  for (int tile = warp; tile < s.height * wide * deep; tile += warps) {
    const int column = tile % wide * 8 + own_column, rest = tile / wide;
    const int channel = rest % deep * 4 + own_channel, row = rest / deep;
    if (column < s.width && channel < channels) {
      each(row, column, channel);
    }
  }
}

/// K x K taps. A thread has the weights of Outputs x Inputs channels. Substituted: the most channels of a pixel that is
/// one thread's; 0 where it is a warp's.
template <class T, int K, int Outputs, int Inputs, int Substituted>
class ImageSolver {
 public:
  using A = Arithmetic<T>;
  static constexpr ImageVariant variant{K, Outputs, Inputs, Substituted};
  static constexpr int rows_of_taps = variant.rows_of_taps(sizeof(A));

  __device__ ImageSolver(const FilterGroup<T>& group, const ImageShape& of)
      : of_(of), s_(of.shape), image_(shared_memory<A>()) {
    anchor_ = image_ + s_.height * of.row_pitch;
    parts_ = anchor_ + (Substituted > 0 ? Substituted : s_.channels) * of.pitch;
    part_size_ = s_.height * of.pitch;
    const int thread = static_cast<int>(threadIdx.x);
    const int outputs = (s_.channels + Outputs - 1) / Outputs, inputs = (s_.channels + Inputs - 1) / Inputs;
    const bool is_sum = thread < of.row_groups * of.row_threads;
    first_row_ = is_sum ? thread / of.row_threads : s_.height;
    slice_ = thread % of.row_threads / outputs;
    first_output_ = thread % of.row_threads % outputs * Outputs;
    first_input_ = slice_ % inputs * Inputs;
    tap_row_ = slice_ / inputs;
    load_image(group);
    load_anchor(group.weight);
    load_weight(group.weight, inputs * Inputs, outputs * Outputs);
    __syncthreads();
    for (int index = thread; index < 2 * of.slices * part_size_; index += static_cast<int>(blockDim.x)) {
      parts_[index] = 0;
    }
    __syncthreads();
  }

  __device__ void solve() {
    for (int diagonal = 0; diagonal < s_.height + s_.width - 1; ++diagonal) {
      finish(diagonal);
      __syncthreads();
      int slices = of_.slices;
      if (Substituted > 0 && slices > most_slices) {
        add_slices(diagonal);
        __syncthreads();
        slices = 1;
      }
      if constexpr (Substituted > 0) {
        const int row = static_cast<int>(threadIdx.x) - static_cast<int>(blockDim.x) + padded_height();
        if (row >= 0 && is_active(row, diagonal)) {
          substitute(row, diagonal, slices);
        }
      } else {
        const int warp = static_cast<int>(threadIdx.x) / 32, warps = static_cast<int>(blockDim.x) / 32;
        for (int row = warp; row < s_.height; row += warps) {
          if (is_active(row, diagonal)) {
            substitute_by_warp(row, diagonal);
          }
        }
      }
      start(diagonal + 1);
      __syncthreads();
    }
  }

  __device__ void store(const FilterGroup<T>& group) const {
    store(group, [&](int row, int column, int channel, T& to) { narrow(pixel(row, column)[channel], to); });
  }

  /// Also in shared memory the result is then rounded to a T.
  __device__ void store_and_keep(const FilterGroup<T>& group) const {
    store(group, [&](int row, int column, int channel, T& to) {
      A& value = pixel(row, column)[channel];
      T rounded;
      narrow(value, rounded);
      value = widen(rounded);
      to = rounded;
    });
  }

 private:
  /// More slices than this are added up by all threads before the channels are substituted.
  static constexpr int most_slices = 4;

  static __device__ Index magnitude(Index stride) { return stride < 0 ? -stride : stride; }

  static __device__ A at(const Taps<const T>& w, int output, int input, int i, int j) {
    return widen(w.data[output * w.out + input * w.in + i * w.row + j * w.column]);
  }

  template <class Each>
  __device__ void store(const FilterGroup<T>& group, Each&& each) const {
    const bool channels_last = magnitude(group.out.channel) < magnitude(group.out.column);
    for_image(s_, s_.channels, channels_last, [&](int row, int column, int channel) {
      each(row, column, channel,
           group.out.data[channel * group.out.channel + row * group.out.row + column * group.out.column]);
    });
  }

  /// The channels up to the pitch are 0.
  __device__ void load_image(const FilterGroup<T>& group) const {
    const bool channels_last = magnitude(group.in.channel) < magnitude(group.in.column);
    for_image(s_, of_.pitch, channels_last, [&](int row, int column, int channel) {
      A value = 0;
      if (channel < s_.channels) {
        value = widen(group.in.data[channel * group.in.channel + row * group.in.row + column * group.in.column]);
      }
      pixel(row, column)[channel] = value;
    });
  }

  __device__ void load_anchor(const Taps<const T>& weight) const {
    const int lines = Substituted > 0 ? Substituted : s_.channels;
    for (int index = static_cast<int>(threadIdx.x); index < lines * of_.pitch; index += static_cast<int>(blockDim.x)) {
      const int input = index / of_.pitch, output = index % of_.pitch;
      A value = 0;
      if (output < s_.channels && input < s_.channels && is_read(s_.unit_diagonal, 0, 0, output, input)) {
        value = at(weight, output, input, 0, 0);
      }
      anchor_[index] = input == output ? value : -value;
    }
  }

  /// By way of the parts' memory, since a number is in the registers of many threads: [i][j][input][output], all but
  /// the anchor.
  __device__ void load_weight(const Taps<const T>& weight, int inputs, int outputs) {
    A* const shared = parts_ - inputs * outputs;
    for (int index = static_cast<int>(threadIdx.x); index < K * K * inputs * outputs;
         index += static_cast<int>(blockDim.x)) {
      const int j = index % K, i = index / K % K, input = index / (K * K) % inputs, output = index / (K * K) / inputs;
      if (i + j > 0) {
        const bool is_inside = output < s_.channels && input < s_.channels;
        shared[((i * K + j) * inputs + input) * outputs + output] = is_inside ? -at(weight, output, input, i, j) : A(0);
      }
    }
    __syncthreads();
    INVCONV_UNROLL
    for (int ii = 0; ii < rows_of_taps; ++ii) {
      INVCONV_UNROLL
      for (int j = 0; j < K; ++j) {
        const A* const from = shared + ((tap_row(ii) * K + j) * inputs + first_input_) * outputs + first_output_;
        INVCONV_UNROLL
        for (int c = 0; c < Inputs; ++c) {
          INVCONV_UNROLL
          for (int o = 0; o < Outputs; ++o) {
            weight_[ii][j][c][o] = first_row_ < s_.height && tap_row(ii) + j > 0 ? from[c * outputs + o] : A(0);
          }
        }
      }
    }
  }

  __device__ int tap_row(int ii) const { return rows_of_taps == K ? ii : tap_row_; }
  __device__ int padded_height() const { return rounded_up(s_.height, 32); }
  __device__ A* pixel(int row, int column) const { return image_ + row * of_.row_pitch + column * of_.pitch; }
  __device__ A* part(int diagonal, int slice, int row) const {
    return parts_ + (diagonal % 2 * of_.slices + slice) * part_size_ + row * of_.pitch;
  }
  __device__ bool is_active(int row, int diagonal) const {
    return row < s_.height && row <= diagonal && diagonal - row < s_.width;
  }

  /// Adds the thread's products with the diagonal before, or with those before that one.
  template <bool Latest>
  __device__ void add(int row, int column, A (&sum)[Outputs]) const {
    INVCONV_UNROLL
    for (int ii = rows_of_taps - 1; ii >= 0; --ii) {
      const int i = tap_row(ii);
      INVCONV_UNROLL
      for (int j = Latest ? 1 : K - 1; j >= 0; --j) {
        if ((Latest ? i + j == 1 : i + j > 1) && row >= i && column >= j) {
          const A* const x = pixel(row - i, column - j) + first_input_;
          INVCONV_UNROLL
          for (int c = 0; c < Inputs; ++c) {
            INVCONV_UNROLL
            for (int o = 0; o < Outputs; ++o) {
              sum[o] = multiply_add(x[c], weight_[ii][j][c][o], sum[o]);
            }
          }
        }
      }
    }
  }

  /// What a diagonal's sums can have before the one before it is known.
  __device__ void start(int diagonal) const {
    for (int row = first_row_; row < s_.height; row += of_.row_groups) {
      if (is_active(row, diagonal)) {
        A sum[Outputs] = {};
        add<false>(row, diagonal - row, sum);
        A* const to = part(diagonal, slice_, row) + first_output_;
        INVCONV_UNROLL
        for (int o = 0; o < Outputs; ++o) {
          to[o] = sum[o];
        }
      }
    }
  }

  __device__ void finish(int diagonal) const {
    for (int row = first_row_; row < s_.height; row += of_.row_groups) {
      if (is_active(row, diagonal)) {
        A* const to = part(diagonal, slice_, row) + first_output_;
        A sum[Outputs];
        INVCONV_UNROLL
        for (int o = 0; o < Outputs; ++o) {
          sum[o] = to[o];
        }
        add<true>(row, diagonal - row, sum);
        INVCONV_UNROLL
        for (int o = 0; o < Outputs; ++o) {
          to[o] = sum[o];
        }
      }
    }
  }

  __device__ void add_slices(int diagonal) const {
    for (int index = static_cast<int>(threadIdx.x); index < s_.height * s_.channels;
         index += static_cast<int>(blockDim.x)) {
      const int row = index / s_.channels, channel = index % s_.channels;
      if (is_active(row, diagonal)) {
        A* const to = part(diagonal, 0, row) + channel;
        A sum = *to;
        for (int slice = 1; slice < of_.slices; ++slice) {
          sum += to[slice * part_size_];
        }
        *to = sum;
      }
    }
  }

  __device__ void substitute(int row, int diagonal, int slices) const {
    static_assert(Substituted % 4 == 0);
    A* const x = pixel(row, diagonal - row);
    const A* const parts = part(diagonal, 0, row);
    Vector<A, 4> sum[Substituted / 4 + 1];  // one more, since an array has elements
    INVCONV_UNROLL
    for (int q = 0; q < Substituted / 4; ++q) {
      sum[q] = vector<4>(x + 4 * q);
    }
    for (int slice = 0; slice < slices; ++slice) {
      INVCONV_UNROLL
      for (int q = 0; q < Substituted / 4; ++q) {
        const Vector<A, 4> part = vector<4>(parts + slice * part_size_ + 4 * q);
        INVCONV_UNROLL
        for (int k = 0; k < 4; ++k) {
          sum[q].at[k] += part.at[k];
        }
      }
    }
    INVCONV_UNROLL
    for (int c = 0; c < Substituted; ++c) {
      const A* const line = anchor_ + c * of_.pitch;
      A& value = sum[c / 4].at[c % 4];
      value = settled(s_.unit_diagonal ? value : value / line[c]);
      INVCONV_UNROLL
      for (int q = c / 4; q < Substituted / 4; ++q) {
        const Vector<A, 4> weights = vector<4>(line + 4 * q);
        INVCONV_UNROLL
        for (int k = 0; k < 4; ++k) {
          if (4 * q + k > c) {
            sum[q].at[k] = multiply_add(value, weights.at[k], sum[q].at[k]);
          }
        }
      }
    }
    INVCONV_UNROLL
    for (int q = 0; q < Substituted / 4; ++q) {
      INVCONV_UNROLL
      for (int k = 0; k < 4; ++k) {
        sum[q].at[k] = 4 * q + k < s_.channels ? sum[q].at[k] : A(0);  // others read all of a pixel
      }
      vector<4>(x + 4 * q) = sum[q];
    }
  }

  /// A lane has the outputs lane and lane + 32. Channels are solved four at a time, by each lane for itself.
  __device__ void substitute_by_warp(int row, int diagonal) const {
    constexpr int Halves = 2, Panel = 4;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    A* const x = pixel(row, diagonal - row);
    const A* const parts = part(diagonal, 0, row);
    A sum[Halves];
    INVCONV_UNROLL
    for (int h = 0; h < Halves; ++h) {
      const int output = h * 32 + lane;
      sum[h] = 0;
      if (output < s_.channels) {
        sum[h] = x[output];
        for (int slice = 0; slice < of_.slices; ++slice) {
          sum[h] += parts[slice * part_size_ + output];
        }
      }
    }
    for (int first = 0; first < s_.channels; first += Panel) {
      A value[Panel];
      const A from = first < 32 ? sum[0] : sum[1];
      INVCONV_UNROLL
      for (int k = 0; k < Panel; ++k) {
        value[k] = __shfl_sync(0xffffffff, from, (first + k) % 32);
      }
      const int left = s_.channels - first;
      INVCONV_UNROLL
      for (int k = 0; k < Panel; ++k) {
        if (k < left) {
          const A* const line = anchor_ + (first + k) * of_.pitch;
          const Vector<A, 4> weights = vector<4>(line + first);
          value[k] = settled(s_.unit_diagonal ? value[k] : value[k] / weights.at[k]);
          INVCONV_UNROLL
          for (int l = k + 1; l < Panel; ++l) {
            value[l] = multiply_add(value[k], weights.at[l], value[l]);
          }
          INVCONV_UNROLL
          for (int h = 0; h < Halves; ++h) {
            const int output = h * 32 + lane;
            if (output == first + k) {
              sum[h] = value[k];
            } else if (output >= first + Panel && output < s_.channels) {
              sum[h] = multiply_add(value[k], line[output], sum[h]);
            }
          }
        }
      }
    }
    INVCONV_UNROLL
    for (int h = 0; h < Halves; ++h) {
      const int output = h * 32 + lane;
      if (output < s_.channels) {
        x[output] = sum[h];
      }
    }
  }

  const ImageShape& of_;
  const GroupShape& s_;
  A* image_;   // [row][column][channel]: the input, where it has been solved the result
  A* anchor_;  // [input][output]
  A* parts_;   // [diagonal % 2][slice][row][output]
  int part_size_;
  int first_row_, slice_, first_output_, first_input_, tap_row_;
  A weight_[rows_of_taps][K][Inputs][Outputs];
};

template <class T, int K, int Outputs, int Inputs, int Substituted>
__global__ void __launch_bounds__(
    ImageSolver<T, K, Outputs, Inputs, Substituted>::variant.most_threads(sizeof(Arithmetic<T>)), 1)
    solve_image(Groups<FilterGroup<T>> groups, ImageShape of) {
  FilterGroup<T> group{groups.at(static_cast<int>(blockIdx.x % static_cast<unsigned>(groups.count)))
                           .from_image(blockIdx.x / static_cast<unsigned>(groups.count))};
  if (of.swapped) {
    group.swap_images();
    group.swap_weight();
  }
  ImageSolver<T, K, Outputs, Inputs, Substituted> solver(group, of);
  solver.solve();
  solver.store(group);
}

}  // namespace invconv::detail::cuda
