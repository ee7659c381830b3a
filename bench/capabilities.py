"""What a torch operator should be able to do: each entry a function that raises where it cannot.

The tests run the list on our operators, and ``python -m bench operators`` on the field's as well.
Values are compared with a reference in plain torch operations, which torch differentiates in
reverse mode, in float64.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, multiprocessing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

Function = Callable[..., Tensor]

# Sums of at most 100 products of order 1 to 10, and a solve whose inverse has a norm below 10, at
# most twice in a gradient and four times in a Hessian.
CLOSE: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}


@dataclass(frozen=True)
class Operator:
    """A function of tensors that have gradients, and all of which have small float64 examples."""

    function: Function
    reference: Function
    inputs: Callable[[], tuple[Tensor, ...]]
    batched: tuple[int, ...] = (0,)  # the inputs whose first axis is the batch
    registered: bool = True  # False: a composition of torch's own operators

    def loss(self, *inputs: Tensor) -> Tensor:
        """A scalar that is not linear in the result."""
        return (self.function(*inputs) ** 2).sum()

    def reference_loss(self, *inputs: Tensor) -> Tensor:
        """The same of the reference."""
        return (self.reference(*inputs) ** 2).sum()

    @property
    def places(self) -> tuple[int, ...]:
        """The places of the inputs."""
        return tuple(range(len(self.inputs())))

    def leaves(self) -> tuple[Tensor, ...]:
        """The example inputs, with gradients."""
        return tuple(t.detach().clone().requires_grad_() for t in self.inputs())

    def gradients(self) -> tuple[Tensor, ...]:
        """Of the reference's loss."""
        leaves = self.leaves()
        return torch.autograd.grad(self.reference_loss(*leaves), leaves)


def _same(results: Any, expected: Any, **tolerance: Any) -> None:
    torch.testing.assert_close(results, expected, **(tolerance or CLOSE))


def _tangents(op: Operator) -> tuple[Tensor, ...]:
    return tuple(torch.cos(torch.arange(t.numel()).to(t)).view(t.shape) for t in op.inputs())


def _directional(op: Operator) -> Tensor:
    """The derivative of the reference's loss along the tangents."""
    return torch.stack(
        [(g * v).sum() for g, v in zip(op.gradients(), _tangents(op), strict=True)]
    ).sum()


def _samples(op: Operator, count: int = 3) -> list[tuple[Tensor, ...]]:
    return [tuple(t * (1 + 0.01 * k) for t in op.inputs()) for k in range(count)]


def _stacked(op: Operator) -> tuple[Tensor, ...]:
    return tuple(torch.stack(column) for column in zip(*_samples(op), strict=True))


# ---- differentiation -----------------------------------------------------------------------------


def backward(op: Operator) -> None:
    """``loss.backward()``."""
    leaves = op.leaves()
    op.loss(*leaves).backward()
    _same(op.function(*op.inputs()), op.reference(*op.inputs()))
    _same(tuple(t.grad for t in leaves), op.gradients())


def gradcheck_(op: Operator) -> None:
    """First derivatives against finite differences, in both modes and batched."""
    assert gradcheck(
        op.function,
        op.leaves(),
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )


def gradgradcheck_(op: Operator) -> None:
    """Second derivatives against finite differences, and forward over reverse."""
    assert gradgradcheck(op.function, op.leaves(), check_fwd_over_rev=True, check_batched_grad=True)


# ---- torch.func ----------------------------------------------------------------------------------


def func_grad(op: Operator) -> None:
    """``torch.func.grad``."""
    _same(torch.func.grad(op.loss, argnums=op.places)(*op.inputs()), op.gradients())


def func_vjp(op: Operator) -> None:
    """``torch.func.vjp``."""
    result, pullback = torch.func.vjp(op.function, *op.inputs())[:2]
    _same(result, op.reference(*op.inputs()))
    _same(pullback(2 * result), op.gradients())


def func_jvp(op: Operator) -> None:
    """``torch.func.jvp``."""
    result, tangent = torch.func.jvp(op.loss, op.inputs(), _tangents(op))[:2]
    _same(result, op.reference_loss(*op.inputs()))
    _same(tangent, _directional(op))


def _jacobian(op: Operator) -> Any:
    return torch.autograd.functional.jacobian(op.reference, op.inputs())


def func_jacrev(op: Operator) -> None:
    """``torch.func.jacrev``."""
    _same(torch.func.jacrev(op.function, argnums=op.places)(*op.inputs()), _jacobian(op))


def func_jacfwd(op: Operator) -> None:
    """``torch.func.jacfwd``."""
    _same(torch.func.jacfwd(op.function, argnums=op.places)(*op.inputs()), _jacobian(op))


