"""The functions for arrays on a CUDA device: CuPy's, and others that speak DLPack.

The result and the workspace come from the caller's own library. Work is put on the stream that
CuPy has in use. Of other libraries the protocols do not tell the stream: work goes to the legacy
default stream, after what ``__dlpack__`` orders before it, and the call returns when it is done.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from invconv import _array, _check, _core
from invconv._check import Corner

# The legacy default stream, as DLPack and CUDA number it. (0 is no stream of DLPack's.)
_LEGACY_STREAM = 1


class _Exported(NamedTuple):
    """What a capsule describes, for as long as it lives."""

    capsule: Any
    kind: int
    number: int
    address: int
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    read_only: bool

    @property
    def memory(self) -> tuple[int, str, tuple[int, ...], tuple[int, ...]]:
        """As the core takes it."""
        return self.address, self.dtype, self.shape, self.strides

    @property
    def images(self) -> tuple[int, ...]:
        """The shape with a batch; one image is a batch of one."""
        return (1, *self.shape)[-4:]


@dataclass(frozen=True)
class _Caller:
    """What a call has of the library that its arrays come from."""

    function: str
    device: int
    stream: int
    namespace: Any
    placed: Mapping[str, Any]  # what `namespace.empty` must be told of the device
    ordered: bool  # whether the library orders its own work, and its memory's reuse, on the stream

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        return self.namespace.empty(shape, dtype=dtype, **self.placed)

    def export(self, name: str, array: Any) -> _Exported:
        """Return what the core must know of an array whose work the stream then waits for."""
        try:
            try:
                capsule = array.__dlpack__(stream=self.stream, max_version=(1, 0))
            except TypeError:  # a producer from before DLPack 1
                capsule = array.__dlpack__(stream=self.stream)
            found = _Exported(capsule, *_core.read_dlpack(capsule))
        except (BufferError, RuntimeError, TypeError) as error:
            raise TypeError(
                f"[{self.function}] expected {name} in memory that DLPack can share, "
                f"but got {type(array).__name__}: {error}"
            ) from error
        if found.kind not in _array.CUDA_KINDS:
            raise TypeError(
                f"[{self.function}] expected {name} as it lies on cuda:{self.device}, "
                f"but got a copy on {_array.device_name(found.kind, found.number)}"
            )
        return found

    def export_images(self, name: str, array: Any) -> _Exported:
        found = self.export(name, array)
        _check.dtype(self.function, name, found.dtype)
        _check.image_axes(self.function, name, found.shape)
        return found

    def run(
        self,
        arrays: tuple[_Exported, _Exported, _Exported],
        weight: tuple[int, ...],
        *options: Any,
    ) -> bool:
        """Call the core, and say whether it could read the arrays."""
        images, *_ = arrays
        groups: int = options[2]
        size = _core.workspace_size(
            self.function, images.dtype, images.images, weight, groups, self.device
        )
        workspace = address = 0
        if size > 0:
            workspace = self.empty((size,), self.namespace.uint8)
            address = self.export("the workspace", workspace).address
        where = (self.device, self.stream, address, size)
        run = getattr(_core, self.function)
        done: bool = run(*(array.memory for array in arrays), *options, where)
        if not self.ordered:
            _core.synchronize(self.device, self.stream)
        return done


def _is_cupy(array: Any) -> bool:
    cupy = sys.modules.get("cupy")
    return cupy is not None and isinstance(array, cupy.ndarray)


@contextlib.contextmanager
def _call(function: str, arrays: Mapping[str, Any]) -> Iterator[_Caller]:
    """Check where the arrays are, and make their device the one in use; the first is the images."""
    places = {name: _array.dlpack_device(function, name, a) for name, a in arrays.items()}
    (first, (kind, device)), *others = places.items()
    for name, (other_kind, other) in others:
        if not {kind, other_kind} <= set(_array.CUDA_KINDS) or device != other:
            raise TypeError(
                f"[{function}] expected {first} and {name} on one device, but got "
                f"{_array.device_name(kind, device)} and {_array.device_name(other_kind, other)}"
            )
    _check.cuda_kernels(function, first, f"cuda:{device}")
    count = _core.cuda_devices()
    if not 0 <= device < count:
        raise RuntimeError(
            f"[{function}] expected {first} on a CUDA device of this machine, of which the driver "
            f"finds {count}, but got {first} on cuda:{device}"
        )
    images = arrays[first]
    if _is_cupy(images):
        cupy = sys.modules["cupy"]
        ordered = all(map(_is_cupy, arrays.values()))
        with cupy.cuda.Device(device):
            stream = cupy.cuda.get_current_stream().ptr or _LEGACY_STREAM
            yield _Caller(function, device, stream, cupy, {}, ordered)
    elif hasattr(images, "__array_namespace__"):
        namespace = images.__array_namespace__()
        placed = {"device": images.device}
        yield _Caller(function, device, _LEGACY_STREAM, namespace, placed, False)
    else:
        raise TypeError(
            f"[{function}] expected {first} of a library that can allocate on cuda:{device}, with "
            f"__array_namespace__, but got {type(images).__name__}"
        )


def filter(
    function: str,
    name: str,
    images: Any,
    weight: Any,
    out: Any,
    options: tuple[Corner, bool, int, bool],
) -> Any:
    """See :func:`invconv.solve` and :func:`invconv.conv`."""
    arrays = {name: images, "weight": weight} | ({} if out is None else {"out": out})
    with _call(function, arrays) as caller:
        images_, weight_ = caller.export_images(name, images), caller.export("weight", weight)
        _check.dtype(function, "weight", weight_.dtype)
        _check.same_dtype(function, name, images_.dtype, "weight", weight_.dtype)
        _check.weight_axes(function, weight_.shape, len(images_.shape))
        checked = _check.filter_options(function, *options)
        batch, channels, *_ = images_.images
        _check.fitting_weight(function, weight_.shape, batch, channels, checked[2])
        if out is None:
            result = caller.empty(images_.shape, images.dtype)
            target = caller.export("the result", result)
            done = caller.run((images_, weight_, target), weight_.shape, *checked)
            _array.must(function, done)
            return result
        target = _output(caller, out, type(images), name, images_)
        if not caller.run((images_, weight_, target), weight_.shape, *checked):
            # Written into memory of its own, since it overlaps with the input and is not simply it.
            spare = caller.empty(images_.shape, images.dtype)
            target = caller.export("the result", spare)
            done = caller.run((images_, weight_, target), weight_.shape, *checked)
            _array.must(function, done)
            out[...] = spare
        return out


def _output(caller: _Caller, out: Any, kind: type, name: str, images: _Exported) -> _Exported:
    function = caller.function
    if type(out) is not kind:
        raise TypeError(
            f"[{function}] expected out to be a {kind.__name__}, but got {type(out).__name__}"
        )
    found = caller.export("out", out)
    _check.same_dtype(function, name, images.dtype, "out", found.dtype)
    _check.same_shape(function, "out", found.shape, name, images.shape)
    _check.own_places(function, "out", found.shape, found.strides)
    if found.read_only:
        raise ValueError(f"[{function}] expected out to be writeable, but got a read-only array")
    return found


def weight_grad(
    x: Any,
    g: Any,
    kernel_size: int | tuple[int, int],
    corner: Corner,
    unit_diagonal: bool,
    groups: int,
    per_sample: bool,
) -> Any:
    """See :func:`invconv.weight_grad`."""
    function = "weight_grad"
    with _call(function, {"x": x, "g": g}) as caller:
        x_, g_ = caller.export_images("x", x), caller.export("g", g)
        _check.same_shape(function, "g", g_.shape, "x", x_.shape)
        _check.same_dtype(function, "x", x_.dtype, "g", g_.dtype)
        taps, corners, unit_diagonal, groups, per_sample = _check.weight_grad_options(
            function, x_.shape, kernel_size, corner, unit_diagonal, groups, per_sample
        )
        shape = _check.weight_grad_shape(x_.shape, taps, groups, per_sample)
        dw = caller.empty(shape, x.dtype)
        target = caller.export("the result", dw)
        done = caller.run((x_, g_, target), shape, corners, unit_diagonal, groups)
        _array.must(function, done)
        return dw


def to_host(function: str, weight: Any) -> Any:
    """Return a weight's copy on the host."""
    if _is_cupy(weight):
        return weight.get()
    try:
        return np.from_dlpack(weight, device="cpu")
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise TypeError(
            f"[{function}] expected weight that can be copied to the CPU, "
            f"but got {type(weight).__name__}: {error}"
        ) from error
