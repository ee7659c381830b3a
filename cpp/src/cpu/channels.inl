// solve with the output channels in the lanes, for a few images of many channels: four pixels at a time, of several
// images or of rows that are one column behind each other. Part of kernels.inl.

#pragma once

#include <cstring>
#include <utility>

#include "cpu/filter.inl"
#include "cpu/wait.inl"

namespace invconv::detail::cpu {
namespace {

/// Vectors of output channels computed together.
inline constexpr int channel_vectors = INVCONV_CHANNEL_VECTORS;

template <class A, int V>
[[gnu::always_inline]] inline Vector<A, V> lane_to_all(Vector<A, V> value, int lane) {
#if defined(__clang__)
  return splat<A, V>(value[lane]);
#else
  using Int = std::conditional_t<sizeof(A) == 4, int, long long>;
  typedef Int Mask __attribute__((vector_size(V * sizeof(A))));
  const Mask mask = Mask{} + static_cast<Int>(lane);
  return __builtin_shuffle(value, mask);
#endif
}

/// Lanes above `lane` from `computed`, the others from `kept`.
template <class A, int V, int... J>
[[gnu::always_inline]] inline Vector<A, V> above_lane(int lane, Vector<A, V> computed, Vector<A, V> kept,
                                                      std::integer_sequence<int, J...>) {
  using Int = std::conditional_t<sizeof(A) == 4, int, long long>;
  typedef Int Mask __attribute__((vector_size(V * sizeof(A))));
  const Mask lanes = {Int{J}...};
  return lanes > static_cast<Int>(lane) ? computed : kept;
}

/// a * b + c in the lanes above `lane`, c in the others.
template <class A, int V, class All>
[[gnu::always_inline]] inline Vector<A, V> multiply_add_above(int lane, Vector<A, V> a, Vector<A, V> b, Vector<A, V> c,
                                                              All all) {
#if defined(__AVX512F__)
  if constexpr (sizeof(A) == 4 && V == 16) {
    const auto above = static_cast<__mmask16>(0xfffeu << lane);
    return (Vector<A, V>)_mm512_mask3_fmadd_ps((__m512)a, (__m512)b, (__m512)c, above);
  }
#endif
  return above_lane<A, V>(lane, multiply_add<A, V>(a, b, c), c, all);
}

/// One pixel of each stream. at[i][q] is where channel 0 of stream q's pixel would be, i rows up. Taps that reach more
/// than `above` rows up or `left` pixels to the left lie outside the image for all the streams, and are left out.
template <class A, int V, int M>
void solve_pixels(const FilterShape& shape, Index above, Index left, Index pixel, const A* weight, const A* const* at,
                  A* const* here, const bool* live) {
  using Vec = Vector<A, V>;
  constexpr auto all = std::make_integer_sequence<int, V>{};
  constexpr int block = M * V;
  const Index channels = shape.channels;
  const A* w = weight;
  for (Index first = 0; first < channels; first += block) {
    Vec sum[M][channel_streams];
    INVCONV_UNROLL
    for (int m = 0; m < M; ++m) {
      INVCONV_UNROLL
      for (int q = 0; q < channel_streams; ++q) {
        sum[m][q] = load<A, V>(here[q] + first + m * V);
      }
    }
    const auto add = [&](const A* x0, const A* x1, const A* x2, const A* x3, Index n) {
      for (Index c = 0; c < n; ++c, w += block) {
        const Vec value[channel_streams] = {splat<A, V>(x0[c]), splat<A, V>(x1[c]), splat<A, V>(x2[c]),
                                            splat<A, V>(x3[c])};
        INVCONV_UNROLL
        for (int m = 0; m < M; ++m) {
          const Vec taps = load<A, V>(w + m * V);
          INVCONV_UNROLL
          for (int q = 0; q < channel_streams; ++q) {
            sum[m][q] = multiply_add<A, V>(value[q], taps, sum[m][q]);
          }
        }
      }
    };
    w += (shape.kernel_height - 1 - above) * shape.kernel_width * channels * block;
    for (Index i = above; i >= 0; --i) {
      const A* const* x = at + i * channel_streams;
      w += (shape.kernel_width - 1 - left) * channels * block;
      for (Index j = left; j >= 0; --j) {
        const Index back = j * pixel;
        add(x[0] - back, x[1] - back, x[2] - back, x[3] - back, i == 0 && j == 0 ? first : channels);
      }
    }
    // Inside the block, channel after channel.
    const Index inside = channels - first < block ? channels - first : block;
    INVCONV_UNROLL
    for (int m = 0; m < M; ++m) {
      for (int lane = 0; lane < V && m * V + lane < inside; ++lane, w += block) {
        INVCONV_UNROLL
        for (int q = 0; q < channel_streams; ++q) {
          if (!shape.unit_diagonal) {
            const Vec divided = sum[m][q] / splat<A, V>(w[m * V + lane]);
            sum[m][q] = above_lane<A, V>(lane - 1, above_lane<A, V>(lane, sum[m][q], divided, all), sum[m][q], all);
          }
          const Vec value = lane_to_all<A, V>(sum[m][q], lane);
          sum[m][q] = multiply_add_above<A, V>(lane, value, load<A, V>(w + m * V), sum[m][q], all);
          INVCONV_UNROLL
          for (int n = m + 1; n < M; ++n) {
            sum[n][q] = multiply_add<A, V>(value, load<A, V>(w + n * V), sum[n][q]);
          }
        }
      }
    }
    w += (block - inside) * block;
    INVCONV_UNROLL
    for (int q = 0; q < channel_streams; ++q) {
      INVCONV_UNROLL
      for (int m = 0; m < M; ++m) {
        if (live[q]) {
          store<A, V>(here[q] + first + m * V, settled(sum[m][q]));
        }
      }
    }
  }
}

template <class A>
using PixelsFunction = void (*)(const FilterShape&, Index, Index, Index, const A*, const A* const*, A* const*,
                                const bool*);

template <class A, int V, int... M>
PixelsFunction<A> pixels_of(Index vectors, std::integer_sequence<int, M...>) {
  static constexpr PixelsFunction<A> table[] = {solve_pixels<A, V, M + 1>...};
  return table[vectors - 1];
}

/// Rows [first, first + rows) of up to channel_streams images, rows * images <= streams. `ring` is one image's, or as
/// many images' one after the other, and may be shared by the bands of one image.
template <class T, int V>
void solve_channels(const FilterShape& shape, Index images, const Images<const T>& in, const Images<T>& out,
                    const Arithmetic<T>* packed, const Band<Arithmetic<T>>& band, Arithmetic<T>* ring, void* scratch) {
  using A = Arithmetic<T>;
  const Index channels = shape.channels, width = shape.width, kernel_height = shape.kernel_height;
  const Index pixel = (channels + shape.block - 1) / shape.block * shape.block;
  const Index margin = (shape.kernel_width - 1) * pixel, pitch = margin + width * pixel;
  const Index first = band.index * shape.band;
  const Index rows = first + shape.band <= shape.height ? shape.band : shape.height - first;
  const auto function = pixels_of<A, V>(shape.block / V, std::make_integer_sequence<int, channel_vectors>{});
  const auto at = [&](Index image, Index r) {
    return ring + (image * shape.ring + (r + shape.ring) % shape.ring) * pitch + margin;
  };
  const auto runs = [&](const auto& view, Index r, Index c) {
    using Data = std::remove_reference_t<decltype(*view.data)>;
    return Run<Data>{view.data + r * view.row + c * view.channel, view.channel, view.column, width, pixel, width, 0};
  };
  for (Index image = 0; image < images; ++image) {
    for (Index r = first == 0 ? 1 - kernel_height : first; r < first + rows; ++r) {
      A* const row = at(image, r);
      std::memset(row - margin, 0, sizeof(A) * static_cast<std::size_t>(r < 0 ? pitch : margin));
      for (Index c = 0; r >= 0 && c < channels; c += V) {
        auto run = runs(in, r, c);
        run.data += image * in.batch;
        pack_run<T, A, V>(run, channels - c < V ? channels - c : V, row + c);
      }
      for (Index s = 0; r >= 0 && s < width; ++s) {  // the lanes that are no channels
        for (Index c = (channels + V - 1) / V * V; c < pixel; ++c) {
          row[s * pixel + c] = A(0);
        }
      }
    }
  }

  const A** const table = static_cast<const A**>(scratch);  // [age][stream], in the present step
  A* here[channel_streams];
  bool live[channel_streams];
  Index image[channel_streams], row[channel_streams];
  for (int q = 0; q < channel_streams; ++q) {
    image[q] = q / shape.band;
    row[q] = q % shape.band;
  }
  const Index chunk = hand_over(width, channels_hand_over);
  BandAbove<A> band_above(band, width);
  for (Index t = 0; t < width + rows - 1; ++t) {
    if (t % chunk == 0) {
      band_above.wait_for(t + chunk);
      // What another core has written comes over slowly: ask for all of it at once.
      for (Index r = 1; band.before != nullptr && r < kernel_height; ++r) {
        const A* const above = at(0, first - r);
        for (Index k = t * pixel; k < (t + chunk) * pixel && k < width * pixel;
             k += 64 / static_cast<Index>(sizeof(A))) {
          __builtin_prefetch(above + k, 0, 3);
        }
      }
    }
    Index above = 0, left = 0;
    for (int q = 0; q < channel_streams; ++q) {
      const Index column = t - row[q];
      live[q] = image[q] < images && row[q] < rows && column >= 0 && column < width;
      // A stream without a pixel works on the first one's, and keeps the result to itself.
      const Index e = live[q] ? image[q] : 0, r = live[q] ? row[q] : 0;
      const Index s = live[q] ? column : 0;
      above = above < first + r ? first + r : above;
      left = left < s ? s : left;
      here[q] = at(e, first + r) + s * pixel;
      for (Index i = 0; i < kernel_height; ++i) {
        table[i * channel_streams + q] = at(e, first + r - i) + s * pixel;
      }
    }
    above = above < kernel_height - 1 ? above : kernel_height - 1;
    left = left < shape.kernel_width - 1 ? left : shape.kernel_width - 1;
    function(shape, above, left, pixel, packed, table, here, live);
    if ((t + 1) % chunk == 0 && t < width - 1) {
      finished(band, t - (rows - 1) + 1, width);
    }
  }
  for (Index e = 0; e < images; ++e) {
    for (Index r = first; r < first + rows; ++r) {
      for (Index c = 0; c < channels; c += V) {
        auto run = runs(out, r, c);
        run.data += e * out.batch;
        unpack_run<T, A, V>(run, channels - c < V ? channels - c : V, at(e, r) + c);
      }
    }
  }
  finished(band, width, width);  // only now, since a band further down takes over its rows of the ring
}

}  // namespace
}  // namespace invconv::detail::cpu
