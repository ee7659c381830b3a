"""The functions for arrays of any kind: numpy and DLPack here, torch in ``_torch``."""

from __future__ import annotations

import sys
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from invconv import _check, _core
from invconv._check import Corner

Array = TypeVar("Array")
Result = TypeVar("Result")
NumpyArray = npt.NDArray[Any]


def solve(
    y: Array,
    weight: Array,
    *,
    corner: Corner = "tl",
    unit_diagonal: bool = True,
    groups: int = 1,
    transpose: bool = False,
    out: Array | None = None,
) -> Array:
    r"""Solve ``M x = y`` for ``x``, where ``M`` is a causal convolution.

    ``M`` pads the image with zeros on the two sides that ``corner`` names, ``kh - 1`` rows and
    ``kw - 1`` columns, and convolves it with ``weight`` in the layout of
    :func:`torch.nn.functional.conv2d`. It is triangular, so that

    .. math:: x[p] = A^{-1} \Bigl(y[p] - \sum_{t \ne 0} W_t\, x[p - t]\Bigr),

    pixel after pixel, is exact. ``A``, the anchor, is the tap that multiplies the pixel itself:
    ``W[:, :, -1, -1]``, ``W[:, :, -1, 0]``, ``W[:, :, 0, -1]`` or ``W[:, :, 0, 0]`` for the corners
    ``"tl"``, ``"tr"``, ``"bl"`` and ``"br"``. It is lower triangular in the channels of its group:
    entries above its diagonal are never read.

    float16 and bfloat16 are storage types: the recurrence runs in float32. The result satisfies
    ``|M x - y| <= 2 (n + 2) u (|M| |x| + |y|)`` with ``n = kh kw C / groups`` and the unit roundoff
    ``u`` (2^-24 in float32), and has the same bits for any number of threads, any batch that an
    image sits in and any strides. Source: Nagar and Varma, arXiv 2410.14634.

    Args:
        y: Images of shape (B, C, H, W) or (C, H, W); float16, bfloat16, float32 or float64, any
            strides. A numpy array, a torch tensor or an array that speaks DLPack, on the CPU or,
            in a build with kernels for it, on a CUDA device.
        weight: Of shape (C, C/groups, kh, kw), or (B, C, C/groups, kh, kw) with one weight for each
            of B images (on the CPU); the same kind, dtype and device.
        corner: The padded sides: ``"tl"``, ``"tr"``, ``"bl"``, ``"br"``, or a sequence with one of
            them for each group.
        unit_diagonal: Whether the diagonal of ``A`` counts as 1 and is not read.
        groups: The number of groups of channels that do not mix.
        transpose: Whether to solve ``M^T x = y`` instead.
        out: Where to write the result: shape and dtype of ``y``. It may be ``y`` itself.

    Returns:
        ``x``, of the kind, shape and dtype of ``y`` and on its device; ``out`` if it was given. On
        CUDA the work is put on the stream that torch or CuPy has in use there; with arrays of other
        libraries the call waits until it is done. A zero on the diagonal of ``A`` (with
        ``unit_diagonal=False``) is not looked for: the division by it gives inf or NaN as in IEEE
        arithmetic, which spreads to the pixels that depend on it.

    Raises:
        TypeError: If an argument is of another kind or dtype, or on another device.
        ValueError: If shapes, groups or corners do not fit, or there are no kernels for the device.
            Nothing has been computed or written.
        RuntimeError: If a CUDA device or its driver fails.

    Example:
        >>> import numpy as np, invconv
        >>> weight = np.array([[[[0.25, 0.5], [0.5, 1.0]]]])
        >>> x = invconv.solve(np.ones((1, 2, 2)), weight)
        >>> x
        array([[[1. , 0.5],
                [0.5, 0.25]]])
        >>> invconv.conv(x, weight)
        array([[[1., 1.],
                [1., 1.]]])
    """
    options = (corner, unit_diagonal, groups, transpose)
    solution: Array = _filter("solve", "y", y, weight, out, options)
    return solution


