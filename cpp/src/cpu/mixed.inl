// solve with a few rows of a few images in the lanes, each row one column behind the one above it. Part of kernels.inl.

#pragma once

#include <cstring>
#include <utility>

#include "cpu/filter.inl"
#include "cpu/wait.inl"

namespace invconv::detail::cpu {
namespace {

/// The steps [begin, end) of a band; `row.here` is where lane 0 of step 0 is.
template <class A, int V, int OB>
void solve_steps(const FilterRows<A, 1>& row, Index begin, Index end, Index images, Index cell, Index pixel) {
  for (Index s = begin; s < end; ++s) {
    filter_pixels<A, V, OB, true, 1, true>(row, s, [](Index, Index, const Vector<A, V>&) {}, cell, pixel);
    // Before a row begins there must be zeros: only of a diagonal of zeros something else may have come.
    for (Index c = 0; !row.unit_diagonal && (s + 1) * images < V && c < row.channels; ++c) {
      A* const lanes = row.here[0] + s * pixel + c * cell;
      for (Index lane = (s + 1) * images; lane < V; ++lane) {
        lanes[lane] = A(0);
      }
    }
  }
}

template <class A>
using StepsFunction = void (*)(const FilterRows<A, 1>& row, Index begin, Index end, Index images, Index cell,
                               Index pixel);

template <class A, int V, int... OB>
StepsFunction<A> steps_of(Index block, std::integer_sequence<int, OB...>) {
  static constexpr StepsFunction<A> table[] = {solve_steps<A, V, OB + 1>...};
  return table[block - 1];
}

/// The cells of a band, see solve_mixed.
template <class A>
struct Cells {
  A* here;                    // lane 0 of channel 0 in step 0
  Index images, cell, pixel;  // lanes of a row; elements of a cell, and of a step
};

/// Calls each(c, row, lanes) for the channels, and for groups of as many rows as fill 16 bytes of lanes with images.
/// Their lanes are one column behind each other. So it asks for the columns that all of them have in the same steps
/// with whole(run, pointers, cells), and for what is left of each with rest(element, cells).
template <int E, class A, class T, class Whole, class Rest>
[[gnu::always_inline]] inline void for_skewed(const Images<T>& images, Index live, Index first, Index rows,
                                              Index channels, Index width, const Cells<A>& cells, Whole&& whole,
                                              Rest&& rest) {
  constexpr int Q = 16 / static_cast<int>(sizeof(A)), R = Q / E;
  for (Index row = 0; row < rows; row += R) {
    const Index common = row + R <= rows && live == E && width >= R ? width - R + 1 : 0;
    for (Index c = 0; c < channels; ++c) {
      A* const to = cells.here + row * cells.pixel + c * cells.cell + row * E;
      T* start[Q];
      for (int q = 0; q < Q; ++q) {
        start[q] = images.data + (first + row + q / E) * images.row + q % E * images.batch + c * images.channel;
      }
      for (int q = 0; q < Q; ++q) {
        const Index below = q / E, end = common > 0 ? R - 1 - below : width;
        for (Index s = 0; row + below < rows && q % E < live && s < width; ++s) {
          s += s == end ? common : 0;
          if (s < width) {
            rest(start[q][s * images.column], to[(below + s) * cells.pixel + q]);
          }
        }
      }
      if (common > 0) {
        for (int q = 0; q < Q; ++q) {
          start[q] += (R - 1 - q / E) * images.column;
        }
        whole(Run<T>{start[0], 0, images.column, common, cells.pixel, common, 0}, start, to + (R - 1) * cells.pixel);
      }
    }
  }
}

template <int E, class A, class T>
void pack_skewed(const Images<const T>& from, Index live, Index first, Index rows, Index channels, Index width,
                 const Cells<A>& cells) {
  constexpr int Q = 16 / static_cast<int>(sizeof(A));
  for_skewed<E>(
      from, live, first, rows, channels, width, cells,
      [](const Run<const T>& run, const T* const(&start)[Q], A* to) {
        with_step<T, A>(run.step, [&](auto step) { pack_lanes<T, A, Q, decltype(step)::value>(run, start, to); });
      },
      [](const T& element, A& to) { to = widen(element); });
}

template <int E, class A, class T>
void unpack_skewed(const Images<T>& to, Index live, Index first, Index rows, Index channels, Index width,
                   const Cells<A>& cells) {
  constexpr int Q = 16 / static_cast<int>(sizeof(A));
  for_skewed<E>(
      to, live, first, rows, channels, width, cells,
      [](const Run<T>& run, T* const(&start)[Q], const A* from) {
        with_step<T, A>(run.step,
                        [&](auto step) { unpack_lanes<T, A, Q, decltype(step)::value>(run, start, Q, from); });
      },
      [](T& element, const A& from) { narrow(from, element); });
}

/// Calls `body` with `images`, a power of two less than V, as a constant.
template <int V, class Body>
void with_images(Index images, Body&& body) {
  if (V / 2 == images) {
    body(std::integral_constant<int, V / 2>{});
  } else if constexpr (V > 2) {
    with_images<V / 2>(images, body);
  }
}

/// One band of `live` images, of V / shape.band at once. A cell is one channel in one step: lane l of it is row
/// l / images of the band in column step - l / images. So the tap (i, j) reads X[step - i - j] moved up by i rows,
/// which is the same cell as if it began i * images elements earlier: what is there are the last rows of the band
/// above, row -m in column step + m. With these operands in place of the row of age i this is the row of pixels of
/// filter.inl. The results of a band move on to where the next one expects them: row r is its row r - shape.band, and
/// so many steps earlier. One thread finds them in its scratch memory; other threads are told by way of band.below.
template <class T, int V>
void solve_mixed(const FilterShape& shape, Index live, const Images<const T>& in, const Images<T>& out,
                 const Arithmetic<T>* packed, const Band<Arithmetic<T>>& band, void* scratch) {
  using A = Arithmetic<T>;
  const Index channels = shape.channels, width = shape.width, rows = shape.band, images = V / rows;
  const Index older = shape.kernel_height - 1, lead = older + shape.kernel_width - 1, steps = width + rows - 1;
  // Whole vectors before the lanes, so that these are aligned.
  const Index edge = older * images, front = whole_vectors(edge, V), cell = front + V, pixel = shape.pitch;
  const Index first = band.index * rows, count = first + rows <= shape.height ? rows : shape.height - first;
  const A** const table = static_cast<const A**>(scratch);
  A* const memory = static_cast<A*>(skip_pointers(scratch, shape.kernel_height));
  A* const here = memory + lead * pixel + front;
  const bool shared = band.done != nullptr;
  if (shared || first == 0) {
    std::memset(memory, 0, sizeof(A) * static_cast<std::size_t>((lead + steps) * pixel));
  } else {
    for (Index step = 0; step < lead + width - 1; ++step) {
      for (A* to = memory + step * pixel; to < memory + step * pixel + channels * cell; to += cell) {
        for (Index k = 0; k < front; k += V) {
          store<A, V>(to + k, load<A, V>(to + rows * pixel + V + k));
        }
      }
    }
  }
  for (Index i = 0; i <= older; ++i) {
    table[i] = here - i * images - (i + shape.kernel_width - 1) * pixel;
  }
  const FilterRows<A, 1> row{
      channels,  steps, shape.kernel_height,   shape.kernel_width, shape.unit_diagonal, packed, table, {here},
      {nullptr}, older, shape.kernel_width - 1};
  const auto function = steps_of<A, V>(shape.block, std::make_integer_sequence<int, rows_block>{});

  // What comes from the band above and goes to the one below: [step][channel], the last lanes of a cell.
  const auto for_edges = [&](auto* edges, Index step, Index begin, Index end, Index lane, auto&& each) {
    edges += step * channels * edge;
    for (Index s = begin; s < end; ++s) {
      for (Index c = 0; c < channels; ++c) {
        A* const lanes = here + s * pixel + c * cell + lane;
        for (Index k = 0; k < edge; ++k) {
          each(*edges++, lanes[k]);
        }
      }
    }
  };
  const auto receive = [&](Index begin, Index end) {
    for_edges(band.above, begin + rows, begin, end, -edge, [](const A& from, A& to) { to = from; });
  };
  const auto leave = [&](Index begin, Index end) {
    for_edges(band.below, begin, begin, end, V - edge, [](A& to, const A& from) { to = from; });
  };
  const auto solve = [&] {
    BandAbove<A> band_above(band, steps);
    const Index chunk = shared ? hand_over(width, mixed_hand_over) : steps;
    Index received = lead < rows ? -lead : -rows;  // before that all is zero
    for (Index begin = 0; begin < steps; begin += chunk) {
      const Index end = steps - begin < chunk ? steps : begin + chunk;
      if (shared && first > 0) {
        band_above.wait_for(end + rows);
        const Index until = end < width ? end : width - 1;
        receive(received, until);
        received = until;
      }
      function(row, begin, end, images, cell, pixel);
      if (shared) {
        leave(begin, end);
        finished(band, end, steps);
      }
    }
  };
  with_images<V>(images, [&](auto constant) {
    constexpr int E = decltype(constant)::value;
    if constexpr (E * sizeof(A) < 16) {
      const Cells<A> cells{here, images, cell, pixel};
      pack_skewed<E>(in, live, first, count, channels, width, cells);
      solve();
      unpack_skewed<E>(out, live, first, count, channels, width, cells);
    } else {
      const Packed skewed{pixel + images, pixel, cell};
      pack_rows<T, A, E>(in, live, first, count, channels, width, here, skewed);
      solve();
      unpack_rows<T, A, E>(out, live, first, count, channels, width, here, skewed);
    }
  });
}

}  // namespace
}  // namespace invconv::detail::cpu
