#pragma once

/// The storage types by name, for every way into the library.

#include <cstdint>

#include "invconv/invconv.hpp"

enum class Type : std::uint8_t { float16, bfloat16, float32, float64 };

/// Calls `body` with a value of the storage type.
template <class Body>
auto with_type(Type type, Body&& body) {
  switch (type) {
    case Type::float16:
      return body(invconv::float16{});
    case Type::bfloat16:
      return body(invconv::bfloat16{});
    case Type::float32:
      return body(float{});
    case Type::float64:
      break;
  }
  return body(double{});
}
