// The one source of the CPU kernels. A kernels_<level>.cpp defines INVCONV_KERNELS (the name of its table's function),
// INVCONV_LEVEL (its name in text), INVCONV_VECTOR_BYTES and INVCONV_BLOCK (the most output channels whose accumulators
// fit in registers), then includes this file.
//
// Everything is in an unnamed namespace and no inline function of another header is called: code compiled for one
// instruction set must not be merged with another's by the linker.

#include "cpu/correlate.inl"
#include "cpu/filter.inl"

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
  table.correlate = correlate_unit<T, widest<A>>;
  return table;
}

template Kernels<float> INVCONV_KERNELS<float>();
template Kernels<double> INVCONV_KERNELS<double>();
template Kernels<float16> INVCONV_KERNELS<float16>();
template Kernels<bfloat16> INVCONV_KERNELS<bfloat16>();

}  // namespace invconv::detail::cpu
