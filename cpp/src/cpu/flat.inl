// conv with the pixels of an image in the lanes, as they lie in memory: nothing is copied. Part of kernels.inl.

#pragma once

#include <cstdint>
#include <utility>

#include "cpu/filter.inl"

namespace invconv::detail::cpu {
namespace {

/// How far ahead memory is asked for, at least; measured, from 400 to 2000 are as good.
inline constexpr Index pixels_ahead = 1024;

/// The lanes of V whose bits are set, the others 0; their memory is not touched.
template <class A, int V>
[[gnu::always_inline]] inline Vector<A, V> load_masked(unsigned mask, const A* from) {
  static_assert(V * sizeof(A) == 64);
  if constexpr (sizeof(A) == 4) {
    return (Vector<A, V>)_mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), from);
  } else {
    return (Vector<A, V>)_mm512_maskz_loadu_pd(static_cast<__mmask8>(mask), from);
  }
}

template <class A, int V>
[[gnu::always_inline]] inline void store_masked(unsigned mask, A* to, Vector<A, V> value) {
  if constexpr (sizeof(A) == 4) {
    _mm512_mask_storeu_ps(to, static_cast<__mmask16>(mask), (__m512)value);
  } else {
    _mm512_mask_storeu_pd(to, static_cast<__mmask8>(mask), (__m512d)value);
  }
}

/// An image whose rows and columns lie one after the other, its pixels counted as they lie. `up` and `left` are
/// positive where addresses grow with rows and columns, which a corner may turn: the tap (i, j) is at -i * up - j *
/// left.
template <class A>
struct FlatImage {
  Index channels, kernel_height, kernel_width;
  Index up, left;
  bool streamed;
  const A* weight;
  const A* in;
  A* out;
  Index in_channel, out_channel;
  Index ahead;  // elements to what is asked for: of a small image, the same place of a later one
};

/// U vectors of pixels that begin at `at`, and their taps' masks. `Small` ones have small_kernel and OB channels, and
/// `Whole` ones all taps of all lanes inside the image.
template <class A, int V, int OB, int U, bool Small, bool Whole>
void filter_flat(const FlatImage<A>& image, Index at, const LaneMask* masks) {
  using Vec = Vector<A, V>;
  const Index channels = Small ? OB : image.channels, kernel_height = Small ? small_kernel : image.kernel_height;
  const Index kernel_width = Small ? small_kernel : image.kernel_width, taps = kernel_height * kernel_width;
  const Index up = image.up, left = image.left, in_channel = image.in_channel, out_channel = image.out_channel;
  const bool streamed = image.streamed;
  const A *const in = image.in + at, *w = image.weight;
  A* const out = image.out + at;
  const auto values = [&](const A* x, const LaneMask* inside, Vec(&value)[U]) __attribute__((always_inline)) {
    INVCONV_UNROLL
    for (int u = 0; u < U; ++u) {
      value[u] = Whole ? load_unaligned<A, V>(x + u * V) : load_masked<A, V>(inside[u * (taps + 1)], x + u * V);
    }
  };
  for (Index c = 0; c < channels; ++c) {
    INVCONV_UNROLL
    for (int u = 0; u < U; ++u) {
      __builtin_prefetch(in + c * in_channel + u * V + image.ahead, 0, 3);
      if (Small && !streamed) {  // many channels' lines would push each other out of the cache
        __builtin_prefetch(out + c * out_channel + u * V + image.ahead, 1, 3);
      }
    }
  }
  for (Index block = 0; block < channels; block += OB) {
    Vec sum[OB][U] = {};
    for (Index i = kernel_height - 1; i >= 0; --i) {
      if constexpr (!Whole) {
        unsigned any = 0;
        INVCONV_UNROLL
        for (int u = 0; u < U; ++u) {
          any |= masks[u * (taps + 1) + i * kernel_width];
        }
        if (any == 0) {  // it lies above the image for all of them
          w += kernel_width * channels * OB;
          continue;
        }
      }
      for (Index j = kernel_width - 1; j >= 0; --j) {
        const A* x = in - i * up - j * left;
        const auto add = [&](const A* operand) __attribute__((always_inline)) {
          Vec value[U];
          values(operand, masks + i * kernel_width + j, value);
          INVCONV_UNROLL
          for (int o = 0; o < OB; ++o) {
            const Vec tap = splat<A, V>(w[o]);
            INVCONV_UNROLL
            for (int u = 0; u < U; ++u) {
              sum[o][u] = multiply_add<A, V>(value[u], tap, sum[o][u]);
            }
          }
          w += OB;
        };
        if constexpr (Small) {
          if (i > 0 || j > 0) {
            INVCONV_UNROLL
            for (int c = 0; c < OB; ++c) {
              add(x + c * in_channel);
            }
          }
        } else {
          const Index n = i == 0 && j == 0 ? block : channels;
          for (Index c = 0; c < n; ++c) {
            add(x + c * in_channel);
          }
        }
      }
    }
    INVCONV_UNROLL
    for (int c = 0; c < OB; ++c) {
      if (!Small && block + c >= channels) {
        break;
      }
      Vec value[U];
      values(in + (block + c) * in_channel, masks, value);
      INVCONV_UNROLL
      for (int o = c; o < OB; ++o) {  // times a diagonal of 1, too: the sum is rounded once all the same
        const Vec tap = splat<A, V>(w[c * OB + o]);
        INVCONV_UNROLL
        for (int u = 0; u < U; ++u) {
          sum[o][u] = multiply_add<A, V>(value[u], tap, sum[o][u]);
        }
      }
      A* const to = out + (block + c) * out_channel;
      INVCONV_UNROLL
      for (int u = 0; u < U; ++u) {
        const Vec result = settled(sum[c][u]);
        const unsigned live = Whole ? (1U << V) - 1 : masks[u * (taps + 1)];
        if (streamed && live == (1U << V) - 1 && reinterpret_cast<std::uintptr_t>(to + u * V) % 64 == 0) {
          _mm512_stream_si512(reinterpret_cast<__m512i*>(to + u * V), (__m512i)result);
        } else if constexpr (Whole) {
          store_unaligned<A, V>(to + u * V, result);
        } else {
          store_masked<A, V>(live, to + u * V, result);
        }
      }
    }
    w += OB * OB;
  }
}

