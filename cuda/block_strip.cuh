#pragma once

// A strip of rows of an image, which solve_block and solve_wide go through anti-diagonal by anti-diagonal: of the
// results only those that later pixels of the strip read are kept, in shared memory where they fit.
//
// An image is one strip if either of its sides is short enough: that one is then called its rows. Otherwise its strips
// follow each other in a pipeline, to which each hands down its last rows, so many columns at a time:
// [strip of all][row][column][channel].

#include "pipeline.cuh"

namespace invconv::detail::cuda {

/// A block's own: in shared memory, where it takes no registers.
template <class T>
struct BlockHeader {
  using A = Arithmetic<T>;
  FilterGroup<T> group;  // of the image
  Index task;
  A *history, *ring;
  A *edges, *below;  // of the strips above; of this one; null where no pixel reads them
  int group_index, first_row, rows;
};

/// Claims a strip, by all threads of a block. `histories` have what does not fit in shared memory.
template <class T>
__device__ void claim_strip(BlockHeader<T>& header, const Groups<FilterGroup<T>>& groups, const BlockShape& of,
                            const Pipeline<Arithmetic<T>>& pipeline, Arithmetic<T>* histories) {
  using A = Arithmetic<T>;
  if (threadIdx.x == 0) {
    const Index task = pipeline.claim(), chain = task / of.strips;
    const int strip = static_cast<int>(task % of.strips);
    header.task = task;
    header.group_index = static_cast<int>(chain % groups.count);
    header.group = {groups.at(header.group_index).from_image(chain / groups.count)};
    if (of.swapped) {
      header.group.swap_images();
    }
    header.history = of.history_in_shared ? shared_memory<A>() + block_header_bytes / sizeof(A)
                                          : histories + task * (of.history_size() + of.ring_size());
    header.ring = header.history + of.history_size();
    header.first_row = strip * of.rows;
    header.rows = of.height - header.first_row < of.rows ? of.height - header.first_row : of.rows;
    A* const edges = of.strips > 1 && of.above() > 0 ? pipeline.edges + chain * of.strips * of.edge_size() : nullptr;
    header.edges = strip > 0 ? edges : nullptr;
    header.below = edges != nullptr && strip + 1 < of.strips ? edges + strip * of.edge_size() : nullptr;
  }
  __syncthreads();
}

/// The one that is claimed.
template <class T>
class BlockStrip {
 public:
  using A = Arithmetic<T>;

  __device__ BlockStrip(const BlockHeader<T>& header, const BlockShape& of, const Pipeline<A>& pipeline)
      : header_(header), of_(of), pipeline_(pipeline) {}

  __device__ int group_index() const { return header_.group_index; }
  __device__ int rows() const { return header_.rows; }
  /// Of the shared memory.
  __device__ A* rest() const {
    return shared_memory<A>() + block_header_bytes / sizeof(A) +
           (of_.history_in_shared ? of_.history_size() + of_.ring_size() : 0);
  }
  __device__ const FilterGroup<T>& group() const { return header_.group; }
  __device__ int diagonals() const { return rows() + of_.width - 1; }
  __device__ bool is_active(int row, int diagonal) const {
    return row < rows() && row <= diagonal && diagonal - row < of_.width;
  }

  /// Before the pixels of this column of the first row are begun: some columns of the rows above, now and then. By all
  /// threads.
  __device__ void begin(int column) const {
    if (header_.edges == nullptr || column % block_columns != 0 || column >= of_.width) {
      return;
    }
    const int end = column + block_columns < of_.width ? column + block_columns : of_.width;
    if (threadIdx.x == 0) {
      pipeline_.wait(header_.task, end);
    }
    sync_block();
    fetch(column, end);
    sync_block();
  }

  /// The next diagonal has the turn. Between this and what reads its pixels there is a barrier.
  __device__ void advance() {
    ++now_;
    slot_ = slot_ + 1 < of_.above() + of_.before() + 1 ? slot_ + 1 : 0;
  }

  /// After a barrier that follows the solution of a diagonal.
  __device__ void hand_down(int diagonal) const {
    const int columns = diagonal - rows() + 2;
    if (header_.below != nullptr && threadIdx.x == 0 && columns > 0 &&
        (columns % block_columns == 0 || columns == of_.width)) {
      pipeline_.hand_down(header_.task, columns);
    }
  }

  /// The image's own values from channel `output` on, 0 where there are none.
  template <int Pixels, int Outputs>
  __device__ void load(int row, int diagonal, int output, A (&to)[Pixels][Outputs]) const {
    const Images<const T>& in = group().in;
    INVCONV_UNROLL
    for (int p = 0; p < Pixels; ++p) {
      const int column = diagonal - row - p;
      const T* const from = in.data + (header_.first_row + row + p) * in.row + column * in.column;
      INVCONV_UNROLL
      for (int o = 0; o < Outputs; ++o) {
        const bool is_there = is_active(row + p, diagonal) && output + o < of_.shape.channels;
        to[p][o] = is_there ? widen(from[(output + o) * in.channel]) : A(0);
      }
    }
  }

