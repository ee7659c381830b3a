// The one source of the CPU kernels. A kernels_<level>.cpp defines INVCONV_KERNELS (the name of its table's function),
// INVCONV_LEVEL (its name in text), INVCONV_VECTOR_BYTES and INVCONV_BLOCK (the most output channels whose accumulators
// fit in registers), then includes this file.
//
// Everything is in an unnamed namespace and no inline function of another header is called: code compiled for one
// instruction set must not be merged with another's by the linker.

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__FMA__)
#include <immintrin.h>
#endif

#include "cpu/kernels.hpp"

namespace invconv::detail::cpu {
namespace {

using Index = std::int64_t;

#if defined(__clang__)
#define INVCONV_UNROLL _Pragma("clang loop unroll(full)")
#else
#define INVCONV_UNROLL _Pragma("GCC unroll 32")
#endif

// ---- vectors of V lanes -------------------------------------------------------------------------------------------

template <class A, int V>
struct VectorOf {
  typedef A type __attribute__((vector_size(V * sizeof(A))));
};
template <class A>
struct VectorOf<A, 1> {
  using type = A;
};
template <class A, int V>
using Vector = typename VectorOf<A, V>::type;

template <class A, int V>
[[gnu::always_inline]] inline Vector<A, V> load(const A* from) {
  return *reinterpret_cast<const Vector<A, V>*>(from);
}

template <class A, int V>
[[gnu::always_inline]] inline void store(A* to, Vector<A, V> value) {
  *reinterpret_cast<Vector<A, V>*>(to) = value;
}

template <class A, int V>
[[gnu::always_inline]] inline Vector<A, V> splat(A value) {
  if constexpr (V == 1) {
    return value;
  } else {
    return value - Vector<A, V>{};  // GCC and Clang know this as a broadcast
  }
}

/// a * b + c, rounded once where the instruction set can and twice elsewhere; never left to the compiler's choice.
template <class A, int V>
[[gnu::always_inline]] inline Vector<A, V> multiply_add(Vector<A, V> a, Vector<A, V> b, Vector<A, V> c) {
#if defined(__FMA__)
  using R = Vector<A, V>;
  if constexpr (V == 1 && sizeof(A) == 4) {
    return __builtin_fmaf(a, b, c);
  } else if constexpr (V == 1) {
    return __builtin_fma(a, b, c);
  } else if constexpr (sizeof(A) == 4 && V == 4) {
    return (R)_mm_fmadd_ps((__m128)a, (__m128)b, (__m128)c);
  } else if constexpr (sizeof(A) == 4 && V == 8) {
    return (R)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
  } else if constexpr (sizeof(A) == 8 && V == 2) {
    return (R)_mm_fmadd_pd((__m128d)a, (__m128d)b, (__m128d)c);
  } else if constexpr (sizeof(A) == 8 && V == 4) {
    return (R)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#if defined(__AVX512F__)
  } else if constexpr (sizeof(A) == 4 && V == 16) {
    return (R)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
  } else if constexpr (sizeof(A) == 8 && V == 8) {
    return (R)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#endif
  }
#else
  return a * b + c;
#endif
}

/// The sum of the lanes, halves folded onto each other.
template <class A, int V>
[[gnu::always_inline]] inline A sum_lanes(Vector<A, V> value) {
  if constexpr (V == 1) {
    return value;
  } else {
    A lanes[V];
    __builtin_memcpy(lanes, &value, sizeof(value));
    for (int half = V / 2; half > 0; half /= 2) {
      for (int lane = 0; lane < half; ++lane) {
        lanes[lane] += lanes[lane + half];
      }
    }
    return lanes[0];
  }
}

// ---- storage types ------------------------------------------------------------------------------------------------

[[gnu::always_inline]] inline float widen(float value) { return value; }
[[gnu::always_inline]] inline double widen(double value) { return value; }
[[gnu::always_inline]] inline float widen(float16 value) { return to_float(value); }
[[gnu::always_inline]] inline float widen(bfloat16 value) { return to_float(value); }

[[gnu::always_inline]] inline void narrow(float value, float& to) { to = value; }
[[gnu::always_inline]] inline void narrow(double value, double& to) { to = value; }
[[gnu::always_inline]] inline void narrow(float value, float16& to) { to = to_float16(value); }
[[gnu::always_inline]] inline void narrow(float value, bfloat16& to) { to = to_bfloat16(value); }

// ---- packing: images <-> [pixel][channel][lane] -------------------------------------------------------------------

template <class A>
using Quad = Vector<A, 4>;

template <class A>
[[gnu::always_inline]] inline Quad<A> load_unaligned(const A* from) {
  Quad<A> value;
  __builtin_memcpy(&value, from, sizeof(value));
  return value;
}

template <class A>
[[gnu::always_inline]] inline void store_unaligned(A* to, const Quad<A>& value) {
  __builtin_memcpy(to, &value, sizeof(value));
}

template <class A>
[[gnu::always_inline]] inline void transpose_quad(Quad<A>& a, Quad<A>& b, Quad<A>& c, Quad<A>& d) {
  const Quad<A> ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5), ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
  const Quad<A> cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5), cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  a = __builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5);
  b = __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7);
  c = __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5);
  d = __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7);
}

