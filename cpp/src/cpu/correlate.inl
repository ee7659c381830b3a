// weight_grad with pixels in the lanes; correlate_channels.inl has channels there. Part of kernels.inl.
//
// A unit's images stand side by side, row by row: a channel of the unit is one line of
// elements, [row][image][column], and a tap that reaches i rows up reads x's line that many rows before g's.
//
// Wide rows are packed by themselves: whole vectors, with the left neighbours before them, so that a tap that reaches j
// columns to the left reads x's line j elements before. Narrow ones follow each other without a gap, so that lanes are
// full for images of any width: there is a copy of x's line for each j, moved by j, with zeros where a row begins.
// Either way nothing of one row or image meets another's.

#pragma once

#include <cstring>
#include <type_traits>
#include <utility>

#include "cpu/correlate_channels.inl"
#include "cpu/vectors.inl"

namespace invconv::detail::cpu {
namespace {

// Accumulators of a tile: correlation_outputs x inputs, and room for the operands, in 32 registers or 16.
#if defined(__AVX512F__) || defined(__aarch64__)
inline constexpr int tile_inputs = 6;
#else
inline constexpr int tile_inputs = 3;
#endif

// So many tiles of inputs are prepared at a time.
inline constexpr int tiles_together = 8;

/// Keeps GCC from loading the value anew for each of its uses.
template <class Vec>
[[gnu::always_inline]] inline void keep_in_register([[maybe_unused]] Vec& value) {
#if defined(__x86_64__)
  asm("" : "+v"(value));
#elif defined(__aarch64__)
  asm("" : "+w"(value));
#endif
}

// ---- sums of lanes ------------------------------------------------------------------------------------------------

/// Of a's and b's blocks of U lanes every second one, from the first (odd = 0) or the second (odd = 1) on.
template <int U, int odd, class Vec, int... lane>
[[gnu::always_inline]] inline Vec every_second(const Vec& a, const Vec& b, std::integer_sequence<int, lane...>) {
  return __builtin_shufflevector(a, b, ((2 * (lane / U) + odd) * U + lane % U)...);
}

/// The sum of each vector's lanes, halves folded onto each other, two vectors at a time.
template <class A, int V, int N, int U = V / 2>
[[gnu::always_inline]] inline void sum_lanes(const Vector<A, V>* values, A* sums) {
  if constexpr (U == 0) {
    for (int n = 0; n < N; ++n) {
      store_unaligned<A, V>(sums + n * V, values[n]);
    }
  } else {
    using Lanes = std::make_integer_sequence<int, V>;
    Vector<A, V> folded[(N + 1) / 2];
    INVCONV_UNROLL
    for (int n = 0; n < (N + 1) / 2; ++n) {
      const Vector<A, V>&a = values[2 * n], &b = values[2 * n + 1 < N ? 2 * n + 1 : 2 * n];
      folded[n] = every_second<U, 0>(a, b, Lanes{}) + every_second<U, 1>(a, b, Lanes{});
    }
    sum_lanes<A, V, (N + 1) / 2, U / 2>(folded, sums);
  }
}

template <class A, int... lane>
[[gnu::always_inline]] inline Vector<A, sizeof...(lane)> numbers(std::integer_sequence<int, lane...>) {
  const A values[] = {static_cast<A>(lane)...};
  return load_unaligned<A, sizeof...(lane)>(values);
}

// ---- tiles --------------------------------------------------------------------------------------------------------

template <class A>
struct Tile {
  Index runs, run;              // a line is so many runs of so many elements
  Index x_step;                 // from one vector of x to the next; g's follow each other
  Index x_run, g_line;          // elements from one run or line to the next
  const A* g;                   // the first output's line
  const A* input[tile_inputs];  // x's lines
  const A* ahead;               // what is fetched meanwhile, a line's worth
  double* sums;                 // [input][output]
  Index inputs;                 // how many of them are wanted
};

template <class A, int V, int TO, int TK>
void correlate_tile(const Tile<A>& tile) {
  using Vec = Vector<A, V>;
  Vec sum[TK * TO] = {};
  const auto add_products = [&](Index g_at, const Vec(&inputs)[TK]) __attribute__((always_inline)) {
    INVCONV_UNROLL
    for (int o = 0; o < TO; ++o) {
      const Vec g = load<A, V>(tile.g + o * tile.g_line + g_at);
      INVCONV_UNROLL
      for (int k = 0; k < TK; ++k) {
        sum[k * TO + o] = multiply_add<A, V>(g, inputs[k], sum[k * TO + o]);
      }
    }
  };
  const Index rest = tile.run % V, whole = tile.run - rest;
  const Vec ends = splat<A, V>(static_cast<A>(rest));
  Index g_at = 0, x_at = 0;
  for (Index r = 0; r < tile.runs; ++r) {
    const Index x_next = x_at + tile.x_run;
    for (const Index end = g_at + whole; g_at < end; g_at += V, x_at += tile.x_step) {
      if constexpr (TO < correlation_outputs) {  // few channels: memory sets the pace
        __builtin_prefetch(tile.ahead + g_at, 0, 2);
      }
      Vec inputs[TK];
      INVCONV_UNROLL
      for (int k = 0; k < TK; ++k) {
        inputs[k] = load_unaligned<A, V>(tile.input[k] + x_at);
        keep_in_register(inputs[k]);
      }
      add_products(g_at, inputs);
    }
    if (rest > 0) {
      // In its last vector g has zeros behind the run's end, but x may have pixels that must not even meet a zero.
      Vec inputs[TK];
      INVCONV_UNROLL
      for (int k = 0; k < TK; ++k) {
        const Vec value = load_unaligned<A, V>(tile.input[k] + x_at);
        inputs[k] = numbers<A>(std::make_integer_sequence<int, V>{}) < ends ? value : Vec{};
      }
      add_products(g_at, inputs);
      g_at += V;
    }
    x_at = x_next;
  }
  A sums[(TK * TO + V - 1) / V * V];
  sum_lanes<A, V, TK * TO>(sum, sums);
  if (tile.inputs == TK) {
    for (int n = 0; n < TK * TO; ++n) {
      tile.sums[n] += static_cast<double>(sums[n]);
    }
  } else {
    for (Index n = 0; n < tile.inputs * TO; ++n) {
      tile.sums[n] += static_cast<double>(sums[n]);
    }
  }
}

// ---- packing ------------------------------------------------------------------------------------------------------

/// How a line is packed.
struct Line {
  Index row;    // elements from one row of an image to the next image's
  Index pitch;  // from one channel to the next
};

/// Rows of the images of a unit, and where they go: [channel][row][image][column].
template <class T, class A>
struct Rows {
  Images<const T> from;
  Index images, channels, rows, columns;
  A* to;
  Line line;

