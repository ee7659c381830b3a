// Between images of any strides and rows packed as [pixel][channel][lane]. Part of kernels.inl.

#pragma once

#include "cpu/vectors.inl"

namespace invconv::detail::cpu {
namespace {

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

}  // namespace
}  // namespace invconv::detail::cpu
