// solve and conv with images in the lanes, and the row of pixels that solves share. Part of kernels.inl.

#pragma once

#include <cstring>
#include <utility>

#include "cpu/packing.inl"

namespace invconv::detail::cpu {
namespace {

/// What is no number minus itself is no number, and so is then the sum of such differences; else it is 0.
template <class A, int V>
struct Differences {
  Vector<A, V> sum{};

  [[gnu::always_inline]] void add(const Vector<A, V>& value) { sum += value - value; }
  template <class T>
  [[gnu::always_inline]] void add_one(T element) {
    const A value = widen(element);
    sum[0] += value - value;
  }
  bool are_zero() const {
    for (int lane = 0; lane < V; ++lane) {
      if (sum[lane] != A(0)) {
        return false;
      }
    }
    return true;
  }
};

/// Whether all taps are finite that pack_weight reads.
template <class T>
bool is_finite(const FilterShape& shape, const Taps<const T>& weight) {
  using A = Arithmetic<T>;
  constexpr int V = INVCONV_VECTOR_BYTES / static_cast<int>(sizeof(A));
  const Index channels = shape.channels, width = shape.kernel_width, taps = shape.kernel_height * width;
  // First and last element in memory, counted from the anchor's. If they hold no more than the taps between them, these
  // are read as they lie there, and with them the upper triangle, which may be anything.
  Index first = 0, last = 0;
  const auto reach = [&](Index stride, Index size) { (stride < 0 ? first : last) += (size - 1) * stride; };
  reach(weight.out, channels);
  reach(weight.in, channels);
  reach(weight.row, shape.kernel_height);
  reach(weight.column, width);
  if (last - first + 1 == channels * channels * taps) {
    Differences<A, V> differences;
    Index k = first;
    for (; k + V <= last + 1; k += V) {
      differences.add(gather<A, V, 1>(weight.data + k, 1));
    }
    for (; k <= last; ++k) {
      differences.add_one(weight.data[k]);
    }
    if (differences.are_zero()) {
      return true;
    }
  }
  Differences<A, V> differences;
  for (Index o = 0; o < channels; ++o) {
    for (Index c = 0; c < channels; ++c) {
      const bool reads_anchor = c < o || (c == o && !shape.unit_diagonal);
      for (Index k = reads_anchor ? 0 : 1; k < taps; ++k) {
        differences.add_one(
            weight.data[o * weight.out + c * weight.in + k / width * weight.row + k % width * weight.column]);
      }
    }
  }
  return differences.are_zero();
}

/// The packed weight, block after block of output channels, holds the operands in the order in which they are used: for
/// every row from the oldest, pixel from the oldest and channel, the block's coefficients; in the present pixel the
/// channels before the block; then a square, its diagonal the anchor's and its rest the coefficients inside the block.
/// A solve subtracts, so its coefficients are negated. The last block is padded with outputs that nothing reads.
template <class T>
void pack_weight(const FilterShape& shape, const Taps<const T>& weight, Arithmetic<T>* packed) {
  using A = Arithmetic<T>;
  constexpr int together = 16 / static_cast<int>(sizeof(A));
  const Index channels = shape.channels, block = shape.block, width = shape.kernel_width;
  const Index taps = shape.kernel_height * width;
  const bool joined = weight.row == weight.column * width;
  const A sign = shape.solve ? A(-1) : A(1);
  const auto anchor = [&](Index o, Index c) { return A(widen(weight.data[o * weight.out + c * weight.in])); };
  for (Index first = 0; first < channels; first += block) {
    const Index live = first + block <= channels ? block : channels - first;
    const Index inputs = (taps - 1) * channels + first;
    // `outputs` from o on, of channel c, all taps but the anchor.
    const auto pack_taps = [&](auto outputs, Index o, Index c) {
      constexpr int O = decltype(outputs)::value;
      for (Index begin = 1; begin < taps;) {
        const Index end = joined ? taps : begin / width * width + width;
        const T* const from = weight.data + (first + o) * weight.out + c * weight.in + begin / width * weight.row +
                              begin % width * weight.column;
        const Run<const T> run{from, weight.out, weight.column, end - begin, -channels * block, end - begin, 0};
        pack_run<T, A, O>(run, O, packed + ((taps - 1 - begin) * channels + c) * block + o);
        begin = end;
      }
    };
    for (Index c = 0; c < channels; ++c) {
      Index o = 0;
      for (; o + together <= live; o += together) {
        pack_taps(std::integral_constant<int, together>{}, o, c);
      }
      for (; o < live; ++o) {
        pack_taps(std::integral_constant<int, 1>{}, o, c);
      }
    }
    for (Index c = 0; c < first; ++c) {
      for (Index o = 0; o < live; ++o) {
        packed[((taps - 1) * channels + c) * block + o] = anchor(first + o, c);
      }
    }
    for (Index k = 0; k < inputs * block; ++k) {
      packed[k] *= sign;
    }
    for (Index k = 0; live < block && k < inputs; ++k) {
      for (Index o = live; o < block; ++o) {
        packed[k * block + o] = A(0);
      }
    }
    packed += inputs * block;
    for (Index c = 0; c < block; ++c) {
      for (Index o = 0; o < block; ++o) {
        if (o == c) {
          *packed++ = o < live && !shape.unit_diagonal ? anchor(first + o, first + o) : A(1);
        } else {
          *packed++ = o < live && c < o ? sign * anchor(first + o, first + c) : A(0);
        }
      }
    }
  }
}

/// P rows of pixels, each [channel][lane], that are computed together.
template <class A, int P>
struct FilterRows {
  Index channels, width, kernel_height, kernel_width;
  bool unit_diagonal;
  const A* weight;
  const A* const* rows;  // from the lowest one upwards, at the oldest pixel that the first one reads
  A* here[P];            // the present pixels, of the upper row first; a solve writes over them
  A* out[P];             // where a conv writes
  Index above, left;     // rows and pixels there are before the first one: taps that reach further are left out