/// A run of n elements of every image: element k of image l is at data[l * batch + k * step]; packed, at
/// [k * pitch + l].
template <class T>
struct Run {
  T* data;
  Index batch, step, pitch, n;
};

/// A run that is contiguous backwards, read forwards; returns where its packed side then begins.
template <class T, class A>
[[gnu::always_inline]] inline A* forwards(Run<T>& run, A* packed) {
  if (run.step != -1) {
    return packed;
  }
  run.data -= run.n - 1;
  packed += (run.n - 1) * run.pitch;
  run.step = 1;
  run.pitch = -run.pitch;
  return packed;
}

/// Lanes without an image take the last image's values.
template <class T, class A, int V>
void pack_run(Run<const T> run, Index images, A* packed) {
  packed = forwards(run, packed);
  if constexpr (V >= 4 && sizeof(T) == sizeof(A)) {
    if (run.step == 1 && run.n >= 4) {
      for (Index lane = 0; lane < V; lane += 4) {
        const T* from[4];
        for (Index q = 0; q < 4; ++q) {
          from[q] = run.data + (lane + q < images ? lane + q : images - 1) * run.batch;
        }
        // The last tile overlaps the one before it where 4 does not divide n.
        for (Index k = 0; k < run.n; k += 4) {
          const Index at = k + 4 <= run.n ? k : run.n - 4;
          Quad<A> a = load_unaligned(from[0] + at), b = load_unaligned(from[1] + at);
          Quad<A> c = load_unaligned(from[2] + at), d = load_unaligned(from[3] + at);
          transpose_quad<A>(a, b, c, d);
          A* to = packed + at * run.pitch + lane;
          store_unaligned(to, a);
          store_unaligned(to + run.pitch, b);
          store_unaligned(to + 2 * run.pitch, c);
          store_unaligned(to + 3 * run.pitch, d);
        }
      }
      return;
    }
  }
  for (Index lane = 0; lane < V; ++lane) {
    const T* from = run.data + (lane < images ? lane : images - 1) * run.batch;
    for (Index k = 0; k < run.n; ++k) {
      packed[k * run.pitch + lane] = widen(from[k * run.step]);
    }
  }
}

template <class T, class A, int V>
void unpack_run(Run<T> run, Index images, const A* packed) {
  packed = forwards(run, packed);
  Index lane = 0;
  if constexpr (V >= 4 && sizeof(T) == sizeof(A)) {
    if (run.step == 1 && run.n >= 4) {
      for (; lane + 4 <= images; lane += 4) {
        T* to = run.data + lane * run.batch;
        for (Index k = 0; k < run.n; k += 4) {
          const Index at = k + 4 <= run.n ? k : run.n - 4;
          const A* from = packed + at * run.pitch + lane;
          Quad<A> a = load_unaligned(from), b = load_unaligned(from + run.pitch);
          Quad<A> c = load_unaligned(from + 2 * run.pitch), d = load_unaligned(from + 3 * run.pitch);
          transpose_quad<A>(a, b, c, d);
          store_unaligned(to + at, a);
          store_unaligned(to + run.batch + at, b);
          store_unaligned(to + 2 * run.batch + at, c);
          store_unaligned(to + 3 * run.batch + at, d);
        }
      }
    }
  }
  for (; lane < images; ++lane) {
    T* to = run.data + lane * run.batch;
    for (Index k = 0; k < run.n; ++k) {
      narrow(packed[k * run.pitch + lane], to[k * run.step]);
    }
  }
}

