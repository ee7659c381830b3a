// invconv._core: the C++ functions for 4-dimensional arrays of one of the storage types. Kinds of arrays, missing batch
// axes and names of corners are Python's business (python/invconv/_array.py); shapes are checked by the library.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <vector>

#include "invconv/invconv.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Input = nb::ndarray<nb::ro, nb::ndim<4>, nb::device::cpu>;
using Output = nb::ndarray<nb::ndim<4>, nb::device::cpu>;

template <class T, class Array>
invconv::View<T> view(const Array& array) {
  invconv::View<T> result{static_cast<T*>(array.data()), {}, {}};
  for (std::size_t axis = 0; axis < 4; ++axis) {
    result.shape[axis] = static_cast<std::int64_t>(array.shape(axis));
    result.stride[axis] = array.stride(axis);
  }
  return result;
}

/// Calls `body` with the storage type that all the arrays share.
template <class Body, class... Arrays>
auto with_type(const char* function, Body&& body, const Arrays&... arrays) {
  const nb::dlpack::dtype dtype = (arrays.dtype(), ...);
  if (!((arrays.dtype() == dtype) && ...)) {
    throw nb::type_error((std::string("[") + function + "] expected arrays of one dtype").c_str());
  }
  constexpr auto floating = static_cast<std::uint8_t>(nb::dlpack::dtype_code::Float);
  constexpr auto brain = static_cast<std::uint8_t>(nb::dlpack::dtype_code::Bfloat);
  if (dtype == nb::dlpack::dtype{floating, 32, 1}) {
    return body(float{});
  }
  if (dtype == nb::dlpack::dtype{floating, 64, 1}) {
    return body(double{});
  }
  if (dtype == nb::dlpack::dtype{floating, 16, 1}) {
    return body(invconv::float16{});
  }
  if (dtype == nb::dlpack::dtype{brain, 16, 1}) {
    return body(invconv::bfloat16{});
  }
  throw nb::type_error(
      (std::string("[") + function + "] expected arrays of dtype float16, bfloat16, float32 or float64").c_str());
}

using Corners = std::vector<invconv::Corner>;

void solve(const Input& y, const Input& weight, const Output& x, Corners corners, bool unit_diagonal,
           std::int64_t groups, bool transpose) {
  with_type(
      "solve",
      [&](auto zero) {
        using T = decltype(zero);
        const auto from = view<const T>(y), taps = view<const T>(weight);
        const auto to = view<T>(x);
        const nb::gil_scoped_release unlocked;
        invconv::solve<T>(from, taps, to, {std::move(corners), unit_diagonal, groups, transpose}, {}, invconv::Cpu{});
      },
      y, weight, x);
}

void conv(const Input& x, const Input& weight, const Output& y, Corners corners, bool unit_diagonal,
          std::int64_t groups, bool transpose) {
  with_type(
      "conv",
      [&](auto zero) {
        using T = decltype(zero);
        const auto from = view<const T>(x), taps = view<const T>(weight);
        const auto to = view<T>(y);
        const nb::gil_scoped_release unlocked;
        invconv::conv<T>(from, taps, to, {std::move(corners), unit_diagonal, groups, transpose}, {}, invconv::Cpu{});
      },
      x, weight, y);
}

void weight_grad(const Input& x, const Input& g, const Output& dw, Corners corners, bool unit_diagonal,
                 std::int64_t groups) {
  with_type(
      "weight_grad",
      [&](auto zero) {
        using T = decltype(zero);
        const auto inputs = view<const T>(x), outputs = view<const T>(g);
        const auto to = view<T>(dw);
        const nb::gil_scoped_release unlocked;
        invconv::weight_grad<T>(inputs, outputs, to, {std::move(corners), unit_diagonal, groups, false}, {},
                                invconv::Cpu{});
      },
      x, g, dw);
}