def func_hessian(op: Operator) -> None:
    """``torch.func.hessian``."""
    expected = torch.autograd.functional.hessian(op.reference_loss, op.inputs())
    _same(torch.func.hessian(op.loss, argnums=op.places)(*op.inputs()), expected)


def func_vmap(op: Operator) -> None:
    """``torch.func.vmap`` over all inputs."""
    expected = torch.stack([op.reference(*sample) for sample in _samples(op)])
    _same(torch.func.vmap(op.function)(*_stacked(op)), expected)


def func_vmap_of_grad(op: Operator) -> None:
    """``torch.func.vmap(torch.func.grad(...))``: gradients per sample."""
    grads = torch.func.vmap(torch.func.grad(op.loss, argnums=op.places))(*_stacked(op))
    for k, sample in enumerate(_samples(op)):
        leaves = tuple(t.detach().requires_grad_() for t in sample)
        expected = torch.autograd.grad(op.reference_loss(*leaves), leaves)
        _same(tuple(g[k] for g in grads), expected)


# ---- torch.compile and torch.export --------------------------------------------------------------


def _compiled(function: Function, backend: str = "aot_eager", **options: Any) -> Function:
    torch.compiler.reset()
    compiled: Function = torch.compile(function, backend=backend, fullgraph=True, **options)
    return compiled


def _forward_and_backward(op: Operator, backend: str) -> None:
    # Something for the compiler to work on, on both sides of the operator.
    def model(*inputs: Tensor) -> Tensor:
        return torch.tanh(op.function(*(t * 0.5 + 0.5 * t for t in inputs)))

    compiled = _compiled(model, backend)
    ours, theirs = op.leaves(), op.leaves()
    result, expected = compiled(*ours), torch.tanh(op.reference(*theirs))
    _same(result, expected)
    result.sum().backward()
    expected.sum().backward()
    _same(tuple(t.grad for t in ours), tuple(t.grad for t in theirs))


def compile_aot_eager(op: Operator) -> None:
    """``torch.compile(fullgraph=True, backend="aot_eager")``, forward and backward."""
    _forward_and_backward(op, "aot_eager")


def compile_inductor(op: Operator) -> None:
    """``torch.compile(fullgraph=True)``, forward and backward."""
    _forward_and_backward(op, "inductor")


def _of_batch(op: Operator, times: int) -> tuple[Tensor, ...]:
    """The example inputs with a longer batch."""
    return tuple(
        torch.cat([t] * times) if k in op.batched else t for k, t in enumerate(op.inputs())
    )


