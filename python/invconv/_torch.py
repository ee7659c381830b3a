"""The functions as torch operators, differentiable to any order in reverse and in forward mode.

Three layers, each for what it alone can do:

* raw operators ``torch.ops.invconv.*``, which call the compiled core, with shapes for tracing
  (``register_fake``) and no formula for gradients;
* one ``autograd.Function`` for each, whose ``backward`` and ``jvp`` call these functions again, so
  that every order of derivative comes free, and whose ``vmap`` folds the mapped axis into the batch
  or the groups;
* the Function is applied in a function that ``torch.compile`` takes into its graph whole, called by
  a plain one. (An operator with a registered formula gives zero tangents in forward mode, without
  an error; so does a Function in eager mode with the raw operator under compile.)

Each layer takes longer than a small solve. Where nothing could see a call pass through it, which
``_is_plain`` decides, the call goes past it.

The gradients of ``x = solve(y, W)`` for an incoming ``g = dL/dx`` are ``dL/dy = M^-T g`` and
``dL/dW = -weight_grad(x, dL/dy)``: one solve and one correlation.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._C import (
    DispatchKey,
    DispatchKeySet,
    _are_functorch_transforms_active,
    _dispatch_keys,
    _get_tracing_state,
    _len_torch_dispatch_stack,
    _len_torch_function_stack,
)
from torch._C._autograd import _profiler_enabled
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from invconv import _check, _core
from invconv._check import Corner

# torch's idle OpenMP threads spin; threads of our own would compete with them for the processors.
_core.share_openmp()

# ---- the raw operators ---------------------------------------------------------------------------
# A corner is one name, or one for each group joined by commas: schemas know strings.

_library = torch.library.Library("invconv", "DEF")
_FILTER = (
    "(Tensor {images}, Tensor weight, str corner, bool unit_diagonal, SymInt groups,"
    " bool transpose) -> Tensor"
)
_library.define("solve" + _FILTER.format(images="y"), tags=torch.Tag.pt2_compliant_tag)
_library.define("conv" + _FILTER.format(images="x"), tags=torch.Tag.pt2_compliant_tag)
_library.define(
    "weight_grad(Tensor x, Tensor g, SymInt kh, SymInt kw, str corner, bool unit_diagonal,"
    " SymInt groups, bool per_sample=False) -> Tensor",
    tags=torch.Tag.pt2_compliant_tag,
)


def _check_kinds(function: str, first: str, a: Any, second: str, b: Any) -> None:
    """Check that both are tensors, as one of them is."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return
    name, other = (second, b) if isinstance(a, Tensor) else (first, a)
    hint = ""
    if isinstance(other, np.ndarray):
        hint = f"; torch.from_numpy({name}) makes a tensor"
    elif isinstance(other, (list, tuple)):
        hint = f"; torch.tensor({name}) makes a tensor"
    raise TypeError(
        f"[{function}] expected {first} and {second} of one kind, "
        f"but got {_kind_name(a)} and {_kind_name(b)}{hint}"
    )


def _kind_name(array: Any) -> str:
    if isinstance(array, Tensor):
        return "a torch tensor"
    return "a numpy array" if isinstance(array, np.ndarray) else type(array).__name__


def _check_tensor(function: str, name: str, tensor: Tensor) -> None:
    """Check layout, device and dtype."""
    if tensor.layout is not torch.strided:
        raise TypeError(f"[{function}] expected {name} to be dense, but got {tensor.layout}")
    if tensor.is_cuda:
        _check.cuda_kernels(function, name, str(tensor.device))
    elif not tensor.is_cpu and not tensor.is_meta:
        raise ValueError(
            f"[{function}] expected tensors on the CPU or a CUDA device, "
            f"but got {name} on {tensor.device}"
        )
    _check.dtype(function, name, _dtype_name(tensor), f"{name}.float()")


def _check_dtypes(function: str, first: str, a: Tensor, second: str, b: Tensor) -> None:
    _check.same_dtype(function, first, _dtype_name(a), second, _dtype_name(b))


