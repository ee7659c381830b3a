#pragma once

// The definition of a causal convolution, written as plain loops in double, without flips, packs or blocks.
//
// The corner names the two sides that are padded with kh-1 rows and kw-1 columns of zeros. y = M x is then the
// cross-correlation of the padded image with the weight, as in the field's conv2d; so the tap that multiplies the pixel
// itself, the anchor, lies in the weight as far from its first row and column as there is padding before the image.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "invconv/invconv.hpp"

namespace invconv::test {

using Index = std::int64_t;

/// A dense 4-dimensional array of doubles.
struct Dense {
  Shape shape;
  std::vector<double> data;

  explicit Dense(const Shape& sizes)
      : shape(sizes), data(static_cast<std::size_t>(sizes[0] * sizes[1] * sizes[2] * sizes[3])) {}

  std::size_t index(Index i, Index j, Index k, Index l) const {
    return static_cast<std::size_t>(((i * shape[1] + j) * shape[2] + k) * shape[3] + l);
  }
  double& operator()(Index i, Index j, Index k, Index l) { return data[index(i, j, k, l)]; }
  double operator()(Index i, Index j, Index k, Index l) const { return data[index(i, j, k, l)]; }
};

inline Corner corner_of(const Options& options, Index group) {
  return options.corners[options.corners.size() == 1 ? 0 : static_cast<std::size_t>(group)];
}
inline bool pads_top(Corner corner) { return corner == Corner::tl || corner == Corner::tr; }
inline bool pads_left(Corner corner) { return corner == Corner::tl || corner == Corner::bl; }

/// What the definition makes of one entry of the weight.
enum class Entry { read, one, unread };

/// W[o, c, u, v]: c counts inside the group, as the weight does.
inline Entry entry(const Shape& weight, const Options& options, Index o, Index c, Index u, Index v) {
  const Index per_group = weight[1];
  const Corner corner = corner_of(options, o / per_group);
  const bool anchor = u == (pads_top(corner) ? weight[2] - 1 : 0) && v == (pads_left(corner) ? weight[3] - 1 : 0);
  if (!anchor || c < o % per_group) {
    return Entry::read;
  }
  if (c > o % per_group) {
    return Entry::unread;
  }
  return options.unit_diagonal ? Entry::one : Entry::read;
}

/// One product: y[b, o, r, s] gets W[o, c, u, v] x[b, in, row, column].
struct Term {
  Index b, o, r, s;
  Index in, row, column;
  Index c, u, v;
};

/// Calls visit(term, entry) for every product of M x on images of this shape. The transpose is left to the visitor.
template <class Visit>
void for_each_term(const Shape& image, const Shape& weight, const Options& options, Visit&& visit) {
  const Index per_group = weight[1];
  for (Index b = 0; b < image[0]; ++b) {
    for (Index o = 0; o < image[1]; ++o) {
      const Index group = o / per_group;
      const Corner corner = corner_of(options, group);
      const Index top = pads_top(corner) ? weight[2] - 1 : 0;
      const Index left = pads_left(corner) ? weight[3] - 1 : 0;
      for (Index c = 0; c < per_group; ++c) {
        for (Index u = 0; u < weight[2]; ++u) {
          for (Index v = 0; v < weight[3]; ++v) {
            const Entry kind = entry(weight, options, o, c, u, v);
            if (kind == Entry::unread) {
              continue;
            }
            for (Index r = 0; r < image[2]; ++r) {
              for (Index s = 0; s < image[3]; ++s) {
                const Index row = r + u - top, column = s + v - left;
                if (row >= 0 && row < image[2] && column >= 0 && column < image[3]) {
                  visit(Term{b, o, r, s, group * per_group + c, row, column, c, u, v}, kind);
                }
              }
            }
          }
        }
      }
    }
  }
}

/// M x, or M^T x.
inline Dense conv(const Dense& x, const Dense& weight, const Options& options) {
  Dense y(x.shape);
  for_each_term(x.shape, weight.shape, options, [&](const Term& t, Entry kind) {
    const double w = kind == Entry::one ? 1 : weight(t.o, t.c, t.u, t.v);
    if (options.transpose) {
      y(t.b, t.in, t.row, t.column) += w * x(t.b, t.o, t.r, t.s);
    } else {
      y(t.b, t.o, t.r, t.s) += w * x(t.b, t.in, t.row, t.column);
    }
  });
  return y;
}

/// The derivative of <g, M x> with respect to the weight.
inline Dense weight_grad(const Dense& x, const Dense& g, const Shape& weight, const Options& options) {
  Dense dw(weight);
  for_each_term(x.shape, weight, options, [&](const Term& t, Entry kind) {
    if (kind == Entry::read) {
      dw(t.o, t.c, t.u, t.v) += g(t.b, t.o, t.r, t.s) * x(t.b, t.in, t.row, t.column);
    }
  });
  return dw;
}

inline Dense magnitude(Dense array) {
  for (double& value : array.data) {
    value = std::abs(value);
  }
  return array;
}

/// A square matrix, row by row.
struct Matrix {
  Index size;
  std::vector<double> data;