def conv(
    x: Array,
    weight: Array,
    *,
    corner: Corner = "tl",
    unit_diagonal: bool = True,
    groups: int = 1,
    transpose: bool = False,
    out: Array | None = None,
) -> Array:
    r"""Return ``M x``, the causal convolution that :func:`solve` inverts.

    .. math:: y[o, p] = \sum_{c, t} W[o, c, t]\, x[c, p - t]

    It is not ``F.conv2d`` with any weight. Of the anchor, ``W[:, :, -1, -1]`` for ``corner="tl"``,
    the diagonal counts as 1 whatever the weight holds there (with ``unit_diagonal``, the default),
    and nothing above the diagonal is read. Where the weight has these ones and zeros itself, the
    result is that of ``F.conv2d(F.pad(x, (kw - 1, 0, kh - 1, 0)), weight, groups=groups)``; the
    other corners pad the other sides.

    Args:
        x: Images of shape (B, C, H, W) or (C, H, W), as ``y`` in :func:`solve`.
        weight: Of shape (C, C/groups, kh, kw) or (B, C, C/groups, kh, kw), as in :func:`solve`.
        corner: As in :func:`solve`.
        unit_diagonal: As in :func:`solve`.
        groups: As in :func:`solve`.
        transpose: Whether to return ``M^T x`` instead.
        out: Where to write the result: shape and dtype of ``x``. It may be ``x`` itself.

    Returns:
        ``y``, of the kind, shape and dtype of ``x``; ``out`` if it was given.

    Raises:
        TypeError: If an argument is of another kind or dtype.
        ValueError: If shapes, groups or corners do not fit. Nothing has been computed or written.
    """
    options = (corner, unit_diagonal, groups, transpose)
    filtered: Array = _filter("conv", "x", x, weight, out, options)
    return filtered


def weight_grad(
    x: Array,
    g: Array,
    kernel_size: int | tuple[int, int],
    *,
    corner: Corner = "tl",
    unit_diagonal: bool = True,
    groups: int = 1,
    per_sample: bool = False,
) -> Array:
    r"""Return the derivative of ``<g, M x>`` with respect to the weight of ``M``.

    .. math:: dW[o, c, t] = \sum_{b, p} g[b, o, p]\, x[b, c, p - t]

    for the entries of the weight that :func:`conv` and :func:`solve` read, and exactly 0 for the
    others. The gradients of ``x = solve(y, W)`` for an incoming ``g = dL/dx`` are
    ``dL/dy = solve(g, W, transpose=True)`` and ``dL/dW = -weight_grad(x, dL/dy, ...)``.

    Args:
        x: Images of shape (B, C, H, W) or (C, H, W), as ``y`` in :func:`solve`.
        g: Of the shape, kind and dtype of ``x``.
        kernel_size: ``(kh, kw)``, or one number for both.
        corner: As in :func:`solve`.
        unit_diagonal: As in :func:`solve`.
        groups: As in :func:`solve`.
        per_sample: Whether to return the derivative for each image, not summed over ``b``.

    Returns:
        An array of shape (C, C/groups, kh, kw), or (B, C, C/groups, kh, kw) with ``per_sample``, of
        the kind and dtype of ``x``. Its bits do not depend on the number of threads or the strides.
        Where ``g`` is not finite, taps that reach beyond the image there may come out as NaN, as in
        ``F.conv2d``.

    Raises:
        TypeError: If an argument is of another kind or dtype.
        ValueError: If shapes, groups or corners do not fit. Nothing has been computed.
    """
    function = "weight_grad"
    if (torch_layer := _torch_layer(x, g)) is not None:
        result: Array = torch_layer.weight_grad(
            x, g, kernel_size, corner, unit_diagonal, groups, per_sample
        )
        return result
    if (device_layer := _device_layer(x, g)) is not None:
        dw_there: Array = device_layer.weight_grad(
            x, g, kernel_size, corner, unit_diagonal, groups, per_sample
        )
        return dw_there
    x_, g_ = _numpy(function, "x", x), _numpy(function, "g", g)
    _check.image_axes(function, "x", x_.shape)
    _check.same_shape(function, "g", g_.shape, "x", x_.shape)
    _check.same_dtype(function, "x", _dtype_name(x_), "g", _dtype_name(g_))
    taps, corners, unit_diagonal, groups, per_sample = _check.weight_grad_options(
        function, x_.shape, kernel_size, corner, unit_diagonal, groups, per_sample
    )
    dw = np.empty(_check.weight_grad_shape(x_.shape, taps, groups, per_sample), x_.dtype)
    must(function, _core.weight_grad(x_, g_, dw, corners, unit_diagonal, groups))
    gradient: Array = _like(x, dw)
    return gradient


