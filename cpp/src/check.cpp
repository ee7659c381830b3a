#include "check.hpp"

#include <algorithm>
#include <array>
#include <string>

namespace invconv::detail {

namespace {

std::string to_string(std::span<const std::int64_t> sizes) {
  std::string text = "(";
  for (const std::int64_t size : sizes) {
    text += text.size() > 1 ? ", " : "";
    text += std::to_string(size);
  }
  return text + ")";
}

[[noreturn]] void fail(const char* function, const std::string& expected, const std::string& got) {
  throw Error(std::string("[") + function + "] expected " + expected + ", but got " + got);
}

/// Of a weight of 4 axes, or of 5 with one for each of `images`.
Sizes check_taps(const char* function, std::span<const std::int64_t> weight, std::int64_t images, std::int64_t channels,
                 const Options& options) {
  const std::int64_t groups = options.groups;
  if (groups < 1) {
    fail(function, "groups to be at least 1", std::to_string(groups));
  }
  if (channels % groups != 0) {
    fail(function, "groups to divide C = " + std::to_string(channels), std::to_string(groups));
  }
  const bool for_each = weight.size() == 5;
  const auto taps = weight.last<4>();
  if (channels < 0 || taps[0] != channels || taps[1] != channels / groups || taps[2] < 1 || taps[3] < 1 ||
      (for_each && weight[0] != images)) {
    fail(function,
         std::string("weight of shape (") + (for_each ? "B, " : "") + "C, C/groups, kh, kw) with " +
             (for_each ? "B = " + std::to_string(images) + ", " : "") + "C = " + std::to_string(channels) +
             ", groups = " + std::to_string(groups),
         to_string(weight));
  }
  const auto corners = static_cast<std::int64_t>(options.corners.size());
  if (corners != 1 && corners != groups) {
    fail(function, "one corner, or one for each of the groups = " + std::to_string(groups), std::to_string(corners));
  }
  return {0, groups, channels / groups, 0, 0, taps[2], taps[3], for_each ? images : 1};
}

}  // namespace

Sizes check_weight(const char* function, const Shape& weight, const Options& options) {
  return check_taps(function, weight, 1, weight[0], options);
}

Sizes check_images(const char* function, const char* name, const Shape& images, std::span<const std::int64_t> weight,
                   const Options& options) {
  for (const std::int64_t size : images) {
    if (size < 0) {
      fail(function, std::string(name) + " of a shape without negative sizes", to_string(images));
    }
  }
  Sizes sizes = check_taps(function, weight, images[0], images[1], options);
  sizes.batch = images[0];
  sizes.height = images[2];
  sizes.width = images[3];
  return sizes;
}

void check_same_shape(const char* function, const char* name, std::span<const std::int64_t> shape, const char* other,
                      std::span<const std::int64_t> expected) {
  if (!std::equal(shape.begin(), shape.end(), expected.begin(), expected.end())) {
    fail(function, std::string(name) + " of the shape of " + other + ", " + to_string(expected), to_string(shape));
  }
}

void check_output(const char* function, const char* name, std::span<const std::int64_t> shape,
                  std::span<const std::int64_t> stride) {
  if (has_no_elements(shape)) {
    return;
  }
  for (std::size_t axis = 0; axis < shape.size(); ++axis) {
    if (shape[axis] > 1 && stride[axis] == 0) {
      fail(function, std::string(name) + " whose elements have places of their own", "one with a stride of 0");
    }
  }
}

void check_data(const char* function, const char* name, const void* data, std::span<const std::int64_t> shape) {
  if (data == nullptr && !has_no_elements(shape)) {
    fail(function, std::string(name) + " of shape " + to_string(shape) + " to point at its elements", "a null pointer");
  }
}

void check_workspace(const char* function, const Workspace& workspace, std::size_t needed) {
  if (workspace.data == nullptr && workspace.bytes > 0 && needed > 0) {
    fail(function, "a workspace that points at its memory", "a null pointer");
  }
  if (workspace.bytes < needed) {
    fail(function, "a workspace of at least " + std::to_string(needed) + " bytes", std::to_string(workspace.bytes));
  }
  if (reinterpret_cast<std::uintptr_t>(workspace.data) % 64 != 0) {
    fail(function, "a workspace aligned to 64 bytes", "one that is not");
  }
}

void check_threads(const char* function, int threads) {
  if (threads < 0) {
    fail(function, "threads of at least 1, or 0 for num_threads()", std::to_string(threads));
  }
}

void check_size(const char* function, std::int64_t height, std::int64_t width) {
  if (height < 0 || width < 0) {
    fail(function, "size = (H, W) without negative sizes", to_string(std::array{height, width}));
  }
}

void check_fits(const char* function, std::int64_t channels, std::int64_t height, std::int64_t width) {
  constexpr std::int64_t most = std::int64_t{1} << 48;
  if (height > most / width || channels > most / (height * width)) {
    fail(function, "an image that fits in memory",
         "one of " + std::to_string(channels) + " channels and size = " + to_string(std::array{height, width}));
  }
}

}  // namespace invconv::detail