  explicit Matrix(Index n) : size(n), data(static_cast<std::size_t>(n * n)) {}
  double& operator()(Index i, Index j) { return data[static_cast<std::size_t>(i * size + j)]; }
  double operator()(Index i, Index j) const { return data[static_cast<std::size_t>(i * size + j)]; }
};

/// M on one image of height x width pixels.
inline Matrix matrix(const Dense& weight, Index height, Index width, const Options& options) {
  const Shape image{1, weight.shape[0], height, width};
  const Dense numbering(image);
  Matrix m(static_cast<Index>(numbering.data.size()));
  for_each_term(image, weight.shape, options, [&](const Term& t, Entry kind) {
    auto out = static_cast<Index>(numbering.index(0, t.o, t.r, t.s));
    auto in = static_cast<Index>(numbering.index(0, t.in, t.row, t.column));
    if (options.transpose) {
      std::swap(out, in);
    }
    m(out, in) += kind == Entry::one ? 1 : weight(t.o, t.c, t.u, t.v);
  });
  return m;
}

/// What Gauss-Jordan elimination with row pivoting knows of a matrix.
struct Elimination {
  Matrix inverse;
  double log_abs_determinant;
};

inline Elimination eliminate(Matrix a) {
  const Index n = a.size;
  Elimination result{Matrix(n), 0};
  Matrix& inverse = result.inverse;
  for (Index i = 0; i < n; ++i) {
    inverse(i, i) = 1;
  }
  for (Index k = 0; k < n; ++k) {
    Index pivot = k;
    for (Index i = k + 1; i < n; ++i) {
      pivot = std::abs(a(i, k)) > std::abs(a(pivot, k)) ? i : pivot;
    }
    for (Index j = 0; j < n; ++j) {
      std::swap(a(k, j), a(pivot, j));
      std::swap(inverse(k, j), inverse(pivot, j));
    }
    const double diagonal = a(k, k);
    result.log_abs_determinant += std::log(std::abs(diagonal));
    for (Index j = 0; j < n; ++j) {
      a(k, j) /= diagonal;
      inverse(k, j) /= diagonal;
    }
    for (Index i = 0; i < n; ++i) {
      const double factor = i == k ? 0 : a(i, k);
      for (Index j = 0; j < n && factor != 0; ++j) {
        a(i, j) -= factor * a(k, j);
        inverse(i, j) -= factor * inverse(k, j);
      }
    }
  }
  return result;
}

inline double infinity_norm(const Matrix& a) {
  double norm = 0;
  for (Index i = 0; i < a.size; ++i) {
    double sum = 0;
    for (Index j = 0; j < a.size; ++j) {
      sum += std::abs(a(i, j));
    }
    norm = std::max(norm, sum);
  }
  return norm;
}

}  // namespace invconv::test
