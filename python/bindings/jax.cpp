// The headers of the interface come with jaxlib; python/invconv/jax.py registers the handlers. They are a part of
// invconv._core, and not a module of their own, so that a process has one pool of threads.

#include "jax.hpp"

#include <algorithm>
#include <array>
#include <cstdint>
#include <exception>
#include <optional>
#include <vector>

#include "types.hpp"
#include "xla/ffi/api/ffi.h"

namespace nb = nanobind;
namespace ffi = xla::ffi;

namespace {

std::optional<Type> find_type(ffi::DataType type) {
  switch (type) {
    case ffi::DataType::F16:
      return Type::float16;
    case ffi::DataType::BF16:
      return Type::bfloat16;
    case ffi::DataType::F32:
      return Type::float32;
    case ffi::DataType::F64:
      return Type::float64;
    default:
      return std::nullopt;
  }
}

template <class T, std::size_t Axes = 4>
invconv::View<T, Axes> view(const ffi::AnyBuffer& buffer) {
  std::array<std::int64_t, Axes> shape;
  std::copy(buffer.dimensions().begin(), buffer.dimensions().end(), shape.begin());
  return invconv::View<T, Axes>::contiguous(static_cast<T*>(buffer.untyped_data()), shape);
}

/// Calls `body` with the view of a weight, or of one for each image.
template <class T, class Body>
void with_weight(const ffi::AnyBuffer& weight, Body&& body) {
  weight.dimensions().size() == 5 ? body(view<T, 5>(weight)) : body(view<T>(weight));
}

invconv::Options read_options(ffi::Span<const std::int64_t> corners, bool unit_diagonal, std::int64_t groups,
                              bool transpose) {
  invconv::Options options{{}, unit_diagonal, groups, transpose};
  for (const std::int64_t corner : corners) {
    options.corners.push_back(static_cast<invconv::Corner>(corner));
  }
  return options;
}

/// Calls `body` with a value of the type of both inputs, and makes an error of what it throws.
template <class Body>
ffi::Error run(const ffi::AnyBuffer& first, const ffi::AnyBuffer& second, Body&& body) {
  const auto type = find_type(first.element_type());
  if (!type || second.element_type() != first.element_type()) {
    return ffi::Error::InvalidArgument("expected two arrays of float16, bfloat16, float32 or float64");
  }
  try {
    with_type(*type, body);
  } catch (const invconv::Error& error) {
    return ffi::Error::InvalidArgument(error.what());
  } catch (const std::exception& error) {
    return ffi::Error::Internal(error.what());
  }
  return ffi::Error::Success();
}

template <invconv::Operation operation>
ffi::Error filter(ffi::AnyBuffer in, ffi::AnyBuffer weight, ffi::Result<ffi::AnyBuffer> out,
                  ffi::Span<const std::int64_t> corners, bool unit_diagonal, std::int64_t groups, bool transpose) {
  return run(in, weight, [&](auto zero) {
    using T = decltype(zero);
    const auto options = read_options(corners, unit_diagonal, groups, transpose);
    with_weight<const T>(weight, [&](const auto& taps) {
      if constexpr (operation == invconv::Operation::solve) {
        invconv::solve<T>(view<const T>(in), taps, view<T>(*out), options, {}, invconv::Cpu{});
      } else {
        invconv::conv<T>(view<const T>(in), taps, view<T>(*out), options, {}, invconv::Cpu{});
      }
    });
  });
}

ffi::Error weight_grad(ffi::AnyBuffer x, ffi::AnyBuffer g, ffi::Result<ffi::AnyBuffer> dw,
                       ffi::Span<const std::int64_t> corners, bool unit_diagonal, std::int64_t groups) {
  return run(x, g, [&](auto zero) {
    using T = decltype(zero);
    const auto options = read_options(corners, unit_diagonal, groups, false);
    with_weight<T>(*dw, [&](const auto& taps) {
      invconv::weight_grad<T>(view<const T>(x), view<const T>(g), taps, options, {}, invconv::Cpu{});
    });
  });
}

auto bind_filter() {
  return ffi::Ffi::Bind()
      .Arg<ffi::AnyBuffer>()
      .Arg<ffi::AnyBuffer>()
      .Ret<ffi::AnyBuffer>()
      .Attr<ffi::Span<const std::int64_t>>("corners")
      .Attr<bool>("unit_diagonal")
      .Attr<std::int64_t>("groups")
      .Attr<bool>("transpose");
}

XLA_FFI_DEFINE_HANDLER(solve_handler, filter<invconv::Operation::solve>, bind_filter());
XLA_FFI_DEFINE_HANDLER(conv_handler, filter<invconv::Operation::conv>, bind_filter());
XLA_FFI_DEFINE_HANDLER(weight_grad_handler, weight_grad,
                       ffi::Ffi::Bind()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Attr<ffi::Span<const std::int64_t>>("corners")
                           .Attr<bool>("unit_diagonal")
                           .Attr<std::int64_t>("groups"));

}  // namespace

std::string jax_ffi_version() { return std::to_string(XLA_FFI_API_MAJOR) + "." + std::to_string(XLA_FFI_API_MINOR); }

nb::dict jax_handlers() {
  nb::dict handlers;
  handlers["solve"] = nb::capsule(reinterpret_cast<void*>(solve_handler));
  handlers["conv"] = nb::capsule(reinterpret_cast<void*>(conv_handler));
  handlers["weight_grad"] = nb::capsule(reinterpret_cast<void*>(weight_grad_handler));
  return handlers;
}