  /// each(from, to) for every row.
  template <class Each>
  [[gnu::always_inline]] void for_each(Each&& each) const {
    for (Index image = 0; image < images; ++image) {
      for (Index c = 0; c < channels; ++c) {
        const T* row = from.data + image * from.batch + c * from.channel;
        A* place = to + c * line.pitch + image * line.row;
        for (Index r = 0; r < rows; ++r, row += from.row, place += images * line.row) {
          each(row, place);
        }
      }
    }
  }
};

/// Copies rows in chunks of N elements, N <= columns; a row's last chunk overlaps the one before it.
template <class A, int N, bool backwards>
void copy_chunks(const Rows<A, A>& rows) {
  const auto chunk = [](const A* from, A* to, Index at) __attribute__((always_inline)) {
    if constexpr (backwards) {
      store_unaligned<A, N>(to + at, reversed<A, N>(load_unaligned<A, N>(from - at - (N - 1))));
    } else {
      store_unaligned<A, N>(to + at, load_unaligned<A, N>(from + at));
    }
  };
  const Index last = rows.columns - N;
  if (last == 0) {
    rows.for_each([&](const A* from, A* to) __attribute__((always_inline)) { chunk(from, to, 0); });
  } else if (last <= N) {
    rows.for_each([&](const A* from, A* to) __attribute__((always_inline)) {
      chunk(from, to, 0);
      chunk(from, to, last);
    });
  } else {
    rows.for_each([&](const A* from, A* to) __attribute__((always_inline)) {
      for (Index at = 0; at < last; at += N) {
        chunk(from, to, at);
      }
      chunk(from, to, last);
    });
  }
}

template <class T, class A, int V>
void copy_rows(const Rows<T, A>& rows) {
  if constexpr (V * sizeof(A) >= 16 && std::is_same_v<T, A>) {
    const bool contiguous = rows.from.column == 1 || rows.from.column == -1;
    if (contiguous && rows.columns < V) {
      return copy_rows<T, A, V / 2>(rows);
    }
    if (contiguous) {
      return rows.from.column == 1 ? copy_chunks<A, V, false>(rows) : copy_chunks<A, V, true>(rows);
    }
  }
  rows.for_each([&](const T* from, A* to) {
    for (Index s = 0; s < rows.columns; ++s) {
      to[s] = widen(from[s * rows.from.column]);
    }
  });
}

/// Packs `columns` columns of rows [row, row + rows), the first of which may lie above the image, where there is
/// nothing but zeros.
template <class T, class A, int V>
void pack_lines(const Images<const T>& images, const CorrelationUnit& unit, Index channels, Index row, Index rows,
                Index column, Index columns, A* lines, const Line& line) {
  const Index above = row < 0 ? -row : 0;
  if (above > 0) {
    for (Index c = 0; c < channels; ++c) {
      std::memset(lines + c * line.pitch, 0, sizeof(A) * static_cast<std::size_t>(above * unit.images * line.row));
    }
  }
  Images<const T> from = images;
  from.data += (row + above) * images.row + column * images.column;
  copy_rows<T, A, V>(
      {from, unit.images, channels, rows - above, columns, lines + above * unit.images * line.row, line});
}

/// Fills the last vector of each run with zeros, before the run is packed.
template <class A, int V>
void clear_ends(Index channels, Index runs, Index run, A* lines, const Line& line) {
  if (run % V != 0) {
    for (Index c = 0; c < channels; ++c) {
      for (Index r = 0; r < runs; ++r) {
        store<A, V>(lines + c * line.pitch + r * line.row + run / V * V, Vector<A, V>{});
      }
    }
  }
}

/// Makes the line moved by 1 .. kernel_width - 1 columns from the line itself, each `pitch` elements behind the one
/// before it. `column` holds the column of each element.
template <class A, int V>
void shift_line(Index kernel_width, Index begin, Index end, const A* column, A* line, Index pitch) {
  using Vec = Vector<A, V>;
  for (Index j = 1; j < kernel_width; ++j) {
    const Vec first = splat<A, V>(static_cast<A>(j));
    A* const to = line + j * pitch;
    for (Index at = begin / V * V; at < end; at += V) {
      const Vec moved = load_unaligned<A, V>(line + at - j);
      store<A, V>(to + at, load<A, V>(column + at) >= first ? moved : Vec{});
    }
  }
}

/// Packs the channels of x, in part from what the unit above has left behind.
template <class T, class A, int V>
void pack_x(const CorrelationShape& shape, const CorrelationUnit& unit, Index channels, const Images<const T>& x,
            const A* column, A* lines) {
  const Index copies = correlation_copies(shape), above = shape.kernel_height - 1;
  const Line line{correlation_x_row(shape, unit.columns, V), copies * shape.x_line};
  const Index row = unit.images * line.row;
  const Index kept = unit.rows_before > 0 ? above : 0;
  if (kept > 0) {
    for (Index l = 0; l < channels * copies; ++l) {
      A* const to = lines + l * shape.x_line;
      std::memmove(to, to + unit.rows_before * row, sizeof(A) * static_cast<std::size_t>(kept * row));
    }
  }
  A* const fresh = lines + kept * row;
  const Index first = unit.row - above + kept, rows = unit.rows + above - kept;
  if (!shape.by_rows) {
    pack_lines<T, A, V>(x, unit, channels, first, rows, 0, unit.columns, fresh, line);
    for (Index c = 0; c < channels; ++c) {
      shift_line<A, V>(shape.kernel_width, kept * row, (kept + rows) * row, column, lines + c * line.pitch,
                       shape.x_line);
    }
    return;
  }
  const Index margin = line.row - whole_vectors(unit.columns, V), reach = shape.kernel_width - 1;
  const Index left = reach < unit.column ? reach : unit.column;
  if (left < reach) {
    for (Index c = 0; c < channels; ++c) {
      for (Index r = 0; r < rows * unit.images; ++r) {
        for (Index at = 0; at < margin; at += V) {
          store<A, V>(fresh + c * line.pitch + r * line.row + at, Vector<A, V>{});
        }
      }
    }
  }
  pack_lines<T, A, V>(x, unit, channels, first, rows, unit.column - left, left + unit.columns, fresh + margin - left,
                      line);
}

/// The rows of the unit below in memory, where they are one piece and as large as they are packed; else `otherwise`.
template <class T, class A>
const A* rows_below(const Images<const T>& images, const CorrelationUnit& unit, Index channel, const A* otherwise) {
  const Index row = images.row < 0 ? -images.row : images.row;
  const bool one_piece = unit.images == 1 && (images.column == 1 || images.column == -1) &&
                         (unit.rows_after == 1 || (unit.rows_after > 1 && row == unit.columns));
  if constexpr (std::is_same_v<T, A>) {
    if (one_piece) {
      const Index first = unit.row + unit.rows, last = first + unit.rows_after - 1;
      return images.data + channel * images.channel + (images.row < 0 ? last : first) * images.row +
             (images.column < 0 ? unit.column + unit.columns - 1 : unit.column) * images.column;
    }
  }
  return otherwise;
}

// ---- a unit -------------------------------------------------------------------------------------------------------

template <class T, int V>
void correlate_unit(const CorrelationShape& shape, const CorrelationUnit& unit, const Images<const T>& x,
                    const Images<const T>& g, const Arithmetic<T>* column, double* sums, Arithmetic<T>* scratch) {
  using A = Arithmetic<T>;
  if (shape.by_channels) {
    return shape.inputs <= V ? correlate_channels<T, V, true>(shape, unit, x, g, sums, scratch)
                             : correlate_channels<T, V, false>(shape, unit, x, g, sums, scratch);
  }
  const Index kernel_height = shape.kernel_height, kernel_width = shape.kernel_width;
  const Index taps = kernel_width * kernel_height, images_rows = unit.images * unit.rows;
  const bool by_rows = shape.by_rows;
  A* const packed_g = scratch;
  A* const packed_x = packed_g + shape.outputs * shape.g_line;

  using Function = void (*)(const Tile<A>&);
  struct Prepared {
    Tile<A> tile;
    const Function* functions;
    Index first;
  };
  static constexpr int half = tile_inputs == 6 ? 3 : 1;
  static constexpr Function wide[] = {correlate_tile<A, V, 1, tile_inputs>, correlate_tile<A, V, 2, tile_inputs>,
                                      correlate_tile<A, V, 3, tile_inputs>, correlate_tile<A, V, 4, tile_inputs>};
  static constexpr Function slim[] = {correlate_tile<A, V, 1, half>, correlate_tile<A, V, 2, half>,
                                      correlate_tile<A, V, 3, half>, correlate_tile<A, V, 4, half>};

  Tile<A> tile{};
  tile.runs = by_rows ? images_rows : 1;
  tile.run = by_rows ? unit.columns : images_rows * unit.columns;
  tile.x_run = correlation_x_row(shape, unit.columns, V);
  tile.g_line = shape.g_line;
  const Index row = unit.images * tile.x_run;
  tile.x_step = V;
  if (tile.run == V) {  // all of them as one run
    tile.run *= tile.runs;
    tile.runs = 1;
    tile.x_step = tile.x_run;
  }
  const Index runs = tile.runs, run = tile.run;
  // From a line of x to the one for the next column to the left, and from that to the next input's.
  const Index next_column = by_rows ? -1 : shape.x_line;
  const Index next_input = by_rows ? shape.x_line + kernel_width - 1 : shape.x_line;

  const Line g_line{correlation_g_row(shape, unit.columns, V), shape.g_line};
  clear_ends<A, V>(shape.outputs, tile.runs, tile.run, packed_g, g_line);
  pack_lines<T, A, V>(g, unit, shape.outputs, unit.row, unit.rows, unit.column, unit.columns, packed_g, g_line);
  Index tiles = 0;
  for (Index first = 0; first < shape.inputs; first += shape.inputs_at_once) {
    const Index left = shape.inputs - first, channels = left < shape.inputs_at_once ? left : shape.inputs_at_once;
    Images<const T> part = x;
    part.data += first * x.channel;
    pack_x<T, A, V>(shape, unit, channels, part, column, packed_x);
    for (Index begin = 0; begin < channels; begin += shape.inputs_together) {
      const Index rest = channels - begin, together = rest < shape.inputs_together ? rest : shape.inputs_together;
      const Index inputs = together * taps;
      // The present tap's line, counted from the top: row i of the kernel reads kernel_height - 1 - i rows further
      // down.
      const A* const first_line = packed_x + begin * correlation_copies(shape) * shape.x_line +
                                  (by_rows ? tile.x_run - whole_vectors(unit.columns, V) : 0);
      const A* line = first_line;
      Index i = 0, j = 0, c = 0;
      for (Index k = 0; k < inputs;) {
        // A few tiles of inputs after the other for each block of outputs, whose lines the first level of cache holds.
        Prepared prepared[tiles_together];
        int count = 0;
        for (; count < tiles_together && k < inputs; ++count) {
          Prepared& next = prepared[count];
          const bool is_wide = inputs - k > half;
          const Index size = is_wide ? tile_inputs : half;
          next.functions = is_wide ? wide : slim;
          next.first = k;
          next.tile = tile;
          next.tile.inputs = k + size <= inputs ? size : inputs - k;
          // Rows of g for which the tap lies above the image: whole vectors of them are left out.
          const Index reach = i - unit.row, rows = reach < 0 ? 0 : (reach < unit.rows ? reach : unit.rows);
          const Index above = rows * unit.images * g_line.row / V * V, x_above = by_rows ? rows * row : above;
          next.tile.g = packed_g + above;
          next.tile.runs = runs > 1 ? runs - rows * unit.images : 1;
          next.tile.run = runs > 1 ? run : run - above;
          for (Index at = 0; at < size; ++at) {
            if (at >= next.tile.inputs) {
              next.tile.input[at] = next.tile.input[0];
              continue;
            }
            next.tile.input[at] = line + (kernel_height - 1 - i) * row + x_above;
            line += ++j == kernel_width ? next_input : next_column;
            if (j == kernel_width) {
              j = 0;
              if (++c == together) {
                c = 0;
                line = first_line;
                ++i;
              }
            }
          }
          k += size;
        }
        for (Index o = 0; o < shape.outputs; o += correlation_outputs) {
          const Index outputs = correlation_block(shape.outputs, o);
          double* const block = sums + o * shape.inputs * taps + (first + begin) * taps * outputs;
          for (int n = 0; n < count; ++n) {
            Tile<A>& now = prepared[n].tile;
            now.ahead = tiles < shape.outputs                  ? rows_below(g, unit, tiles, packed_g)
                        : tiles < shape.outputs + shape.inputs ? rows_below(x, unit, tiles - shape.outputs, packed_g)
                                                               : packed_g;
            ++tiles;
            now.sums = block + prepared[n].first * outputs;
            prepared[n].functions[outputs - 1](now);
            now.g += correlation_outputs * shape.g_line;
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace invconv::detail::cpu
