#pragma once

// solve of many channels, any kernel and image: strips as in solve_block, whose last warps substitute the channels of
// the pixels as they do there. All others sum.
//
// A diagonal is cut into groups of rows, and those by outputs where a warp cannot have them all. Each such unit has
// wide_parts warps, on different schedulers, that share the channels of every tap: so all schedulers have work on a
// short diagonal too. Taps are split by age: what reaches two or more diagonals back is summed, in registers, while the
// diagonal before is being substituted; (0, 1) and (1, 0) alone wait for it.
//
// A weight of so many channels is larger than the shared memory. Its last lines, with the anchor and the youngest taps,
// stay there; the others are read from L2 for each diagonal.
//
// An output's sum is the own value, then the parts in their order, then the channels of the pixel upwards: by the
// shape alone, but another order than the CPU's.

#include "solve_block.cuh"

namespace invconv::detail::cuda {

/// A block's own. In shared memory there is all that its threads begin with: those that sum and those that substitute
/// have functions of their own, of which neither holds the other's registers.
template <class T>
struct WideHeader {
  BlockHeader<T> block;
  WideShape of;
  Pipeline<Arithmetic<T>> pipeline;
  const Arithmetic<T>* packed;  // the weights
};

template <class T>
class WideStrip : public BlockStrip<T> {
 public:
  using A = Arithmetic<T>;

  __device__ explicit WideStrip(const WideHeader<T>& header)
      : BlockStrip<T>(header.block, header.of.strip, header.pipeline),
        of(header.of),
        parts_(this->rest()),
        kept_(parts_ + of.parts_size()),
        packed_(header.packed + this->group_index() * Index{lines()} * of.strip.padded) {}

  const WideShape& of;

  /// [part][row][output]
  __device__ A* part(int part, int row) const { return parts_ + (Index{part} * of.strip.rows + row) * of.strip.padded; }

  /// A tap's line of an input.
  __device__ const A* line(int tap, int input) const {
    const int index = tap * of.strip.shape.channels + input;
    return index < of.first_line ? packed_ + Index{index} * of.strip.padded
                                 : kept_ + Index{index - of.first_line} * of.strip.padded;
  }

  /// Copies the last lines of the weight. The first pixel that has a neighbour comes after a barrier, and so does the
  /// first that is substituted.
  __device__ void keep_lines() const {
    const A* const from = packed_ + Index{of.first_line} * of.strip.padded;
    const Index size = Index{lines() - of.first_line} * of.strip.padded;
    for (Index at = 4 * static_cast<Index>(threadIdx.x); at < size; at += 4 * static_cast<Index>(blockDim.x)) {
      vector<4>(kept_ + at) = vector<4>(from + at);
    }
  }

  /// Calls `before` and `after` the barrier between the sums of a diagonal and its substitution.
  template <class Before, class After>
  __device__ void for_diagonals(Before&& before, After&& after) {
    for (int diagonal = 0; diagonal < this->diagonals(); ++diagonal) {
      this->begin(diagonal + 1);  // which is started before this one is done
      before(diagonal);
      sync_block();
      after(diagonal);
      this->advance();
      sync_block();
      this->hand_down(diagonal);
    }
  }

 private:
  __device__ int lines() const {
    return of.strip.shape.kernel_height * of.strip.shape.kernel_width * of.strip.shape.channels;
  }

  A *parts_, *kept_;
  const A* packed_;  // the weight of the group
};

/// What a thread that sums does: it has Outputs outputs of some pixels.
template <class T, int Outputs>
class WideSums {
 public:
  using A = Arithmetic<T>;
  static constexpr int Pixels = wide_pixels;

  __device__ explicit WideSums(const WideStrip<T>& strip) : strip_(strip), of_(strip.of), s_(of_.strip.shape) {
    const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, unit = warp / wide_parts;
    part_ = warp % wide_parts;
    row_ = unit % of_.row_groups * Pixels;
    output_ = (unit / of_.row_groups * 32 + thread % 32) * Outputs;
  }

  /// What a diagonal's sums can have before the one before it is known.
  __device__ void start(int diagonal, A (&sum)[Pixels][Outputs]) const {
    INVCONV_UNROLL
    for (int p = 0; p < Pixels; ++p) {
      INVCONV_UNROLL
      for (int o = 0; o < Outputs; ++o) {
        sum[p][o] = 0;
      }
    }
    add<false>(diagonal, sum);
  }

  __device__ void finish(int diagonal, A (&sum)[Pixels][Outputs]) const {
    add<true>(diagonal, sum);
    INVCONV_UNROLL
    for (int p = 0; p < Pixels; ++p) {
      if (strip_.is_active(row_ + p, diagonal)) {
        A* const to = strip_.part(part_, row_ + p) + output_;
        INVCONV_UNROLL
        for (int o = 0; o < Outputs; ++o) {
          to[o] = sum[p][o];
        }
      }
    }
  }