/// Calls `each(run, offset)` for the runs that make up one row of pixels: along the axis that is contiguous, if one is.
template <int V, class T, class Each>
[[gnu::always_inline]] inline void for_runs(const Images<T>& images, Index row, Index channels, Index width,
                                            Each&& each) {
  T* data = images.data + row * images.row;
  const Index step = images.channel;
  if ((step == 1 || step == -1) && images.column == step * channels) {
    each(Run<T>{data, images.batch, step, V, channels * width}, Index{0});
  } else if ((step == 1 || step == -1) && images.column != 1 && images.column != -1) {
    for (Index s = 0; s < width; ++s) {
      each(Run<T>{data + s * images.column, images.batch, step, V, channels}, s * channels * V);
    }
  } else {
    for (Index c = 0; c < channels; ++c) {
      each(Run<T>{data + c * step, images.batch, images.column, channels * V, width}, c * V);
    }
  }
}

template <class T, class A, int V>
void pack_row(const Images<const T>& from, Index images, Index row, Index channels, Index width, A* packed) {
  for_runs<V>(from, row, channels, width,
              [&](const Run<const T>& run, Index offset) { pack_run<T, A, V>(run, images, packed + offset); });
}

template <class T, class A, int V>
void unpack_row(const Images<T>& to, Index images, Index row, Index channels, Index width, const A* packed) {
  for_runs<V>(to, row, channels, width,
              [&](const Run<T>& run, Index offset) { unpack_run<T, A, V>(run, images, packed + offset); });
}

// ---- solve and conv -----------------------------------------------------------------------------------------------

/// Output channels are computed in blocks of one size, the last one padded.
Index block_size(Index channels) {
  const Index blocks = (channels + INVCONV_BLOCK - 1) / INVCONV_BLOCK;
  return (channels + blocks - 1) / blocks;
}

/// The packed weight, block after block, holds the operands in the order in which they are used: for every row from the
/// oldest, pixel from the oldest and channel, the block's coefficients; in the present pixel the channels before the
/// block; then a square, its diagonal the anchor's and its rest the coefficients inside the block. A solve subtracts,
/// so its coefficients are negated.
Index packed_weight_size(const FilterShape& shape) {
  const Index block = block_size(shape.channels);
  Index size = 0;
  for (Index first = 0; first < shape.channels; first += block) {
    size += (shape.kernel_height * shape.kernel_width - 1) * shape.channels + first + block;
  }
  return size * block;
}

template <class T>
void pack_weight(const FilterShape& shape, const Taps<const T>& weight, Arithmetic<T>* packed) {
  using A = Arithmetic<T>;
  const Index channels = shape.channels;
  const Index block = block_size(channels);
  const A sign = shape.solve ? A(-1) : A(1);
  const auto at = [&](Index o, Index c, Index i, Index j) {
    return widen(weight.data[o * weight.out + c * weight.in + i * weight.row + j * weight.column]);
  };
  for (Index first = 0; first < channels; first += block) {
    const Index live = first + block <= channels ? block : channels - first;
    for (Index i = shape.kernel_height - 1; i >= 0; --i) {
      for (Index j = shape.kernel_width - 1; j >= 0; --j) {
        const Index inputs = i == 0 && j == 0 ? first : channels;
        for (Index c = 0; c < inputs; ++c) {
          for (Index o = 0; o < block; ++o) {
            *packed++ = o < live ? sign * at(first + o, c, i, j) : A(0);
          }
        }
      }
    }
    for (Index c = 0; c < block; ++c) {
      for (Index o = 0; o < block; ++o) {
        if (o == c) {
          *packed++ = o < live && !shape.unit_diagonal ? at(first + o, first + o, 0, 0) : A(1);
        } else {
          *packed++ = o < live && c < o ? sign * at(first + o, first + c, 0, 0) : A(0);
        }
      }
    }
  }
}

