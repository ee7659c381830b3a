"""The torch operators: what a good operator can do, and the differentiation of every variant.

The list of what an operator should be able to do stands in ``bench/capabilities.py``, since the
benchmarks run it on other operators too. Below it, for every corner, groups, transpose and
diagonal, gradients are checked three ways: against finite differences (``gradcheck``,
``gradgradcheck``), against torch's own differentiation of the dense matrix, and forward mode
against reverse mode.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import reference
import torch
from reference import CORNERS, Corner
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.forward_ad import dual_level, make_dual, unpack_dual

import invconv
from bench import capabilities, field

# (corner, groups): every corner with 1 and 2 groups, and a corner per group.
ARRANGEMENTS: list[tuple[Corner, int]] = [
    *[(name, groups) for groups in (1, 2) for name in CORNERS],
    (("tl", "tr", "bl", "br"), 4),
    (("br", "tl"), 2),
]
KERNELS = {1: (2, 2), 2: (2, 3), 4: (3, 2)}
EPS = float(np.finfo(np.float64).eps)

# Torch's own forward mode compiles its helpers with a function that torch itself deprecates.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script` is deprecated:DeprecationWarning"
)

arrangements = pytest.mark.parametrize(("corner", "groups"), ARRANGEMENTS, ids=str)
diagonals = pytest.mark.parametrize("unit_diagonal", [True, False], ids=["unit", "free"])
# Each operation, and whether it is the transposed one.
OPERATIONS = [
    ("solve", False),
    ("solve", True),
    ("conv", False),
    ("conv", True),
    ("weight_grad", False),
    ("logabsdet", False),
]
transposes = pytest.mark.parametrize("transpose", [False, True], ids=["plain", "transposed"])


def tensors(
    corner: Corner,
    groups: int,
    unit_diagonal: bool,
    *,
    batch: int = 2,
    size: tuple[int, int] = (3, 2),
    seed: int = 0,
) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """A float64 image batch, a weight whose inverse is tame (norm below 10), and the options."""
    generator = torch.Generator().manual_seed(seed)
    channels = 2 if groups == 1 else 4
    shape = (channels, channels // groups, *KERNELS[groups])
    weight = torch.rand(shape, generator=generator, dtype=torch.float64) - 0.5
    weight *= 2.0 / weight[0].numel()
    pivots = 1 + 0.3 * torch.rand(channels, generator=generator, dtype=torch.float64)
    pivots[1::2] *= -1
    diagonal = torch.from_numpy(reference.full_weight(np.zeros(shape), corner, True, groups)).bool()
    weight[diagonal] = pivots
    y = torch.randn((batch, channels, *size), generator=generator, dtype=torch.float64)
    return y, weight, {"corner": corner, "groups": groups, "unit_diagonal": unit_diagonal}


def operation(
    name: str, options: dict[str, Any], transpose: bool = False
) -> Callable[..., torch.Tensor]:
    """One of the four operations as a function of its tensors alone."""
    kernel, size = KERNELS[options["groups"]], (3, 2)
    table: dict[str, Callable[..., torch.Tensor]] = {
        "solve": lambda y, w: invconv.solve(y, w, transpose=transpose, **options),
        "conv": lambda x, w: invconv.conv(x, w, transpose=transpose, **options),
        "weight_grad": lambda x, g: invconv.weight_grad(x, g, kernel, **options),
        "logabsdet": lambda w: invconv.logabsdet(w, size, **options),
    }
    return table[name]


def requires_grad(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Fresh leaves with the same values."""
    return tuple(t.detach().clone().requires_grad_() for t in inputs)


