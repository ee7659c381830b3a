// Between arrays of any strides and vectors of lanes. Part of kernels.inl.

#pragma once

#include <type_traits>
#include <utility>

#include "cpu/vectors.inl"

namespace invconv::detail::cpu {
namespace {

// ---- V elements at once -------------------------------------------------------------------------------------------

/// How far apart elements lie: 1 and -1 where they can be read as a vector, 0 for any other distance.
template <class T, class A, class Body>
[[gnu::always_inline]] inline void with_step(Index step, Body&& body) {
  if (std::is_same_v<T, A> && step == 1) {
    body(std::integral_constant<int, 1>{});
  } else if (std::is_same_v<T, A> && step == -1) {
    body(std::integral_constant<int, -1>{});
  } else {
    body(std::integral_constant<int, 0>{});
  }
}

/// V elements that lie `step` apart, the first at `from`.
template <class A, int V, int Step, class T>
[[gnu::always_inline]] inline Vector<A, V> gather(const T* from, Index step) {
  if constexpr (V > 1 && std::is_same_v<T, A> && Step == 1) {
    return load_unaligned<A, V>(from);
  } else if constexpr (V > 1 && std::is_same_v<T, A> && Step == -1) {
    return reversed<A, V>(load_unaligned<A, V>(from - (V - 1)));
  } else {
    A lanes[V];
    for (int lane = 0; lane < V; ++lane) {
      lanes[lane] = widen(from[lane * step]);
    }
    return load_unaligned<A, V>(lanes);
  }
}

template <class A, int V, int Step, class T>
[[gnu::always_inline]] inline void scatter(T* to, Index step, Vector<A, V> value) {
  if constexpr (V > 1 && std::is_same_v<T, A> && Step == 1) {
    store_unaligned<A, V>(to, value);
  } else if constexpr (V > 1 && std::is_same_v<T, A> && Step == -1) {
    store_unaligned<A, V>(to - (V - 1), reversed<A, V>(value));
  } else {
    A lanes[V];
    store_unaligned<A, V>(lanes, value);
    for (int lane = 0; lane < V; ++lane) {
      narrow(lanes[lane], to[lane * step]);
    }
  }
}

/// n elements that lie `step` apart, as an array.
template <class A, int V, class T>
void copy_in(const T* from, Index step, Index n, A* to) {
  with_step<T, A>(step, [&](auto constant) {
    Index k = 0;
    for (; k + V <= n; k += V) {
      store_unaligned<A, V>(to + k, gather<A, V, decltype(constant)::value>(from + k * step, step));
    }
    for (; k < n; ++k) {
      to[k] = widen(from[k * step]);
    }
  });
}

/// The same back. What is too much for any cache is `streamed` past them: memory is then written without being read
/// before, and finish_streams() must follow.
template <class A, int V, class T>
void copy_out(T* to, Index step, Index n, const A* from, [[maybe_unused]] bool streamed = false) {
  with_step<T, A>(step, [&](auto constant) {
    constexpr int Step = decltype(constant)::value;
    Index k = 0;
    if constexpr (std::is_same_v<T, A> && Step == 1 && can_stream<A, V>) {
      if (streamed) {
        constexpr Index line = 64 / static_cast<Index>(sizeof(A));
        for (; k < n && reinterpret_cast<std::uintptr_t>(to + k) % 64 != 0; ++k) {
          narrow(from[k], to[k]);
        }
        for (; k + line <= n; k += line) {
          stream_line<A, V>(to + k, from + k);
        }
      }
    }
    for (; k + V <= n; k += V) {
      scatter<A, V, Step>(to + k * step, step, load_unaligned<A, V>(from + k));
    }
    for (; k < n; ++k) {
      narrow(from[k], to[k * step]);
    }
  });
}

// ---- transposition ------------------------------------------------------------------------------------------------

/// Interleaves runs of `Run` elements of the low or high halves of the 128-bit lanes of a and b (`Wide` elements each).
template <int Wide, int Run, bool High>
struct Interleave {
  static constexpr int at(int j, int lanes) {
    const int i = j % Wide, pair = i / Run;
    return j - i + (pair / 2) * Run + i % Run + (High ? Wide / 2 : 0) + (pair % 2 == 1 ? lanes : 0);
  }
};

/// The even (or odd) ones of the blocks of `Wide` elements of a, then those of b.
template <int Wide, bool Odd>
struct EveryOther {
  static constexpr int at(int j, int lanes) {
    const int block = j / Wide, half = lanes / Wide / 2;
    return (block % half * 2 + (Odd ? 1 : 0)) * Wide + j % Wide + (block >= half ? lanes : 0);
  }
};

template <class Pick, class Vec, int... J>
[[gnu::always_inline]] inline Vec shuffle(Vec a, Vec b, std::integer_sequence<int, J...>) {
  return __builtin_shufflevector(a, b, Pick::at(J, sizeof...(J))...);
}

/// The same in each part of `N` lanes by itself.
template <int N, class Pick>
struct InParts {
  static constexpr int at(int j, int lanes) {
    const int i = Pick::at(j % N, N);
    return j - j % N + i % N + (i >= N ? lanes : 0);
  }
};

/// Afterwards lane k of r[l] is what lane l of r[k] was; with fewer vectors than lanes, in each part of N lanes by
/// itself.
template <class A, int V, int N>
[[gnu::always_inline]] inline void transpose(Vector<A, V> (&r)[N]) {
  if constexpr (N > 1) {
    using Vec = Vector<A, V>;
    constexpr auto all = std::make_integer_sequence<int, V>{};
    constexpr int wide = 16 / static_cast<int>(sizeof(A)), blocks = N / wide;
    static_assert(N == V || blocks <= 2);
    // Inside the 128-bit lanes: then r[wide * i + k] holds element k of the lanes of wide vectors.
    INVCONV_UNROLL
    for (int i = 0; i < N; i += wide) {
      if constexpr (wide == 4) {
        const Vec a = shuffle<Interleave<4, 1, false>>(r[i], r[i + 1], all);
        const Vec b = shuffle<Interleave<4, 1, true>>(r[i], r[i + 1], all);
        const Vec c = shuffle<Interleave<4, 1, false>>(r[i + 2], r[i + 3], all);
        const Vec d = shuffle<Interleave<4, 1, true>>(r[i + 2], r[i + 3], all);
        r[i] = shuffle<Interleave<4, 2, false>>(a, c, all);
        r[i + 1] = shuffle<Interleave<4, 2, true>>(a, c, all);
        r[i + 2] = shuffle<Interleave<4, 2, false>>(b, d, all);
        r[i + 3] = shuffle<Interleave<4, 2, true>>(b, d, all);
      } else {
        const Vec a = r[i], b = r[i + 1];
        r[i] = shuffle<Interleave<2, 1, false>>(a, b, all);
        r[i + 1] = shuffle<Interleave<2, 1, true>>(a, b, all);
      }
    }
    // Then the 128-bit lanes themselves.
    INVCONV_UNROLL
    for (int k = 0; k < wide; ++k) {
      if constexpr (blocks == 2) {
        const Vec a = r[k], b = r[wide + k];
        r[k] = shuffle<InParts<N, EveryOther<wide, false>>>(a, b, all);
        r[wide + k] = shuffle<InParts<N, EveryOther<wide, true>>>(a, b, all);
      } else if constexpr (blocks == 4) {
        const Vec a = shuffle<EveryOther<wide, false>>(r[k], r[wide + k], all);
        const Vec b = shuffle<EveryOther<wide, true>>(r[k], r[wide + k], all);
        const Vec c = shuffle<EveryOther<wide, false>>(r[2 * wide + k], r[3 * wide + k], all);
        const Vec d = shuffle<EveryOther<wide, true>>(r[2 * wide + k], r[3 * wide + k], all);
        r[k] = shuffle<EveryOther<wide, false>>(a, c, all);
        r[wide + k] = shuffle<EveryOther<wide, false>>(b, d, all);
        r[2 * wide + k] = shuffle<EveryOther<wide, true>>(a, c, all);
        r[3 * wide + k] = shuffle<EveryOther<wide, true>>(b, d, all);
      }
    }
  }
}

// ---- streams side by side in the lanes ----------------------------------------------------------------------------

/// Elements of several streams (images, say), one stream to a lane: element k of stream l is at
/// data[l * stream + k * step]; packed, its lane l is in the vector at k * pitch + (k / line) * gap.
template <class T>
struct Run {
  T* data;
  Index stream, step, n;
  Index pitch, line, gap;
};

/// Steps through the packed places of a run.
template <class A>
struct Places {
  A* at;
  Index pitch, line, gap, left;

