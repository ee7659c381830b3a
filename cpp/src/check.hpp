#pragma once

// The border: every argument of a public function is checked here, and nowhere below.

#include "backend.hpp"

namespace invconv::detail {

/// Checks the weight and the options against each other and returns the sizes, without the images'.
Sizes check_weight(const char* function, const Shape& weight, const Options& options);

/// check_weight(), also of a WeightsShape, and that images of this shape fit the weight. `name` is the argument's, for
/// the message.
Sizes check_images(const char* function, const char* name, const Shape& images, std::span<const std::int64_t> weight,
                   const Options& options);

/// That `shape` is the `expected` one.
void check_same_shape(const char* function, const char* name, std::span<const std::int64_t> shape, const char* other,
                      std::span<const std::int64_t> expected);

/// That no two elements of an output share their memory by a stride of zero.
void check_output(const char* function, const char* name, std::span<const std::int64_t> shape,
                  std::span<const std::int64_t> stride);

/// That there is memory behind an array that is not empty.
void check_data(const char* function, const char* name, const void* data, std::span<const std::int64_t> shape);

/// That a caller's workspace is aligned and large enough.
void check_workspace(const char* function, const Workspace& workspace, std::size_t needed);

void check_threads(const char* function, int threads);

void check_size(const char* function, std::int64_t height, std::int64_t width);

/// That an image of this size can be held in memory at all: its elements are counted in 48 bits.
void check_fits(const char* function, std::int64_t channels, std::int64_t height, std::int64_t width);

}  // namespace invconv::detail