def logabsdet(
    weight: Array,
    size: int | tuple[int, int],
    *,
    corner: Corner = "tl",
    unit_diagonal: bool = True,
    groups: int = 1,
) -> Any:
    r"""Return ``log |det M|`` on one image of ``size = (H, W)``.

    .. math:: \log |\det M| = H\, W \sum \log |\operatorname{diag} A|

    It is 0 for a unit diagonal, and that of ``M^-1`` is its negative.

    Args:
        weight: Of shape (C, C/groups, kh, kw), as in :func:`solve`. On a CUDA device it is
            copied to the host, unless it is a torch tensor.
        size: ``(H, W)`` in pixels, or one number for both.
        corner: As in :func:`solve`.
        unit_diagonal: As in :func:`solve`.
        groups: As in :func:`solve`.

    Returns:
        A float; for a torch tensor a tensor of shape () and its dtype, differentiable.

    Raises:
        TypeError: If an argument is of another kind or dtype.
        ValueError: If shapes, groups or corners do not fit.
    """
    function = "logabsdet"
    if (torch_layer := _torch_layer(weight)) is not None:
        return torch_layer.logabsdet(weight, size, corner, unit_diagonal, groups)
    arguments = _weight_arguments(function, weight, size, corner, unit_diagonal, groups)
    return must(function, _core.logabsdet(*arguments))


def growth(
    weight: Array,
    size: int | tuple[int, int],
    *,
    corner: Corner = "tl",
    unit_diagonal: bool = True,
    groups: int = 1,
) -> float:
    r"""Return the infinity norm of ``M^-1`` on images of ``size = (H, W)``.

    It is the most that a solve can magnify the largest value of its input, and an error in it: with
    a growth of 1e6 and ``y`` known to 1e-7, one digit of ``x`` is left. It is exact up to rounding,
    from C impulse responses in float64:

    .. math:: \|M^{-1}\|_\infty = \max_o \sum_{c, p} |h_c[o, p]|, \quad M h_c = \delta_c

    with ``delta_c`` an impulse in channel ``c`` at the corner pixel.

    Args:
        weight: Of shape (C, C/groups, kh, kw), as in :func:`solve`. On a CUDA device it is
            copied to the host, where the norm is computed.
        size: ``(H, W)`` in pixels, or one number for both.
        corner: As in :func:`solve`.
        unit_diagonal: As in :func:`solve`.
        groups: As in :func:`solve`.

    Returns:
        A float; ``inf`` where the responses overflow, 0 for an empty image.

    Raises:
        TypeError: If an argument is of another kind or dtype.
        ValueError: If shapes, groups or corners do not fit.
    """
    function = "growth"
    if (torch_layer := _torch_layer(weight)) is not None:
        norm: float = torch_layer.growth(weight, size, corner, unit_diagonal, groups)
        return norm
    arguments = _weight_arguments(function, weight, size, corner, unit_diagonal, groups)
    return must(function, _core.growth(*arguments))


