#include "check.hpp"

#include <initializer_list>
#include <string>

namespace invconv::detail {

namespace {

std::string to_string(std::initializer_list<std::int64_t> sizes) {
  std::string text = "(";
  for (const std::int64_t size : sizes) {
    text += text.size() > 1 ? ", " : "";
    text += std::to_string(size);
  }
  return text + ")";
}

std::string to_string(const Shape& shape) { return to_string({shape[0], shape[1], shape[2], shape[3]}); }

[[noreturn]] void fail(const char* function, const std::string& expected, const std::string& got) {
  throw Error(std::string("[") + function + "] expected " + expected + ", but got " + got);
}

}  // namespace

Sizes check_weight(const char* function, const Shape& weight, const Options& options) {
  const std::int64_t channels = weight[0];
  const std::int64_t groups = options.groups;
  if (groups < 1) {
    fail(function, "groups to be at least 1", std::to_string(groups));
  }
  if (channels % groups != 0) {
    fail(function, "groups to divide C = " + std::to_string(channels), std::to_string(groups));
  }
  if (channels < 0 || weight[1] != channels / groups || weight[2] < 1 || weight[3] < 1) {
    fail(function,
         "weight of shape (C, C/groups, kh, kw) with C = " + std::to_string(channels) +
             ", groups = " + std::to_string(groups),
         to_string(weight));
  }
  const auto corners = static_cast<std::int64_t>(options.corners.size());
  if (corners != 1 && corners != groups) {
    fail(function, "one corner, or one for each of the groups = " + std::to_string(groups), std::to_string(corners));
  }
  return {0, groups, channels / groups, 0, 0, weight[2], weight[3]};
}

Sizes check_images(const char* function, const char* name, const Shape& images, const Shape& weight,
                   const Options& options) {
  if (weight[0] != images[1]) {
    fail(function,
         "weight of shape (C, C/groups, kh, kw) with C = " + std::to_string(images[1]) +
             ", groups = " + std::to_string(options.groups),
         to_string(weight));
  }
  for (const std::int64_t size : images) {
    if (size < 0) {
      fail(function, std::string(name) + " of a shape without negative sizes", to_string(images));
    }
  }
  Sizes sizes = check_weight(function, weight, options);
  sizes.batch = images[0];
  sizes.height = images[2];
  sizes.width = images[3];
  return sizes;
}

void check_same_shape(const char* function, const char* name, const Shape& shape, const char* other,
                      const Shape& expected) {
  if (shape != expected) {
    fail(function, std::string(name) + " of the shape of " + other + ", " + to_string(expected), to_string(shape));
  }
}

void check_output(const char* function, const char* name, const Shape& shape, const Shape& stride) {
  if (has_no_elements(shape)) {
    return;
  }
  for (std::size_t axis = 0; axis < shape.size(); ++axis) {
    if (shape[axis] > 1 && stride[axis] == 0) {
      fail(function, std::string(name) + " whose elements have places of their own", "one with a stride of 0");
    }
  }
}

void check_data(const char* function, const char* name, const void* data, const Shape& shape) {
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
    fail(function, "size = (H, W) without negative sizes", to_string({height, width}));
  }
}

void check_fits(const char* function, std::int64_t channels, std::int64_t height, std::int64_t width) {
  constexpr std::int64_t most = std::int64_t{1} << 48;
  if (height > most / width || channels > most / (height * width)) {
    fail(function, "an image that fits in memory",
         "one of " + std::to_string(channels) + " channels and size = " + to_string({height, width}));
  }
}

}  // namespace invconv::detail