template <class A>
using FlatFunction = void (*)(const FlatImage<A>&, Index at, const LaneMask* masks);

template <class A, int V, int OB, bool Small, bool Whole, int... U>
FlatFunction<A> flat_of(Index vectors, std::integer_sequence<int, U...>) {
  static constexpr FlatFunction<A> table[] = {filter_flat<A, V, OB, U + 1, Small, Whole>...};
  return table[vectors - 1];
}

/// Vectors [begin, end), in groups of equal sizes; masks_of(v) are those of the vector v and the ones after it.
template <class A, int V, int OB, bool Small, class MasksOf>
[[gnu::always_inline]] inline void filter_flat_vectors(const FlatImage<A>& image, Index begin, Index end,
                                                       MasksOf&& masks_of) {
  constexpr int most = most_sums / OB < flat_vectors_together ? most_sums / OB : flat_vectors_together;
  constexpr auto all = std::make_integer_sequence<int, most>{};
  const Index taps = image.kernel_height * image.kernel_width, groups = (end - begin + most - 1) / most;
  const Index size = (end - begin) / groups, larger = (end - begin) % groups;
  for (Index group = 0, first = begin; group < groups; ++group) {
    const Index count = group < larger ? size + 1 : size;
    const LaneMask* const masks = masks_of(first);
    if constexpr (Small) {
      unsigned whole = masks[taps];
      for (Index u = 1; u < count; ++u) {
        whole &= masks[u * (taps + 1) + taps];
      }
      if (whole != 0) {
        flat_of<A, V, OB, true, true>(count, all)(image, first * V, masks);
        first += count;
        continue;
      }
    }
    flat_of<A, V, OB, Small, false>(count, all)(image, first * V, masks);
    first += count;
  }
}