def _torch_layer(*arrays: Any) -> Any:
    """The torch layer if one of them is a tensor, else None; without torch loaded none can be."""
    torch = sys.modules.get("torch")
    if torch is not None:
        for array in arrays:
            if isinstance(array, torch.Tensor):
                from invconv import _torch

                return _torch
    return None


def _device_layer(*arrays: Any) -> Any:
    """The layer for CUDA devices if one of these arrays, no tensors, is on one, else None."""
    for array in arrays:
        if hasattr(array, "__dlpack_device__") and array.__dlpack_device__()[0] in CUDA_KINDS:
            from invconv import _device

            return _device
    return None


def _filter(
    function: str,
    name: str,
    images: Any,
    weight: Any,
    out: Any,
    options: tuple[Corner, bool, int, bool],
) -> Any:
    run = _core.solve if function == "solve" else _core.conv
    if type(images) is type(weight) is np.ndarray and (out is None or type(out) is np.ndarray):
        # The core looks at plain arguments itself; whatever else they are is sorted out below.
        plain = np.empty(images.shape, images.dtype) if out is None else out
        if run(images, weight, plain, *options):
            return plain
    elif (torch_layer := _torch_layer(images, weight)) is not None:
        return torch_layer.filter(function, name, images, weight, out, options)
    elif (device_layer := _device_layer(images, weight)) is not None:
        return device_layer.filter(function, name, images, weight, out, options)
    images_, weight_ = _numpy(function, name, images), _numpy(function, "weight", weight)
    _check.image_axes(function, name, images_.shape)
    _check.same_dtype(function, name, _dtype_name(images_), "weight", _dtype_name(weight_))
    _check.weight_axes(function, weight_.shape, images_.ndim)
    checked = _check.filter_options(function, *options)
    if out is None:
        result = target = np.empty(images_.shape, images_.dtype)
    else:
        result = _numpy_output(function, out, type(images), name, images_)
        # Written into memory of its own where that is not simply the input's, in place.
        overlaps = np.may_share_memory(result, images_) and not _is_same_view(result, images_)
        target = np.empty(images_.shape, images_.dtype) if overlaps else result
    must(function, run(images_, weight_, target, *checked))
    if out is None:
        return _like(images, result)
    if target is not result:
        result[...] = target
    return out


def _weight_arguments(
    function: str, weight: Any, size: Any, corner: Corner, unit_diagonal: bool, groups: Any
) -> tuple[NumpyArray, int, int, tuple[str, ...], bool, int]:
    if (device_layer := _device_layer(weight)) is not None:
        weight = device_layer.to_host(function, weight)
    weight_ = _numpy(function, "weight", weight)
    shape = weight_.shape
    options = _check.weight_options(function, shape, size, corner, unit_diagonal, groups)
    return weight_, *options


def must(function: str, result: Result | Literal[False] | None) -> Result:
    """Return the core's result, which it has for all that was checked and still cannot be read."""
    if result is None or result is False:
        raise TypeError(f"[{function}] expected arrays that export their memory as buffers")
    return result


# A look-up, since the name of a dtype takes longer than a small solve.
_DTYPE_NAMES = {np.dtype(name): name for name in ("float16", "float32", "float64")}


def _dtype_name(array: NumpyArray) -> str:
    name = _DTYPE_NAMES.get(array.dtype)
    return array.dtype.name if name is None else name


def _numpy(function: str, name: str, array: Any) -> NumpyArray:
    """Return ``array`` as a numpy array that the core can read, without a copy."""
    is_numpy = isinstance(array, np.ndarray)
    found: NumpyArray = array if is_numpy else _from_dlpack(function, name, array)
    if isinstance(found, np.ma.MaskedArray):
        raise TypeError(
            f"[{function}] expected {name} without a mask, but got a masked array; "
            f"{name}.filled(0) makes one"
        )
    conversion = f"{name}.astype(np.float32)" if is_numpy else None
    _check.dtype(function, name, _dtype_name(found), conversion)
    if not found.dtype.isnative:
        raise TypeError(
            f"[{function}] expected {name} in native byte order, but got dtype {found.dtype.str}"
        )
    steps = [stride for size, stride in zip(found.shape, found.strides, strict=True) if size > 1]
    if not found.flags.aligned or any(step % found.itemsize for step in steps):
        # The one case that strides in elements cannot describe.
        found = found.copy()
    return found


