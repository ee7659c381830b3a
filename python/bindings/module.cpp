// invconv._core: the C++ functions for arrays whose memory Python can describe.
//
// A tiny image takes a microsecond or two, so that here every conversion counts: a call is one look at plain arguments.
// Where an argument is anything but plain the functions do nothing and return False (None where the result is a
// number); then python/invconv/_array.py and _torch.py make it plain, or say what is wrong with it. Shapes are checked
// by the library.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

#include "invconv/invconv.hpp"
#include "jax.hpp"
#include "types.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

// ---- plain arguments ----------------------------------------------------------------------------------------------

bool read(nb::handle object, std::int64_t& value) {
  if (!PyLong_CheckExact(object.ptr())) {
    return false;
  }
  value = PyLong_AsLongLong(object.ptr());
  if (value == -1 && PyErr_Occurred() != nullptr) {
    PyErr_Clear();
    return false;
  }
  return true;
}

bool read(nb::handle object, bool& value) {
  value = object.is(Py_True);
  return value || object.is(Py_False);
}

bool read(nb::handle object, std::string_view& text) {
  if (!PyUnicode_CheckExact(object.ptr())) {
    return false;
  }
  Py_ssize_t size = 0;
  const char* letters = PyUnicode_AsUTF8AndSize(object.ptr(), &size);
  if (letters == nullptr) {
    PyErr_Clear();
    return false;
  }
  text = {letters, static_cast<std::size_t>(size)};
  return true;
}

bool read(nb::handle object, invconv::Corner& corner) {
  std::string_view name;
  if (!read(object, name)) {
    return false;
  }
  constexpr std::string_view names[] = {"tl", "tr", "bl", "br"};
  const auto found = std::find(std::begin(names), std::end(names), name);
  corner = static_cast<invconv::Corner>(found - std::begin(names));
  return found != std::end(names);
}

/// One name, or a tuple of them.
bool read(nb::handle object, std::vector<invconv::Corner>& corners) {
  if (!PyTuple_CheckExact(object.ptr())) {
    return read(object, corners.front());
  }
  corners.resize(nb::len(object));
  for (std::size_t at = 0; at < corners.size(); ++at) {
    if (!read(PyTuple_GET_ITEM(object.ptr(), static_cast<Py_ssize_t>(at)), corners[at])) {
      return false;
    }
  }
  return !corners.empty();
}

bool read(nb::handle corner, nb::handle unit_diagonal, nb::handle groups, invconv::Options& options) {
  return read(corner, options.corners) && read(unit_diagonal, options.unit_diagonal) && read(groups, options.groups);
}

// ---- arrays -------------------------------------------------------------------------------------------------------

std::optional<Type> find_type(std::string_view name) {
  constexpr std::string_view names[] = {"float16", "bfloat16", "float32", "float64"};
  const auto found = std::find(std::begin(names), std::end(names), name);
  return found == std::end(names) ? std::nullopt : std::optional(static_cast<Type>(found - std::begin(names)));
}

/// DLPack's table of functions for the exchange between compiled libraries (dlpack.h, DLPackExchangeAPI).
struct ExchangeTable {
  std::uint32_t major, minor;
  const ExchangeTable* previous;
  void *allocate, *from_object, *to_object;
  /// Describes an object for as long as it lives; 0, or -1 with a Python exception set.
  int (*look)(void* object, nb::dlpack::dltensor* tensor);
  void* current_stream;
};

/// A type whose objects are read through its table. It lives as long as the process.
struct Exchanged {
  PyTypeObject* type;
  const ExchangeTable* table;
};
/// torch.Tensor's, once torch is loaded.
std::atomic<const Exchanged*> exchanged{nullptr};

bool use_exchange_table(nb::type_object type) {
  const nb::object capsule = nb::getattr(type, "__dlpack_c_exchange_api__", nb::none());
  if (!PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) {
    return false;
  }
  const auto* table = static_cast<const ExchangeTable*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  while (table != nullptr && table->major != 1) {  // the one laid out as above, among newer ones
    table = table->previous;
  }
  if (table == nullptr || table->look == nullptr) {
    return false;
  }
  exchanged = new Exchanged{reinterpret_cast<PyTypeObject*>(type.release().ptr()), table};
  return true;
}