template <class A>
struct FilterRow {
  Index channels, width, kernel_height, kernel_width;
  bool unit_diagonal;
  const A* weight;
  A* ring;  // kernel_height rows of `pitch` elements, each led by kernel_width - 1 pixels of zeros
  Index pitch;
  Index slot;  // the present row's
  A* out;      // conv: where the row goes; a solve writes over the present row
};

template <class A, int V, int OB, bool Solve>
void filter_row(const FilterRow<A>& row) {
  using Vec = Vector<A, V>;
  const Index pixel = row.channels * V;
  const Index inputs = row.kernel_width * row.channels;
  A* here = row.ring + row.slot * row.pitch + (row.kernel_width - 1) * pixel;
  A* out = Solve ? here : row.out;
  for (Index s = 0; s < row.width; ++s, here += pixel, out += pixel) {
    const A* w = row.weight;
    for (Index first = 0; first < row.channels; first += OB) {
      const Index live = row.channels - first;
      Vec sum[OB];
      INVCONV_UNROLL
      for (int o = 0; o < OB; ++o) {
        sum[o] = Solve && o < live ? load<A, V>(here + (first + o) * V) : Vec{};
      }
      Index slot = row.slot;
      for (Index i = row.kernel_height - 1; i >= 0; --i) {
        slot = slot + 1 == row.kernel_height ? 0 : slot + 1;
        const A* x = row.ring + slot * row.pitch + s * pixel;
        const Index n = i > 0 ? inputs : inputs - row.channels + first;
        for (Index k = 0; k < n; ++k, x += V, w += OB) {
          const Vec value = load<A, V>(x);
          INVCONV_UNROLL
          for (int o = 0; o < OB; ++o) {
            sum[o] = multiply_add<A, V>(value, splat<A, V>(w[o]), sum[o]);
          }
        }
      }
      INVCONV_UNROLL
      for (int c = 0; c < OB; ++c) {
        Vec value;
        if constexpr (Solve) {
          if (!row.unit_diagonal) {
            sum[c] = sum[c] / splat<A, V>(w[c * OB + c]);
          }
          value = sum[c];
        } else {
          value = c < live ? load<A, V>(here + (first + c) * V) : Vec{};
          sum[c] = row.unit_diagonal ? sum[c] + value : multiply_add<A, V>(value, splat<A, V>(w[c * OB + c]), sum[c]);
        }
        INVCONV_UNROLL
        for (int o = c + 1; o < OB; ++o) {
          sum[o] = multiply_add<A, V>(value, splat<A, V>(w[c * OB + o]), sum[o]);
        }
      }
      w += OB * OB;
      INVCONV_UNROLL
      for (int o = 0; o < OB; ++o) {
        if (o < live) {
          store<A, V>(out + (first + o) * V, sum[o]);
        }
      }
    }
  }
}

template <class A>
using FilterRowFunction = void (*)(const FilterRow<A>&);

template <class A, int V, bool Solve, int... OB>
FilterRowFunction<A> filter_row_of(Index block, std::integer_sequence<int, OB...>) {
  static constexpr FilterRowFunction<A> table[] = {filter_row<A, V, OB + 1, Solve>...};
  return table[block - 1];
}

template <class T, int V, bool Solve>
void filter_block(const FilterShape& shape, Index images, const Images<const T>& in, const Images<T>& out,
                  const Arithmetic<T>* packed, Arithmetic<T>* scratch) {
  using A = Arithmetic<T>;
  const Index channels = shape.channels, width = shape.width;
  FilterRow<A> row{channels,
                   width,
                   shape.kernel_height,
                   shape.kernel_width,
                   shape.unit_diagonal,
                   packed,
                   scratch,
                   (width + shape.kernel_width - 1) * channels * V,
                   0,
                   nullptr};
  row.out = scratch + shape.kernel_height * row.pitch;
  const Index margin = (shape.kernel_width - 1) * channels * V;
  const auto function =
      filter_row_of<A, V, Solve>(block_size(channels), std::make_integer_sequence<int, INVCONV_BLOCK>{});
  std::memset(scratch, 0, sizeof(A) * static_cast<std::size_t>(shape.kernel_height * row.pitch));
  for (Index r = 0; r < shape.height; ++r) {
    A* here = row.ring + row.slot * row.pitch + margin;
    pack_row<T, A, V>(in, images, r, channels, width, here);
    function(row);
    unpack_row<T, A, V>(out, images, r, channels, width, Solve ? here : row.out);
    row.slot = row.slot + 1 == shape.kernel_height ? 0 : row.slot + 1;
  }
}