def unread(weight: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
    """Mask of the entries that are not read."""
    return torch.from_numpy(~reference.is_read(shape=tuple(weight.shape), **options))


def check_both_orders(
    function: Callable[..., torch.Tensor], inputs: tuple[torch.Tensor, ...]
) -> None:
    """First and second derivatives against finite differences, in every mode that torch can check.

    Tolerances are torch's defaults for float64 (step 1e-6, so an error near 1e-9 against the 1e-5
    allowed).
    """
    leaves = requires_grad(*inputs)
    assert gradcheck(
        function,
        leaves,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )
    assert gradgradcheck(
        function, leaves, check_fwd_over_rev=True, check_rev_over_rev=True, check_batched_grad=True
    )


# --- The list -------------------------------------------------------------------------------------

# Compiling with inductor, and other processes, take long: all four operators in one function.
TOGETHER = ("compile, inductor", "DDP", "autocast, compiled")
LIST = [
    pytest.param(device, operator, entry, id=f"{entry}-{operator}-{device}")
    for entry in capabilities.CAPABILITIES
    for operator, defined in field.ours().items()
    for device in ("cpu", "cuda")
    if entry in capabilities.names_for(defined) and (operator == "composed") == (entry in TOGETHER)
]


@pytest.mark.parametrize(("device", "operator", "entry"), LIST)
def test_list(device: str, operator: str, entry: str) -> None:
    """Each entry with values, against plain torch operations in float64."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if device == "cuda" and invconv.build_info()["cuda_kernels"] == "no":
        pytest.skip("this build has no CUDA kernels")
    capabilities.run(entry, field.ours(device)[operator])


# --- Gradients of every variant -------------------------------------------------------------------


@transposes
@diagonals
@arrangements
@pytest.mark.parametrize("name", ["solve", "conv"])
def test_gradcheck(
    name: str, corner: Corner, groups: int, unit_diagonal: bool, transpose: bool
) -> None:
    y, weight, options = tensors(corner, groups, unit_diagonal, batch=1)
    check_both_orders(operation(name, options, transpose), (y, weight))


@diagonals
@arrangements
def test_gradcheck_weight_grad(corner: Corner, groups: int, unit_diagonal: bool) -> None:
    x, _, options = tensors(corner, groups, unit_diagonal, batch=2)
    g, _, _ = tensors(corner, groups, unit_diagonal, batch=2, seed=1)
    check_both_orders(operation("weight_grad", options), (x, g))


@diagonals
@arrangements
def test_gradcheck_logabsdet(corner: Corner, groups: int, unit_diagonal: bool) -> None:
    _, weight, options = tensors(corner, groups, unit_diagonal)
    check_both_orders(operation("logabsdet", options), (weight,))


def dense_matrix(
    weight: torch.Tensor, size: tuple[int, int], options: dict[str, Any]
) -> torch.Tensor:
    """The matrix of ``reference.dense_matrix``, which is affine in the weight."""
    constant = reference.dense_matrix(np.zeros(tuple(weight.shape)), size, **options)
    columns = [
        reference.dense_matrix(unit.reshape(tuple(weight.shape)), size, **options) - constant
        for unit in np.eye(weight.numel())
    ]
    return torch.from_numpy(constant) + torch.tensordot(
        weight.reshape(-1), torch.from_numpy(np.stack(columns)), 1
    )


@transposes
@diagonals
@arrangements
def test_gradients_of_the_dense_matrix(
    corner: Corner, groups: int, unit_diagonal: bool, transpose: bool
) -> None:
    """Torch differentiates the dense solve, product and determinant by itself."""
    y, weight, options = tensors(corner, groups, unit_diagonal, size=(3, 3), seed=2)
    g = torch.randn(y.shape, generator=torch.Generator().manual_seed(3), dtype=y.dtype)
    # At most 36 unknowns and sums of 18 terms, the inverse has norm below 10 and enters the
    # gradient twice; all quantities are of order 1 to 10.
    close: dict[str, Any] = {"rtol": 0, "atol": 36 * 18 * 10 * 10 * EPS}

    def dense(name: str, y: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        matrix = dense_matrix(weight, (3, 3), options)
        matrix = matrix.mT if transpose else matrix
        columns = y.reshape(len(y), -1).mT
        return (
            torch.linalg.solve(matrix, columns) if name == "solve" else matrix @ columns
        ).mT.reshape(y.shape)

    for name in ("solve", "conv"):
        ours, theirs = requires_grad(y, weight), requires_grad(y, weight)
        result, expected = operation(name, options, transpose)(*ours), dense(name, *theirs)
        torch.testing.assert_close(result, expected, **close)
        result.backward(g)
        expected.backward(g)
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine.grad, other.grad, **close)

    (leaf,), (other,) = requires_grad(weight), requires_grad(weight)
    log = invconv.logabsdet(leaf, (3, 3), **options)
    expected = torch.linalg.slogdet(dense_matrix(other, (3, 3), options)).logabsdet
    torch.testing.assert_close(log, expected, **close)
    log.backward()
    expected.backward()
    torch.testing.assert_close(leaf.grad, other.grad, **close)


@transposes
@diagonals
@arrangements
def test_entries_that_are_not_read_have_gradient_zero(
    corner: Corner, groups: int, unit_diagonal: bool, transpose: bool
) -> None:
    """Exactly 0, and NaN in them reaches nothing: values, gradients, tangents."""
    y, weight, options = tensors(
        corner, groups, unit_diagonal, size=(3, 3)
    )  # every tap meets the image
    mask = unread(weight, options)
    poisoned = weight.masked_fill(mask, torch.nan)
    for name in ("solve", "conv"):
        function = operation(name, options, transpose)
        clean, dirty = requires_grad(y, weight), requires_grad(y, poisoned)
        expected, result = function(*clean), function(*dirty)
        assert torch.equal(result, expected)
        (expected**2).sum().backward()
        (result**2).sum().backward()
        assert torch.equal(dirty[0].grad, clean[0].grad)
        assert torch.equal(dirty[1].grad, clean[1].grad)
        assert torch.equal(dirty[1].grad[mask], torch.zeros_like(dirty[1].grad[mask]))
        assert torch.all(dirty[1].grad[~mask] != 0)

        # A tangent that moves only entries that are not read moves nothing, even if it is NaN
        # itself.
        tangent = torch.zeros_like(weight).masked_fill(mask, torch.nan)
        _, moved = torch.func.jvp(lambda w, f=function: f(y, w), (poisoned,), (tangent,))
        assert torch.equal(moved, torch.zeros_like(y))

    (leaf,) = requires_grad(poisoned)
    invconv.logabsdet(leaf, (3, 2), **options).backward()
    assert torch.equal(leaf.grad[mask], torch.zeros_like(leaf.grad[mask]))

    # The other argument of the second derivative: weight_grad is exactly 0 there as well.
    grad = invconv.weight_grad(y, y, tuple(weight.shape[2:]), **options)
    assert torch.equal(grad[mask], torch.zeros_like(grad[mask]))


def inner(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a * b).sum()


@arrangements
@pytest.mark.parametrize(("name", "transpose"), OPERATIONS)
def test_forward_mode_is_the_adjoint_of_reverse_mode(
    name: str, corner: Corner, groups: int, transpose: bool
) -> None:
    """``<g, J v> = <J^T g, v>``, for a tangent in either argument and in both."""
    y, weight, options = tensors(corner, groups, unit_diagonal=False)
    other = {"solve": weight, "conv": weight, "weight_grad": y.flip(0)}
    inputs = (weight,) if name == "logabsdet" else (y, other[name])
    function = operation(name, options, transpose)
    generator = torch.Generator().manual_seed(5)
    directions = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in inputs]
    leaves = requires_grad(*inputs)
    result = function(*leaves)
    g = torch.randn(result.shape, generator=generator, dtype=result.dtype)
    grads = torch.autograd.grad(result, leaves, g)
    for chosen in ({0}, {1}, {0, 1}) if len(inputs) == 2 else ({0},):
        with dual_level():
            duals = [
                make_dual(t, v) if k in chosen else t
                for k, (t, v) in enumerate(zip(inputs, directions, strict=True))
            ]
            tangent = unpack_dual(function(*duals)).tangent
        assert tangent is not None and tangent.shape == result.shape
        backward = sum(inner(grads[k], directions[k]) for k in chosen)
        # Two sums of fewer than 1000 products of order 1, after solves with an inverse of norm
        # below 10, twice.
        torch.testing.assert_close(inner(g, tangent), backward, rtol=0, atol=1000 * 10 * 10 * EPS)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)
def test_dtypes_of_gradients(dtype: torch.dtype) -> None:
    """Gradients have their tensor's dtype, and the values of float64 to that precision."""
    y, weight, options = tensors("tr", 2, False, size=(6, 5))
    y, weight = y.to(dtype), weight.to(dtype)
    exact = requires_grad(y.double(), weight.double())
    (invconv.solve(*exact, **options) ** 2).sum().backward()
    leaves = requires_grad(y, weight)
    result = invconv.solve(*leaves, **options)
    assert result.dtype == dtype
    (result**2).sum().backward()
    for leaf, reference_leaf in zip(leaves, exact, strict=True):
        assert leaf.grad.dtype == dtype and leaf.grad.shape == leaf.shape
        # Each of solve, square, adjoint solve and correlation rounds to the dtype; an inverse of
        # norm below 10, twice, amplifies that. Correlations sum 60 products, exactly enough in
        # float32.
        scale = float(reference_leaf.grad.abs().max())
        bound = 4 * 10 * 10 * torch.finfo(dtype).eps * scale
        assert float((leaf.grad.double() - reference_leaf.grad).abs().max()) <= bound


def test_only_what_needs_a_gradient_gets_one() -> None:
    y, weight, options = tensors("bl", 1, False)
    for name in ("solve", "conv"):
        function = operation(name, options)
        (leaf,) = requires_grad(y)
        function(leaf, weight).sum().backward()
        both = requires_grad(y, weight)
        function(*both).sum().backward()
        assert torch.equal(leaf.grad, both[0].grad)
        (leaf,) = requires_grad(weight)
        function(y, leaf).sum().backward()
        assert torch.equal(leaf.grad, both[1].grad)
        assert not function(y, weight).requires_grad
        with torch.no_grad():
            assert not function(*requires_grad(y, weight)).requires_grad


@transposes
@pytest.mark.parametrize("name", ["solve", "conv"])
def test_gradients_of_any_layout(name: str, transpose: bool) -> None:
    """Expanded (from ``sum``), transposed and sliced gradients; inputs that are views."""
    y, weight, options = tensors("br", 2, False, size=(5, 6))
    function = operation(name, options, transpose)
    leaves = requires_grad(y, weight)
    result = function(*leaves)
    expanded = torch.autograd.grad(result.sum(), leaves, retain_graph=True)
    dense = torch.autograd.grad(result, leaves, torch.ones_like(y).contiguous(), retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(expanded, dense, strict=True))

    g = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
    dense = torch.autograd.grad(result, leaves, g, retain_graph=True)
    sliced = torch.zeros([2 * n for n in y.shape], dtype=y.dtype)[::2, ::2, ::2, ::2].copy_(g)
    for layout in (g.contiguous(memory_format=torch.channels_last), g.mT.contiguous().mT, sliced):
        grads = torch.autograd.grad(result, leaves, layout, retain_graph=True)
        assert all(torch.equal(a, b) for a, b in zip(grads, dense, strict=True))

    wide = torch.zeros(2, 4, 5, 12, dtype=y.dtype)
    wide[..., ::2] = y
    wide.requires_grad_()
    (from_view,) = torch.autograd.grad(function(wide[..., ::2], weight), wide, g)
    assert torch.equal(from_view[..., ::2], dense[0])
    assert torch.equal(from_view[..., 1::2], torch.zeros_like(y))


def test_one_image_without_a_batch() -> None:
    y, weight, options = tensors("tl", 2, False, batch=1)
    batched = requires_grad(y, weight)
    invconv.solve(*batched, **options).sum().backward()
    single = requires_grad(y[0], weight)
    result = invconv.solve(*single, **options)
    assert result.shape == y.shape[1:]
    result.sum().backward()
    assert torch.equal(single[0].grad, batched[0].grad[0])
    assert torch.equal(single[1].grad, batched[1].grad)
    check_both_orders(operation("solve", options), (y[0], weight))
    check_both_orders(operation("weight_grad", options), (y[0], y[0].flip(-1)))


@pytest.mark.parametrize("shape", [(0, 4, 3, 2), (2, 4, 0, 3), (2, 4, 3, 0)])
def test_empty_inputs_have_gradients(shape: tuple[int, ...]) -> None:
    _, weight, options = tensors("tr", 2, False)
    for name in ("solve", "conv"):
        leaves = requires_grad(torch.zeros(shape, dtype=torch.float64), weight)
        operation(name, options)(*leaves).sum().backward()
        assert leaves[0].grad.shape == shape
        assert torch.equal(leaves[1].grad, torch.zeros_like(weight))


def test_out_refuses_a_gradient() -> None:
    y, weight, options = tensors("tl", 1, True)
    out = torch.full_like(y, 7)
    for name in ("solve", "conv"):
        function = getattr(invconv, name)
        for inputs in ((y.clone().requires_grad_(), weight), (y, weight.clone().requires_grad_())):
            with pytest.raises(
                ValueError, match=rf"^\[{name}\] expected .*gradient.* out=.* but got .*"
            ):
                function(*inputs, out=out, **options)
            assert torch.equal(out, torch.full_like(y, 7))
            with torch.no_grad():  # nothing is recorded here, so there is nothing to refuse
                assert function(*inputs, out=out, **options) is out
            out.fill_(7)
        with pytest.raises(
            ValueError, match=rf"^\[{name}\] expected .*gradient.* out=.* but got .*"
        ):
            function(y, weight, out=out.clone().requires_grad_(), **options)


def test_out_in_place_and_overlapping() -> None:
    """``out`` may share memory with the input, also where torch sees two storages."""
    y, weight, options = tensors("tr", 2, False, size=(5, 5))
    for name in ("solve", "conv"):
        function = operation(name, options)
        write = functools.partial(getattr(invconv, name), **options)
        expected = function(y, weight)

        same = y.clone()
        assert write(same, weight, out=same) is same
        assert torch.equal(same, expected)

        square = y.clone()
        view = square.mT
        assert write(square, weight, out=view) is view
        assert torch.equal(view, expected)

        for shift in (1, 5, 25, 100):
            for order in (1, -1):
                memory = np.zeros(y.numel() + shift)
                first = torch.from_numpy(memory[: y.numel()]).view(y.shape)
                second = torch.from_numpy(memory[shift:]).view(y.shape)
                source, out = (first, second) if order == 1 else (second, first)
                source.copy_(y)
                assert write(source, weight, out=out) is out
                assert torch.equal(out, expected), (shift, order)

        single = y[0].clone()
        assert write(single, weight, out=single) is single
        assert torch.equal(single, expected[0])


def test_in_place_changes_of_saved_tensors_are_noticed() -> None:
    """Torch's version counter guards what backward needs."""
    y, weight, options = tensors("tl", 1, True)
    leaves = requires_grad(y, weight)
    result = invconv.solve(*leaves, **options)
    with torch.no_grad():
        leaves[1].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.sum().backward()


# --- torch.func -----------------------------------------------------------------------------------

# One inverse of norm below 10, at most 24 unknowns, sums of at most 12 terms; results of order 1 to
# 10.
CLOSE: dict[str, Any] = {"rtol": 0, "atol": 24 * 12 * 10 * 10 * EPS}


@pytest.mark.parametrize("in_dims", [(0, None), (None, 0), (0, 0), (1, None), (2, 1), (-1, 0)])
@pytest.mark.parametrize(("name", "transpose"), OPERATIONS[:-1])  # those of two tensors
def test_vmap_is_a_loop(name: str, in_dims: tuple[int | None, int | None], transpose: bool) -> None:
    """Over the image, over the weight and over both, at any place of the mapped dimension."""
    options: dict[str, Any] = {"corner": ("br", "tl"), "groups": 2, "unit_diagonal": False}
    samples = [tensors(**options, seed=seed)[:2] for seed in range(3)]
    first = [y for y, _ in samples]
    second = [w if name != "weight_grad" else y.flip(0) * 0.5 for y, w in samples]
    function = operation(name, options, transpose)
    batched = [
        items[0] if dim is None else torch.stack(items, dim)
        for items, dim in zip((first, second), in_dims, strict=True)
    ]
    result = torch.func.vmap(function, in_dims=in_dims)(*batched)
    expected = torch.stack(
        [
            function(
                first[k if in_dims[0] is not None else 0],
                second[k if in_dims[1] is not None else 0],
            )
            for k in range(3)
        ]
    )
    torch.testing.assert_close(result, expected, **CLOSE)

    # Gradients per sample.
    def loss(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (function(a, b) ** 2).sum()

    grads = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1)), in_dims=in_dims)(*batched)
    for k in range(3):
        leaves = requires_grad(
            first[k if in_dims[0] is not None else 0], second[k if in_dims[1] is not None else 0]
        )
        expected_grads = torch.autograd.grad(loss(*leaves), leaves)
        for mine, other in zip(grads, expected_grads, strict=True):
            torch.testing.assert_close(mine[k], other, **CLOSE)


