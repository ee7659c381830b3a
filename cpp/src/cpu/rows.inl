// solve with the rows of a band in the lanes, each `slant` columns behind the one above it: one, so that a step is a
// piece of an anti-diagonal, or two, see rows_slant(). Part of kernels.inl.

#pragma once

#include <cstring>
#include <type_traits>
#include <utility>

#include "cpu/filter.inl"
#include "cpu/wait.inl"

namespace invconv::detail::cpu {
namespace {

/// How far ahead the memory of a row is asked for.
inline constexpr Index columns_ahead = 128;

/// {before[V-1], v[0], ..., v[V-2]}
template <class A, int V, int... J>
[[gnu::always_inline]] inline Vector<A, V> shift(Vector<A, V> before, Vector<A, V> v,
                                                 std::integer_sequence<int, J...>) {
  return __builtin_shufflevector(before, v, (V - 1 + J)...);
}

template <class A, int V>
[[gnu::always_inline]] inline Vector<A, V> shift(Vector<A, V> before, Vector<A, V> v) {
  return shift<A, V>(before, v, std::make_integer_sequence<int, V>{});
}

/// Lane l of it is 0 before step slant * l, when the row in it begins.
template <class A, int V>
[[gnu::always_inline]] inline Vector<A, V> begun(Vector<A, V> value, Index step, Index slant) {
  using Int = std::conditional_t<sizeof(A) == 4, std::int32_t, std::int64_t>;
  using Ints = Vector<Int, V>;
  if (step < slant * (V - 1)) {
    Ints first;
    INVCONV_UNROLL
    for (int lane = 0; lane < V; ++lane) {
      first[lane] = static_cast<Int>(lane * slant);
    }
    const Ints have_begun = first <= Ints{} + static_cast<Int>(step);
    return reinterpret_cast<Vector<A, V>>(reinterpret_cast<Ints>(value) & have_begun);
  }
  return value;
}

/// The memory that is asked for in the course of a tile: in each step one cache line of a row, of each channel and each
/// vector of rows. If a tile asked for all of it at once, the core would wait for memory as long as for the arithmetic:
/// it has room for few lines on their way. And lines that follow each other come sooner.
struct Ahead {
  const char* data;
  Index channel, row, line;  // bytes from one to the next one; a `line` of 0 asks for nothing
  Index lines;               // of this row; those after them lie `jump` bytes farther on
  Index jump;

