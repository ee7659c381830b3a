#pragma once

// conv: a block has a tile of an image and some outputs, and stages the tile with what its taps reach, and the weight
// of these outputs, in shared memory. A thread has tile_rows pixels of a column and tile_outputs outputs in registers.
// The order of operations is conv_direct's.

#include "staging.cuh"

namespace invconv::detail::cuda {

/// A tile has `width` columns and tile_rows rows for each of `row_groups`, and tile_outputs outputs for each of
/// `output_groups`.
template <class T>
__global__ void __launch_bounds__(tile_threads, 2) conv_tiles(Groups<FilterGroup<T>> groups, TilesShape of, int batch) {
  using A = Arithmetic<T>;
  constexpr int R = tile_rows, O = tile_outputs;
  const GroupShape& s = of.shape;
  const int rows = R * of.row_groups, outputs = O * of.output_groups;
  BlockDigits next;
  const int first_column = next((s.width + of.width - 1) / of.width) * of.width;
  const int first_row = next((s.height + rows - 1) / rows) * rows;
  const int first_output = next((s.channels + outputs - 1) / outputs) * outputs;
  const FilterGroup<T> of_image_0 = groups.at(next(groups.count));
  const FilterGroup<T> group{of_image_0.from_image(next(batch))};

  const int above = s.kernel_height - 1, before = s.kernel_width - 1;
  const int pitch = tile_pitch(rows + above), channel_size = (of.width + before) * pitch;
  const int line = tile_line(of.output_groups);  // of output weights
  const int taps = s.kernel_height * s.kernel_width;
  A* const weights = shared_memory<A>();                   // [i][j][input][output]
  A* const tile = weights + taps * s.channels * line * O;  // [channel][column][row], with what the taps reach

  const Divider by_tap(taps), by_input(s.channels), by_column(s.kernel_width);
  stage<8>(outputs * s.channels * taps, group.weight.data, weights, [&](int at) {
    const int pair = by_tap.quotient(at), tap = by_tap.remainder(at, pair);
    const int output = by_input.quotient(pair), input = by_input.remainder(pair, output);
    const int i = by_column.quotient(tap), j = by_column.remainder(tap, i), o = first_output + output;
    return Copy{o * group.weight.out + input * group.weight.in + i * group.weight.row + j * group.weight.column,
                (tap * s.channels + input) * line * O + output,
                o < s.channels && is_read(s.unit_diagonal, i, j, o, input)};
  });
  // The part of the image that the tile and its taps reach.
  const int top = first_row < above ? 0 : first_row - above, left = first_column < before ? 0 : first_column - before;
  const int bottom = first_row + rows < s.height ? first_row + rows : s.height;
  const int right = first_column + of.width < s.width ? first_column + of.width : s.width;
  const Walk walk(group.in, s.channels, bottom - top, right - left);
  const int shift = (left - first_column + before) * pitch + top - first_row + above;
  stage<8>(s.channels * (bottom - top) * (right - left), group.in.data + top * group.in.row + left * group.in.column,
           tile, [&](int at) {
             const Place place = walk(at);
             return Copy{place.channel * group.in.channel + place.row * group.in.row + place.column * group.in.column,
                         place.channel * channel_size + place.column * pitch + place.row + shift, true};
           });
  __syncthreads();

  const int thread = static_cast<int>(threadIdx.x), column = thread % of.width;
  const int rest = thread / of.width, outputs_before = rest % of.output_groups, rows_before = rest / of.output_groups;
  const int output = first_output + outputs_before * O, row = first_row + rows_before * R;
  if (rows_before >= of.row_groups || row >= s.height || first_column + column >= s.width || output >= s.channels) {
    return;
  }
  const A* const x = tile + (column + before) * pitch + rows_before * R + above;
  const auto* const weight = reinterpret_cast<const Vector<A, O>*>(weights) + outputs_before;
  A sum[R][O] = {};
  for (int i = above < row + R - 1 ? above : row + R - 1; i >= 0; --i) {
    for (int j = before < first_column + column ? before : first_column + column; j >= (i > 0 ? 0 : 1); --j) {
      const Vector<A, O>* w = weight + (i * s.kernel_width + j) * s.channels * line;
      const A* from = x - j * pitch - i;
      for (int c = 0; c < s.channels; ++c, w += line, from += channel_size) {
        const Vector<A, O> now = *w;
        INVCONV_UNROLL
        for (int p = 0; p < R; ++p) {
          if (row + p >= i) {
            const A value = from[p];
            INVCONV_UNROLL
            for (int o = 0; o < O; ++o) {
              sum[p][o] = multiply_add(value, now.at[o], sum[p][o]);
            }
          }
        }
      }
    }
  }
  for (int c = 0; c < s.channels && c < output + O - 1; ++c) {
    const Vector<A, O> now = weight[c * line];
    INVCONV_UNROLL
    for (int p = 0; p < R; ++p) {
      const A value = x[c * channel_size + p];
      INVCONV_UNROLL
      for (int o = 0; o < O; ++o) {
        if (c < output + o) {
          sum[p][o] = multiply_add(value, now.at[o], sum[p][o]);
        }
      }
    }
  }
  INVCONV_UNROLL
  for (int o = 0; o < O; ++o) {
    if (output + o < s.channels) {
      const A diagonal = weight[(output + o) * line].at[o];
      T* const to = group.out.data + (output + o) * group.out.channel + (first_column + column) * group.out.column;
      INVCONV_UNROLL
      for (int p = 0; p < R; ++p) {
        if (row + p < s.height) {
          const A own = x[(output + o) * channel_size + p];
          const A all = s.unit_diagonal ? sum[p][o] + own : multiply_add(own, diagonal, sum[p][o]);
          narrow(settled(all), to[(row + p) * group.out.row]);
        }
      }
    }
  }
}

}  // namespace invconv::detail::cuda
