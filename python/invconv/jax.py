"""The functions as jax primitives: for ``jax.jit``, ``jax.grad``, ``jax.vmap`` and the rest.

``invconv.solve`` and its fellows take jax arrays too, but only arrays with values; these functions
take traced ones. They run on the CPU, in the compiled core, by way of XLA's foreign function
interface. The core must have been built with jaxlib's headers: ``pip install . -C
build.requires=jaxlib==VERSION``, with the version in use; ``invconv.build_info()["jax"]`` tells.

Solve, conv and weight_grad are primitives, each with a rule for its tangent and, as each is linear
in its arrays (conv and weight_grad in each of both), a transpose. The rules use these primitives
again, so that derivatives of any order, in reverse and in forward mode, come free::

    dx = M^-1 (dy - dM x)      solve's tangent
    M^-T g                     solve's transpose in y

(design and proofs: the README, and Nagar and Varma, AISTATS 2025, arXiv 2410.14634.)

A mapped axis of images goes into the batch, one of weights into the groups: a vmap is one call.
"""

from __future__ import annotations

import functools
import importlib.metadata
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from invconv import _check, _core
from invconv._check import Corner
from invconv._extras import pip_install

try:
    import jax
except ModuleNotFoundError as error:
    if error.name != "jax":
        raise
    raise ModuleNotFoundError(f"invconv.jax needs jax: {pip_install('jax')}", name="jax") from error
import jax.numpy as jnp
from jax import Array
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import PartitionSpec

__all__ = ["conv", "logabsdet", "solve", "weight_grad"]


def _register() -> None:
    """Make the core's handlers known to XLA, which otherwise refuses them when it first starts."""
    jaxlib_version = importlib.metadata.version("jaxlib")
    built = _core.jax_ffi_version()
    again = f"build it anew: {pip_install('jax')}, with -C build.requires=jaxlib=={jaxlib_version}"
    if not built:
        raise ImportError(f"invconv.jax: this build of invconv has no handlers for jax; {again}")
    header = Path(jax.ffi.include_dir(), "xla", "ffi", "api", "c_api.h").read_text()
    found = re.findall(r"#define XLA_FFI_API_M(?:AJOR|INOR) (\d+)", header)
    if tuple(map(int, found)) < tuple(map(int, built.split("."))):
        raise ImportError(
            f"invconv.jax: this build of invconv has handlers for version {built} of XLA's foreign "
            f"function interface, but jaxlib {jaxlib_version} has {'.'.join(found)}; {again}"
        )
    for name, handler in _core.jax_handlers().items():
        jax.ffi.register_ffi_target(f"invconv_{name}", handler, platform="cpu")


_register()

_Options = dict[str, Any]


# ---- the primitives ------------------------------------------------------------------------------