def compile_dynamic_shapes(op: Operator) -> None:
    """``torch.compile(dynamic=True)``: one graph for batches of any length."""
    graphs = []

    def count(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    compiled = torch.compile(op.function, backend=count, fullgraph=True, dynamic=True)
    for times in (2, 3, 5):
        _same(compiled(*_of_batch(op, times)), op.reference(*_of_batch(op, times)))
    assert len(graphs) == 1, f"{len(graphs)} graphs"
    # And with the backward graph, whose shapes are symbols too.
    again = _compiled(op.function, dynamic=True)
    for times in (2, 3):
        ours = tuple(t.clone().requires_grad_() for t in _of_batch(op, times))
        theirs = tuple(t.clone().requires_grad_() for t in _of_batch(op, times))
        (again(*ours) ** 2).sum().backward()
        op.reference_loss(*theirs).backward()
        _same(tuple(t.grad for t in ours), tuple(t.grad for t in theirs))


def compile_of_grad(op: Operator) -> None:
    """``torch.compile(torch.func.grad(...))``."""
    _same(_compiled(torch.func.grad(op.loss, argnums=op.places))(*op.inputs()), op.gradients())


def compile_of_jvp(op: Operator) -> None:
    """``torch.compile`` of ``torch.func.jvp``."""

    def tangent(*inputs: Tensor) -> Tensor:
        half = len(inputs) // 2
        result: Tensor = torch.func.jvp(op.loss, inputs[:half], inputs[half:])[1]
        return result

    _same(_compiled(tangent)(*op.inputs(), *_tangents(op)), _directional(op))


def compile_of_vmap(op: Operator) -> None:
    """``torch.compile(torch.func.vmap(...))``."""
    expected = torch.stack([op.reference(*sample) for sample in _samples(op)])
    _same(_compiled(torch.func.vmap(op.function))(*_stacked(op)), expected)


def compile_of_jacfwd(op: Operator) -> None:
    """``torch.compile(torch.func.jacfwd(...))``."""
    jacobian = torch.func.jacfwd(op.function, argnums=op.places)
    _same(_compiled(jacobian)(*op.inputs()), _jacobian(op))


def jvp_of_compiled(op: Operator) -> None:
    """``torch.func.jvp`` of a compiled function, for which torch falls back to eager mode."""
    torch.compiler.reset()
    compiled = torch.compile(op.loss, backend="aot_eager")
    tangent = torch.func.jvp(compiled, op.inputs(), _tangents(op))[1]
    _same(tangent, _directional(op))


class _Module(torch.nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


def export_strict(op: Operator) -> None:
    """``torch.export.export(strict=True)``."""
    program = torch.export.export(_Module(op.function), op.inputs(), strict=True)
    _same(program.module()(*op.inputs()), op.reference(*op.inputs()))


def export_non_strict(op: Operator) -> None:
    """``torch.export.export(strict=False)``."""
    program = torch.export.export(_Module(op.function), op.inputs(), strict=False)
    _same(program.module()(*op.inputs()), op.reference(*op.inputs()))


def export_dynamic_batch(op: Operator) -> None:
    """``torch.export`` with a batch of any length."""
    batch = torch.export.Dim("batch", min=2, max=1024)
    shapes = tuple({0: batch} if k in op.batched else {} for k in op.places)
    program = torch.export.export(
        _Module(op.function), _of_batch(op, 2), dynamic_shapes=(shapes,), strict=True
    )
    _same(program.module()(*_of_batch(op, 5)), op.reference(*_of_batch(op, 5)))


# ---- training ------------------------------------------------------------------------------------


def checkpointing(op: Operator) -> None:
    """Activation checkpointing, which computes the forward pass again in the backward one."""
    for use_reentrant in (False, True):
        leaves = op.leaves()
        torch.utils.checkpoint.checkpoint(op.loss, *leaves, use_reentrant=use_reentrant).backward()
        _same(tuple(t.grad for t in leaves), op.gradients())


def ddp(op: Operator) -> None:
    """``DistributedDataParallel`` on two processes: the mean of their gradients."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(  # type: ignore[attr-defined, no-untyped-call]
            _ddp_rank, (op, os.path.join(folder, "store")), nprocs=2
        )


class _LastIsParameter(torch.nn.Module):
    def __init__(self, op: Operator) -> None:
        super().__init__()
        self.function = op.function
        self.last = torch.nn.Parameter(op.inputs()[-1].clone())

    def forward(self, scale: Tensor, *inputs: Tensor) -> Tensor:
        return self.function(*inputs, self.last * scale)


def _ddp_rank(rank: int, op: Operator, store: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2
    )
    try:
        model = torch.nn.parallel.DistributedDataParallel(_LastIsParameter(op))
        scales = [torch.tensor(s, dtype=torch.float64) for s in (1.0, 1.01)]
        *inputs, last = op.inputs()
        (model(scales[rank], *inputs) ** 2).sum().backward()
        leaf = last.clone().requires_grad_()
        mean = torch.stack([op.reference_loss(*inputs, leaf * s) for s in scales]).mean()
        _same(model.module.last.grad, torch.autograd.grad(mean, leaf)[0])
    finally:
        torch.distributed.destroy_process_group()


def _halves(op: Operator) -> tuple[Tensor, ...]:
    return tuple(t.to(torch.bfloat16) for t in op.inputs())


def _check_autocast(op: Operator, function: Function) -> None:
    halves = tuple(t.requires_grad_() for t in _halves(op))
    exact = tuple(t.detach().double().requires_grad_() for t in halves)
    with torch.autocast(exact[0].device.type, dtype=torch.bfloat16):
        result = function(*halves)
    expected = op.reference(*exact)
    # The arithmetic is float32 at least: what is rounded to bfloat16, to 2^-9 relatively, is the
    # result and the gradients that flow back, in terms that an inverse of norm below 10 enlarges.
    scale = float(expected.detach().abs().max())
    _same(result.double(), expected, rtol=0, atol=2**-8 * scale)
    result.sum().backward()
    for half, gradient in zip(halves, torch.autograd.grad(expected.sum(), exact), strict=True):
        assert half.grad is not None and half.grad.dtype == torch.bfloat16
        atol = 10 * 2**-8 * float(gradient.abs().max())
        _same(half.grad.double(), gradient, rtol=0, atol=atol)


def autocast(op: Operator) -> None:
    """``torch.autocast`` of bfloat16 tensors keeps the precision of float32."""
    _check_autocast(op, op.function)


def autocast_compiled(op: Operator) -> None:
    """The same of a compiled function."""
    _check_autocast(op, _compiled(op.function))


# ---- the dispatcher ------------------------------------------------------------------------------


class _Recorder(TorchDispatchMode):
    """Keeps the calls that reach operators which are not torch's own."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace not in ("aten", "prim", "prims"):
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def _channels_last(tensor: Tensor) -> Tensor:
    if tensor.dim() == 4:
        return tensor.contiguous(memory_format=torch.channels_last)
    return tensor.mT.contiguous().mT if tensor.dim() > 1 else tensor


def _sliced(tensor: Tensor) -> Tensor:
    return torch.stack([tensor, tensor], -1).flatten(-2)[..., ::2]


LAYOUTS = (Tensor.contiguous, _channels_last, _sliced)


def opcheck(op: Operator) -> None:
    """``torch.library.opcheck`` of the registered operators, on three layouts."""
    for lay_out in LAYOUTS:
        with _Recorder() as recorder:
            result = op.function(*(lay_out(t) for t in op.leaves()))
            (result**2).sum().backward()
        assert recorder.calls, "no registered operator"
        for func, args, kwargs in recorder.calls:
            detached = [a.detach() if isinstance(a, Tensor) else a for a in args]
            torch.library.opcheck(func, tuple(detached), kwargs)


def meta(op: Operator) -> None:
    """Tensors on the device ``meta``: shapes without values."""
    expected = op.reference(*op.inputs())
    result = op.function(*(t.to("meta") for t in op.inputs()))
    assert result.is_meta
    assert result.shape == expected.shape and result.dtype == expected.dtype


def fake(op: Operator) -> None:
    """Fake tensors, forward and backward."""
    expected = op.reference(*op.inputs())
    with FakeTensorMode() as mode:
        leaves = [mode.from_tensor(t).requires_grad_() for t in op.inputs()]
        result = op.function(*leaves)
        assert result.shape == expected.shape and result.device == expected.device
        gradients = torch.autograd.grad(result.sum(), leaves)
        assert [g.shape for g in gradients] == [t.shape for t in leaves]


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def deterministic(op: Operator) -> None:
    """``torch.use_deterministic_algorithms(True)``: allowed, and the same bits twice."""
    with _deterministic():
        twice = []
        for _ in range(2):
            leaves = op.leaves()
            op.loss(*leaves).backward()
            twice.append([t.grad for t in leaves])
        _same(tuple(twice[0]), op.gradients())
        for first, second in zip(*twice, strict=True):
            assert first is not None and second is not None and torch.equal(first, second)


def double_backward_of_compiled(op: Operator) -> None:
    """A second backward pass through a compiled graph, which torch cannot: a clear error."""
    leaves = op.leaves()
    loss = _compiled(op.loss)(*leaves)
    gradients = torch.autograd.grad(loss, leaves, create_graph=True)
    try:
        torch.autograd.grad(torch.cat([g.flatten() for g in gradients]).sum(), leaves)
    except RuntimeError as error:
        assert "double backward" in str(error), error
    else:
        raise AssertionError("no error")


CAPABILITIES: Mapping[str, Callable[[Operator], None]] = {
    "backward": backward,
    "gradcheck": gradcheck_,
    "gradgradcheck": gradgradcheck_,
    "func.grad": func_grad,
    "func.vjp": func_vjp,
    "func.jvp": func_jvp,
    "func.jacrev": func_jacrev,
    "func.jacfwd": func_jacfwd,
    "func.hessian": func_hessian,
    "func.vmap": func_vmap,
    "func.vmap(grad)": func_vmap_of_grad,
    "compile, aot_eager": compile_aot_eager,
    "compile, inductor": compile_inductor,
    "compile, dynamic shapes": compile_dynamic_shapes,
    "compile(func.grad)": compile_of_grad,
    "compile(func.jvp)": compile_of_jvp,
    "compile(func.vmap)": compile_of_vmap,
    "compile(func.jacfwd)": compile_of_jacfwd,
    "func.jvp(compile)": jvp_of_compiled,
    "export, strict": export_strict,
    "export, non-strict": export_non_strict,
    "export, dynamic batch": export_dynamic_batch,
    "checkpoint": checkpointing,
    "DDP": ddp,
    "autocast": autocast,
    "autocast, compiled": autocast_compiled,
    "opcheck": opcheck,
    "meta": meta,
    "fake": fake,
    "deterministic": deterministic,
    "double backward of compiled": double_backward_of_compiled,
}
NEEDS_A_BATCH = ("compile, dynamic shapes", "export, dynamic batch")
NEEDS_AN_OPERATOR = ("opcheck", "double backward of compiled")


def run(name: str, op: Operator) -> None:
    """Run one entry; torch's own warnings about itself are not its result."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        CAPABILITIES[name](op)


def names_for(op: Operator) -> Sequence[str]:
    """The entries that mean something for an operator."""
    left_out = (
        *(() if op.batched else NEEDS_A_BATCH),
        *(() if op.registered else NEEDS_AN_OPERATOR),
    )
    return [name for name in CAPABILITIES if name not in left_out]