 private:
  /// Adds the thread's products with the diagonal before, or with those before that one.
  template <bool Latest>
  __device__ void add(int diagonal, A (&sum)[Pixels][Outputs]) const {
    const int quads = (s_.channels + 3) / 4;
    int quad = part_;
    for (int i = s_.kernel_height - 1; i >= 0; --i) {
      for (int j = s_.kernel_width - 1; j >= 0; --j) {
        const A* x[Pixels];
        bool is_there[Pixels];
        if (Latest ? i + j != 1 : i + j < 2) {
          continue;
        }
        if (strip_.find(row_, diagonal, i, j, x, is_there)) {
          for (; quad < quads; quad += wide_parts) {
            const A* values[Pixels];
            INVCONV_UNROLL
            for (int p = 0; p < Pixels; ++p) {
              values[p] = x[p] + 4 * quad;
            }
            const int left = s_.channels - 4 * quad;
            add_products<2>(left < 4 ? left : 4, values, is_there, strip_.line(tap_index(s_, i, j), 4 * quad) + output_,
                            of_.strip.padded, sum);
          }
        } else {
          quad += (quads - quad + wide_parts - 1) / wide_parts * wide_parts;
        }
        quad -= quads;  // so that all parts have as many, over all taps
      }
    }
  }

  const WideStrip<T>& strip_;
  const WideShape& of_;
  const GroupShape& s_;
  int part_, row_, output_;
};

template <class T, int Outputs>
INVCONV_NOINLINE __device__ void sum_wide() {
  using Sums = WideSums<T, Outputs>;
  WideStrip<T> strip(*shared_memory<WideHeader<T>>());
  const Sums sums(strip);
  Arithmetic<T> sum[Sums::Pixels][Outputs];
  strip.begin(0);
  sums.start(0, sum);
  strip.for_diagonals([&](int diagonal) { sums.finish(diagonal, sum); },
                      [&](int diagonal) { sums.start(diagonal + 1, sum); });
}

template <class T, int Outputs>
INVCONV_NOINLINE __device__ void substitute_wide() {
  using Solver = BlockSolver<T, Outputs>;
  WideStrip<T> strip(*shared_memory<WideHeader<T>>());
  const WideShape& of = strip.of;
  const GroupShape& s = of.strip.shape;
  const Solver solver(strip, of.strip, nullptr, strip.line(s.kernel_height * s.kernel_width - 1, 0),
                      static_cast<int>(threadIdx.x) - of.sum_threads());
  Arithmetic<T> sum[Solver::Pixels][Outputs];
  strip.begin(0);
  const auto substitute = [&](int diagonal) {
    for (int first = 0; solver.has_pixels(diagonal) && first < s.channels; first += of.strip.lanes * Outputs) {
      if (first > 0) {
        solver.load(diagonal, first, sum);
      }
      INVCONV_UNROLL
      for (int p = 0; p < Solver::Pixels; ++p) {
        const int row = solver.row() + p;
        INVCONV_UNROLL
        for (int k = 0; k < wide_parts; ++k) {
          if (strip.is_active(row, diagonal)) {
            const auto part = vector<Outputs>(strip.part(k, row) + solver.output(first));
            INVCONV_UNROLL
            for (int o = 0; o < Outputs; ++o) {
              sum[p][o] += part.at[o];
            }
          }
        }
      }
      solver.substitute(diagonal, first, sum);
    }
  };
  strip.for_diagonals([&](int diagonal) { solver.load(diagonal, 0, sum); }, substitute);
}

/// Outputs: of a thread that sums. One that substitutes has twice as many, of fewer pixels.
template <class T, int Outputs>
__global__ void __launch_bounds__(wide_threads(2 * Outputs), 1)
    solve_wide(Groups<FilterGroup<T>> groups, WideShape of, Pipeline<Arithmetic<T>> pipeline,
               const Arithmetic<T>* packed) {
  static_assert(sizeof(WideHeader<T>) <= block_header_bytes);
  auto& header = *shared_memory<WideHeader<T>>();
  if (threadIdx.x == 0) {
    header.of = of;
    header.pipeline = pipeline;
    header.packed = packed;
  }
  claim_strip(header.block, groups, of.strip, pipeline, static_cast<Arithmetic<T>*>(nullptr));
  WideStrip<T>(header).keep_lines();
  if (static_cast<int>(threadIdx.x) < of.sum_threads()) {
    sum_wide<T, Outputs>();
  } else {
    substitute_wide<T, 2 * Outputs>();
  }
}

}  // namespace invconv::detail::cuda
