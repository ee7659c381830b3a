// bounded_weight against its formula, and the bound itself.

#include "support.hpp"

namespace invconv::test {
namespace {

/// The taps of one group by age, and back.
class Group {
 public:
  Group(const Dense& weight, const Options& options, Index group)
      : shape_(weight.shape), size_(shape_[1]), first_(group * size_) {
    const Corner corner = corner_of(options, group);
    top_ = corner == Corner::tl || corner == Corner::tr;
    left_ = corner == Corner::tl || corner == Corner::bl;
  }
  Index size() const { return size_; }
  std::size_t at(Index o, Index c, Index i, Index j) const {
    const Index row = top_ ? shape_[2] - 1 - i : i, column = left_ ? shape_[3] - 1 - j : j;
    return static_cast<std::size_t>((((first_ + o) * size_ + c) * shape_[2] + row) * shape_[3] + column);
  }

 private:
  Shape shape_;
  Index size_, first_;
  bool top_, left_;
};

/// In double, tap by tap.
Dense formula(const Dense& taps, double bound, const Options& options) {
  Dense weight = taps;
  for (Index g = 0; g < options.groups; ++g) {
    const Group group(taps, options, g);
    const Index n = group.size();
    double norms = 0;
    std::vector<double> lower(static_cast<std::size_t>(n * n));
    const auto l = [&](Index o, Index c) -> double& { return lower[static_cast<std::size_t>(o * n + c)]; };
    for (Index o = 0; o < n; ++o) {
      double sum = 0;
      for (Index c = 0; c < o; ++c) {
        sum += std::abs(taps.data[group.at(o, c, 0, 0)]);
      }
      for (Index c = 0; c < o; ++c) {
        l(o, c) = taps.data[group.at(o, c, 0, 0)] * (bound / std::max(bound, sum));
      }
    }
    const auto for_others = [&](auto&& each) {
      for (Index i = 0; i < taps.shape[2]; ++i) {
        for (Index j = 0; j < taps.shape[3]; ++j) {
          if (i > 0 || j > 0) {
            each(i, j);
          }
        }
      }
    };
    for_others([&](Index i, Index j) {
      double norm = 0;
      for (Index o = 0; o < n; ++o) {
        double sum = 0;
        for (Index c = 0; c < n; ++c) {
          sum += std::abs(taps.data[group.at(o, c, i, j)]);
        }
        norm = std::max(norm, sum);
      }
      norms += norm;
    });
    for_others([&](Index i, Index j) {
      for (Index o = 0; o < n; ++o) {
        for (Index c = 0; c < n; ++c) {
          double sum = taps.data[group.at(o, c, i, j)];
          for (Index m = 0; m < o; ++m) {
            sum += l(o, m) * taps.data[group.at(m, c, i, j)];
          }
          weight.data[group.at(o, c, i, j)] = sum * (bound / std::max(bound, norms));
        }
      }
    });
    for (Index o = 0; o < n; ++o) {
      for (Index c = 0; c < n; ++c) {
        weight.data[group.at(o, c, 0, 0)] = c < o ? l(o, c) : c == o ? 1 : 0;
      }
    }
  }
  return weight;
}

template <class T>
class BoundedWeight : public ::testing::Test {};
TYPED_TEST_SUITE(BoundedWeight, StorageTypes, );

TYPED_TEST(BoundedWeight, IsItsFormulaAndBoundsTheInverse) {
  Random random(1);
  for (int trial = 0; trial < 60; ++trial) {
    Options options;
    options.groups = random.integer(1, 3);
    options.corners.clear();
    for (Index group = 0; group < options.groups; ++group) {
      options.corners.push_back(random.pick(all_corners));
    }
    const Index size = random.integer(1, 6);
    const Shape shape{options.groups * size, size, random.integer(1, 4), random.integer(1, 4)};
    SCOPED_TRACE(::testing::Message() << "trial " << trial << ", " << size << " channels of " << options.groups
                                      << " groups, " << shape[2] << " x " << shape[3]);
    Dense dense = random_images(random, shape);
    const double spread = random.pick(std::array{0.01, 1.0, 100.0}), bound = random.pick(std::array{0.3, 0.9});
    for (double& tap : dense.data) {
      tap *= spread;
    }
    const Array<TypeParam> taps(dense, random.pick(layouts)), weight(shape, random.pick(layouts));
    bounded_weight<TypeParam>(taps.view(), bound, weight.view(), options);
    const Dense expected = formula(taps.dense(), bound, options), result = weight.dense();
    // A sum of up to 6 products, their factors and the scales rounded a few times each; then one rounding to storage.
    const double tolerance = 80 * arithmetic_roundoff<TypeParam> + 2 * storage_roundoff<TypeParam>;
    for (std::size_t at = 0; at < expected.data.size(); ++at) {
      ASSERT_NEAR(result.data[at], expected.data[at], tolerance);
    }
    if (!is_half<TypeParam>) {
      EXPECT_LE(growth<TypeParam>(weight.view(), 9, 7, options), 1 / ((1 - bound) * (1 - bound)) * (1 + 1e-4));
    }
    // In place.
    bounded_weight<TypeParam>(taps.view(), bound, taps.view(), options);
    EXPECT_EQ(taps.dense().data, result.data);
  }
}

TYPED_TEST(BoundedWeight, OfInfiniteTapsIsFiniteAndOfNanIsNot) {
  Array<TypeParam> taps({3, 3, 2, 2});
  Dense dense = taps.dense();
  for (std::size_t at = 0; at < dense.data.size(); ++at) {
    dense.data[at] = (at % 2 == 0 ? 1 : -1) * std::numeric_limits<double>::infinity();
  }
  const Array<TypeParam> infinite(dense, contiguous), weight({3, 3, 2, 2});
  bounded_weight<TypeParam>(infinite.view(), 0.5, weight.view(), {});
  for (const double tap : weight.dense().data) {
    EXPECT_TRUE(std::isfinite(tap));
  }
  EXPECT_LE(growth<TypeParam>(weight.view(), 9, 7, {}), 4 * (1 + 0.1));
  dense.data[0] = std::numeric_limits<double>::quiet_NaN();  // not the anchor's
  bounded_weight<TypeParam>(Array<TypeParam>(dense, contiguous).view(), 0.5, weight.view(), {});
  EXPECT_TRUE(std::isnan(weight.dense().data[0]));
}

TEST(BoundedWeight, ChecksItsArguments) {
  const Array<float> taps({4, 2, 3, 3}), weight({4, 2, 3, 3}), other({4, 2, 3, 2});
  Options options;
  options.groups = 2;
  for (const double bound : {0.0, 1.0, -0.5, std::numeric_limits<double>::quiet_NaN()}) {
    EXPECT_THROW(bounded_weight<float>(taps.view(), bound, weight.view(), options), Error);
  }
  EXPECT_THROW(bounded_weight<float>(taps.view(), 0.5, other.view(), options), Error);
  EXPECT_THROW(bounded_weight<float>(taps.view(), 0.5, weight.view(), {}), Error);
  options.corners = {Corner::tl, Corner::br, Corner::tl};
  EXPECT_THROW(bounded_weight<float>(taps.view(), 0.5, weight.view(), options), Error);
  const Array<float> none({0, 0, 3, 3});
  EXPECT_NO_THROW(bounded_weight<float>(none.view(), 0.5, none.view(), {}));
}

}  // namespace
}  // namespace invconv::test