  /// One of the rows.
  FilterRows<A, 1> one(int p) const {
    return {channels,           width,     kernel_height, kernel_width, unit_diagonal, weight,
            rows + (P - 1 - p), {here[p]}, {out[p]},      above + p,    left};
  }
};

/// Zeros get one sign, which would else tell whether taps outside the image were left out or met zeros.
template <class Vec>
[[gnu::always_inline]] inline Vec settled(Vec value) {
  return value + Vec{};
}

/// A row of a solve is one pixel behind the one above it.
template <bool Solve>
inline constexpr int lag = Solve ? 1 : 0;

/// Sums that find a place in registers beside their operands.
inline constexpr int most_sums = few_registers ? 12 : 24;

/// The last operations of a block: those of the present pixel's own channels, which a solve finds and own(c, p) gives
/// to a conv. What comes out is to be settled, by which no other sum need wait.
template <class A, int V, int OB, bool Solve, int P, class Own>
[[gnu::always_inline]] inline void filter_own(bool unit_diagonal, const A* w, Vector<A, V> (&sum)[OB][P], Own&& own) {
  INVCONV_UNROLL
  for (int c = 0; c < OB; ++c) {
    Vector<A, V> value[P];
    INVCONV_UNROLL
    for (int p = 0; p < P; ++p) {
      const Vector<A, V> diagonal = splat<A, V>(w[c * OB + c]);
      if constexpr (Solve) {
        sum[c][p] = value[p] = unit_diagonal ? sum[c][p] : sum[c][p] / diagonal;
      } else {
        value[p] = own(c, p);
        sum[c][p] = unit_diagonal ? sum[c][p] + value[p] : multiply_add<A, V>(value[p], diagonal, sum[c][p]);
      }
    }
    INVCONV_UNROLL
    for (int o = c + 1; o < OB; ++o) {
      const Vector<A, V> tap = splat<A, V>(w[c * OB + o]);
      INVCONV_UNROLL
      for (int p = 0; p < P; ++p) {
        sum[o][p] = multiply_add<A, V>(value[p], tap, sum[o][p]);
      }
    }
  }
}

/// Pixel s of the upper row and those that come with it: the rows below are behind by `lag` each. Of taps outside the
/// image those are left out that lie outside for all the rows; the others meet zeros. From a channel to the next one
/// are V elements; or, where operands may begin at any lane, `cell` of them, and from a pixel to the next one `pitch`.
template <class A, int V, int OB, bool Solve, int P, bool AnyLane = false, class After>
[[gnu::always_inline]] inline void filter_pixels(const FilterRows<A, P>& row, Index s, After&& after,
                                                 [[maybe_unused]] Index cell_elements = V,
                                                 [[maybe_unused]] Index pitch = 0) {
  using Vec = Vector<A, V>;
  const Index cell = AnyLane ? cell_elements : V;
  const Index channels = row.channels, pixel = AnyLane ? pitch : channels * V, inputs = row.kernel_width * channels;
  const Index above = row.above + P - 1 < row.kernel_height - 1 ? row.above + P - 1 : row.kernel_height - 1;
  const Index left = row.left + s < row.kernel_width - 1 ? row.left + s : row.kernel_width - 1;
  const Index outside = (row.kernel_width - 1 - left) * channels;
  const auto at = [&](int p) { return (s - p * lag<Solve>)*pixel; };
  const A* w = row.weight;
  for (Index first = 0; first < channels; first += OB) {
    const Index live = channels - first;
    // A conv may read whatever lies behind the last channel, which only outputs that nobody reads are made of: of the
    // last pixel, too, what it has filtered comes next.
    const auto own = [&](int o, int p) {
      return !Solve || o < live ? load<A, V>(row.here[p] + at(p) + (first + o) * cell) : Vec{};
    };
    Vec sum[OB][P];
    INVCONV_UNROLL
    for (int o = 0; o < OB; ++o) {
      INVCONV_UNROLL
      for (int p = 0; p < P; ++p) {
        sum[o][p] = Solve ? own(o, p) : Vec{};
      }
    }
    const auto add = [&](const A* const(&x)[P], Index k) __attribute__((always_inline)) {
      Vec value[P];
      INVCONV_UNROLL
      for (int p = 0; p < P; ++p) {
        value[p] = AnyLane ? load_unaligned<A, V>(x[p] + k) : load<A, V>(x[p] + k);
      }
      INVCONV_UNROLL
      for (int o = 0; o < OB; ++o) {
        const Vec tap = splat<A, V>(w[o]);
        INVCONV_UNROLL
        for (int p = 0; p < P; ++p) {
          sum[o][p] = multiply_add<A, V>(value[p], tap, sum[o][p]);
        }
      }
      w += OB;
    };
    w += (row.kernel_height - 1 - above) * inputs * OB;
    for (Index i = above; i >= 0; --i) {
      const A* x[P];
      INVCONV_UNROLL
      for (int p = 0; p < P; ++p) {
        x[p] = row.rows[i + P - 1 - p] + at(p);
      }
      w += outside * OB;
      if constexpr (AnyLane) {
        for (Index j = left; j >= 0; --j) {
          const Index end = i > 0 || j > 0 ? channels : first;
          for (Index k = (left - j) * pixel; k < (left - j) * pixel + end * cell; k += cell) {
            add(x, k);
          }
        }
      } else {
        const Index end = i > 0 ? inputs : inputs - channels + first;
        for (Index k = outside * V; k < end * V; k += V) {
          add(x, k);
        }
      }
    }
    filter_own<A, V, OB, Solve>(row.unit_diagonal, w, sum, own);
    w += OB * OB;
    INVCONV_UNROLL
    for (int p = 0; p < P; ++p) {
      A* const out = (Solve ? row.here[p] : row.out[p]) + at(p) + first * cell;
      INVCONV_UNROLL
      for (int o = 0; o < OB; ++o) {
        if (o < live) {
          Vec result = settled(sum[o][p]);
          after(s, first + o, result);
          store<A, V>(out + o * cell, result);
        }
      }
    }
  }
}

/// A row whose results `after(pixel, channel, result)` may change.
template <class A, int V, int OB, bool Solve, class After>
[[gnu::always_inline]] inline void filter_row(const FilterRows<A, 1>& row, After&& after) {
  for (Index s = 0; s < row.width; ++s) {
    filter_pixels<A, V, OB, Solve>(row, s, after);
  }
}

/// Steps [begin, end) of `width` + lag<Solve> * (P - 1).
template <class A, int V, int OB, bool Solve, int P>
[[gnu::always_inline]] inline void filter_steps(const FilterRows<A, P>& row, Index begin, Index end) {
  constexpr auto nothing = [](Index, Index, const Vector<A, V>&) {};
  for (Index s = begin; s < end; ++s) {
    if (s < lag<Solve> * (P - 1)) {
      filter_pixels<A, V, OB, Solve>(row.one(0), s, nothing);
    } else if (s < row.width) {
      filter_pixels<A, V, OB, Solve>(row, s, nothing);
    } else {
      filter_pixels<A, V, OB, Solve>(row.one(P - 1), s - lag<Solve>, nothing);
    }
  }
}

template <class A, int V, int OB, bool Solve, int P>
void filter_plain_rows(const FilterRows<A, P>& row) {
  filter_steps<A, V, OB, Solve>(row, 0, row.width + lag<Solve> * (P - 1));
}

/// filter_plain_rows for a solve of one channel, a small kernel and row.left = 0. The arithmetic is so little that
/// reading its operands would take longer: weights and pixels stay in registers, and of each row above a pixel is read
/// once. All taps outside the image meet zeros.
template <class A, int V>
void solve_single_rows(const FilterRows<A, 2>& row) {
  using Vec = Vector<A, V>;
  constexpr int K = small_kernel, P = 2, size = K + P - 1;
  static_assert(lag<true> == 1);
  Vec weight[K * K];
  INVCONV_UNROLL
  for (int k = 0; k < K * K; ++k) {
    weight[k] = splat<A, V>(row.weight[k]);
  }
  Vec x[size][size] = {};  // of row.rows[r], pixels s, s - 1, ...
  const auto take_step = [&](Index s, auto first, auto last) __attribute__((always_inline)) {
    INVCONV_UNROLL
    for (int r = 0; r < size; ++r) {
      INVCONV_UNROLL
      for (int k = size - 1; k > 0; --k) {
        x[r][k] = x[r][k - 1];
      }
      if (r >= P && first == 0) {
        x[r][0] = load<A, V>(row.rows[r] + (s + K - 1) * V);
      }
    }
    INVCONV_UNROLL
    for (int p = 0; p < P; ++p) {
      if (p < first || p > last) {
        continue;
      }
      A* const here = row.here[p] + (s - p) * V;
      const int present = P - 1 - p;
      Vec sum = load<A, V>(here);
      INVCONV_UNROLL
      for (int k = 0; k < K * K - 1; ++k) {
        sum = multiply_add<A, V>(x[present + K - 1 - k / K][p + K - 1 - k % K], weight[k], sum);
      }
      if (!row.unit_diagonal) {
        sum = sum / weight[K * K - 1];
      }
      x[present][p] = sum;
      store<A, V>(here, settled(sum));
    }
  };
  constexpr std::integral_constant<int, 0> upper;
  constexpr std::integral_constant<int, 1> lower;
  take_step(0, upper, upper);
  for (Index s = 1; s < row.width; ++s) {
    take_step(s, upper, lower);
  }
  take_step(row.width, lower, lower);
}

/// filter_plain_rows for a small kernel and row.left = 0. With so little to do in a pixel, the next one would wait for
/// its result to come back from memory: the last pixels stay in registers, if these are enough. Sizes are clipped, so a
/// row has as many pixels as the kernel at least.
template <class A, int V, int C, bool Solve, int P>
void filter_small_rows(const FilterRows<A, P>& row) {
  if constexpr (Solve && C == 1 && P == 2 && !few_registers) {
    return solve_single_rows<A, V>(row);
  }
  using Vec = Vector<A, V>;
  constexpr int pixel = C * V, inputs = small_kernel * C;
  constexpr Index reach = small_kernel - 1, begin = reach + lag<Solve> * (P - 1);
  constexpr bool keeps = !few_registers || 2 * C * P + P < 16;
  constexpr auto at = [](int p) { return -p * lag<Solve> * pixel; };
  static_assert(begin <= small_kernel);
  filter_steps<A, V, C, Solve>(row, 0, begin);
  Vec last[C][P];
  if constexpr (keeps) {
    INVCONV_UNROLL
    for (int p = 0; p < P; ++p) {
      INVCONV_UNROLL
      for (int c = 0; c < C; ++c) {
        last[c][p] = load<A, V>(row.here[p] + (begin - 1) * pixel + at(p) + c * V);
      }
    }
  }
  for (Index s = begin; s < row.width; ++s) {
    const auto before = [&](int j, int c, int p) { return load<A, V>(row.here[p] + (s - j) * pixel + at(p) + c * V); };
    const auto own = [&](int c, int p) { return before(0, c, p); };
    Vec sum[C][P];
    INVCONV_UNROLL
    for (int c = 0; c < C; ++c) {
      INVCONV_UNROLL
      for (int p = 0; p < P; ++p) {
        sum[c][p] = Solve ? own(c, p) : Vec{};
      }
    }
    const A* w = row.weight;
    const auto add = [&](auto&& operand) {
      Vec value[P];
      INVCONV_UNROLL
      for (int p = 0; p < P; ++p) {
        value[p] = operand(p);
      }
      INVCONV_UNROLL
      for (int o = 0; o < C; ++o) {
        const Vec weight = splat<A, V>(w[o]);
        INVCONV_UNROLL
        for (int p = 0; p < P; ++p) {
          sum[o][p] = multiply_add<A, V>(value[p], weight, sum[o][p]);
        }
      }
      w += C;
    };
    INVCONV_UNROLL
    for (int i = small_kernel - 1; i > 0; --i) {
      if (i < row.above + P) {
        INVCONV_UNROLL
        for (int k = 0; k < inputs; ++k) {
          add([&](int p) { return load<A, V>(row.rows[i + P - 1 - p] + s * pixel + at(p) + k * V); });
        }
      } else {
        w += inputs * C;
      }
    }
    INVCONV_UNROLL
    for (int c = 0; c < C; ++c) {
      add([&](int p) { return before(2, c, p); });
    }
    INVCONV_UNROLL
    for (int c = 0; c < C; ++c) {
      add([&](int p) { return keeps ? last[c][p] : before(1, c, p); });
    }
    if constexpr (!Solve && keeps) {
      INVCONV_UNROLL
      for (int c = 0; c < C; ++c) {
        INVCONV_UNROLL
        for (int p = 0; p < P; ++p) {
          last[c][p] = own(c, p);
        }
      }
    }
    filter_own<A, V, C, Solve>(row.unit_diagonal, w, sum, own);
    INVCONV_UNROLL
    for (int c = 0; c < C; ++c) {
      INVCONV_UNROLL
      for (int p = 0; p < P; ++p) {
        if constexpr (Solve && keeps) {
          last[c][p] = sum[c][p];
        }
        store<A, V>((Solve ? row.here[p] : row.out[p]) + s * pixel + at(p) + c * V, settled(sum[c][p]));
      }
    }
  }
  filter_steps<A, V, C, Solve>(row, row.width, row.width + lag<Solve> * (P - 1));
}

template <class A, int P>
using FilterRowsFunction = void (*)(const FilterRows<A, P>&);

template <class A, int V, bool Solve, int P, int... OB>
FilterRowsFunction<A, P> plain_rows_of(Index block, std::integer_sequence<int, OB...>) {
  static constexpr FilterRowsFunction<A, P> table[] = {filter_plain_rows<A, V, OB + 1, Solve, P>...};
  return table[block - 1];
}

template <class A, int V, bool Solve, int P, int... C>
FilterRowsFunction<A, P> small_rows_of(Index channels, std::integer_sequence<int, C...>) {
  static constexpr FilterRowsFunction<A, P> table[] = {filter_small_rows<A, V, C + 1, Solve, P>...};
  return table[channels - 1];
}

/// For a block of at most `Most` channels.
template <class A, int V, bool Solve, int P, int Most>
FilterRowsFunction<A, P> rows_of(const FilterShape& shape) {
  if (is_small(shape)) {
    return small_rows_of<A, V, Solve, P>(shape.channels, std::make_integer_sequence<int, small_channels>{});
  }
  return plain_rows_of<A, V, Solve, P>(shape.block, std::make_integer_sequence<int, Most>{});
}

template <class T, int V, bool Solve, int P>
void filter_images(const FilterShape& shape, Index images, const Images<const T>& in, const Images<T>& out,
                   const Arithmetic<T>* packed, void* scratch) {
  using A = Arithmetic<T>;
  const Index channels = shape.channels, width = shape.width, kernel_height = shape.kernel_height;
  const Index margin = (shape.kernel_width - 1) * channels * V, pitch = margin + width * channels * V;
  const auto together = rows_of<A, V, Solve, P, INVCONV_BLOCK / P>(shape);
  const auto alone = rows_of<A, V, Solve, 1, INVCONV_BLOCK>(shape);
  const A** const rows = static_cast<const A**>(scratch);
  A* const ring = static_cast<A*>(skip_pointers(scratch, kernel_height + P - 1));
  A* const filtered = ring + shape.ring * pitch;
  // Row -1 is the ring's last. Zeros stand for the rows above the image, and in each row for the pixels before it.
  const auto at = [&](Index r) { return ring + (r + shape.ring) % shape.ring * pitch; };
  for (Index r = 1 - kernel_height; r < shape.ring - kernel_height + 1; ++r) {
    std::memset(at(r), 0, sizeof(A) * static_cast<std::size_t>(r < 0 ? pitch : margin));
  }
  FilterRows<A, P> row{channels, width, kernel_height, shape.kernel_width, shape.unit_diagonal, packed, rows, {}, {},
                       0,        0};
  for (Index first = 0; first < shape.height; first += shape.band) {
    const Index band = first + shape.band <= shape.height ? shape.band : shape.height - first;
    A* const here = at(first) + margin;  // the ring is a whole number of bands, so a band is never broken
    pack_rows<T, A, V>(in, images, first, band, channels, width, here, {pitch, channels * V, V});
    for (Index r = 0; r < band;) {
      row.above = first + r;
      for (Index i = 0; i < kernel_height + P - 1; ++i) {
        rows[i] = at(first + r + P - 1 - i);
      }
      for (Index p = 0; p < P; ++p) {
        row.here[p] = here + (r + p) * pitch;
        row.out[p] = filtered + (r + p) * (pitch - margin);
      }
      if (r + P <= band) {
        together(row);
        r += P;
      } else {
        alone(row.one(0));
        ++r;
      }
    }
    unpack_rows<T, A, V>(out, images, first, band, channels, width, Solve ? here : filtered,
                         {Solve ? pitch : pitch - margin, channels * V, V});
  }
}

}  // namespace
}  // namespace invconv::detail::cpu