# A look-up, since str() of a dtype takes as long as a small solve.
_DTYPE_NAMES = {getattr(torch, name): name for name in _check.DTYPES}


def _check_device(function: str, name: str, tensor: Tensor, other: str, like: Tensor) -> None:
    if tensor.device != like.device:
        raise TypeError(
            f"[{function}] expected {other} and {name} on one device, "
            f"but got {like.device} and {tensor.device}"
        )


def _dtype_name(tensor: Tensor) -> str:
    name = _DTYPE_NAMES.get(tensor.dtype)
    return str(tensor.dtype).removeprefix("torch.") if name is None else name


def _autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Under autocast the half types become float32, as in torch's own solvers.

    Here and not below the autograd Functions, so that what they save has the dtype of their output.
    """
    halves = (torch.float16, torch.bfloat16)
    if not any([t.dtype in halves for t in tensors]):
        return tensors
    device = tensors[0].device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return tensors
    return tuple(t.float() if t.dtype in halves else t for t in tensors)


def without_autocast(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """A context in which arithmetic on the tensor's device has the dtype of its operands."""
    device = tensor.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()


# (In torch, assume_constant_result has no types to check.)
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def rounds_factors() -> bool:
    """Whether torch may round the factors of products in float32, as TF32 does."""
    try:
        return torch.get_float32_matmul_precision() != "highest"
    except RuntimeError:  # set under torch's newer names, to what the older one cannot say
        return True


def has_values(tensor: Tensor) -> bool:
    """Whether there are numbers behind a tensor, and not its shape alone."""
    return not tensor.is_meta and not isinstance(tensor, FakeTensor)


def _plain_keys(device: str) -> tuple[DispatchKeySet, DispatchKeySet]:
    """The keys of a dense tensor without a lazy minus sign, wrapper or other extra.

    By them torch dispatches. Of tensors made outside of inference mode, and in it.
    """
    keys = DispatchKeySet(getattr(DispatchKey, device))
    inference = keys.add(getattr(DispatchKey, f"Autocast{device}"))
    autograd = getattr(DispatchKey, f"Autograd{device}")
    return inference.add(DispatchKey.ADInplaceOrView).add(autograd), inference


_PLAIN_ON_CPU = _plain_keys("CPU")
_PLAIN = (*_PLAIN_ON_CPU, *_plain_keys("CUDA"))
# Not their subclasses, which may have a say in what functions do.
_PLAIN_TYPES = (Tensor, torch.nn.Parameter)


def _is_plain(*tensors: Any, keys: tuple[DispatchKeySet, ...] = _PLAIN) -> bool:
    """Whether only the core needs to see a call: ordinary tensors, and nothing watches.

    What watches is torch.compile, a tracer, a mode, the profiler, forward mode, and a transform of
    torch.func, also where the tensors are not those that it wraps. Reverse mode does where
    gradients are recorded: see ``_records``.
    """
    if (
        is_compiling()
        or _are_functorch_transforms_active()
        or _get_tracing_state() is not None
        or _len_torch_function_stack() > 0
        or _len_torch_dispatch_stack() > 0
        or _profiler_enabled()
        or forward_ad._current_level >= 0
    ):
        return False
    for tensor in tensors:
        if type(tensor) not in _PLAIN_TYPES or _dispatch_keys(tensor) not in keys:
            return False
    return True


def _records(*tensors: Tensor) -> bool:
    """Whether reverse mode records what is computed from these tensors."""
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor.requires_grad:
                return True
    return False


def _described(tensor: Tensor) -> tuple[int, str | None, tuple[int, ...], tuple[int, ...]]:
    return tensor.data_ptr(), _DTYPE_NAMES.get(tensor.dtype), tensor.shape, tensor.stride()


def _itself(tensor: Tensor) -> Tensor:
    return tensor


# What the core is given for a tensor without a lazy minus sign: older versions of torch cannot tell
# compiled code where one lies, and DLPack's capsules take longer.
_memory: Callable[[Tensor], Any] = _itself if _core.use_exchange_table(Tensor) else _described


def _corners(corner: str) -> str | tuple[str, ...]:
    return tuple(corner.split(",")) if "," in corner else corner