def test_vmap_of_logabsdet_and_of_single_images() -> None:
    options: dict[str, Any] = {"corner": "tr", "groups": 1, "unit_diagonal": False}
    samples = [tensors(**options, seed=seed)[:2] for seed in range(3)]
    weights = torch.stack([w for _, w in samples])
    logs = torch.func.vmap(lambda w: invconv.logabsdet(w, (3, 2), **options))(weights)
    expected = torch.stack([invconv.logabsdet(w, (3, 2), **options) for w in weights])
    torch.testing.assert_close(logs, expected, **CLOSE)

    images = samples[0][0]
    solved = torch.func.vmap(lambda y: invconv.solve(y, weights[0], **options))(images)
    torch.testing.assert_close(solved, invconv.solve(images, weights[0], **options), **CLOSE)

    nested = torch.func.vmap(
        lambda w: torch.func.vmap(lambda y: invconv.solve(y, w, **options))(images)
    )(weights)
    for k in range(3):
        torch.testing.assert_close(nested[k], invconv.solve(images, weights[k], **options), **CLOSE)


MODES = {"reverse": torch.func.grad, "forward": torch.func.jacfwd}


@transposes
@pytest.mark.parametrize(
    "modes", [m for n in (1, 2, 3) for m in itertools.product(MODES, repeat=n)], ids="-".join
)
def test_every_order_and_mix_of_modes(modes: tuple[str, ...], transpose: bool) -> None:
    """Derivatives along a line ``W + s D`` by every nesting of the two modes, innermost first.

    With ``M(s) = M + s D`` the solution is ``x(s) = sum_k s^k A^k x``, ``A = -M^-1 D``, so that its
    derivatives at 0 are ``k! A^k x``. (Torch's own differentiation of ``linalg.solve`` is no
    reference here: in torch 2.13 it loses terms where forward mode is nested.)
    """
    y, weight, options = tensors("bl", 1, False, batch=1)
    direction = torch.full_like(weight, 0.1)

    def square(s: torch.Tensor) -> torch.Tensor:
        return (invconv.solve(y, weight + s * direction, transpose=transpose, **options) ** 2).sum()

    derivative = square
    for mode in modes:
        derivative = MODES[mode](derivative)
    result = derivative(torch.zeros((), dtype=torch.float64))

    matrix = dense_matrix(weight, (3, 2), options)
    change = dense_matrix(weight + direction, (3, 2), options) - matrix
    if transpose:
        matrix, change = matrix.mT, change.mT
    step = -torch.linalg.solve(matrix, change)
    x = [torch.linalg.solve(matrix, y.reshape(-1))]
    for k in range(len(modes)):
        x.append((k + 1) * (step @ x[-1]))
    # Leibniz: the n-th derivative of <x, x>.
    n = len(modes)
    exact = sum(math.comb(n, k) * inner(x[k], x[n - k]) for k in range(n + 1))
    # At most four inverses of norm below 10 in a term, 12 unknowns, sums of 12 terms.
    torch.testing.assert_close(result, exact, rtol=0, atol=12 * 12 * 1e4 * EPS)
    assert abs(float(exact)) > 1e-3


