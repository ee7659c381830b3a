#pragma once

/// The operations on the CPU as handlers of XLA's foreign function interface, through which jax calls them. no_jax.cpp
/// stands in for a build without its headers.

#include <nanobind/nanobind.h>

#include <string>

/// The version of the interface, "major.minor"; empty without it.
std::string jax_ffi_version();

/// Capsules with the addresses of the handlers, by name. Each takes two buffers of 4 or 5 axes, dense in row-major
/// order, and the attributes that jax.cpp names.
nanobind::dict jax_handlers();