_ARGUMENTS = {"solve": ("y", "weight"), "conv": ("x", "weight"), "weight_grad": ("x", "g")}


def _run(function: str, a: Tensor, b: Tensor, out: Tensor, corner: str, *options: Any) -> Tensor:
    """Call the core on tensors with values, and return ``out``."""
    # Names, so that what the addresses point to lives as long as the call.
    a_, b_ = a.resolve_neg(), b.resolve_neg()
    weight = out if function == "weight_grad" else b
    done = _call(function, (a_, b_, out), weight, _corners(corner), *options)
    if not done:
        first, second = _ARGUMENTS[function]
        _check_tensor(function, first, a)
        _check_tensor(function, second, b)
        _check_dtypes(function, first, a, second, b)
        _check_device(function, second, b, first, a)
        raise TypeError(
            f"[{function}] expected {first} and {second} with 4 axes each and memory of their own, "
            f"but got tensors of the shapes {tuple(a.shape)} and {tuple(b.shape)}"
        )
    return out


def _call(function: str, tensors: tuple[Tensor, ...], weight: Tensor, *options: Any) -> bool:
    """Call the core where the tensors are, and say whether it could; the first is the images."""
    run = getattr(_core, function)
    arguments = (*map(_memory, tensors), *options)
    if all([t.is_cpu for t in tensors]):
        return bool(run(*arguments))
    device = tensors[0].device
    if device.type != "cuda" or any([t.device != device for t in tensors]):
        return False
    # torch's guard: it makes no context on a device that is not in use.
    with torch.cuda.device(device):
        workspace = _workspace(function, tensors[0], weight.shape, options[2])
        stream = torch.cuda.current_stream(device).cuda_stream
        where = (device.index, stream, workspace.data_ptr(), workspace.nbytes)
        return bool(run(*arguments, where))


def _workspace(function: str, images: Tensor, weight: torch.Size, groups: int) -> Tensor:
    """The memory that a call needs on a device; torch gives it out again in the stream's order."""
    size = 0
    dtype = _dtype_name(images)
    if images.dim() == 4 and len(weight) in (4, 5) and dtype in _check.DTYPES:
        shapes = (tuple(images.shape), tuple(weight))
        _check.fitting_weight(function, shapes[1], images.shape[0], images.shape[1], groups)
        size = _core.workspace_size(function, dtype, *shapes, groups, images.device.index)
    return torch.empty(size, dtype=torch.uint8, device=images.device)


def _raw_solve(y: Tensor, weight: Tensor, *options: Any) -> Tensor:
    return _run("solve", y, weight, torch.empty_like(y), *options)


def _raw_conv(x: Tensor, weight: Tensor, *options: Any) -> Tensor:
    return _run("conv", x, weight, torch.empty_like(x), *options)


def _raw_weight_grad(
    x: Tensor,
    g: Tensor,
    kh: int,
    kw: int,
    corner: str,
    unit_diagonal: bool,
    groups: int,
    per_sample: bool = False,
) -> Tensor:
    dw = _fake_weight_grad(x, g, kh, kw, corner, unit_diagonal, groups, per_sample)
    return _run("weight_grad", x, g, dw, corner, unit_diagonal, groups)


def _fake_filter(function: str, images: Tensor, weight: Tensor, *options: Any) -> Tensor:
    corner, _, groups, _ = options
    batch, channels, *_ = images.shape
    _check.fitting_weight(function, tuple(weight.shape), batch, channels, groups)
    _check.fitting_corners(function, tuple(corner.split(",")), groups)
    return torch.empty_like(images)


def _fake_solve(y: Tensor, weight: Tensor, *options: Any) -> Tensor:
    return _fake_filter("solve", y, weight, *options)


def _fake_conv(x: Tensor, weight: Tensor, *options: Any) -> Tensor:
    return _fake_filter("conv", x, weight, *options)


def _fake_weight_grad(
    x: Tensor,
    g: Tensor,
    kh: int,
    kw: int,
    corner: str,
    unit_diagonal: bool,
    groups: int,
    per_sample: bool = False,
) -> Tensor:
    return x.new_empty(_check.weight_grad_shape(x.shape, (kh, kw), groups, per_sample))