# --- Calls that are wrong or odd ------------------------------------------------------------------


def test_compiled_wrong_kinds_are_refused() -> None:
    y, weight, _ = tensors("tl", 1, True)
    compiled = torch.compile(invconv.solve, backend="aot_eager")
    with pytest.raises(TypeError, match=r"^\[solve\] expected transpose to be a bool, but got str"):
        compiled(y, weight, transpose="T")


def test_out_bumps_the_version() -> None:
    """Autograd must notice that a tensor it saved was written over."""
    a = torch.randn(1, 2, 3, 3, requires_grad=True)
    saved = torch.randn(1, 2, 3, 3)
    product = a * saved
    with torch.no_grad():
        invconv.solve(torch.randn(1, 2, 3, 3), torch.randn(2, 2, 2, 2), out=saved)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


def test_logabsdet_of_an_empty_image_is_zero() -> None:
    weight = torch.zeros(2, 2, 2, 2, requires_grad=True)
    value = invconv.logabsdet(weight, (0, 5), unit_diagonal=False)
    value.backward()
    assert value == 0 and weight.grad is not None and not weight.grad.any()


def test_growth_of_a_fake_tensor_is_refused() -> None:
    with FakeTensorMode(), pytest.raises(TypeError, match=r"^\[growth\] expected .* fake tensor"):
        invconv.growth(torch.randn(2, 2, 2, 2), (3, 3))