  [[gnu::always_inline]] void ask(Index step, Index c, Index n) const {
    if (line != 0) {
      __builtin_prefetch(data + c * channel + n * row + step * line + (step < lines ? 0 : jump), 0, 3);
    }
  }
};

/// A band at work, tile after tile of V steps. The pixel that row l works on in step t is (l, t - slant * l).
template <class A>
struct Tiles {
  const FilterShape& shape;
  const A* weight;  // packed; for solve_small_steps_ahead each number as a vector
  const A* above;   // the last rows of the band above: [the nearest first][channel][column]
  Index row_pitch, channel_pitch;
  Index line;      // elements from one row of the window to the next: [channel][row][step]
  const A** rows;  // of each age, for the row of pixels of filter.inl
  A* steps;        // what is kept from one tile to the next
  Ahead ahead;
};

/// Rows that are read each `slant` columns behind the one above it: [channel][row][step].
template <class A>
struct Skewed {
  const A* data;
  Index channel, row;
};

/// The V steps of a tile to `to`: [step][channel][lane], `pixel` elements to a step.
template <class A, int V>
[[gnu::always_inline]] inline void window_to_steps(const A* window, Index line, A* to, Index pixel) {
  Vector<A, V> tile[V];
  INVCONV_UNROLL
  for (int lane = 0; lane < V; ++lane) {
    tile[lane] = load_unaligned<A, V>(window + lane * line);
  }
  transpose<A, V>(tile);
  INVCONV_UNROLL
  for (int s = 0; s < V; ++s) {
    store<A, V>(to + s * pixel, tile[s]);
  }
}

template <class A, int V>
[[gnu::always_inline]] inline void steps_to_window(const A* from, Index pixel, A* window, Index line) {
  Vector<A, V> tile[V];
  INVCONV_UNROLL
  for (int s = 0; s < V; ++s) {
    tile[s] = load<A, V>(from + s * pixel);
  }
  transpose<A, V>(tile);
  INVCONV_UNROLL
  for (int lane = 0; lane < V; ++lane) {
    store_unaligned<A, V>(window + lane * line, tile[lane]);
  }
}

/// Before the first step only the band above has pixels. X_i[t] (see solve_tile) is at here + i * pitch + t * pixel,
/// from step -lead on.
template <class A, int V>
void begin_band(const Tiles<A>& tiles, A* here, Index lead, Index pitch, Index pixel) {
  const FilterShape& shape = tiles.shape;
  std::memset(here - lead * pixel, 0, sizeof(A) * static_cast<std::size_t>(shape.kernel_height * pitch));
  for (Index t = -lead; t < 0; ++t) {
    for (Index i = 1; i < shape.kernel_height; ++i) {
      for (Index c = 0; c < shape.channels; ++c) {
        A* const to = here + i * pitch + t * pixel + c * V;
        for (Index lane = 0; lane < i && lane < V; ++lane) {
          const Index m = i - lane;
          to[lane] = tiles.above[(m - 1) * tiles.row_pitch + c * tiles.channel_pitch + t + m];
        }
      }
    }
  }
}

// ---- kernels of any size --------------------------------------------------------------------------------------------

/// The tap (i, j) of row l reads pixel (l - i, t - l - j), which row l - i had in step t - i - j. So with X_0[t] the
/// results of step t and X_i[t] = X_0[t] moved up by i lanes, the operand is X_i[t - i - j], and what moves in from
/// below lane 0 are the last rows of the band above: row -m at column t + m. With X_i in place of the row of age i this
/// is the row of pixels of filter.inl.
template <class A, int V, int OB>
void solve_tile(const Tiles<A>& tiles, const Skewed<A>& in, A* window, Index step) {
  const FilterShape& shape = tiles.shape;
  const Index channels = shape.channels, pixel = channels * V, count = shape.kernel_height - 1;
  const Index lead = count + shape.kernel_width - 1, pitch = (lead + V) * pixel;
  A* const here = tiles.steps + lead * pixel;  // X_0, X_1, ..., `lead` older steps first
  const auto above = [&](Index m, Index c) {
    return tiles.above + (m - 1) * tiles.row_pitch + c * tiles.channel_pitch;
  };
  if (step == 0) {
    begin_band<A, V>(tiles, here, lead, pitch, pixel);
  }
  for (Index c = 0; c < channels; ++c) {
    window_to_steps<A, V>(in.data + c * in.channel, in.row, here + c * V, pixel);
  }
  for (Index i = 0; i <= count; ++i) {
    tiles.rows[i] = here + i * pitch - (i + shape.kernel_width - 1) * pixel;
  }
  const FilterRows<A, 1> row{channels,
                             V,
                             shape.kernel_height,
                             shape.kernel_width,
                             shape.unit_diagonal,
                             tiles.weight,
                             tiles.rows,
                             {here},
                             {nullptr},
                             count,
                             shape.kernel_width - 1};
  filter_row<A, V, OB, true>(row, [&](Index s, Index c, Vector<A, V>& value) {
    tiles.ahead.ask(s, c, 0);
    value = begun<A, V>(value, step + s, 1);
    Vector<A, V> moved = value;
    A* to = here + s * pixel + c * V;
    for (Index i = 1; i <= count; ++i) {
      to += pitch;
      moved = shift<A, V>(splat<A, V>(above(i, c)[step + s + i]), moved);
      store<A, V>(to, moved);
    }
  });
  for (Index c = 0; c < channels; ++c) {
    steps_to_window<A, V>(here + c * V, pixel, window + c * V * tiles.line, tiles.line);
  }
  for (Index i = 0; i <= count; ++i) {
    std::memmove(tiles.steps + i * pitch, tiles.steps + i * pitch + V * pixel,
                 sizeof(A) * static_cast<std::size_t>(lead * pixel));
  }
}

// ---- small kernels --------------------------------------------------------------------------------------------------

/// The same with K x K taps of C channels and N vectors of rows. Only the results of a step go by way of memory: what
/// the next step needs would arrive too late from there. Of each X_i the last K - 1 vectors are kept, and the next one
/// is moved up from X_{i-1} when it is first needed, X_i[t - slant * i] in step t: then row -m moves in at column t.
template <class A, int V, int N, int C, int K, bool Begins>
[[gnu::always_inline]] inline void solve_small_steps(const Tiles<A>& tiles, A* tile, Index step) {
  using Vec = Vector<A, V>;
  const bool unit_diagonal = tiles.shape.unit_diagonal;
  A* const kept = tile + V * N * C * V;
  constexpr int slant = small_slant(C);
  static_assert(slant < K);
  Vec x[K][K - 1][N][C];  // X_i[t - slant * i - 1], X_i[t - slant * i - 2], ...
  const auto for_kept = [&](auto&& each) {
    INVCONV_UNROLL
    for (int i = 0; i < K; ++i) {
      INVCONV_UNROLL
      for (int j = 0; j < K - 1; ++j) {
        INVCONV_UNROLL
        for (int n = 0; n < N; ++n) {
          INVCONV_UNROLL
          for (int c = 0; c < C; ++c) {
            each(kept + (((i * (K - 1) + j) * N + n) * C + c) * V, x[i][j][n][c]);
          }
        }
      }
    }
  };
  for_kept([](const A* from, Vec& to) { to = load<A, V>(from); });
  Vec single[C == 1 ? K * K : 1];
  if constexpr (C == 1) {
    INVCONV_UNROLL
    for (int k = 0; k < K * K; ++k) {
      single[k] = splat<A, V>(tiles.weight[k]);
    }
  }
  const auto weight = [&](int k) {
    if constexpr (C == 1) {
      return single[k];
    } else {
      return splat<A, V>(tiles.weight[k]);
    }
  };
  const auto take_step = [&](Index s) __attribute__((always_inline)) {
    A* const here = tile + s * (N * C * V);
    Vec sum[N][C];
    INVCONV_UNROLL
    for (int n = 0; n < N; ++n) {
      INVCONV_UNROLL
      for (int c = 0; c < C; ++c) {
        tiles.ahead.ask(s, c, n);
        sum[n][c] = load<A, V>(here + (n * C + c) * V);
      }
    }
    INVCONV_UNROLL
    for (int i = K - 1; i >= 0; --i) {
      Vec next[N][C];
      if (i > 0) {
        INVCONV_UNROLL
        for (int c = 0; c < C; ++c) {
          Vec before = splat<A, V>(tiles.above[(i - 1) * tiles.row_pitch + c * tiles.channel_pitch + step + s]);
          INVCONV_UNROLL
          for (int n = 0; n < N; ++n) {
            next[n][c] = shift<A, V>(before, x[i - 1][slant - 1][n][c]);
            before = x[i - 1][slant - 1][n][c];
          }
        }
      }
      INVCONV_UNROLL
      for (int j = K - 1; j >= (i > 0 ? 0 : 1); --j) {
        INVCONV_UNROLL
        for (int c = 0; c < C; ++c) {
          INVCONV_UNROLL
          for (int n = 0; n < N; ++n) {
            const Vec value = j > 0 ? x[i][j - 1][n][c] : next[n][c];
            INVCONV_UNROLL
            for (int o = 0; o < C; ++o) {
              const int k = (((K - 1 - i) * K + K - 1 - j) * C + c) * C + o;
              sum[n][o] = multiply_add<A, V>(value, weight(k), sum[n][o]);
            }
          }
        }
      }
      if (i > 0) {
        INVCONV_UNROLL
        for (int n = 0; n < N; ++n) {
          INVCONV_UNROLL
          for (int c = 0; c < C; ++c) {
            INVCONV_UNROLL
            for (int j = K - 2; j > 0; --j) {
              x[i][j][n][c] = x[i][j - 1][n][c];
            }
            x[i][0][n][c] = next[n][c];
          }
        }
      }
    }
    INVCONV_UNROLL
    for (int n = 0; n < N; ++n) {
      INVCONV_UNROLL
      for (int c = 0; c < C; ++c) {
        constexpr int square = (K * K - 1) * C * C;
        if (!unit_diagonal) {
          sum[n][c] = sum[n][c] / weight(square + c * C + c);
        }
        INVCONV_UNROLL
        for (int o = c + 1; o < C; ++o) {
          sum[n][o] = multiply_add<A, V>(sum[n][c], weight(square + c * C + o), sum[n][o]);
        }
        if constexpr (Begins) {
          sum[n][c] = begun<A, V>(sum[n][c], step + s - slant * n * V, slant);
        }
        INVCONV_UNROLL
        for (int j = K - 2; j > 0; --j) {
          x[0][j][n][c] = x[0][j - 1][n][c];
        }
        x[0][0][n][c] = sum[n][c];
        store<A, V>(here + (n * C + c) * V, settled(sum[n][c]));
      }
    }
  };
  constexpr int together = Begins ? 1 : 2;  // so that less is moved from register to register
  for (Index s = 0; s < V; s += together) {
    INVCONV_UNROLL
    for (int u = 0; u < together; ++u) {
      take_step(s + u);
    }
  }
  for_kept([](A* to, const Vec& from) { store<A, V>(to, from); });
}

/// The same for few registers, in the same order of operations. The X_i are kept in memory, as those of solve_tile, and
/// the weights as vectors: as an operand of a multiply-add, memory costs no instruction of its own, but a broadcast
/// does. Only X_i[t - 1] is in registers in step t. A result is one long chain of multiply-adds; the first of them,
/// those of the `early` operands, need nothing from the step right before. They are done in the course of that step,
/// whose own chain would else keep the core waiting: the steps are too long for it to find them by itself.
template <class A, int V, int N, int C, int K, bool Begins>
[[gnu::always_inline]] inline void solve_small_steps_ahead(const Tiles<A>& tiles, A* tile, Index step) {
  using Vec = Vector<A, V>;
  constexpr int pixel = N * C * V, pitch = (2 * (K - 1) + V) * pixel;
  constexpr int operands = (K * K - 1) * C, early = ((K - 1) * K - 1) * C;  // those before the tap (1, 0)
  const bool unit_diagonal = tiles.shape.unit_diagonal;
  const auto weight = [&](int k) { return load<A, V>(tiles.weight + k * V); };
  Vec last[K][N][C];  // X_i[t - 1]
  Vec next[N][C];     // the sums of step t + 1
  const auto for_all = [&](auto&& each) __attribute__((always_inline)) {
    INVCONV_UNROLL
    for (int n = 0; n < N; ++n) {
      INVCONV_UNROLL
      for (int c = 0; c < C; ++c) {
        each(n, c, (n * C + c) * V);
      }
    }
  };
  // Adds the k-th operand to a sum of step t + ahead; `here` is the place of X_0[t].
  const auto add = [&](auto ahead, const A* here, int n, int k, Vec(&sum)[C]) __attribute__((always_inline)) {
    const int i = K - 1 - k / C / K, j = K - 1 - k / C % K, c = k % C, age = i + j - decltype(ahead)::value;
    const Vec value = age == 1 ? last[i][n][c] : load<A, V>(here + i * pitch - age * pixel + (n * C + c) * V);
    INVCONV_UNROLL
    for (int o = 0; o < C; ++o) {
      sum[o] = multiply_add<A, V>(value, weight(k * C + o), sum[o]);
    }
  };
  constexpr std::integral_constant<int, 0> present;
  constexpr std::integral_constant<int, 1> ahead;
  const auto take_step = [&](Index s, auto goes_on) __attribute__((always_inline)) {
    constexpr bool GoesOn = decltype(goes_on)::value;
    A* here = tile + s * pixel;
    // Else GCC sees which values are loaded again in the next steps, and carries them along in too many registers.
    asm("" : "+r"(here));
    INVCONV_UNROLL
    for (int i = 1; i < K; ++i) {
      INVCONV_UNROLL
      for (int c = 0; c < C; ++c) {
        Vec before = splat<A, V>(tiles.above[(i - 1) * tiles.row_pitch + c * tiles.channel_pitch + step + s + i - 1]);
        INVCONV_UNROLL
        for (int n = 0; n < N; ++n) {
          last[i][n][c] = shift<A, V>(before, last[i - 1][n][c]);
          before = last[i - 1][n][c];
          store<A, V>(here + i * pitch - pixel + (n * C + c) * V, last[i][n][c]);
        }
      }
    }
    INVCONV_UNROLL
    for (int n = 0; n < N; ++n) {
      Vec sum[C];
      INVCONV_UNROLL
      for (int c = 0; c < C; ++c) {
        tiles.ahead.ask(s, c, n);
        sum[c] = next[n][c];
        if constexpr (GoesOn) {
          next[n][c] = load<A, V>(here + pixel + (n * C + c) * V);
        }
      }
      INVCONV_UNROLL
      for (int k = 0; k < operands - early; ++k) {
        add(present, here, n, early + k, sum);
        if constexpr (GoesOn) {
          add(ahead, here, n, k, next[n]);
        }
      }
      INVCONV_UNROLL
      for (int c = 0; c < C; ++c) {
        constexpr int square = operands * C;
        if (!unit_diagonal) {
          sum[c] = sum[c] / weight(square + c * C + c);
        }
        INVCONV_UNROLL
        for (int o = c + 1; o < C; ++o) {
          sum[o] = multiply_add<A, V>(sum[c], weight(square + c * C + o), sum[o]);
        }
        if constexpr (Begins) {
          sum[c] = begun<A, V>(sum[c], step + s - n * V, 1);
        }
        last[0][n][c] = sum[c];
        store<A, V>(here + (n * C + c) * V, settled(sum[c]));
      }
      if constexpr (GoesOn) {
        INVCONV_UNROLL
        for (int k = operands - early; k < early; ++k) {
          add(ahead, here, n, k, next[n]);
        }
      }
    }
  };
  for_all([&](int n, int c, int at) {
    next[n][c] = load<A, V>(tile + at);
    INVCONV_UNROLL
    for (int i = 1; i < K; ++i) {
      last[i][n][c] = load<A, V>(tile + i * pitch - 2 * pixel + at);
    }
    last[0][n][c] = load<A, V>(tile - pixel + at);
  });
  INVCONV_UNROLL
  for (int n = 0; n < N; ++n) {
    INVCONV_UNROLL
    for (int k = 0; k < early; ++k) {
      add(ahead, tile - pixel, n, k, next[n]);
    }
  }
  for (Index s = 0; s < V - 1; ++s) {
    take_step(s, std::true_type{});
  }
  take_step(V - 1, std::false_type{});
  // What the next tile needs.
  INVCONV_UNROLL
  for (int i = 0; i < K; ++i) {
    INVCONV_UNROLL
    for (int t = 1 - K - i; t < 0; ++t) {
      for_all([&](int, int, int at) {
        A* const to = tile + i * pitch + t * pixel + at;
        store<A, V>(to, load<A, V>(to + V * pixel));
      });
    }
  }
}

/// Whether solve_small_steps_ahead is used. One channel's values are few enough for 16 registers: measured with AVX2,
/// it gains nothing there.
constexpr bool works_ahead(Index channels) { return few_registers && channels > 1; }

template <class A, int V, int N, int C, bool Begins>
[[gnu::always_inline]] inline void small_steps(const Tiles<A>& tiles, A* tile, Index step) {
  if constexpr (works_ahead(C)) {
    solve_small_steps_ahead<A, V, N, C, small_kernel, Begins>(tiles, tile, step);
  } else {
    solve_small_steps<A, V, N, C, small_kernel, Begins>(tiles, tile, step);
  }
}

template <class A, int V, int N, int C>
void solve_small_tile(const Tiles<A>& tiles, const Skewed<A>& in, A* window, Index step) {
  constexpr int K = small_kernel, slant = small_slant(C), pixel = N * C * V, lead = works_ahead(C) ? 2 * (K - 1) : 0;
  A* const tile = tiles.steps + lead * pixel;  // [step][vector][channel][lane]
  if (step == 0) {
    if constexpr (works_ahead(C)) {
      begin_band<A, V>(tiles, tile, lead, (lead + V) * pixel, pixel);
    } else {
      std::memset(tile + V * pixel, 0, sizeof(A) * K * (K - 1) * pixel);
    }
  }
  INVCONV_UNROLL
  for (int c = 0; c < C; ++c) {
    INVCONV_UNROLL
    for (int n = 0; n < N; ++n) {
      window_to_steps<A, V>(in.data + c * in.channel + n * V * in.row, in.row, tile + (n * C + c) * V, pixel);
    }
  }
  if (step < slant * N * V) {
    small_steps<A, V, N, C, true>(tiles, tile, step);
  } else {
    small_steps<A, V, N, C, false>(tiles, tile, step);
  }
  INVCONV_UNROLL
  for (int c = 0; c < C; ++c) {
    INVCONV_UNROLL
    for (int n = 0; n < N; ++n) {
      steps_to_window<A, V>(tile + (n * C + c) * V, pixel, window + (c * N + n) * V * tiles.line, tiles.line);
    }
  }
}

template <class A>
using TileFunction = void (*)(const Tiles<A>&, const Skewed<A>& in, A* window, Index step);

template <class A, int V, int... OB>
TileFunction<A> tile_of(Index block, std::integer_sequence<int, OB...>) {
  static constexpr TileFunction<A> table[] = {solve_tile<A, V, OB + 1>...};
  return table[block - 1];
}

template <class A, int V, int N, int... C>
TileFunction<A> small_tile_of(Index channels, std::integer_sequence<int, C...>) {
  static constexpr TileFunction<A> table[] = {solve_small_tile<A, V, N, C + 1>...};
  return table[channels - 1];
}

template <class A, int V>
TileFunction<A> tile_of(const FilterShape& shape) {
  if (shape.band == 2 * V) {
    return small_tile_of<A, V, 2>(shape.channels, std::make_integer_sequence<int, double_band_channels>{});
  }
  if (is_small(shape)) {
    return small_tile_of<A, V, 1>(shape.channels, std::make_integer_sequence<int, small_channels>{});
  }
  return tile_of<A, V>(shape.block, std::make_integer_sequence<int, rows_block>{});
}

// ---- bands ----------------------------------------------------------------------------------------------------------

/// Columns [first, first + n) of a row of `width`, those outside of it 0.
template <class A, int V, class T>
void copy_columns_in(const T* row, Index step, Index first, Index n, Index width, A* to) {
  const Index begin = first < 0 ? -first : 0, end = width - first < n ? width - first : n;
  std::memset(to, 0, sizeof(A) * static_cast<std::size_t>(begin < n ? begin : n));
  if (begin < end) {
    copy_in<A, V>(row + (first + begin) * step, step, end - begin, to + begin);
  }
  const Index rest = end < begin ? begin : end;
  if (rest < n) {
    std::memset(to + rest, 0, sizeof(A) * static_cast<std::size_t>(n - rest));
  }
}

template <class T>
inline constexpr Index line_columns = 64 / static_cast<Index>(sizeof(T));

/// Asks for the memory of columns [0, n).
template <class T>
void prefetch_columns(const T* row, Index step, Index n, Index width) {
  const Index end = n < width ? n : width;
  for (Index k = 0; k < end && (step == 1 || step == -1); k += line_columns<T>) {
    __builtin_prefetch(row + k * step, 0, 3);
  }
}

/// Sets what tile `t` of the band that begins with row `first` asks for: V lines of some rows, so that all have had
/// their turn when a line has as many columns as there were tiles. Where a row ends, the same one of the band that
/// begins with row `next` goes on.
template <class T, int V>
void look_ahead(const FilterShape& shape, const Images<const T>& in, Index first, Index next, Index t, Ahead& ahead) {
  constexpr Index bytes = static_cast<Index>(sizeof(T));
  const Index together = shape.band / V, row = t / V % line_columns<T> * together;
  const Index column = t + columns_ahead - rows_slant(shape) * row;
  const bool goes_on = next + row < shape.height;
  if (row < shape.band && first + row < shape.height && (column < shape.width || goes_on)) {
    ahead = {reinterpret_cast<const char*>(in.data + (first + row) * in.row + column * in.column),
             in.channel * bytes,
             first + row + together <= shape.height ? in.row * bytes : 0,
             in.column * 64,
             (shape.width - column + line_columns<T> - 1) / line_columns<T>,
             goes_on ? ((next - first) * in.row - shape.width * in.column) * bytes : 0};
  }
}

template <class A, int V, class T>
void copy_columns_out(T* row, Index step, Index first, Index n, Index width, const A* from, bool streamed = false) {
  const Index begin = first < 0 ? -first : 0, end = width - first < n ? width - first : n;
  if (begin < end) {
    copy_out<A, V>(row + (first + begin) * step, step, end - begin, from + begin, streamed);
  }
}

/// Of the pieces of `n` elements of memory that `row` lies in, the elements before `column` in the same one.
template <class T>
Index unfilled(const T* row, Index step, Index column, Index n) {
  const auto at = reinterpret_cast<std::uintptr_t>(row) / sizeof(T) + static_cast<std::uintptr_t>(column);
  return step == 1 ? static_cast<Index>(at % static_cast<std::uintptr_t>(n)) : 0;
}

/// One band of one image, `shape.band` rows.
template <class T, int V>
void solve_rows(const FilterShape& shape, const Images<const T>& in, const Images<T>& out, const Arithmetic<T>* packed,
                const Band<Arithmetic<T>>& band, void* scratch) {
  using A = Arithmetic<T>;
  const Index channels = shape.channels, width = shape.width, kernel_height = shape.kernel_height, rows = shape.band;
  const Index first = band.index * rows, live = first + rows <= shape.height ? rows : shape.height - first;
  const Index slant = rows_slant(shape), lead = kernel_height - 1 + shape.kernel_width - 1;
  const auto function = tile_of<A, V>(shape);
  A* const steps = static_cast<A*>(skip_pointers(scratch, kernel_height));
  A* const vectors = steps + kernel_height * (lead + V) * channels * rows;
  constexpr Index room = rows_waiting(V, sizeof(A)), piece = can_stream<A, V> ? room : V;
  A* const window = vectors + rows_weight_vectors(shape) * V + room;
  const A* const weight = works_ahead(channels) && is_small(shape) ? vectors : packed;
  for (Index k = 0; weight == vectors && k < rows_weight_vectors(shape); ++k) {
    store<A, V>(vectors + k * V, splat<A, V>(packed[k]));
  }
  Tiles<A> tiles{shape,
                 weight,
                 band.above,
                 channels * band.pitch,
                 band.pitch,
                 shape.pitch + room,
                 static_cast<const A**>(scratch),
                 steps,
                 {reinterpret_cast<const char*>(in.data), 0, 0, 0, 0, 0}};
  const auto line = [&](Index c, Index row) { return window + (c * rows + row) * tiles.line; };
  const auto from = [&](Index c, Index row) { return in.data + (first + row) * in.row + c * in.channel; };
  const auto for_live = [&](auto&& each) {
    for (Index c = 0; c < channels; ++c) {
      for (Index row = 0; row < live; ++row) {
        each(c, row);
      }
    }
  };

  // The rows are written in long pieces, by way of a window that lies well in the cache whatever their strides; what
  // does not fill a vector or a cache line of the output waits for the next window.
  const Index total = (width + slant * (live - 1) + V - 1) / V * V;
  // What a small image's rows hold is near at hand, and to ask would take longer than it saves. Others' first columns
  // were asked for in the last tiles of the band that this thread had before.
  constexpr Index small_image = 256 * 1024 / static_cast<Index>(sizeof(T));
  const bool asks = channels * shape.height * width > small_image && total >= V * line_columns<T> &&
                    (in.column == 1 || in.column == -1);
  if (!asks || band.index < band.stride) {
    for_live([&](Index c, Index row) {
      const Index turn = row / (rows / V);
      prefetch_columns(from(c, row), in.column, asks ? columns_ahead - slant * row + turn * V : width, width);
    });
  }
  for (Index c = 0; c < channels; ++c) {
    for (Index row = live; row < rows; ++row) {
      std::memset(line(c, row), 0, sizeof(A) * static_cast<std::size_t>(shape.pitch));
    }
  }
  const Index chunk = hand_over(width, V);
  BandAbove<A> band_above(band, width);
  for (Index start = 0; start < total; start += shape.pitch) {
    const Index n = total - start < shape.pitch ? total - start : shape.pitch;
    // Whole pieces of the rows are read from where they are.
    Skewed<A> skewed{window, rows * tiles.line, tiles.line};
    if constexpr (std::is_same_v<T, A>) {
      if (in.column == 1 && live == rows && start >= slant * (rows - 1) && start + n <= width) {
        skewed = {from(0, 0) + start, in.channel, in.row - slant};
      }
    }
    if (skewed.data == window) {
      for_live([&](Index c, Index row) {
        copy_columns_in<A, V>(from(c, row), in.column, start - slant * row, n, width, line(c, row));
      });
    }
    // The last rows, for the band below.
    const auto leave = [&](Index t, Index count) {
      for (Index c = 0; c < channels; ++c) {
        for (Index m = 1; m < kernel_height; ++m) {
          copy_columns_out<A, V>(band.below + ((m - 1) * channels + c) * band.pitch, Index{1}, t - slant * (rows - m),
                                 count, width, line(c, rows - m) + t - start);
        }
      }
    };
    for (Index t = start; t < start + n; t += V, skewed.data += V) {
      if (asks) {
        look_ahead<T, V>(shape, in, first, first + band.stride * rows, t, tiles.ahead);
      }
      if ((t - start) % chunk == 0) {
        band_above.wait_for(t + chunk + kernel_height);
      }
      function(tiles, skewed, window + t - start, t);
      const Index done = t + V - start;
      if (band.done != nullptr && (done % chunk == 0 || done == n)) {
        const Index count = (done - 1) % chunk + 1;
        leave(t + V - count, count);
        const Index columns = t + V - slant * (rows - 1);
        finished(band, columns < 0 ? 0 : columns < width ? columns : width - 1, width);
      }
    }
    if (band.done == nullptr) {
      leave(start, n);
    }
    for_live([&](Index c, Index row) {
      T* const to = out.data + (first + row) * out.row + c * out.channel;
      A* const here = line(c, row);
      const Index before = start == 0 ? 0 : unfilled(to, out.column, start - slant * row, piece);
      const Index after = start + n == total ? 0 : unfilled(to, out.column, start + n - slant * row, piece);
      copy_columns_out<A, V>(to, out.column, start - slant * row - before, n + before - after, width, here - before,
                             shape.streamed);
      if (start + n < total) {
        std::memcpy(here - piece, here + n - piece, sizeof(A) * piece);
      }
    });
  }
  finish_streams();
  finished(band, width, width);
}

}  // namespace
}  // namespace invconv::detail::cpu