/// The memory of an array of 3 to 5 axes, borrowed for a call. The plain kinds: what has Python's buffer protocol; a
/// tuple (address, name of the dtype, shape, strides in elements) that its maker vouches for; and a tensor. Of a tensor
/// nothing but the memory is looked at: that it needs no gradient and has no lazy minus sign, and on which device it
/// is, the caller has checked.
class Array {
 public:
  Array(nb::handle object, bool writable = false) {
    if (PyTuple_CheckExact(object.ptr())) {
      plain_ = describe(object.ptr());
    } else if (const Exchanged* of = exchanged; of != nullptr && PyObject_TypeCheck(object.ptr(), of->type)) {
      plain_ = look(object.ptr(), *of->table);
    } else {
      plain_ = borrow(object.ptr(), writable);
    }
    const auto address = reinterpret_cast<std::uintptr_t>(data_);
    plain_ = plain_ && address % static_cast<std::uintptr_t>(item_size()) == 0 && (address != 0 || empty());
  }
  ~Array() { PyBuffer_Release(&buffer_); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;

  bool plain() const { return plain_; }
  int axes() const { return axes_; }
  Type type() const { return type_; }
  bool same_kind(const Array& other) const { return type_ == other.type_ && axes_ == other.axes_; }
  bool same_shape(const Array& other) const { return shape_ == other.shape_; }
  bool are_images() const { return axes_ <= 4; }
  /// A weight, or one for each of the images.
  bool is_weight_for(const Array& images) const {
    return type_ == images.type_ && (axes_ == 4 || (axes_ == 5 && images.axes_ == 4));
  }

  /// One image is a batch of one.
  template <class T, std::size_t Axes = 4>
  invconv::View<T, Axes> view() const {
    invconv::View<T, Axes> view{static_cast<T*>(data_), {}, {}};
    std::copy(shape_.end() - Axes, shape_.end(), view.shape.begin());
    std::copy(stride_.end() - Axes, stride_.end(), view.stride.begin());
    return view;
  }

  /// Calls `body` with the view of a weight, or of one for each image.
  template <class T, class Body>
  void with_weight(Body&& body) const {
    axes_ == 5 ? body(view<T, 5>()) : body(view<T>());
  }

  /// Whether a filter can write into this array while it reads `in`: its elements have places of their own, and these
  /// are either just the input's or none of them.
  bool can_be_written_from(const Array& in) const {
    if (empty()) {
      return true;
    }
    bool same = data_ == in.data_;
    for (std::size_t axis = 0; axis < most_axes; ++axis) {
      if (shape_[axis] > 1) {
        if (stride_[axis] == 0) {
          return false;
        }
        same = same && stride_[axis] == in.stride_[axis];
      }
    }
    return same || end() <= in.begin() || in.end() <= begin();
  }

 private:
  static constexpr std::size_t most_axes = 5;
  using Extents = std::array<std::int64_t, most_axes>;

  std::int64_t item_size() const { return type_ == Type::float64 ? 8 : type_ == Type::float32 ? 4 : 2; }
  bool empty() const { return std::find(shape_.begin(), shape_.end(), 0) != shape_.end(); }

  /// The lowest address of an array that is not empty.
  std::intptr_t begin() const {
    std::int64_t lowest = 0;
    for (std::size_t axis = 0; axis < most_axes; ++axis) {
      lowest += std::min<std::int64_t>(0, (shape_[axis] - 1) * stride_[axis]);
    }
    return reinterpret_cast<std::intptr_t>(data_) + lowest * item_size();
  }
  /// One beyond the highest address.
  std::intptr_t end() const {
    std::int64_t highest = 1;
    for (std::size_t axis = 0; axis < most_axes; ++axis) {
      highest += std::max<std::int64_t>(0, (shape_[axis] - 1) * stride_[axis]);
    }
    return reinterpret_cast<std::intptr_t>(data_) + highest * item_size();
  }

  bool set_axes(Py_ssize_t axes) {
    axes_ = static_cast<int>(axes);
    shape_ = {1, 1, 1, 1, 1};
    return axes >= 3 && axes <= static_cast<int>(most_axes);
  }

  bool borrow(PyObject* object, bool writable) {
    if (PyObject_GetBuffer(object, &buffer_, writable ? PyBUF_RECORDS : PyBUF_RECORDS_RO) != 0) {
      PyErr_Clear();
      return false;
    }
    // One letter: native byte order, and aligned.
    const std::string_view format = buffer_.format == nullptr ? "" : buffer_.format;
    if (format == "f") {
      type_ = Type::float32;
    } else if (format == "d") {
      type_ = Type::float64;
    } else if (format == "e") {
      type_ = Type::float16;
    } else {
      return false;
    }
    if (!set_axes(buffer_.ndim)) {
      return false;
    }
    data_ = buffer_.buf;
    for (int from = 0; from < axes_; ++from) {
      const auto axis = most_axes - static_cast<std::size_t>(axes_ - from);
      shape_[axis] = buffer_.shape[from];
      stride_[axis] = buffer_.strides[from] / item_size();
      if (shape_[axis] > 1 && buffer_.strides[from] % item_size() != 0) {
        return false;
      }
    }
    return true;
  }

  bool look(PyObject* object, const ExchangeTable& table) {
    nb::dlpack::dltensor tensor;
    if (table.look(object, &tensor) != 0) {
      PyErr_Clear();
      return false;
    }
    constexpr std::uint8_t floating = 2, brain = 4;
    if (tensor.dtype.code == floating && tensor.dtype.bits == 32) {
      type_ = Type::float32;
    } else if (tensor.dtype.code == floating && tensor.dtype.bits == 64) {
      type_ = Type::float64;
    } else if (tensor.dtype.code == floating && tensor.dtype.bits == 16) {
      type_ = Type::float16;
    } else if (tensor.dtype.code == brain && tensor.dtype.bits == 16) {
      type_ = Type::bfloat16;
    } else {
      return false;
    }
    if (tensor.dtype.lanes != 1 || tensor.strides == nullptr || !set_axes(tensor.ndim)) {
      return false;
    }
    data_ = static_cast<std::byte*>(tensor.data) + tensor.byte_offset;
    std::copy(tensor.shape, tensor.shape + axes_, shape_.end() - axes_);
    std::copy(tensor.strides, tensor.strides + axes_, stride_.end() - axes_);
    return true;
  }

  bool describe(PyObject* tuple) {
    std::string_view name;
    if (PyTuple_GET_SIZE(tuple) != 4 || !read(PyTuple_GET_ITEM(tuple, 1), name)) {
      return false;
    }
    const auto type = find_type(name);
    PyObject *const shape = PyTuple_GET_ITEM(tuple, 2), *const strides = PyTuple_GET_ITEM(tuple, 3);
    if (!type || !PyTuple_Check(shape) || !PyTuple_Check(strides) ||
        PyTuple_GET_SIZE(shape) != PyTuple_GET_SIZE(strides) || !set_axes(PyTuple_GET_SIZE(shape))) {
      return false;
    }
    type_ = *type;
    data_ = PyLong_AsVoidPtr(PyTuple_GET_ITEM(tuple, 0));
    if (data_ == nullptr && PyErr_Occurred() != nullptr) {
      PyErr_Clear();
      return false;
    }
    for (int from = 0; from < axes_; ++from) {
      const auto axis = most_axes - static_cast<std::size_t>(axes_ - from);
      if (!read(PyTuple_GET_ITEM(shape, from), shape_[axis]) || !read(PyTuple_GET_ITEM(strides, from), stride_[axis])) {
        return false;
      }
    }
    return true;
  }

  Py_buffer buffer_{};
  void* data_ = nullptr;
  Type type_ = Type::float32;
  int axes_ = 0;
  Extents shape_{}, stride_{};
  bool plain_ = false;
};

/// Where a call runs: on the CPU for None, on a CUDA device for a tuple (device, stream, address and bytes of the
/// workspace).
struct Place {
  invconv::Execution execution = invconv::Cpu{};
  invconv::Workspace workspace;
};

bool read(nb::handle object, Place& place) {
  if (object.is_none()) {
    return true;
  }
  std::int64_t device = 0, stream = 0, address = 0, bytes = 0;
  if (!PyTuple_CheckExact(object.ptr()) || PyTuple_GET_SIZE(object.ptr()) != 4 ||
      !read(PyTuple_GET_ITEM(object.ptr(), 0), device) || !read(PyTuple_GET_ITEM(object.ptr(), 1), stream) ||
      !read(PyTuple_GET_ITEM(object.ptr(), 2), address) || !read(PyTuple_GET_ITEM(object.ptr(), 3), bytes)) {
    return false;
  }
  place.execution = invconv::Cuda{static_cast<int>(device), reinterpret_cast<void*>(stream)};
  place.workspace = {reinterpret_cast<void*>(address), static_cast<std::size_t>(bytes)};
  return true;
}

// ---- the functions ------------------------------------------------------------------------------------------------

template <invconv::Operation operation>
bool filter(nb::handle in, nb::handle weight, nb::handle out, nb::handle corner, nb::handle unit_diagonal,
            nb::handle groups, nb::handle transpose, nb::handle where) {
  invconv::Options options;
  Place place;
  const Array from(in), taps(weight), to(out, true);
  if (!from.plain() || !taps.plain() || !to.plain() || !from.are_images() || !taps.is_weight_for(from) ||
      !to.same_kind(from) || !to.same_shape(from) || !to.can_be_written_from(from) ||
      !read(corner, unit_diagonal, groups, options) || !read(transpose, options.transpose) || !read(where, place)) {
    return false;
  }
  with_type(from.type(), [&](auto zero) {
    using T = decltype(zero);
    const nb::gil_scoped_release unlocked;
    taps.with_weight<const T>([&](const auto& view) {
      if constexpr (operation == invconv::Operation::solve) {
        invconv::solve<T>(from.view<const T>(), view, to.view<T>(), options, place.workspace, place.execution);
      } else {
        invconv::conv<T>(from.view<const T>(), view, to.view<T>(), options, place.workspace, place.execution);
      }
    });
  });
  return true;
}

bool weight_grad(nb::handle x, nb::handle g, nb::handle dw, nb::handle corner, nb::handle unit_diagonal,
                 nb::handle groups, nb::handle where) {
  invconv::Options options;
  Place place;
  const Array inputs(x), outputs(g), to(dw, true);
  if (!inputs.plain() || !outputs.plain() || !to.plain() || !inputs.are_images() || !outputs.same_kind(inputs) ||
      !to.is_weight_for(inputs) || !read(corner, unit_diagonal, groups, options) || !read(where, place)) {
    return false;
  }
  with_type(inputs.type(), [&](auto zero) {
    using T = decltype(zero);
    const nb::gil_scoped_release unlocked;
    to.with_weight<T>([&](const auto& view) {
      invconv::weight_grad<T>(inputs.view<const T>(), outputs.view<const T>(), view, options, place.workspace,
                              place.execution);
    });
  });
  return true;
}

bool solve_backward(nb::handle x, nb::handle g, nb::handle weight, nb::handle dy, nb::handle dw, nb::handle corner,
                    nb::handle unit_diagonal, nb::handle groups, nb::handle transpose, nb::handle where) {
  invconv::Options options;
  Place place;
  const Array solved(x), incoming(g), taps(weight), to(dy, true), to_taps(dw, true);
  if (!solved.plain() || !incoming.plain() || !taps.plain() || !to.plain() || !to_taps.plain() ||
      !solved.are_images() || !incoming.same_kind(solved) || !to.same_kind(solved) || !taps.is_weight_for(solved) ||
      !to_taps.same_kind(taps) || !read(corner, unit_diagonal, groups, options) ||
      !read(transpose, options.transpose) || !read(where, place)) {
    return false;
  }
  with_type(solved.type(), [&](auto zero) {
    using T = decltype(zero);
    const nb::gil_scoped_release unlocked;
    const auto differentiate = [&](const auto& from, const auto& into) {
      invconv::solve_backward<T>(solved.view<const T>(), incoming.view<const T>(), from, to.view<T>(), into, options,
                                 place.workspace, place.execution);
    };
    if (taps.axes() == 5) {
      differentiate(taps.view<const T, 5>(), to_taps.view<T, 5>());
    } else {
      differentiate(taps.view<const T>(), to_taps.view<T>());
    }
  });
  return true;
}

/// Calls `body` with the operation and a value of the storage type.
template <class Body>
auto with_names(const char* function, std::string_view operation, std::string_view dtype, Body&& body) {
  constexpr std::string_view names[] = {"solve", "conv", "weight_grad", "solve_backward"};
  const auto found = std::find(std::begin(names), std::end(names), operation);
  const auto type = find_type(dtype);
  if (found == std::end(names) || !type) {
    throw nb::value_error(("[" + std::string(function) +
                           "] expected the names of an operation and of a dtype, but got " + std::string(operation) +
                           " and " + std::string(dtype))
                              .c_str());
  }
  const auto which = static_cast<invconv::Operation>(found - std::begin(names));
  return with_type(*type, [&](auto zero) { return body(which, zero); });
}

/// Bytes of the workspace that a call needs on a CUDA device.
std::size_t workspace_size(std::string_view operation, std::string_view dtype, const invconv::Shape& images,
                           const std::variant<invconv::Shape, invconv::WeightsShape>& weight, std::int64_t groups,
                           int device) {
  invconv::Options options;
  options.groups = groups;
  return with_names("workspace_size", operation, dtype, [&](invconv::Operation which, auto zero) {
    return std::visit(
        [&](const auto& shape) {
          return invconv::workspace_size<decltype(zero)>(which, images, shape, options, invconv::Cuda{device});
        },
        weight);
  });
}

invconv::PlanInfo describe_plan(std::string_view operation, std::string_view dtype,
                                const std::array<std::int64_t, 4>& images, const std::array<std::int64_t, 4>& weight,
                                std::int64_t groups, std::optional<int> device, std::size_t shared_bytes) {
  invconv::Options options;
  options.groups = groups;
  const invconv::Execution execution =
      device ? invconv::Execution(invconv::Cuda{*device}) : invconv::Execution(invconv::Cpu{});
  return with_names("describe_plan", operation, dtype, [&](invconv::Operation which, auto zero) {
    return invconv::describe_plan<decltype(zero)>(which, images, weight, options, execution, shared_bytes);
  });
}

/// What a DLPack capsule describes, for as long as it lives; it is not consumed.
nb::tuple read_dlpack(nb::handle capsule) {
  struct Versioned {  // of DLPack 1
    std::uint32_t major, minor;
    void* context;
    void (*deleter)(Versioned*);
    std::uint64_t flags;
    nb::dlpack::dltensor tensor;
  };
  const nb::dlpack::dltensor* tensor = nullptr;
  bool read_only = false;
  if (PyCapsule_IsValid(capsule.ptr(), "dltensor")) {
    tensor = static_cast<const nb::dlpack::dltensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
  } else if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned")) {
    const auto* versioned = static_cast<const Versioned*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor_versioned"));
    if (versioned->major != 1) {
      throw nb::buffer_error("DLPack of another major version than 1");
    }
    tensor = &versioned->tensor;
    read_only = versioned->flags & 1;
  } else {
    throw nb::type_error("no DLPack capsule, or one that is used up");
  }
  if (tensor->dtype.lanes != 1) {
    throw nb::buffer_error("elements of several lanes");
  }
  constexpr const char* kinds[] = {"int", "uint", "float", "opaque", "bfloat", "complex", "bool"};
  const auto code = std::size_t{tensor->dtype.code};
  const std::string dtype = (code < std::size(kinds) ? kinds[code] : "code" + std::to_string(code) + "_") +
                            std::to_string(tensor->dtype.bits);
  nb::list shape, strides;
  std::int64_t dense = 1;
  for (std::int32_t axis = 0; axis < tensor->ndim; ++axis) {
    shape.append(tensor->shape[axis]);
  }
  for (std::int32_t axis = tensor->ndim; axis-- > 0; dense *= tensor->shape[axis]) {
    // Without strides it is dense, in row-major order.
    strides.insert(0, tensor->strides == nullptr ? dense : tensor->strides[axis]);
  }
  const auto address = reinterpret_cast<std::uintptr_t>(tensor->data) + tensor->byte_offset;
  return nb::make_tuple(static_cast<int>(tensor->device.device_type), static_cast<int>(tensor->device.device_id),
                        address, dtype, nb::tuple(shape), nb::tuple(strides), read_only);
}