# DLPack's kinds of devices: memory of a CUDA device, its own or managed.
CUDA_KINDS = (2, 13)
_KIND_NAMES = {
    1: "cpu",
    2: "cuda",
    3: "cuda_host",
    8: "metal",
    10: "rocm",
    13: "cuda",
    14: "oneapi",
}


def device_name(kind: int, number: int) -> str:
    """Return a name for DLPack's device, in torch's style."""
    name = _KIND_NAMES.get(kind)
    if name is None:
        return f"the DLPack device ({kind}, {number})"
    return name if kind == 1 else f"{name}:{number}"


def dlpack_device(function: str, name: str, array: Any) -> tuple[int, int]:
    """Return the kind and the number of the device that an array is on."""
    if not hasattr(array, "__dlpack__") or not hasattr(array, "__dlpack_device__"):
        is_list = isinstance(array, (list, tuple))
        hint = f"; np.asarray({name}, dtype=np.float32) makes one" if is_list else ""
        if type(array).__module__.startswith("jax."):
            hint = "; invconv.jax has this function for traced arrays"
        raise TypeError(
            f"[{function}] expected {name} to be a numpy array, a torch tensor or another array "
            f"that speaks DLPack, but got {type(array).__name__}{hint}"
        )
    kind, number = array.__dlpack_device__()
    return int(kind), int(number)


def _from_dlpack(function: str, name: str, array: Any) -> NumpyArray:
    kind, number = dlpack_device(function, name, array)
    if kind != 1:
        raise ValueError(
            f"[{function}] expected arrays on the CPU or a CUDA device, "
            f"but got {name} on {device_name(kind, number)}"
        )
    try:
        return np.from_dlpack(array)
    except (BufferError, RuntimeError, TypeError) as error:
        raise TypeError(
            f"[{function}] expected {name} of dtype float16, float32 or float64 in memory that "
            f"numpy can share, but got {type(array).__name__}: {error}"
        ) from error


def _kind_name(kind: type) -> str:
    return "numpy array" if issubclass(kind, np.ndarray) else kind.__name__


def _numpy_output(function: str, out: Any, kind: type, name: str, images: NumpyArray) -> NumpyArray:
    """Return ``out``, an array of the input's ``kind``, as a numpy array to write into."""
    if not isinstance(out, np.ndarray):
        if type(out) is not kind or not hasattr(out, "__dlpack__"):
            raise TypeError(
                f"[{function}] expected out to be a {_kind_name(kind)}, "
                f"but got {type(out).__name__}"
            )
        out = _from_dlpack(function, "out", out)
    _check.same_dtype(function, name, _dtype_name(images), "out", _dtype_name(out))
    _check.same_shape(function, "out", out.shape, name, images.shape)
    _check.own_places(function, "out", out.shape, out.strides)
    if not out.flags.writeable:
        raise ValueError(f"[{function}] expected out to be writeable, but got a read-only array")
    if _numpy(function, "out", out) is not out:
        raise ValueError(f"[{function}] expected out to be aligned, but got an unaligned array")
    return out


def _is_same_view(a: NumpyArray, b: NumpyArray) -> bool:
    return a.ctypes.data == b.ctypes.data and a.strides == b.strides


def _like(original: Any, result: NumpyArray) -> Any:
    """Return ``result`` as the kind of ``original``; as numpy where that has no namespace."""
    if isinstance(original, np.ndarray) or not hasattr(original, "__array_namespace__"):
        return result
    return original.__array_namespace__().from_dlpack(result)
