// The one piece of geometry: a corner and a transpose as flipped strides.

#include "geometry.hpp"
#include "support.hpp"

namespace invconv::test {
namespace {

// Two groups of three channels of 4 x 5 pixels, each element its own number, seen through the views.
class Geometry : public ::testing::Test {
 protected:
  static constexpr Index channels = 3, height = 4, width = 5, kernel_height = 2, kernel_width = 3;

  Geometry()
      : images_({2, 2 * channels, height, width}), weight_({2 * channels, channels, kernel_height, kernel_width}) {
    number(images_);
    number(weight_);
  }

  static void number(const Array<double>& array) {
    double next = 0;
    const Shape& shape = array.shape();
    for (Index i = 0; i < shape[0]; ++i) {
      for (Index j = 0; j < shape[1]; ++j) {
        for (Index k = 0; k < shape[2]; ++k) {
          for (Index l = 0; l < shape[3]; ++l) {
            array.at(i, j, k, l) = next++;
          }
        }
      }
    }
  }

  Array<double> images_, weight_;
};

TEST_F(Geometry, ImagesBeginAtThePaddedSides) {
  for (const Corner corner : all_corners) {
    for (const bool transpose : {false, true}) {
      for (Index group = 0; group < 2; ++group) {
        const auto seen = detail::group_images(images_.view(), group, channels, corner, transpose);
        // The transpose is causal from the opposite corner, and its triangle begins with the last channel.
        const bool from_top = pads_top(corner) != transpose, from_left = pads_left(corner) != transpose;
        for (Index b = 0; b < 2; ++b) {
          for (Index c = 0; c < channels; ++c) {
            for (Index r = 0; r < height; ++r) {
              for (Index s = 0; s < width; ++s) {
                const Index channel = group * channels + (transpose ? channels - 1 - c : c);
                EXPECT_EQ(seen.data[b * seen.batch + c * seen.channel + r * seen.row + s * seen.column],
                          images_.at(b, channel, from_top ? r : height - 1 - r, from_left ? s : width - 1 - s));
              }
            }
          }
        }
      }
    }
  }
}

TEST_F(Geometry, TapsAreOrderedByAge) {
  for (const Corner corner : all_corners) {
    for (const bool transpose : {false, true}) {
      for (Index group = 0; group < 2; ++group) {
        const auto seen = detail::group_taps(weight_.view(), group, channels, corner, transpose);
        const Index anchor_row = pads_top(corner) ? kernel_height - 1 : 0;
        const Index anchor_column = pads_left(corner) ? kernel_width - 1 : 0;
        for (Index o = 0; o < channels; ++o) {
          for (Index c = 0; c < channels; ++c) {
            for (Index i = 0; i < kernel_height; ++i) {
              for (Index j = 0; j < kernel_width; ++j) {
                const Index out = transpose ? channels - 1 - c : o, in = transpose ? channels - 1 - o : c;
                EXPECT_EQ(
                    seen.data[o * seen.out + c * seen.in + i * seen.row + j * seen.column],
                    weight_.at(group * channels + out, in, std::abs(anchor_row - i), std::abs(anchor_column - j)));
              }
            }
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace invconv::test