void synchronize(int device, std::intptr_t stream) {
  const nb::gil_scoped_release unlocked;
  invconv::synchronize({device, reinterpret_cast<void*>(stream)});
}

/// A number, or None: `function` of the weight's view, the size and the options.
template <class Function>
nb::object of_weight(Function&& function, nb::handle weight, nb::handle height, nb::handle width, nb::handle corner,
                     nb::handle unit_diagonal, nb::handle groups) {
  invconv::Options options;
  std::int64_t h = 0, w = 0;
  const Array taps(weight);
  if (!taps.plain() || taps.axes() != 4 || !read(height, h) || !read(width, w) ||
      !read(corner, unit_diagonal, groups, options)) {
    return nb::none();
  }
  return nb::float_(with_type(taps.type(), [&](auto zero) {
    const nb::gil_scoped_release unlocked;
    return function(taps.view<const decltype(zero)>(), h, w, options);
  }));
}

nb::object logabsdet(nb::handle weight, nb::handle height, nb::handle width, nb::handle corner,
                     nb::handle unit_diagonal, nb::handle groups) {
  return of_weight([](const auto&... of) { return invconv::logabsdet(of...); }, weight, height, width, corner,
                   unit_diagonal, groups);
}

nb::object growth(nb::handle weight, nb::handle height, nb::handle width, nb::handle corner, nb::handle unit_diagonal,
                  nb::handle groups) {
  return of_weight([](const auto&... of) { return invconv::growth(of...); }, weight, height, width, corner,
                   unit_diagonal, groups);
}