  /// Keeps and writes results of the present diagonal.
  template <int Pixels, int Outputs>
  __device__ void store(int first, int diagonal, int output, const A (&x)[Pixels][Outputs]) const {
    const Images<T>& to = group().out;
    INVCONV_UNROLL
    for (int p = 0; p < Pixels; ++p) {
      const int row = first + p, column = diagonal - row;
      if (is_active(row, diagonal)) {
        const int place = row - (of_.rows - of_.edge_rows());
        A* const here = pixel(0, row);
        A* const down = header_.below != nullptr && place >= 0
                            ? header_.below + (Index{place} * of_.width + column) * of_.pitch
                            : nullptr;
        T* const out = to.data + (header_.first_row + row) * to.row + column * to.column;
        INVCONV_UNROLL
        for (int o = 0; o < Outputs; ++o) {
          if (output + o < of_.shape.channels) {
            here[output + o] = x[p][o];
            if (down != nullptr) {
              down[output + o] = x[p][o];
            }
            narrow(x[p][o], out[(output + o) * to.channel]);
          }
        }
      }
    }
  }

  /// What pixels of a diagonal, the present one or the next, read under a tap, and whether each is there; those that
  /// are not can be read all the same. Returns false if none is.
  template <int Pixels>
  __device__ bool find(int first, int diagonal, int i, int j, const A* (&x)[Pixels], bool (&is_there)[Pixels]) const {
    const int up = of_.swapped ? j : i, left = of_.swapped ? i : j;
    const A* any = nullptr;
    INVCONV_UNROLL
    for (int p = 0; p < Pixels; ++p) {
      const int row = first + p, column = diagonal - row;
      is_there[p] = is_active(row, diagonal) && header_.first_row + row >= up && column >= left;
      x[p] = row >= up ? pixel(i + j - (diagonal - now_), row - up) : edge(up - row, column - left);
      any = is_there[p] ? x[p] : any;
    }
    INVCONV_UNROLL
    for (int p = 0; p < Pixels; ++p) {
      x[p] = is_there[p] ? x[p] : any;
    }
    return any != nullptr;
  }

 private:
  /// [diagonal][row][channel]
  __device__ A* pixel(int age, int row) const {
    const int slot = slot_ - age;
    return header_.history +
           (Index{slot < 0 ? slot + of_.above() + of_.before() + 1 : slot} * of_.rows + row) * of_.pitch;
  }
  /// Of the strip above: [the nearest row first][column][channel].
  __device__ A* edge(int rows_up, int column) const {
    return header_.ring + (Index{rows_up - 1} * of_.edge_columns + (column & (of_.edge_columns - 1))) * of_.pitch;
  }

  /// These columns of the rows above, which may be of more than one strip.
  __device__ void fetch(int begin, int end) const {
    const int first_row = header_.first_row, above = of_.above() < first_row ? of_.above() : first_row;
    const int edge_rows = of_.edge_rows();
    const int line = (end - begin) * of_.pitch;
    for (int index = static_cast<int>(threadIdx.x); index < above * line; index += static_cast<int>(blockDim.x)) {
      const int up = index / line + 1, at = index % line, row = first_row - up;
      const int strip = row / of_.rows, place = row % of_.rows - (of_.rows - edge_rows);
      edge(up, begin + at / of_.pitch)[at % of_.pitch] =
          header_.edges[(Index{strip} * edge_rows + place) * of_.width * of_.pitch + Index{begin} * of_.pitch + at];
    }
  }

  const BlockHeader<T>& header_;
  const BlockShape& of_;
  const Pipeline<A>& pipeline_;
  int now_ = 0, slot_ = 0;  // the present diagonal, and where it is kept
};

/// Adds the products of `channels` values of each pixel that is there, of which each is read `AtOnce` at a time.
template <int AtOnce, class A, int Pixels, int Outputs>
__device__ void add_products(int channels, const A* const (&x)[Pixels], const bool (&is_there)[Pixels], const A* w,
                             Index padded, A (&sum)[Pixels][Outputs]) {
  const auto add_channel = [&](const A(&value)[Pixels], const A* at) {
    const Vector<A, Outputs> now = vector<Outputs>(at);
    INVCONV_UNROLL
    for (int p = 0; p < Pixels; ++p) {
      INVCONV_UNROLL
      for (int o = 0; o < Outputs; ++o) {
        sum[p][o] = is_there[p] ? multiply_add(value[p], now.at[o], sum[p][o]) : sum[p][o];
      }
    }
  };
  int c = 0;
  for (; c + AtOnce <= channels; c += AtOnce, w += AtOnce * padded) {
    Vector<A, AtOnce> values[Pixels];
    INVCONV_UNROLL
    for (int p = 0; p < Pixels; ++p) {
      values[p] = vector<AtOnce>(x[p] + c);
    }
    INVCONV_UNROLL
    for (int k = 0; k < AtOnce; ++k) {
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

}  // namespace invconv::detail::cuda