// ---- weight_grad --------------------------------------------------------------------------------------------------

// Accumulators of a tile: outputs x inputs, and room for the operands.
inline constexpr int tile_outputs = 4;
inline constexpr int tile_inputs = INVCONV_VECTOR_BYTES == 64 ? 6 : 3;

template <class A>
struct Tile {
  Index rows, columns;  // pixels to sum over
  const A* g;           // [row][column][channel][lane], at the first pixel
  Index g_pitch;
  const A* x;  // the same, at the oldest pixel that the first one reads
  Index x_pitch;
  Index pixel;                 // elements of a pixel in both
  Index output[tile_outputs];  // offsets of the tile's operands
  Index input[tile_inputs];
};

template <class A, int V, int TO, int TK>
void correlate_tile(const Tile<A>& tile, A* sums) {
  using Vec = Vector<A, V>;
  Vec sum[TO][TK] = {};
  for (Index r = 0; r < tile.rows; ++r) {
    const A* g = tile.g + r * tile.g_pitch;
    const A* x = tile.x + r * tile.x_pitch;
    for (Index s = 0; s < tile.columns; ++s, g += tile.pixel, x += tile.pixel) {
      Vec inputs[TK];
      INVCONV_UNROLL
      for (int k = 0; k < TK; ++k) {
        inputs[k] = load<A, V>(x + tile.input[k]);
      }
      INVCONV_UNROLL
      for (int o = 0; o < TO; ++o) {
        const Vec output = load<A, V>(g + tile.output[o]);
        INVCONV_UNROLL
        for (int k = 0; k < TK; ++k) {
          sum[o][k] = multiply_add<A, V>(output, inputs[k], sum[o][k]);
        }
      }
    }
  }
  for (int o = 0; o < TO; ++o) {
    for (int k = 0; k < TK; ++k) {
      sums[o * TK + k] = sum_lanes<A, V>(sum[o][k]);
    }
  }
}

template <class T, int V>
void correlate_block(const CorrelationShape& shape, Index images, const Images<const T>& x, const Images<const T>& g,
                     double* sum, Arithmetic<T>* scratch) {
  using A = Arithmetic<T>;
  const Index channels = shape.channels, width = shape.width, rows = shape.row_end - shape.row_begin;
  const Index pixel = channels * V, margin = (shape.kernel_width - 1) * pixel;
  const Index g_pitch = width * pixel, x_pitch = width * pixel + margin;
  A* packed_g = scratch;
  A* packed_x = scratch + rows * g_pitch;
  std::memset(packed_x, 0, sizeof(A) * static_cast<std::size_t>((rows + shape.kernel_height - 1) * x_pitch));
  for (Index r = 0; r < rows; ++r) {
    pack_row<T, A, V>(g, images, shape.row_begin + r, channels, width, packed_g + r * g_pitch);
  }
  for (Index r = -(shape.kernel_height - 1); r < rows; ++r) {
    if (shape.row_begin + r >= 0) {
      pack_row<T, A, V>(x, images, shape.row_begin + r, channels, width,
                        packed_x + (r + shape.kernel_height - 1) * x_pitch + margin);
    }
  }
  // A lane without an image must add nothing.
  if (images < V) {
    for (Index at = 0; at < rows * g_pitch; at += V) {
      for (Index lane = images; lane < V; ++lane) {
        packed_g[at + lane] = A(0);
      }
    }
    for (Index at = 0; at < (rows + shape.kernel_height - 1) * x_pitch; at += V) {
      for (Index lane = images; lane < V; ++lane) {
        packed_x[at + lane] = A(0);
      }
    }
  }

  using Function = void (*)(const Tile<A>&, A*);
  static constexpr int half = tile_inputs == 6 ? 3 : 1;
  static constexpr Function wide[] = {correlate_tile<A, V, 1, tile_inputs>, correlate_tile<A, V, 2, tile_inputs>,
                                      correlate_tile<A, V, 3, tile_inputs>, correlate_tile<A, V, 4, tile_inputs>};
  static constexpr Function slim[] = {correlate_tile<A, V, 1, half>, correlate_tile<A, V, 2, half>,
                                      correlate_tile<A, V, 3, half>, correlate_tile<A, V, 4, half>};

  const Index inputs = shape.kernel_width * channels;
  const Index segment = width < correlation_pixels ? width : correlation_pixels;
  for (Index i = 0; i < shape.kernel_height; ++i) {
    for (Index first_o = 0; first_o < channels; first_o += tile_outputs) {
      const Index live_o = first_o + tile_outputs <= channels ? tile_outputs : channels - first_o;
      for (Index first_k = 0; first_k < inputs;) {
        const Index left = inputs - first_k;
        const Index size = left > half ? tile_inputs : half;
        const Index live_k = left < size ? left : size;
        Tile<A> tile{};
        for (Index o = 0; o < tile_outputs; ++o) {
          tile.output[o] = (first_o + (o < live_o ? o : live_o - 1)) * V;
        }
        for (Index k = 0; k < tile_inputs; ++k) {
          tile.input[k] = (first_k + (k < live_k ? k : live_k - 1)) * V;
        }
        tile.rows = rows;
        tile.g_pitch = g_pitch;
        tile.x_pitch = x_pitch;
        tile.pixel = pixel;
        const Function function = (size == tile_inputs ? wide : slim)[live_o - 1];
        for (Index s = 0; s < width; s += segment) {
          tile.columns = s + segment <= width ? segment : width - s;
          tile.g = packed_g + s * pixel;
          tile.x = packed_x + (shape.kernel_height - 1 - i) * x_pitch + s * pixel;
          A sums[tile_outputs * tile_inputs];
          function(tile, sums);
          for (Index o = 0; o < live_o; ++o) {
            double* to = sum + (i * channels + first_o + o) * inputs + first_k;
            for (Index k = 0; k < live_k; ++k) {
              to[k] += static_cast<double>(sums[o * size + k]);
            }
          }
        }
        first_k += size;
      }
    }
  }
}