  template <class T>
  Places(const Run<T>& run, A* packed, Index k)
      : at(packed + k * run.pitch + k / run.line * run.gap),
        pitch(run.pitch),
        line(run.line),
        gap(run.gap),
        left(run.line - k % run.line) {}

  [[gnu::always_inline]] A* next() {
    A* const here = at;
    at += pitch;
    if (--left == 0) {
      at += gap;
      left = line;
    }
    return here;
  }
};

// All lanes are written at once. The widest vectors are filled from two halves, of streams q and E + q, while they are
// read: that saves the last stage of the transposition.
template <class A, int V>
inline constexpr int elements_read = V * static_cast<int>(sizeof(A)) < 64 ? V : V / 2;

// Images are often a multiple of 4 KiB apart, and then the same element of each falls into the same few places of the
// cache. Then few streams are written at once, each a whole cache line at a time.
template <class A, int V>
inline constexpr int streams_written = V <= 4 ? V : V / 2;

/// Whether what lies so many bytes apart falls into the same place of the first level of cache, or the one beside it:
/// the distance is a multiple of 4 KiB but for less than a line.
constexpr bool is_aliased(Index bytes) {
  constexpr Index period = 4096, line = 64;
  const Index rest = (bytes % period + period) % period;
  return rest < line || period - rest < line;
}

template <class A, int V, int... J>
[[gnu::always_inline]] inline Vector<A, V> concatenated(Vector<A, V / 2> low, Vector<A, V / 2> high,
                                                        std::integer_sequence<int, J...>) {
  return __builtin_shufflevector(low, high, J...);
}

/// R transpositions of E elements of Q streams. A block of the packed weight, unlike vectors of lanes, begins anywhere.
template <class T, class A, int Q, int E, int R, int Step>
[[gnu::always_inline]] inline void pack_tiles(const T* const (&from)[Q], Index at, Index step, Places<A>& to) {
  Vector<A, Q> tile[R][E];
  INVCONV_UNROLL
  for (int q = 0; q < E; ++q) {
    INVCONV_UNROLL
    for (int r = 0; r < R; ++r) {
      const Index first = at + r * E * step;
      if constexpr (E == Q) {
        tile[r][q] = gather<A, Q, Step>(from[q] + first, step);
      } else {
        static_assert(2 * E == Q);
        tile[r][q] =
            concatenated<A, Q>(gather<A, E, Step>(from[q] + first, step), gather<A, E, Step>(from[E + q] + first, step),
                               std::make_integer_sequence<int, Q>{});
      }
    }
  }
  INVCONV_UNROLL
  for (int r = 0; r < R; ++r) {
    transpose<A, Q>(tile[r]);
    INVCONV_UNROLL
    for (int e = 0; e < E; ++e) {
      store_unaligned<A, Q>(to.next(), tile[r][e]);
    }
  }
}

template <class T, class A, int Q, int R, int Step>
[[gnu::always_inline]] inline void unpack_tiles(Places<const A>& from, Index at, Index step, T* const (&to)[Q],
                                                Index streams) {
  Vector<A, Q> tile[R][Q];
  INVCONV_UNROLL
  for (int r = 0; r < R; ++r) {
    INVCONV_UNROLL
    for (int q = 0; q < Q; ++q) {
      tile[r][q] = load<A, Q>(from.next());
    }
    transpose<A, Q>(tile[r]);
  }
  INVCONV_UNROLL
  for (int q = 0; q < Q; ++q) {
    if (q < streams) {
      INVCONV_UNROLL
      for (int r = 0; r < R; ++r) {
        scatter<A, Q, Step>(to[q] + at + r * Q * step, step, tile[r][q]);
      }
    }
  }
}

/// The elements of a run that begin at from[q], one for each of Q lanes.
template <class T, class A, int Q, int Step>
[[gnu::always_inline]] inline void pack_lanes(const Run<const T>& run, const T* const (&from)[Q], A* packed) {
  constexpr int E = elements_read<A, Q>, R = E < Q ? 1 : 64 / static_cast<int>(sizeof(A)) / E;
  Places<A> to(run, packed, 0);
  Index k = 0;
  for (; k + E * R <= run.n; k += E * R) {
    pack_tiles<T, A, Q, E, R, Step>(from, k * run.step, run.step, to);
  }
  for (; k + E <= run.n; k += E) {
    pack_tiles<T, A, Q, E, 1, Step>(from, k * run.step, run.step, to);
  }
  if (k < run.n && run.n >= E) {
    to = Places<A>(run, packed, run.n - E);  // overlaps the one before it
    pack_tiles<T, A, Q, E, 1, Step>(from, (run.n - E) * run.step, run.step, to);
  } else {
    for (; k < run.n; ++k) {
      A* const place = to.next();
      for (Index q = 0; q < Q; ++q) {
        place[q] = widen(from[q][k * run.step]);
      }
    }
  }
}

/// The same back, of the first `live` lanes.
template <class T, class A, int Q, int Step>
[[gnu::always_inline]] inline void unpack_lanes(const Run<T>& run, T* const (&to)[Q], Index live, const A* packed) {
  constexpr int R = 64 / static_cast<int>(sizeof(A)) / Q;
  Places<const A> from(run, packed, 0);
  Index k = 0;
  for (; k + Q * R <= run.n; k += Q * R) {
    unpack_tiles<T, A, Q, R, Step>(from, k * run.step, run.step, to, live);
  }
  for (; k + Q <= run.n; k += Q) {
    unpack_tiles<T, A, Q, 1, Step>(from, k * run.step, run.step, to, live);
  }
  if (k < run.n && run.n >= Q) {
    from = Places<const A>(run, packed, run.n - Q);
    unpack_tiles<T, A, Q, 1, Step>(from, (run.n - Q) * run.step, run.step, to, live);
  } else {
    for (; k < run.n; ++k) {
      const A* const place = from.next();
      for (Index q = 0; q < Q && q < live; ++q) {
        narrow(place[q], to[q][k * run.step]);
      }
    }
  }
}

/// Lanes without a stream take the last one's values.
template <class T, class A, int V, int Step>
void pack_streams(const Run<const T>& run, Index streams, A* packed) {
  const T* from[V];
  for (Index lane = 0; lane < V; ++lane) {
    from[lane] = run.data + (lane < streams ? lane : streams - 1) * run.stream;
  }
  pack_lanes<T, A, V, Step>(run, from, packed);
}

/// Q streams at once.
template <class T, class A, int V, int Q, int Step>
void unpack_streams(const Run<T>& run, Index streams, const A* packed) {
  for (Index lane = 0; lane < streams; lane += Q, packed += Q) {
    const Index live = streams - lane;
    T* to[Q];
    for (Index q = 0; q < Q; ++q) {
      to[q] = run.data + (q < live ? lane + q : lane) * run.stream;
    }
    unpack_lanes<T, A, Q, Step>(run, to, live, packed);
  }
}

template <class T, class A, int V>
void pack_run(const Run<const T>& run, Index streams, A* packed) {
  with_step<T, A>(run.step, [&](auto step) { pack_streams<T, A, V, decltype(step)::value>(run, streams, packed); });
}

template <class T, class A, int V>
void unpack_run(const Run<T>& run, Index streams, const A* packed) {
  with_step<T, A>(run.step, [&](auto constant) {
    constexpr int step = decltype(constant)::value, few = streams_written<A, V>;
    // Element by element there is nothing to gain by more streams.
    if (step == 0 || is_aliased(run.stream * static_cast<Index>(sizeof(T)))) {
      unpack_streams<T, A, V, few, step>(run, streams, packed);
    } else {
      unpack_streams<T, A, V, V, step>(run, streams, packed);
    }
  });
}

/// How rows of images are packed, [row][pixel][channel][lane]: elements from one to the next one.
struct Packed {
  Index row, pixel, channel;
};

/// Calls `each(run, offset)` for the runs that make up `rows` rows of images: along the axis that is contiguous, if one
/// is, and over the rows' ends where they touch.
template <class T, class Each>
[[gnu::always_inline]] inline void for_runs(const Images<T>& images, Index row, Index rows, Index channels, Index width,
                                            const Packed& packed, Each&& each) {
  T* data = images.data + row * images.row;
  const Index step = images.channel;
  const bool along_channels = step == 1 || step == -1, touching = packed.pixel == channels * packed.channel;
  if (along_channels && images.column == step * channels) {
    const Index line = channels * width;
    if (images.row == step * line && touching) {
      each(Run<T>{data, images.batch, step, rows * line, packed.channel, line, packed.row - width * packed.pixel},
           Index{0});
    } else {
      for (Index r = 0; r < rows; ++r) {
        each(Run<T>{data + r * images.row, images.batch, step, line, packed.channel, touching ? line : channels,
                    packed.pixel - channels * packed.channel},
             r * packed.row);
      }
    }
  } else if (along_channels && images.column != 1 && images.column != -1) {
    for (Index r = 0; r < rows; ++r) {
      for (Index s = 0; s < width; ++s) {
        each(Run<T>{data + r * images.row + s * images.column, images.batch, step, channels, packed.channel, channels,
                    0},
             r * packed.row + s * packed.pixel);
      }
    }
  } else {
    // Rows also touch where a corner turned only one of the axes; then each is gone through from its end.
    const bool joined = images.row == images.column * width, from_ends = images.row == -images.column * width;
    const Index last = width - 1;
    for (Index c = 0; c < channels; ++c) {
      if (joined) {
        each(Run<T>{data + c * step, images.batch, images.column, rows * width, packed.pixel, width,
                    packed.row - width * packed.pixel},
             c * packed.channel);
      } else if (from_ends) {
        each(Run<T>{data + c * step + last * images.column, images.batch, -images.column, rows * width, -packed.pixel,
                    width, packed.row + width * packed.pixel},
             c * packed.channel + last * packed.pixel);
      } else {
        for (Index r = 0; r < rows; ++r) {
          each(Run<T>{data + c * step + r * images.row, images.batch, images.column, width, packed.pixel, width, 0},
               r * packed.row + c * packed.channel);
        }
      }
    }
  }
}

/// Asks for the memory of a run, which is used after the one before it.
template <bool Write, class T>
void prefetch_run(const Run<T>& run, Index streams) {
  constexpr Index line = 64 / static_cast<Index>(sizeof(T));
  if (run.step == 1 || run.step == -1) {
    const T* from = run.step == 1 ? run.data : run.data - (run.n - 1);
    for (Index stream = 0; stream < streams; ++stream, from += run.stream) {
      for (Index k = 0; k < run.n; k += line) {
        __builtin_prefetch(from + k, Write, 2);
      }
    }
  }
}

/// Calls `each` as for_runs does, when the memory of the run after it has been asked for.
template <bool Write, class T, class Each>
[[gnu::always_inline]] inline void for_runs_ahead(const Images<T>& images, Index count, Index row, Index rows,
                                                  Index channels, Index width, const Packed& packed, Each&& each) {
  Run<T> waiting{};
  Index waiting_offset = 0;
  for_runs(images, row, rows, channels, width, packed, [&](const Run<T>& run, Index offset) {
    prefetch_run<Write>(run, count);
    if (waiting.data != nullptr) {
      each(waiting, waiting_offset);
    }
    waiting = run;
    waiting_offset = offset;
  });
  each(waiting, waiting_offset);
}

template <class T, class A, int V>
void pack_rows(const Images<const T>& from, Index images, Index row, Index rows, Index channels, Index width, A* to,
               const Packed& packed) {
  for_runs_ahead<false>(from, images, row, rows, channels, width, packed,
                        [&](const Run<const T>& run, Index offset) { pack_run<T, A, V>(run, images, to + offset); });
}

template <class T, class A, int V>
void unpack_rows(const Images<T>& to, Index images, Index row, Index rows, Index channels, Index width, const A* from,
                 const Packed& packed) {
  for_runs_ahead<true>(to, images, row, rows, channels, width, packed,
                       [&](const Run<T>& run, Index offset) { unpack_run<T, A, V>(run, images, from + offset); });
}

}  // namespace
}  // namespace invconv::detail::cpu
