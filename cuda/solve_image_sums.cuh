#pragma once

// Both gradients of a solve, for images of which two fit in shared memory: the adjoint solve as solve_image has it, and
// then sums over the pixels of its result and of x, which takes the place of all but the result. One thread block for
// an image and a group.
//
// A thread sums for a few channels of dy and of x, some taps of a row, and a slice of the rows. Each tap has its own
// pixels: none meets anything outside the image. Slices are added in their order, in double. An image's sums are a part
// of weight_grad's in the workspace, [i][j][output][input], which add_parts adds up.

#include "solve_image.cuh"
#include "staging.cuh"

namespace invconv::detail::cuda {

/// K x K taps. dy and x are [row][column][channel].
template <class T, int K>
class ImageSums {
 public:
  using A = Arithmetic<T>;

  /// The solve has no registers left for what follows from the shape.
  __device__ ImageSums(const ImageShape& of, const ImageSumsShape& by)
      : of_(of),
        by_(by),
        channels_(unforeseen(of.shape.channels)),
        height_(unforeseen(of.shape.height)),
        width_(unforeseen(of.shape.width)) {
    dy_ = shared_memory<A>();
    x_ = dy_ + height_ * of.row_pitch;
    passed_ = x_ + height_ * of.row_pitch;
  }

  /// The channels up to the pitch are 0.
  __device__ void load(const Images<const T>& x) const {
    const Walk walk(x, of_.pitch, height_, width_);
    stage<8>(of_.pitch * height_ * width_, x.data, x_, [&](int at) {
      const Place place = walk(at);
      return Copy{place.channel * x.channel + place.row * x.row + place.column * x.column,
                  place.row * of_.row_pitch + place.column * of_.pitch + place.channel, place.channel < channels_};
    });
  }

  /// With all threads, to the block's own part of the workspace.
  __device__ void add(double* sums) const {
    const int entries = channels_ * channels_ * K * K;
    double* const own = sums + Index{blockIdx.x} * entries;
    if (by_.slices == 1) {
      for_sums([&](int, int entry, A value) { own[entry] = static_cast<double>(value); });
      return;
    }
    for_sums([&](int slice, int entry, A value) { passed_[slice * entries + entry] = value; });
    __syncthreads();
    for (int entry = static_cast<int>(threadIdx.x); entry < entries; entry += static_cast<int>(blockDim.x)) {
      double sum = 0;
      for (int slice = 0; slice < by_.slices; ++slice) {
        sum += static_cast<double>(passed_[slice * entries + entry]);
      }
      own[entry] = sum;
    }
  }

 private:
  static constexpr int Taps = image_sums_taps(K), Outputs = image_sums_outputs, Inputs = image_sums_inputs;
  using Sums = A[Taps][Inputs][Outputs];

  /// Calls `each(slice, entry, value)` for all sums.
  template <class Each>
  __device__ void for_sums(Each&& each) const {
    const int tiles_of_dy = (channels_ + Outputs - 1) / Outputs, tiles_of_x = (channels_ + Inputs - 1) / Inputs;
    const int tiles = tiles_of_dy * tiles_of_x, count = tiles * K * ((K + Taps - 1) / Taps);
    for (int index = static_cast<int>(threadIdx.x); index < by_.slices * count; index += static_cast<int>(blockDim.x)) {
      const int slice = index / count, taps = index % count / tiles;
      const int i = taps % K, j = taps / K * Taps;
      const int output = index % tiles_of_dy * Outputs, input = index % tiles / tiles_of_dy * Inputs;
      const int begin = slice * by_.rows, last = begin + by_.rows, height = height_ - i;
      const int end = last < height ? last : height;
      A sum[Taps][Inputs][Outputs] = {};
      for (int row = begin; row < end; ++row) {
        add_row(dy_ + row * of_.row_pitch + output, x_ + (row + i) * of_.row_pitch + j * of_.pitch + input, width_ - j,
                sum);
      }
      INVCONV_UNROLL
      for (int t = 0; t < Taps; ++t) {
        const int tap = of_.swapped ? (j + t) * K + i : i * K + j + t;
        INVCONV_UNROLL
        for (int c = 0; c < Inputs; ++c) {
          INVCONV_UNROLL
          for (int o = 0; o < Outputs; ++o) {
            if (j + t < K && input + c < channels_ && output + o < channels_) {
              each(slice, (tap * channels_ + input + c) * channels_ + output + o, sum[t][c][o]);
            }
          }
        }
      }
    }
  }