double logabsdet(const Input& weight, std::int64_t height, std::int64_t width, Corners corners, bool unit_diagonal,
                 std::int64_t groups) {
  return with_type(
      "logabsdet",
      [&](auto zero) {
        return invconv::logabsdet(view<const decltype(zero)>(weight), height, width,
                                  {std::move(corners), unit_diagonal, groups, false});
      },
      weight);
}

double growth(const Input& weight, std::int64_t height, std::int64_t width, Corners corners, bool unit_diagonal,
              std::int64_t groups) {
  return with_type(
      "growth",
      [&](auto zero) {
        const auto taps = view<const decltype(zero)>(weight);
        const nb::gil_scoped_release unlocked;
        return invconv::growth(taps, height, width, {std::move(corners), unit_diagonal, groups, false});
      },
      weight);
}

}  // namespace

NB_MODULE(_core, m) {
  m.doc() = "The compiled core of invconv. Use the functions of the package itself.";
  m.def("version", [] { return INVCONV_VERSION; }, "The version of the library.");

  nb::enum_<invconv::Corner>(m, "Corner",
                             "The sides of the image that are padded: t(op) or b(ottom), l(eft) or r(ight).")
      .value("tl", invconv::Corner::tl)
      .value("tr", invconv::Corner::tr)
      .value("bl", invconv::Corner::bl)
      .value("br", invconv::Corner::br);

  // noconvert: an array that does not fit must fail; a converted copy of an output would be written and thrown away.
  // The signatures say object for anything that speaks DLPack: the generated ones would allow numpy alone.
  m.def("solve", &solve, "y"_a.noconvert(), "weight"_a.noconvert(), "x"_a.noconvert(), "corners"_a, "unit_diagonal"_a,
        "groups"_a, "transpose"_a,
        nb::sig("def solve(y: object, weight: object, x: object, corners: collections.abc.Sequence[Corner], "
                "unit_diagonal: bool, groups: int, transpose: bool) -> None"),
        "Write M^-1 y into x.");
  m.def("conv", &conv, "x"_a.noconvert(), "weight"_a.noconvert(), "y"_a.noconvert(), "corners"_a, "unit_diagonal"_a,
        "groups"_a, "transpose"_a,
        nb::sig("def conv(x: object, weight: object, y: object, corners: collections.abc.Sequence[Corner], "
                "unit_diagonal: bool, groups: int, transpose: bool) -> None"),
        "Write M x into y.");
  m.def("weight_grad", &weight_grad, "x"_a.noconvert(), "g"_a.noconvert(), "dw"_a.noconvert(), "corners"_a,
        "unit_diagonal"_a, "groups"_a,
        nb::sig("def weight_grad(x: object, g: object, dw: object, corners: collections.abc.Sequence[Corner], "
                "unit_diagonal: bool, groups: int) -> None"),
        "Write the derivative of <g, M x> with respect to the weight into dw.");
  m.def("logabsdet", &logabsdet, "weight"_a.noconvert(), "height"_a, "width"_a, "corners"_a, "unit_diagonal"_a,
        "groups"_a,
        nb::sig("def logabsdet(weight: object, height: int, width: int, corners: collections.abc.Sequence[Corner], "
                "unit_diagonal: bool, groups: int) -> float"),
        "The logarithm of |det M|.");
  m.def("growth", &growth, "weight"_a.noconvert(), "height"_a, "width"_a, "corners"_a, "unit_diagonal"_a, "groups"_a,
        nb::sig("def growth(weight: object, height: int, width: int, corners: collections.abc.Sequence[Corner], "
                "unit_diagonal: bool, groups: int) -> float"),
        "The infinity norm of M^-1.");
  m.def("num_threads", &invconv::num_threads, "The number of threads that a call may use.");
  m.def("set_num_threads", &invconv::set_num_threads, "threads"_a, "Set the number of threads that a call may use.");
  m.def("share_openmp", &invconv::share_openmp, "Use the threads of the OpenMP runtime that this process has loaded.");
  m.def("instruction_set", &invconv::instruction_set, "The instruction set of the kernels in use.");
}