def _primitive(name: str, shape: Callable[..., tuple[int, ...]]) -> Any:
    """A primitive of two arrays and an array of their dtype, computed by the core."""
    primitive = Primitive(f"invconv_{name}")

    def abstract(a: Any, b: Any, **options: Any) -> ShapedArray:
        sizes = shape(a.shape, b.shape, **options)
        if not _varying(a):
            return ShapedArray(sizes, a.dtype)
        whole = a.sharding.update(spec=PartitionSpec(*[None] * len(sizes)))
        result: ShapedArray = a.update(shape=sizes, weak_type=False, sharding=whole)
        return result

    def lower(ctx: Any, a: Any, b: Any, **options: Any) -> Any:
        corners = [_check.CORNERS.index(corner) for corner in options["corners"]]
        attributes = {
            "corners": np.array(corners, np.int64),
            "unit_diagonal": options["unit_diagonal"],
            "groups": np.int64(options["groups"]),
        }
        if "transpose" in options:
            attributes["transpose"] = options["transpose"]
        return jax.ffi.ffi_lowering(primitive.name)(ctx, a, b, **attributes)

    primitive.def_abstract_eval(abstract)
    mlir.register_lowering(primitive, lower, platform="cpu")

    @functools.cache
    def compiled(options: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
        return jax.jit(functools.partial(primitive.bind, **dict(options)))

    def compute(a: Any, b: Any, **options: Any) -> Any:
        # Without this, what is compiled here would call this again under jax.disable_jit().
        with jax.disable_jit(False):
            return compiled(tuple(options.items()))(a, b)

    primitive.def_impl(compute)
    return primitive


def _varying(aval: Any) -> frozenset[str]:
    """The axes of ``jax.shard_map``'s mesh that an array differs along."""
    # Until 0.10 it was the array's own; until 0.6 it was not known.
    kind = getattr(aval, "manual_axis_type", aval)
    axes: frozenset[str] = getattr(kind, "varying", getattr(kind, "vma", frozenset()))
    return axes


def _alike(*arrays: Any) -> tuple[Any, ...]:
    """Arrays that differ along the same axes of a mesh, as jax's own functions make them.

    Where one is the same for several devices, its derivative is the sum over these.
    """
    axes: frozenset[str] = frozenset().union(*(_varying(array.aval) for array in arrays))
    return tuple(_vary(array, tuple(sorted(axes - _varying(array.aval)))) for array in arrays)


def _vary(array: Any, axes: tuple[str, ...]) -> Any:
    if not axes:
        return array
    # Until 0.9 it had another name, which the types of later versions lack.
    older = getattr(jax.lax, "pvary", None)
    return jax.lax.pcast(array, axes, to="varying") if older is None else older(array, axes)


def _weight_shape(
    x: tuple[int, ...],
    g: tuple[int, ...],
    *,
    groups: int,
    kernel_size: tuple[int, int],
    per_sample: bool,
    **_: Any,
) -> tuple[int, ...]:
    return _check.weight_grad_shape(x, kernel_size, groups, per_sample)


_solve_p = _primitive("solve", lambda y, weight, **_: y)
_conv_p = _primitive("conv", lambda x, weight, **_: x)
_weight_grad_p = _primitive("weight_grad", _weight_shape)


def _diagonal(shape: Sequence[int], corners: tuple[str, ...]) -> tuple[np.ndarray[Any, Any], ...]:
    """Where a weight (C, C/groups, kh, kw) holds its anchor's diagonal: o, c, u and v."""
    channels, inputs = shape[-4:-2]
    o = np.arange(channels)
    group = o // max(inputs, 1)
    anchors = np.array([_check.ANCHORS[corner] for corner in corners])
    u, v = anchors[group * (len(corners) > 1)].T
    return o, o - group * inputs, u, v


def _linear(weight: Any, corners: tuple[str, ...], unit_diagonal: bool) -> Any:
    """A weight's tangent, as the weight of a convolution with ``unit_diagonal=False``.

    A diagonal that counts as 1 has the tangent 0.
    """
    if not unit_diagonal:
        return weight
    mask = np.ones(weight.shape[-4:], bool)
    mask[_diagonal(weight.shape, corners)] = False
    return jnp.where(mask, weight, jnp.zeros_like(weight))


def _is_zero(tangent: Any) -> bool:
    return isinstance(tangent, ad.Zero)


def _tangent_of_weight(
    x: Any, dw: Any, *, corners: Any, unit_diagonal: bool, **options: Any
) -> Any:
    """The part of a tangent that comes from the weight, dM x."""
    dw = _linear(dw, corners, unit_diagonal)
    return _conv_p.bind(x, dw, corners=corners, unit_diagonal=False, **options)


def _solve_jvp(primals: Any, tangents: Any, **options: Any) -> tuple[Any, Any]:
    """Of both tangents, with one solve."""
    (y, weight), (total, dw) = primals, tangents
    x = _solve_p.bind(y, weight, **options)
    if not _is_zero(dw):
        total = ad.add_tangents(total, -_tangent_of_weight(x, dw, **options))
    return x, total if _is_zero(total) else _solve_p.bind(total, weight, **options)


def _solve_transpose(g: Any, y: Any, weight: Any, *, transpose: bool, **options: Any) -> Any:
    """<g, M^-1 y> = <M^-T g, y>; the weight is never a tangent."""
    if _is_zero(g):
        return ad.Zero(y.aval), None
    return _solve_p.bind(g, weight, transpose=not transpose, **options), None


def _conv_transpose(g: Any, x: Any, weight: Any, *, transpose: bool, **options: Any) -> Any:
    """<g, M x> = <M^T g, x>, and in the weight <weight_grad(x, g), W>."""
    if isinstance(x, ad.UndefinedPrimal):
        if _is_zero(g):
            return ad.Zero(x.aval), None
        return _conv_p.bind(g, weight, transpose=not transpose, **options), None
    if _is_zero(g):
        return None, ad.Zero(weight.aval)
    # M^T is linear in the weight too: <g, M^T x> = <M g, x> swaps the two.
    x, g = (g, x) if transpose else (x, g)
    shape = weight.aval.shape
    dw = _weight_grad_p.bind(
        x, g, kernel_size=tuple(shape[-2:]), per_sample=len(shape) == 5, **options
    )
    return None, dw


def _weight_grad_transpose(
    images: Any, dw: Any, transpose: bool, *, kernel_size: Any, per_sample: bool, **options: Any
) -> Any:
    """<dw, weight_grad(x, g)> = <g, D x> with D the convolution whose weight is dw."""
    return _tangent_of_weight(images, dw, transpose=transpose, **options)


def _into_batch(array: Any, axis: int | None, size: int) -> Any:
    """(size * B, ...) from (B, ...) with a mapped axis, or without one."""
    if axis is None:
        array = jnp.broadcast_to(array, (size, *array.shape))
    else:
        array = jnp.moveaxis(array, axis, 0)
    return array.reshape(array.shape[0] * array.shape[1], *array.shape[2:])


def _into_groups(images: Any, axis: int | None, size: int) -> Any:
    """(B, size * C, H, W) from (B, C, H, W) with a mapped axis, or without one."""
    if axis is None:
        batch, *rest = images.shape
        images = jnp.broadcast_to(images[:, None], (batch, size, *rest))
    else:
        images = jnp.moveaxis(images, axis, 1)
    return images.reshape(images.shape[0], size * images.shape[2], *images.shape[3:])


def _in_groups(size: int, *, corners: tuple[str, ...], groups: int, **options: Any) -> _Options:
    """The options of ``size`` problems side by side."""
    corners = corners * size if len(corners) > 1 else corners
    return {"corners": corners, "groups": groups * size, **options}


def _mapped_size(arrays: Sequence[Any], axes: Sequence[int | None]) -> Any:
    """An integer, or a size without a value where a function is exported for any."""
    return next(a.shape[axis] for a, axis in zip(arrays, axes, strict=True) if axis is not None)


def _unmapped(array: Any, axis: int | None) -> tuple[int, ...]:
    """The shape without its mapped axis."""
    shape = list(array.shape)
    if axis is not None:
        del shape[axis]
    return tuple(shape)


def _batch_filter(primitive: Any, arrays: Any, axes: Any, **options: Any) -> tuple[Any, int]:
    images, weight = arrays
    size = _mapped_size(arrays, axes)
    shape = _unmapped(images, axes[0])
    if size == 0:  # of which no groups can be made
        return jnp.zeros((0, *shape), images.dtype), 0
    per_image = weight.ndim - (axes[1] is not None) == 5
    if per_image or axes[1] is None:
        weight = _into_batch(weight, axes[1], size) if per_image else weight
        flat = primitive.bind(_into_batch(images, axes[0], size), weight, **options)
        return flat.reshape(size, *shape), 0
    flat = primitive.bind(
        _into_groups(images, axes[0], size),
        _into_batch(weight, axes[1], size),
        **_in_groups(size, **options),
    )
    return flat.reshape(shape[0], size, *shape[1:]), 1


def _batch_weight_grad(
    arrays: Any, axes: Any, *, per_sample: bool, **options: Any
) -> tuple[Any, int]:
    size = _mapped_size(arrays, axes)
    images = _unmapped(arrays[0], axes[0])
    shape = _weight_shape(images, images, per_sample=per_sample, **options)
    if size == 0:
        return jnp.zeros((0, *shape), arrays[0].dtype), 0
    into = _into_batch if per_sample else _into_groups
    x, g = (into(a, axis, size) for a, axis in zip(arrays, axes, strict=True))
    if not per_sample:
        options = _in_groups(size, **options)
    flat = _weight_grad_p.bind(x, g, per_sample=per_sample, **options)
    return flat.reshape(size, *shape), 0


ad.primitive_jvps[_solve_p] = _solve_jvp
ad.defjvp(
    _conv_p,
    lambda dx, x, weight, **options: _conv_p.bind(dx, weight, **options),
    lambda dw, x, weight, **options: _tangent_of_weight(x, dw, **options),
)
ad.primitive_transposes[_solve_p] = _solve_transpose
ad.primitive_transposes[_conv_p] = _conv_transpose
ad.defbilinear(
    _weight_grad_p,
    lambda dw, x, g, **options: _weight_grad_transpose(g, dw, True, **options),
    lambda dw, x, g, **options: _weight_grad_transpose(x, dw, False, **options),
)
batching.primitive_batchers[_solve_p] = functools.partial(_batch_filter, _solve_p)
batching.primitive_batchers[_conv_p] = functools.partial(_batch_filter, _conv_p)
batching.primitive_batchers[_weight_grad_p] = _batch_weight_grad


# ---- the functions -------------------------------------------------------------------------------


def solve(
    y: Any,
    weight: Any,
    *,
    corner: Corner = "tl",
    unit_diagonal: bool = True,
    groups: int = 1,
    transpose: bool = False,
) -> Array:
    """:func:`invconv.solve` for jax: the x with ``conv(x, weight) == y``.

    Args:
        y: (B, C, H, W), or (C, H, W) for one image; float16, bfloat16, float32 or float64.
        weight: (C, C/groups, kh, kw), or (B, C, C/groups, kh, kw); y's dtype.
        corner: ``"tl"``, ``"tr"``, ``"bl"`` or ``"br"``, or one for each group.
        unit_diagonal: the anchor's diagonal counts as 1 and is not read.
        groups: as in ``jax.lax.conv_general_dilated``'s feature_group_count.
        transpose: solve with M^T.

    Returns:
        x, of y's shape and dtype.

    Raises:
        TypeError: other dtypes, or options of the wrong kind.
        ValueError: shapes or options that do not fit. Both when it is traced.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from invconv.jax import solve
        >>> y, weight = jnp.ones((1, 1, 1, 4)), jnp.array([-0.5, 1.0]).reshape(1, 1, 1, 2)
        >>> jax.jit(solve)(y, weight).ravel().tolist()  # x[p] = y[p] + x[p - 1] / 2
        [1.0, 1.5, 1.75, 1.875]
        >>> jax.grad(lambda y: solve(y, weight).sum())(y).ravel().tolist()
        [1.875, 1.75, 1.5, 1.0]
    """
    return _filter("solve", "y", y, weight, corner, unit_diagonal, groups, transpose)


def conv(
    x: Any,
    weight: Any,
    *,
    corner: Corner = "tl",
    unit_diagonal: bool = True,
    groups: int = 1,
    transpose: bool = False,
) -> Array:
    """:func:`invconv.conv` for jax: the causal convolution that :func:`solve` inverts.

    Arguments, result and errors are those of :func:`solve`.

    Example:
        >>> import jax.numpy as jnp
        >>> from invconv.jax import conv
        >>> weight = jnp.array([-0.5, 1.0]).reshape(1, 1, 1, 2)
        >>> conv(jnp.ones((1, 1, 4)), weight).ravel().tolist()
        [1.0, 0.5, 0.5, 0.5]
    """
    return _filter("conv", "x", x, weight, corner, unit_diagonal, groups, transpose)


def _array(function: str, name: str, value: Any) -> Array:
    array = jnp.asarray(value)
    _check.dtype(function, name, str(array.dtype), f"{name}.astype(jnp.float32)")
    return array


def _filter(
    function: str,
    name: str,
    images: Any,
    weight: Any,
    corner: Corner,
    unit_diagonal: bool,
    groups: int,
    transpose: bool,
) -> Array:
    images, weight = _alike(_array(function, name, images), _array(function, "weight", weight))
    _check.same_dtype(function, name, str(images.dtype), "weight", str(weight.dtype))
    _check.image_axes(function, name, images.shape)
    _check.weight_axes(function, weight.shape, images.ndim)
    batched = images if images.ndim == 4 else images[None]
    corners, unit_diagonal, groups, transpose = _check.filter_options(
        function, corner, unit_diagonal, groups, transpose
    )
    batch, channels = batched.shape[:2]
    _check.fitting_weight(function, weight.shape, batch, channels, groups)
    _check.fitting_corners(function, corners, groups)
    result: Array = (_solve_p if function == "solve" else _conv_p).bind(
        batched,
        weight,
        corners=corners,
        unit_diagonal=unit_diagonal,
        groups=groups,
        transpose=transpose,
    )
    return result if images.ndim == 4 else result[0]


def weight_grad(
    x: Any,
    g: Any,
    kernel_size: int | tuple[int, int],
    *,
    corner: Corner = "tl",
    unit_diagonal: bool = True,
    groups: int = 1,
    per_sample: bool = False,
) -> Array:
    """:func:`invconv.weight_grad` for jax: the derivative of ``<g, M x>`` by the weight.

    Args:
        x: (B, C, H, W), or (C, H, W) for one image.
        g: of the same shape and dtype.
        kernel_size: kh and kw, or one number for both.
        corner: as in :func:`solve`.
        unit_diagonal: as in :func:`solve`.
        groups: as in :func:`solve`.
        per_sample: one derivative for each image.

    Returns:
        (C, C/groups, kh, kw), or (B, C, C/groups, kh, kw) with ``per_sample``; 0 where the weight
        is not read.

    Raises:
        TypeError, ValueError: as :func:`solve`.

    Example:
        >>> import jax.numpy as jnp
        >>> from invconv.jax import weight_grad
        >>> weight_grad(jnp.ones((1, 1, 4)), jnp.ones((1, 1, 4)), (1, 2)).ravel().tolist()
        [3.0, 0.0]
    """
    function = "weight_grad"
    x, g = _alike(_array(function, "x", x), _array(function, "g", g))
    _check.same_dtype(function, "x", str(x.dtype), "g", str(g.dtype))
    _check.image_axes(function, "x", x.shape)
    _check.same_shape(function, "g", g.shape, "x", x.shape)
    taps, corners, unit_diagonal, groups, per_sample = _check.weight_grad_options(
        function, x.shape, kernel_size, corner, unit_diagonal, groups, per_sample
    )
    _check.fitting_corners(function, corners, groups)
    if x.ndim == 3:
        x, g = x[None], g[None]
    result: Array = _weight_grad_p.bind(
        x,
        g,
        kernel_size=taps,
        corners=corners,
        unit_diagonal=unit_diagonal,
        groups=groups,
        per_sample=per_sample,
    )
    return result


def logabsdet(
    weight: Any,
    size: int | tuple[int, int],
    *,
    corner: Corner = "tl",
    unit_diagonal: bool = True,
    groups: int = 1,
) -> Array:
    """:func:`invconv.logabsdet` for jax: ``log|det M| = H W sum log|diag(anchor)|``, a scalar.

    Args:
        weight: (C, C/groups, kh, kw).
        size: (H, W) of the images, or one number for both.
        corner: as in :func:`solve`.
        unit_diagonal: as in :func:`solve`.
        groups: as in :func:`solve`.

    Raises:
        TypeError, ValueError: as :func:`solve`.

    Example:
        >>> import jax.numpy as jnp
        >>> from invconv.jax import logabsdet
        >>> weight = jnp.array([-0.5, 2.0]).reshape(1, 1, 1, 2)
        >>> round(float(logabsdet(weight, (2, 3), unit_diagonal=False)), 4)  # 6 log 2
        4.1589
    """
    function = "logabsdet"
    weight = _array(function, "weight", weight)
    height, width, corners, unit_diagonal, groups = _check.weight_options(
        function, weight.shape, size, corner, unit_diagonal, groups
    )
    _check.fitting_weight(function, weight.shape, 1, weight.shape[0], groups)
    _check.fitting_corners(function, corners, groups)
    _check.fitting_size(function, height, width)
    if unit_diagonal or height * width == 0:
        return jnp.zeros((), weight.dtype)
    # The half types are for storage alone.
    arithmetic = jnp.promote_types(weight.dtype, jnp.float32)
    diagonal = weight[_diagonal(weight.shape, corners)].astype(arithmetic)
    return (float(height * width) * jnp.log(jnp.abs(diagonal)).sum()).astype(weight.dtype)
