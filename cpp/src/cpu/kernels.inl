// The one source of the CPU kernels. A kernels_<level>.cpp defines INVCONV_KERNELS (the name of its table's function),
// INVCONV_LEVEL (its name in text), INVCONV_VECTOR_BYTES, INVCONV_BLOCK (the most output channels whose accumulators
// fit in registers), INVCONV_ROWS (how many rows share them) and INVCONV_CHANNEL_VECTORS (the same for four pixels'
// vectors of channels), then includes this file. The build compiles it with INVCONV_FLOAT and with INVCONV_DOUBLE, for
// the types that have this arithmetic.
//
// Everything is in an unnamed namespace, and of other headers only functions are called that are always inlined: code
// compiled for one instruction set must not be merged with another's by the linker.

#include "cpu/channels.inl"
#include "cpu/columns.inl"
#include "cpu/correlate.inl"
#include "cpu/filter.inl"
#include "cpu/mixed.inl"
#include "cpu/rows.inl"
#if defined(__AVX512F__)
#include "cpu/flat.inl"
#endif

namespace invconv::detail::cpu {
namespace {

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

/// The same without scalars.
template <class A, class Body>
void with_vectors(Index lanes, Body&& body) {
  with_lanes<A>(lanes, [&](auto v) {
    if constexpr (decltype(v)::value > 1) {
      body(v);
    }
  });
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
  table.block = INVCONV_BLOCK;
  table.channel_vectors = channel_vectors;
  static_assert(INVCONV_ROWS <= most_rows);
  table.rows = INVCONV_ROWS;
  table.is_finite = is_finite<T>;
  table.pack_weight = pack_weight<T>;
  table.filter_images = [](const FilterShape& shape, Index lanes, Index images, const Images<const T>& in,
                           const Images<T>& out, const A* packed, void* scratch) {
    with_lanes<A>(lanes, [&](auto v) {
      constexpr int V = decltype(v)::value;
      const auto filter = [&](auto rows) {
        constexpr int P = decltype(rows)::value;
        if (shape.solve) {
          filter_images<T, V, true, P>(shape, images, in, out, packed, scratch);
        } else {
          filter_images<T, V, false, P>(shape, images, in, out, packed, scratch);
        }
      };
      if constexpr (V > 1 && INVCONV_ROWS > 1) {
        if (shape.rows > 1) {
          return filter(std::integral_constant<int, INVCONV_ROWS>{});
        }
      }
      filter(std::integral_constant<int, 1>{});
    });
  };
  table.solve_rows = [](const FilterShape& shape, Index lanes, const Images<const T>& in, const Images<T>& out,
                        const A* packed, const Band<A>& band, void* scratch) {
    with_vectors<A>(lanes, [&](auto v) { solve_rows<T, decltype(v)::value>(shape, in, out, packed, band, scratch); });
  };
  table.solve_mixed = [](const FilterShape& shape, Index lanes, Index images, const Images<const T>& in,
                         const Images<T>& out, const A* packed, const Band<A>& band, void* scratch) {
    with_vectors<A>(lanes,
                    [&](auto v) { solve_mixed<T, decltype(v)::value>(shape, images, in, out, packed, band, scratch); });
  };
  table.solve_channels = [](const FilterShape& shape, Index lanes, Index images, const Images<const T>& in,
                            const Images<T>& out, const A* packed, const Band<A>& band, A* ring, void* scratch) {
    with_vectors<A>(lanes, [&](auto v) {
      solve_channels<T, decltype(v)::value>(shape, images, in, out, packed, band, ring, scratch);
    });
  };
  table.conv_columns = [](const FilterShape& shape, Index lanes, const Images<const T>& in, const Images<T>& out,
                          Index begin, Index end, const A* packed, void* scratch) {
    with_vectors<A>(lanes,
                    [&](auto v) { conv_columns<T, decltype(v)::value>(shape, in, out, begin, end, packed, scratch); });
  };
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, A>) {
    table.conv_flat = conv_flat<T, widest<A>>;
  }
#endif
  table.correlate = correlate_unit<T, widest<A>>;
  return table;
}

#if defined(INVCONV_DOUBLE)
template Kernels<double> INVCONV_KERNELS<double>();
#elif defined(INVCONV_FLOAT)
template Kernels<float> INVCONV_KERNELS<float>();
template Kernels<float16> INVCONV_KERNELS<float16>();
template Kernels<bfloat16> INVCONV_KERNELS<bfloat16>();
#endif

}  // namespace invconv::detail::cpu