bool bounded_weight(nb::handle taps, nb::handle weight, double bound, nb::handle corner, nb::handle groups) {
  invconv::Options options;
  const Array from(taps), to(weight, true);
  if (!from.plain() || !to.plain() || from.axes() != 4 || !to.same_kind(from) || !to.same_shape(from) ||
      !read(corner, nb::bool_(true), groups, options)) {
    return false;
  }
  with_type(from.type(), [&](auto zero) {
    using T = decltype(zero);
    const nb::gil_scoped_release unlocked;
    invconv::bounded_weight<T>(from.view<const T>(), bound, to.view<T>(), options);
  });
  return true;
}

}  // namespace

NB_MODULE(_core, m) {
  m.doc() = "The compiled core of invconv. Use the functions of the package itself.";
  nb::register_exception_translator([](const std::exception_ptr& error, void*) {
    try {
      std::rethrow_exception(error);
    } catch (const invconv::DeviceError& failure) {  // all others are ValueError
      PyErr_SetString(PyExc_RuntimeError, failure.what());
    }
  });

  m.def("version", [] { return INVCONV_VERSION; }, "The version of the library.");

  m.def("solve", &filter<invconv::Operation::solve>, "y"_a.none(), "weight"_a.none(), "x"_a.none(), "corner"_a.none(),
        "unit_diagonal"_a.none(), "groups"_a.none(), "transpose"_a.none(), "where"_a.none() = nb::none(),
        nb::sig("def solve(y: object, weight: object, x: object, corner: object, unit_diagonal: object, "
                "groups: object, transpose: object, where: object = None) -> bool"),
        "Write M^-1 y into x, if the arguments are plain, and say whether they are. `where` is None for the CPU, or a "
        "tuple (device, stream, address and bytes of the workspace) for CUDA.");
  m.def("conv", &filter<invconv::Operation::conv>, "x"_a.none(), "weight"_a.none(), "y"_a.none(), "corner"_a.none(),
        "unit_diagonal"_a.none(), "groups"_a.none(), "transpose"_a.none(), "where"_a.none() = nb::none(),
        nb::sig("def conv(x: object, weight: object, y: object, corner: object, unit_diagonal: object, "
                "groups: object, transpose: object, where: object = None) -> bool"),
        "Write M x into y, if the arguments are plain, and say whether they are; `where` as in solve.");
  m.def("weight_grad", &weight_grad, "x"_a.none(), "g"_a.none(), "dw"_a.none(), "corner"_a.none(),
        "unit_diagonal"_a.none(), "groups"_a.none(), "where"_a.none() = nb::none(),
        nb::sig("def weight_grad(x: object, g: object, dw: object, corner: object, unit_diagonal: object, "
                "groups: object, where: object = None) -> bool"),
        "Write the derivative of <g, M x> with respect to the weight into dw, if the arguments are plain, and say "
        "whether they are; `where` as in solve.");
  m.def("solve_backward", &solve_backward, "x"_a.none(), "g"_a.none(), "weight"_a.none(), "dy"_a.none(), "dw"_a.none(),
        "corner"_a.none(), "unit_diagonal"_a.none(), "groups"_a.none(), "transpose"_a.none(),
        "where"_a.none() = nb::none(),
        nb::sig("def solve_backward(x: object, g: object, weight: object, dy: object, dw: object, corner: object, "
                "unit_diagonal: object, groups: object, transpose: object, where: object = None) -> bool"),
        "Write both gradients of x = M^-1 y for an incoming g into dy and dw, which overlap with nothing, if the "
        "arguments are plain, and say whether they are; `where` as in solve.");
  m.def("logabsdet", &logabsdet, "weight"_a.none(), "height"_a.none(), "width"_a.none(), "corner"_a.none(),
        "unit_diagonal"_a.none(), "groups"_a.none(),
        nb::sig("def logabsdet(weight: object, height: object, width: object, corner: object, "
                "unit_diagonal: object, groups: object) -> float | None"),
        "The logarithm of |det M|, or None if the arguments are not plain.");
  m.def("growth", &growth, "weight"_a.none(), "height"_a.none(), "width"_a.none(), "corner"_a.none(),
        "unit_diagonal"_a.none(), "groups"_a.none(),
        nb::sig("def growth(weight: object, height: object, width: object, corner: object, "
                "unit_diagonal: object, groups: object) -> float | None"),
        "The infinity norm of M^-1, or None if the arguments are not plain.");
  m.def(
      "bounded_weight", &bounded_weight, "taps"_a.none(), "weight"_a.none(), "bound"_a, "corner"_a.none(),
      "groups"_a.none(),
      nb::sig("def bounded_weight(taps: object, weight: object, bound: float, corner: object, groups: object) -> bool"),
      "Write (I + L)(I + V), a weight of bounded inverse, into weight, if the arguments are plain, and say whether "
      "they are.");
  m.def("workspace_size", &workspace_size, "operation"_a, "dtype"_a, "images"_a, "weight"_a, "groups"_a, "device"_a,
        nb::sig("def workspace_size(operation: str, dtype: str, images: tuple[int, ...], weight: tuple[int, ...], "
                "groups: int, device: int) -> int"),
        "Bytes of the workspace that an operation needs on a CUDA device.");
  m.def("use_exchange_table", &use_exchange_table, "type"_a, nb::sig("def use_exchange_table(type: type) -> bool"),
        "From now on, take objects of this type, torch.Tensor, as arguments, through DLPack's table of functions in C; "
        "say whether the type has one. The caller answers for what a description of memory does not say.");
  m.def(
      "read_dlpack", &read_dlpack, "capsule"_a,
      nb::sig("def read_dlpack(capsule: object) -> tuple[int, int, int, str, tuple[int, ...], tuple[int, ...], bool]"),
      "What a DLPack capsule describes for as long as it lives: kind and number of the device, address, name of the "
      "dtype, shape, strides in elements, and whether it is read-only. It is not consumed.");
  nb::class_<invconv::PlanInfo>(m, "PlanInfo", "How a call is carried out.")
      .def_ro("kernel", &invconv::PlanInfo::kernel)
      .def_ro("threads", &invconv::PlanInfo::threads)
      .def_ro("launches", &invconv::PlanInfo::launches)
      .def_ro("shared_bytes", &invconv::PlanInfo::shared_bytes)
      .def_ro("workspace_bytes", &invconv::PlanInfo::workspace_bytes);
  m.def(
      "describe_plan", &describe_plan, "operation"_a, "dtype"_a, "images"_a, "weight"_a, "groups"_a,
      "device"_a = nb::none(), "shared_bytes"_a = 0,
      nb::sig("def describe_plan(operation: str, dtype: str, images: tuple[int, ...], weight: tuple[int, ...], "
              "groups: int, device: int | None = None, shared_bytes: int = 0) -> PlanInfo"),
      "The plan of an operation on a CUDA device, or on the CPU for None. `shared_bytes`, if not 0, stands for what a "
      "thread block of the device may have, and no device is looked at.");
  nb::class_<invconv::CudaDevice>(m, "CudaDevice", "A CUDA device.")
      .def_ro("name", &invconv::CudaDevice::name)
      .def_ro("major", &invconv::CudaDevice::major)
      .def_ro("minor", &invconv::CudaDevice::minor)
      .def_ro("memory_bytes", &invconv::CudaDevice::memory_bytes)
      .def_ro("shared_bytes", &invconv::CudaDevice::shared_bytes);
  nb::class_<invconv::CudaInfo>(m, "CudaInfo", "CUDA in this build and on this machine.")
      .def_ro("compiler", &invconv::CudaInfo::compiler)
      .def_ro("architectures", &invconv::CudaInfo::architectures)
      .def_ro("runtime", &invconv::CudaInfo::runtime)
      .def_ro("driver", &invconv::CudaInfo::driver)
      .def_ro("devices", &invconv::CudaInfo::devices);
  m.def("cuda_info", &invconv::cuda_info, "CUDA in this build and on this machine.");
  m.def("cuda_devices", &invconv::cuda_devices, "How many CUDA devices there are.");
  m.def("synchronize", &synchronize, "device"_a, "stream"_a, "Wait until what was put on a stream is done.");
  m.def("jax_ffi_version", &jax_ffi_version,
        "The version of XLA's foreign function interface that jax_handlers() is for; empty in a build without it.");
  m.def("jax_handlers", &jax_handlers, nb::sig("def jax_handlers() -> dict[str, object]"),
        "The operations on the CPU as capsules for jax.ffi, by name; none in a build without it.");
  m.def("has_cuda", &invconv::has_cuda, "Whether this build has CUDA kernels; it does not look for a device.");
  m.def("num_threads", &invconv::num_threads, "The number of threads that a call may use.");
  m.def("set_num_threads", &invconv::set_num_threads, "threads"_a, "Set the number of threads that a call may use.");
  m.def("share_openmp", &invconv::share_openmp, "Use the threads of the OpenMP runtime that this process has loaded.");
  m.def("instruction_set", &invconv::instruction_set, "The instruction set of the kernels in use.");
}