_Raw = Callable[..., Tensor]
_RAW: dict[str, _Raw] = {
    "solve": _raw_solve,
    "conv": _raw_conv,
    "weight_grad": _raw_weight_grad,
}
_FAKE: dict[str, _Raw] = {
    "solve": _fake_solve,
    "conv": _fake_conv,
    "weight_grad": _fake_weight_grad,
}
for _name in _RAW:
    _library.impl(_name, _RAW[_name], "CPU")
    _library.impl(_name, _RAW[_name], "CUDA")
    torch.library.register_fake(f"invconv::{_name}", _FAKE[_name], lib=_library)


def _operate(function: str, a: Tensor, b: Tensor, *options: Any) -> Tensor:
    """The raw operator, without torch's dispatcher where that would only pass the call on."""
    run: _Raw = _RAW[function] if _is_plain(a, b) else getattr(torch.ops.invconv, function)
    return run(a, b, *options)


# ---- gradients -----------------------------------------------------------------------------------


def _linear_weight(weight: Tensor, corner: str, unit_diagonal: bool, groups: int) -> Tensor:
    """A weight's derivative, as the weight of a convolution with ``unit_diagonal=False``.

    A diagonal that counts as 1 has the derivative 0.
    """
    if not unit_diagonal:
        return weight
    mask = torch.ones(weight.shape[-4:], dtype=torch.bool, device=weight.device)
    mask[_diagonal_index(weight, corner, groups)] = False
    return torch.where(mask, weight, 0.0)


def _diagonal_index(weight: Tensor, corner: str, groups: int) -> tuple[Tensor, ...]:
    """Where a weight holds the diagonal of its anchor: o, c, u and v of its C entries."""
    channels, inputs = weight.shape[-4:-2]
    anchors = [_check.ANCHORS[name] for name in corner.split(",")]
    # Filled on the device: a copy from the host could not be captured in a graph.
    size = channels if len(anchors) == 1 else inputs

    def fill(value: int) -> Tensor:
        return torch.full((size,), value, device=weight.device)

    rows = [fill(row) for row, _ in anchors]
    columns = [fill(column) for _, column in anchors]
    o = torch.arange(channels, device=weight.device)
    group = o // max(inputs, 1)
    return o, o - group * inputs, torch.cat(rows), torch.cat(columns)


def _plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return a + b


def _into_groups(images: Tensor, dim: int | None, batch: int) -> Tensor:
    """Images of shape (B, batch * C, H, W) from (B, C, H, W) with a mapped axis, or without one."""
    if dim is None:
        return images.unsqueeze(1).expand(-1, batch, -1, -1, -1).flatten(1, 2)
    return images.movedim(dim, 1).flatten(1, 2)