  /// A row of dy times the row of x under the taps, whose first one pairs `columns` pixels of them.
  __device__ void add_row(const A* dy, const A* x, int columns, Sums& sum) const {
    int column = 0;
    for (; column + Taps < columns; column += 2) {
      add_columns<2, Taps>(dy + column * of_.pitch, x + column * of_.pitch, sum);
    }
    if (column + Taps == columns) {
      add_columns<1, Taps>(dy + column * of_.pitch, x + column * of_.pitch, sum);
    }
    add_last_columns<Taps - 1>(dy, x, columns, sum);
  }

  /// Where but the first Count of the taps reach beyond the image.
  template <int Count>
  __device__ void add_last_columns(const A* dy, const A* x, int columns, Sums& sum) const {
    if constexpr (Count > 0) {
      const int column = columns - Count;
      if (column >= 0) {
        add_columns<1, Count>(dy + column * of_.pitch, x + column * of_.pitch, sum);
      }
      add_last_columns<Count - 1>(dy, x, columns, sum);
    }
  }

  /// The first Count of the taps.
  template <int Columns, int Count>
  __device__ void add_columns(const A* dy, const A* x, Sums& sum) const {
    Vector<A, Inputs> under[Columns + Count - 1];
    INVCONV_UNROLL
    for (int k = 0; k < Columns + Count - 1; ++k) {
      under[k] = vector<Inputs>(x + k * of_.pitch);
    }
    INVCONV_UNROLL
    for (int k = 0; k < Columns; ++k) {
      const Vector<A, Outputs> value = vector<Outputs>(dy + k * of_.pitch);
      INVCONV_UNROLL
      for (int t = 0; t < Count; ++t) {
        INVCONV_UNROLL
        for (int c = 0; c < Inputs; ++c) {
          INVCONV_UNROLL
          for (int o = 0; o < Outputs; ++o) {
            sum[t][c][o] = multiply_add(value.at[o], under[k + t].at[c], sum[t][c][o]);
          }
        }
      }
    }
  }

  const ImageShape& of_;
  const ImageSumsShape& by_;
  const int channels_, height_, width_;
  A* dy_;      // where solve_image has its image
  A* x_;       // in the place of what it needs beside that
  A* passed_;  // [slice][entry]
};

/// The derivatives are by the weight as the solve reads it: with its result for x, and x for g.
template <class T, int K, int Outputs, int Inputs, int Substituted>
__global__ void __launch_bounds__(
    ImageSolver<T, K, Outputs, Inputs, Substituted>::variant.most_threads(sizeof(Arithmetic<T>)), 1)
    solve_image_sums(Groups<FilterGroup<T>> groups, Groups<CorrelationGroup<T>> correlations, ImageShape of,
                     ImageSumsShape by, double* sums) {
  const int count = groups.count, block = static_cast<int>(blockIdx.x);
  FilterGroup<T> group{groups.at(block % count).from_image(block / count)};
  if (of.swapped) {
    group.swap_images();
    group.swap_weight();
  }
  ImageSolver<T, K, Outputs, Inputs, Substituted> solver(group, of);
  solver.solve();
  solver.store_and_keep(group);

  const int same = unforeseen(static_cast<int>(blockIdx.x));
  Images<const T> x = correlations.at(same % count).g.from_image(same / count);
  if (of.swapped) {
    swap_axes(x);
  }
  const ImageSums<T, K> summing(of, by);
  summing.load(x);
  __syncthreads();
  summing.add(sums);
}

}  // namespace invconv::detail::cuda