// ---- the table ----------------------------------------------------------------------------------------------------

template <class A>
inline constexpr int widest = INVCONV_VECTOR_BYTES / static_cast<int>(sizeof(A));

/// Calls `body` with the number of lanes as a constant: full vectors, halves down to 16 bytes, or scalars.
template <class A, int V = widest<A>, class Body>
void with_lanes(Index lanes, Body&& body) {
  if (lanes == V) {
    body(std::integral_constant<int, V>{});
  } else if constexpr (V * sizeof(A) > 16) {
    with_lanes<A, V / 2>(lanes, body);
  } else {
    body(std::integral_constant<int, 1>{});
  }
}

}  // namespace

template <class T>
Kernels<T> INVCONV_KERNELS() {
  using A = Arithmetic<T>;
  Kernels<T> table{};
  table.name = INVCONV_LEVEL;
  for (int halvings = 0; halvings < 4; ++halvings) {
    table.lanes[halvings] = (INVCONV_VECTOR_BYTES >> halvings) >= 16 ? widest<A> >> halvings : 1;
  }
  table.packed_weight_size = packed_weight_size;
  table.pack_weight = pack_weight<T>;
  table.filter = [](const FilterShape& shape, Index lanes, Index images, const Images<const T>& in,
                    const Images<T>& out, const A* packed, A* scratch) {
    with_lanes<A>(lanes, [&](auto v) {
      constexpr int V = decltype(v)::value;
      if (shape.solve) {
        filter_block<T, V, true>(shape, images, in, out, packed, scratch);
      } else {
        filter_block<T, V, false>(shape, images, in, out, packed, scratch);
      }
    });
  };
  table.correlate = [](const CorrelationShape& shape, Index lanes, Index images, const Images<const T>& x,
                       const Images<const T>& g, double* sum, A* scratch) {
    with_lanes<A>(lanes, [&](auto v) { correlate_block<T, decltype(v)::value>(shape, images, x, g, sum, scratch); });
  };
  return table;
}

template Kernels<float> INVCONV_KERNELS<float>();
template Kernels<double> INVCONV_KERNELS<double>();
template Kernels<float16> INVCONV_KERNELS<float16>();
template Kernels<bfloat16> INVCONV_KERNELS<bfloat16>();

}  // namespace invconv::detail::cpu