def _mapped_first(tensor: Tensor, dim: int | None, batch: int) -> Tensor:
    """A tensor of shape (batch, B, ...) from (B, ...) with a mapped axis, or without one."""
    return tensor.expand(batch, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _repeat_corner(corner: str, times: int) -> str:
    return ",".join([corner] * times) if "," in corner else corner


def _vmap_filter(
    apply: Any, batch: int, in_dims: tuple[Any, ...], images: Tensor, weight: Tensor, *options: Any
) -> tuple[Tensor, int]:
    """Map over images by folding them into the batch, over weights by folding both into groups.

    Where each image has its own weight, both go into the batch.
    """
    images_dim, weight_dim = in_dims[:2]
    corner, unit_diagonal, groups, transpose = options
    per_image = weight.dim() - (weight_dim is not None) == 5
    if per_image or weight_dim is None:
        images = _mapped_first(images, images_dim, batch)
        if per_image:
            weight = _mapped_first(weight, weight_dim, batch).flatten(0, 1)
        flat = apply(images.flatten(0, 1), weight, *options)
        return flat.unflatten(0, images.shape[:2]), 0
    weight = weight.movedim(weight_dim, 0)
    flat = apply(
        _into_groups(images, images_dim, batch),
        weight.flatten(0, 1),
        _repeat_corner(corner, batch),
        unit_diagonal,
        groups * batch,
        transpose,
    )
    return flat.unflatten(1, weight.shape[:2]), 1


@contextlib.contextmanager
def _nested_forward_mode(ctx: Any) -> Iterator[tuple[Tensor, ...]]:
    """What a jvp saved, inside of which forward mode goes on for the levels outside of it.

    torch switches forward mode off in a Function's jvp, so that the tangents of an outer level
    would be lost without an error. With it on, the saved tensors must not bring the tangents of
    the present level, which are the jvp's arguments.
    """
    with forward_ad._set_fwd_grad_enabled(True):
        yield tuple(forward_ad.unpack_dual(t, level=0).primal for t in ctx.saved_tensors)


class _Solve(torch.autograd.Function):
    """x = M^-1 y, or M^-T y."""

    @staticmethod
    def forward(y: Tensor, weight: Tensor, *options: Any) -> Tensor:
        return _operate("solve", y, weight, *options)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, weight, *ctx.options = inputs
        ctx.save_for_backward(output, weight)
        ctx.save_for_forward(output, weight)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        (g,) = grads
        if g is None:
            return (None,) * 6
        x, weight = ctx.saved_tensors
        corner, unit_diagonal, groups, transpose = ctx.options
        if ctx.needs_input_grad[1] and _is_plain(x, g, weight) and not _records(x, g, weight):
            both = torch.empty_like(x), torch.empty_like(weight)
            options = (_corners(corner), unit_diagonal, groups, transpose)
            if _call("solve_backward", (x, g, weight, *both), weight, *options):
                return *both, None, None, None, None
        dy = _solve(g, weight, corner, unit_diagonal, groups, not transpose)
        dw = None
        if ctx.needs_input_grad[1]:
            # M^T is linear in the weight too: <g, M^T x> = <M g, x> swaps the two.
            a, b = (dy, x) if transpose else (x, dy)
            dw = -_weight_grad_like(weight, a, b, corner, unit_diagonal, groups)
        return dy if ctx.needs_input_grad[0] else None, dw, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor | None:
        dy, dw = tangents[:2]
        corner, unit_diagonal, groups, transpose = ctx.options
        with _nested_forward_mode(ctx) as (x, weight):
            total = dy
            if dw is not None:
                dw = _linear_weight(dw, corner, unit_diagonal, groups)
                total = _plus(dy, -_conv(x, dw, corner, False, groups, transpose))
            return None if total is None else _solve(total, weight, *ctx.options)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
        return _vmap_filter(_solve, info.batch_size, in_dims, *args)


class _Conv(torch.autograd.Function):
    """y = M x, or M^T x."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, *options: Any) -> Tensor:
        return _operate("conv", x, weight, *options)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, *ctx.options = inputs
        ctx.save_for_backward(x, weight)
        ctx.save_for_forward(x, weight)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        (g,) = grads
        if g is None:
            return (None,) * 6
        x, weight = ctx.saved_tensors
        corner, unit_diagonal, groups, transpose = ctx.options
        dx = dw = None
        if ctx.needs_input_grad[0]:
            dx = _conv(g, weight, corner, unit_diagonal, groups, not transpose)
        if ctx.needs_input_grad[1]:
            a, b = (g, x) if transpose else (x, g)
            dw = _weight_grad_like(weight, a, b, corner, unit_diagonal, groups)
        return dx, dw, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor | None:
        dx, dw = tangents[:2]
        corner, unit_diagonal, groups, transpose = ctx.options
        with _nested_forward_mode(ctx) as (x, weight):
            mdx = dmx = None
            if dx is not None:
                mdx = _conv(dx, weight, *ctx.options)
            if dw is not None:
                dw = _linear_weight(dw, corner, unit_diagonal, groups)
                dmx = _conv(x, dw, corner, False, groups, transpose)
            return _plus(mdx, dmx)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
        return _vmap_filter(_conv, info.batch_size, in_dims, *args)


class _WeightGrad(torch.autograd.Function):
    """dw = the derivative of <g, M x> with respect to the weight: linear in x and in g."""

    @staticmethod
    def forward(x: Tensor, g: Tensor, *options: Any) -> Tensor:
        return _operate("weight_grad", x, g, *options)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, g, *ctx.options = inputs
        ctx.save_for_backward(x, g)
        ctx.save_for_forward(x, g)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        (dw,) = grads
        if dw is None:
            return (None,) * 8
        x, g = ctx.saved_tensors
        _, _, corner, unit_diagonal, groups, _ = ctx.options
        # <dw, weight_grad(x, g)> = <g, D x> with D the convolution whose weight is dw.
        dw = _linear_weight(dw, corner, unit_diagonal, groups)
        dx = dg = None
        if ctx.needs_input_grad[0]:
            dx = _conv(g, dw, corner, False, groups, True)
        if ctx.needs_input_grad[1]:
            dg = _conv(x, dw, corner, False, groups, False)
        return dx, dg, None, None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor | None:
        dx, dg = tangents[:2]
        with _nested_forward_mode(ctx) as (x, g):
            return _plus(
                None if dx is None else _weight_grad(dx, g, *ctx.options),
                None if dg is None else _weight_grad(x, dg, *ctx.options),
            )

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], x: Tensor, g: Tensor, *options: Any
    ) -> tuple[Tensor, int]:
        kh, kw, corner, unit_diagonal, groups, per_sample = options
        batch = info.batch_size
        if per_sample:
            x, g = _mapped_first(x, in_dims[0], batch), _mapped_first(g, in_dims[1], batch)
            flat = _weight_grad(x.flatten(0, 1), g.flatten(0, 1), *options)
            return flat.unflatten(0, x.shape[:2]), 0
        x, g = _into_groups(x, in_dims[0], batch), _into_groups(g, in_dims[1], batch)
        flat = _weight_grad(
            x, g, kh, kw, _repeat_corner(corner, batch), unit_diagonal, groups * batch, False
        )
        return flat.unflatten(0, (batch, flat.shape[0] // batch)), 0


def _apply(function: str, derived: Any, a: Tensor, b: Tensor, *options: Any) -> Tensor:
    """Function.apply, or of it what a plain call needs."""
    result: Tensor
    if not _is_plain(a, b):
        result = derived.apply(a, b, *options)
    elif _records(a, b):
        result = _apply_plain(derived, a, b, *options)
    else:
        result = _RAW[function](a, b, *options)
    return result


def _apply_plain(derived: Any, *arguments: Any) -> Any:
    """Function.apply without the look at a signature for defaults, which takes 17 microseconds."""
    return super(torch.autograd.Function, derived).apply(*arguments)


def _plain_forward(function: str, ctx: Any, images: Tensor, weight: Tensor, *options: Any) -> Any:
    """The result for plain tensors on the CPU, or None where the core does not take the arguments.

    Saves for ``backward`` what that expects.
    """
    result = torch.empty_like(images)
    if not getattr(_core, function)(_memory(images), _memory(weight), _memory(result), *options):
        return None
    corner, *others = options
    ctx.options = (corner if isinstance(corner, str) else ",".join(corner), *others)
    ctx.save_for_backward(result if function == "solve" else images, weight)
    ctx.set_materialize_grads(False)
    return result


class _PlainSolve(torch.autograd.Function):
    """_Solve in one step, for where _plain_forward will do."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, weight: Tensor, *options: Any) -> Any:
        return _plain_forward("solve", ctx, y, weight, *options)

    backward = _Solve.backward


class _PlainConv(torch.autograd.Function):
    """_Conv in one step, for where _plain_forward will do."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, *options: Any) -> Any:
        return _plain_forward("conv", ctx, x, weight, *options)

    backward = _Conv.backward


def bounded_by_core(recorded: Any, taps: Tensor, *options: Any) -> Tensor | None:
    """``(I + L)(I + V)`` of :class:`invconv.nn.InverseConv2d`, or None where torch must derive it.

    Where a gradient is recorded, through ``recorded``, a torch.autograd.Function whose forward is
    :func:`bounded`.
    """
    if not _is_plain(taps, keys=_PLAIN_ON_CPU):
        return None
    if not _records(taps):
        return bounded(taps, *options)
    result: Tensor | None = _apply_plain(recorded, taps, *options)
    return result


def bounded(taps: Tensor, *options: Any) -> Tensor | None:
    """The same of plain taps that nothing records."""
    weight = torch.empty_like(taps)
    return weight if _core.bounded_weight(_memory(taps), _memory(weight), *options) else None


# torch.compile takes each of these into its graph as one operation and does not look inside.
# (In torch, allow_in_graph has no types to check.)
@torch.compiler.allow_in_graph  # type: ignore[untyped-decorator]
def _solve(y: Tensor, weight: Tensor, *options: Any) -> Tensor:
    return _apply("solve", _Solve, y, weight, *options)


@torch.compiler.allow_in_graph  # type: ignore[untyped-decorator]
def _conv(x: Tensor, weight: Tensor, *options: Any) -> Tensor:
    return _apply("conv", _Conv, x, weight, *options)


@torch.compiler.allow_in_graph  # type: ignore[untyped-decorator]
def _weight_grad(x: Tensor, g: Tensor, *options: Any) -> Tensor:
    return _apply("weight_grad", _WeightGrad, x, g, *options)


def _weight_grad_like(weight: Tensor, x: Tensor, g: Tensor, *options: Any) -> Tensor:
    """The derivative with respect to this weight, or to one for each image."""
    result: Tensor = _weight_grad(x, g, *weight.shape[-2:], *options, weight.dim() == 5)
    return result


# ---- the functions behind invconv.solve and its fellows ------------------------------------------


def filter(
    function: str,
    name: str,
    images: Tensor,
    weight: Tensor,
    out: Tensor | None,
    options: tuple[Corner, bool, int, bool],
) -> Tensor:
    """See :func:`invconv.solve` and :func:`invconv.conv`."""
    tensors = (images, weight) if out is None else (images, weight, out)
    if _is_plain(*tensors, keys=_PLAIN_ON_CPU) and not torch.is_autocast_enabled("cpu"):
        if not _records(*tensors):
            result = torch.empty_like(images) if out is None else out
            run = _core.solve if function == "solve" else _core.conv
            if run(_memory(images), _memory(weight), _memory(result), *options):
                if out is not None:
                    torch.autograd.graph.increment_version(out)
                return result
        elif (
            out is None and images.dim() == 4
        ):  # as backward wants them; the core takes one image too
            derived = _PlainSolve if function == "solve" else _PlainConv
            recorded: Tensor | None = _apply_plain(derived, images, weight, *options)
            if recorded is not None:
                return recorded
    return _filter(function, name, images, weight, out, *options)


def _filter(
    function: str,
    name: str,
    images: Tensor,
    weight: Tensor,
    out: Tensor | None,
    corner: Corner,
    unit_diagonal: bool,
    groups: int,
    transpose: bool,
) -> Tensor:
    """What ``filter`` does with tensors that are not plain, need a gradient or do not fit."""
    _check_kinds(function, name, images, "weight", weight)
    _check_tensor(function, name, images)
    _check_tensor(function, "weight", weight)
    _check_device(function, "weight", weight, name, images)
    _check.image_axes(function, name, images.shape)
    _check.weight_axes(function, weight.shape, images.dim())
    corners, *others = _check.filter_options(function, corner, unit_diagonal, groups, transpose)
    options = (",".join(corners), *others)
    if out is not None:
        _write_filter(function, name, images, weight, out, *options)
        return out
    batched = images if images.dim() == 4 else images.unsqueeze(0)
    apply = _solve if function == "solve" else _conv
    result: Tensor = apply(*_autocast(batched, weight), *options)
    return result if images.dim() == 4 else result.squeeze(0)


def _write_filter(
    function: str,
    name: str,
    images: Tensor,
    weight: Tensor,
    out: Tensor,
    *options: Any,
) -> None:
    _check_dtypes(function, name, images, "weight", weight)
    _check_kinds(function, name, images, "out", out)
    _check_tensor(function, "out", out)
    _check_dtypes(function, name, images, "out", out)
    _check_device(function, "out", out, name, images)
    _check.same_shape(function, "out", tuple(out.shape), name, tuple(images.shape))
    if _records(images, weight, out):
        raise ValueError(
            f"[{function}] expected tensors that do not require a gradient together with out=, "
            "which autograd cannot follow, but got one that does"
        )
    _check.own_places(function, "out", tuple(out.shape), out.stride())
    target = out.detach()
    same_view = target.data_ptr() == images.data_ptr() and target.stride() == images.stride()
    # Two storages may share memory too, as views of one numpy array do.
    ours, theirs = target.untyped_storage(), images.untyped_storage()
    overlaps = (
        ours.data_ptr() < theirs.data_ptr() + theirs.nbytes()
        and theirs.data_ptr() < ours.data_ptr() + ours.nbytes()
    )
    # Written into memory of its own where that is not simply the input's, in place.
    if target.is_neg() or (overlaps and not same_view):
        target = torch.empty_like(images, requires_grad=False)
    _run(function, images.detach(), weight.detach(), target, *options)
    if target.data_ptr() != out.data_ptr() or out.is_neg():
        out.detach().copy_(target)
    else:
        # So that autograd notices if it has saved what was there.
        torch.autograd.graph.increment_version(out)


def weight_grad(
    x: Tensor,
    g: Tensor,
    kernel_size: int | tuple[int, int],
    corner: Corner,
    unit_diagonal: bool,
    groups: int,
    per_sample: bool,
) -> Tensor:
    """See :func:`invconv.weight_grad`."""
    function = "weight_grad"
    _check_kinds(function, "x", x, "g", g)
    _check_tensor(function, "x", x)
    _check_tensor(function, "g", g)
    _check_device(function, "g", g, "x", x)
    _check.image_axes(function, "x", x.shape)
    _check.same_shape(function, "g", tuple(g.shape), "x", tuple(x.shape))
    (kh, kw), corners, *others = _check.weight_grad_options(
        function, x.shape, kernel_size, corner, unit_diagonal, groups, per_sample
    )
    if x.dim() == 3:
        x, g = x.unsqueeze(0), g.unsqueeze(0)
    result: Tensor = _weight_grad(*_autocast(x, g), kh, kw, ",".join(corners), *others)
    return result


def logabsdet(
    weight: Tensor, size: int | tuple[int, int], corner: Corner, unit_diagonal: bool, groups: int
) -> Tensor:
    """See :func:`invconv.logabsdet`. A composition of torch's own operators."""
    function = "logabsdet"
    _check_tensor(function, "weight", weight)
    height, width, names, unit_diagonal, groups = _check.weight_options(
        function, weight.shape, size, corner, unit_diagonal, groups
    )
    # In Python, since torch.compile cannot look into the core.
    _check.fitting_weight(function, tuple(weight.shape), 1, weight.shape[0], groups)
    _check.fitting_corners(function, names, groups)
    _check.fitting_size(function, height, width)
    if unit_diagonal or height * width == 0:
        # A sum of nothing: connected to the weight, with a gradient of exactly 0.
        return weight[:0].sum()
    diagonal = weight[_diagonal_index(weight, ",".join(names), groups)]
    # The half types are for storage alone.
    arithmetic = torch.promote_types(weight.dtype, torch.float32)
    return (height * width * diagonal.to(arithmetic).abs().log().sum()).to(weight.dtype)


def growth(
    weight: Tensor, size: int | tuple[int, int], corner: Corner, unit_diagonal: bool, groups: int
) -> float:
    """See :func:`invconv.growth`."""
    function = "growth"
    _check_tensor(function, "weight", weight)
    if not has_values(weight):
        raise TypeError(f"[{function}] expected weight with values, but got a meta or fake tensor")
    options = _check.weight_options(function, weight.shape, size, corner, unit_diagonal, groups)
    weight = weight.detach().cpu().resolve_neg()
    norm = _core.growth(_memory(weight), *options)
    assert norm is not None  # it has been checked
    return norm