/// For each vector a mask for every tap, of the lanes whose tap is inside the image; then 1 if every mask is full,
/// else 0.
template <class A, int V>
class FlatMasks {
 public:
  FlatMasks(const FilterShape& shape, bool rows_upwards, bool columns_upwards, LaneMask* masks)
      : regions_(flat_regions(shape, V)), taps_(shape.kernel_height * shape.kernel_width), masks_(masks) {
    const Index width = shape.width, pixels = shape.height * width;
    LaneMask* to = masks;
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i row = _mm512_set1_epi32(static_cast<int>(width));
    constexpr unsigned all = (1U << V) - 1;
    const auto below = [](Index end) { return end <= 0 ? 0U : end >= V ? all : (1U << end) - 1; };
    const auto add = [&](Index vector) {
      const Index at = vector * V;
      __m512i column = _mm512_add_epi32(lane, _mm512_set1_epi32(static_cast<int>(at % width)));
      while (const __mmask16 next = _mm512_cmpge_epi32_mask(column, row)) {
        column = _mm512_mask_sub_epi32(column, next, column, row);
      }
      if (!columns_upwards) {
        column = _mm512_sub_epi32(_mm512_set1_epi32(static_cast<int>(width - 1)), column);
      }
      unsigned whole = all;
      for (Index i = 0; i < shape.kernel_height; ++i) {
        const Index reach = i * width;
        const unsigned rows = rows_upwards ? below(pixels - at) & ~below(reach - at) : below(pixels - reach - at);
        for (Index j = 0; j < shape.kernel_width; ++j) {
          const unsigned inside = rows & _mm512_cmpge_epi32_mask(column, _mm512_set1_epi32(static_cast<int>(j)));
          whole &= inside;
          *to++ = static_cast<LaneMask>(inside);
        }
      }
      *to++ = whole == all ? 1 : 0;
    };
    for (Index vector = 0; vector < regions_.head + regions_.repeated; ++vector) {
      add(vector);
    }
    for (Index vector = regions_.tail; vector < regions_.vectors; ++vector) {
      add(vector);
    }
  }

  /// Calls each(begin, end, masks_of) for the regions of vectors [begin, end).
  template <class Each>
  void for_regions(Index begin, Index end, Each&& each) const {
    const FlatRegions& r = regions_;
    const auto part = [&](Index from, Index to, auto&& masks_of) __attribute__((always_inline)) {
      from = from < begin ? begin : from;
      to = to < end ? to : end;
      if (from < to) {
        each(from, to, masks_of);
      }
    };
    part(0, r.head, [&](Index v) { return masks_ + v * (taps_ + 1); });
    part(r.head, r.tail, [&](Index v) { return masks_ + (r.head + (v - r.head) % r.phases) * (taps_ + 1); });
    part(r.tail, r.vectors, [&](Index v) { return masks_ + (r.head + r.repeated + v - r.tail) * (taps_ + 1); });
  }

 private:
  FlatRegions regions_;
  Index taps_;
  LaneMask* masks_;
};

template <class A, int V, int OB, bool Small>
void filter_flat_image(const FlatImage<A>& image, const FlatMasks<A, V>& table, Index begin, Index end) {
  table.for_regions(begin, end, [&](Index from, Index to, auto&& masks_of) __attribute__((always_inline)) {
    filter_flat_vectors<A, V, OB, Small>(image, from, to, masks_of);
  });
}

template <class A, int V>
using FlatImageFunction = void (*)(const FlatImage<A>&, const FlatMasks<A, V>&, Index begin, Index end);

template <class A, int V, bool Small, int... OB>
FlatImageFunction<A, V> flat_image_of(Index block, std::integer_sequence<int, OB...>) {
  static constexpr FlatImageFunction<A, V> table[] = {filter_flat_image<A, V, OB + 1, Small>...};
  return table[block - 1];
}

/// Vectors [begin, end) of each of `count` images, which are flat (plan.hpp).
template <class T, int V>
void conv_flat(const FilterShape& shape, Index count, const Images<const T>& in, const Images<T>& out, Index begin,
               Index end, const T* packed, void* scratch) {
  const bool rows_upwards = in.row > 0, columns_upwards = in.column > 0;
  const FlatMasks<T, V> table(shape, rows_upwards, columns_upwards, static_cast<LaneMask*>(scratch));
  const auto function =
      is_small(shape) ? flat_image_of<T, V, true>(shape.channels, std::make_integer_sequence<int, small_channels>{})
                      : flat_image_of<T, V, false>(shape.block, std::make_integer_sequence<int, flat_block>{});
  const Index first = (rows_upwards ? 0 : (shape.height - 1) * shape.width) + (columns_upwards ? 0 : shape.width - 1);
  const Index distance = in.batch < 0 ? -in.batch : in.batch;
  const Index ahead = shape.height * shape.width >= pixels_ahead || distance == 0
                          ? pixels_ahead
                          : (pixels_ahead + distance - 1) / distance * in.batch;
  FlatImage<T> image{shape.channels,
                     shape.kernel_height,
                     shape.kernel_width,
                     rows_upwards ? shape.width : -shape.width,
                     columns_upwards ? 1 : -1,
                     shape.streamed,
                     packed,
                     in.data - first,
                     out.data - first,
                     in.channel,
                     out.channel,
                     ahead};
  for (Index k = 0; k < count; ++k, image.in += in.batch, image.out += out.batch) {
    function(image, table, begin, end);
  }
  finish_streams();
}

}  // namespace
}  // namespace invconv::detail::cpu
