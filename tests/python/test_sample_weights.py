"""One weight for each image of a batch: a call for each image, to the bit, and its derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import array_api_strict
import numpy as np
import pytest
import torch
from reference import CORNERS, Corner
from torch.autograd import gradcheck, gradgradcheck

import invconv

# Torch's own forward mode compiles its helpers with a function that torch itself deprecates.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script` is deprecated:DeprecationWarning"
)

ARRANGEMENTS: list[tuple[Corner, int]] = [
    *[(name, groups) for groups in (1, 2) for name in CORNERS],
    (("br", "tl"), 2),
]
arrangements = pytest.mark.parametrize(("corner", "groups"), ARRANGEMENTS, ids=str)
transposes = pytest.mark.parametrize("transpose", [False, True], ids=["plain", "transposed"])
diagonals = pytest.mark.parametrize("unit_diagonal", [True, False], ids=["unit", "free"])
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def tensors(
    groups: int,
    *,
    batch: int = 3,
    size: tuple[int, int] = (5, 4),
    dtype: torch.dtype = torch.float64,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and a tame weight for each: taps below 0.1 in magnitude, a diagonal of 1 to 1.3."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn((batch, 4, *size), generator=generator, dtype=torch.float64)
    weights = 0.2 * torch.rand((batch, 4, 4 // groups, 2, 2), generator=generator).double() - 0.1
    weights[:, torch.arange(4), torch.arange(4) % (4 // groups)] += 1.2
    return images.to(dtype), weights.to(dtype)


def loop(
    function: Callable[..., torch.Tensor], images: torch.Tensor, others: torch.Tensor
) -> torch.Tensor:
    """A call for each image."""
    return torch.cat([function(x[None], w) for x, w in zip(images, others, strict=True)])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@transposes
@diagonals
@arrangements
def test_bits_of_a_call_for_each_image(
    corner: Corner, groups: int, unit_diagonal: bool, transpose: bool, dtype: torch.dtype
) -> None:
    images, weights = tensors(groups, dtype=dtype)
    options: dict[str, Any] = {"corner": corner, "groups": groups, "unit_diagonal": unit_diagonal}
    for function in (invconv.solve, invconv.conv):

        def call(
            x: torch.Tensor, w: torch.Tensor, function: Callable[..., torch.Tensor] = function
        ) -> torch.Tensor:
            return function(x, w, transpose=transpose, **options)

        result = call(images, weights)
        assert torch.equal(result, loop(call, images, weights))
        if dtype != torch.bfloat16:
            same = call(images.numpy(), weights.numpy())  # type: ignore[arg-type]
            np.testing.assert_array_equal(same, result.numpy())
    g = images.flip(-1)
    each = invconv.weight_grad(images, g, (2, 2), per_sample=True, **options)
    assert each.shape == weights.shape and each.dtype == dtype
    expected = [
        invconv.weight_grad(x[None], h[None], (2, 2), **options)
        for x, h in zip(images, g, strict=True)
    ]
    assert torch.equal(each, torch.stack(expected))
    if dtype != torch.bfloat16:
        same = invconv.weight_grad(images.numpy(), g.numpy(), 2, per_sample=True, **options)
        np.testing.assert_array_equal(same, each.numpy())


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_bits_of_long_images_on_several_threads(threads: int, keep_threads: None) -> None:
    """Where bands of one image are shared out."""
    images, weights = tensors(2, batch=2, size=(70, 45), dtype=torch.float32)
    invconv.set_num_threads(threads)
    result = invconv.solve(images, weights, groups=2)
    invconv.set_num_threads(1)
    assert torch.equal(result, loop(lambda x, w: invconv.solve(x, w, groups=2), images, weights))


def test_any_strides() -> None:
    images, weights = tensors(2)
    expected = invconv.solve(images, weights, groups=2)
    wide = torch.zeros([2 * n for n in weights.shape], dtype=weights.dtype)
    sliced = wide[::2, ::2, ::2, ::2, ::2].copy_(weights)
    last = weights.movedim(0, -1).contiguous().movedim(-1, 0)
    for layout in (sliced, last, weights.mT.contiguous().mT):
        assert torch.equal(invconv.solve(images, layout, groups=2), expected)
    flipped = np.ascontiguousarray(weights.numpy()[::-1])[::-1]
    assert flipped.strides[0] < 0
    np.testing.assert_array_equal(
        invconv.solve(images.numpy(), flipped, groups=2), expected.numpy()
    )
    # One weight that is expanded is the weight itself.
    shared = weights[:1].expand(len(images), -1, -1, -1, -1)
    assert torch.equal(
        invconv.solve(images, shared, groups=2), invconv.solve(images, weights[0], groups=2)
    )


def test_out_and_other_kinds() -> None:
    images, weights = tensors(1, dtype=torch.float32)
    expected = invconv.solve(images, weights)
    out = images.clone()
    assert invconv.solve(out, weights, out=out) is out
    assert torch.equal(out, expected)
    y, w = (array_api_strict.asarray(t.numpy()) for t in (images, weights))
    np.testing.assert_array_equal(np.from_dlpack(invconv.solve(y, w)), expected.numpy())
    each = invconv.weight_grad(y, y, 2, per_sample=True)
    assert each.shape == w.shape


@pytest.mark.parametrize("shape", [(0, 4, 3, 2), (3, 4, 0, 2), (3, 4, 3, 0)], ids=str)
def test_empty(shape: tuple[int, ...]) -> None:
    images = torch.zeros(shape)
    weights = torch.ones(shape[0], 4, 4, 2, 2, requires_grad=True)
    solved = invconv.solve(images, weights)
    assert solved.shape == shape
    solved.sum().backward()
    assert weights.grad is not None and not weights.grad.any()
    each = invconv.weight_grad(images.numpy(), images.numpy(), 2, per_sample=True)
    assert each.shape == weights.shape and not each.any()


# ---- derivatives ---------------------------------------------------------------------------------


@diagonals
@pytest.mark.parametrize(
    ("name", "transpose"),
    [("solve", False), ("solve", True), ("conv", False), ("conv", True), ("weight_grad", False)],
)
def test_gradcheck(name: str, transpose: bool, unit_diagonal: bool) -> None:
    """Both orders and modes; tolerances are torch's defaults for float64."""
    images, weights = tensors(2, batch=2, size=(3, 2))
    options: dict[str, Any] = {
        "groups": 2,
        "corner": ("br", "tl"),
        "unit_diagonal": unit_diagonal,
    }

    def function(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if name == "weight_grad":
            return invconv.weight_grad(a, b, 2, per_sample=True, **options)
        return getattr(invconv, name)(a, b, transpose=transpose, **options)

    second = images.flip(0) * 0.5 if name == "weight_grad" else weights
    leaves = (images.requires_grad_(), second.requires_grad_())
    assert gradcheck(
        function,
        leaves,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )
    assert gradgradcheck(function, leaves, check_fwd_over_rev=True, check_batched_grad=True)


def test_gradients_are_those_of_each_image() -> None:
    """Both gradients of a batch in one call, to the bit."""
    images, weights = tensors(2, dtype=torch.float32)
    y, w = images.clone().requires_grad_(), weights.clone().requires_grad_()
    (invconv.solve(y, w, groups=2) ** 2).sum().backward()
    assert y.grad is not None and w.grad is not None
    for k in range(len(images)):
        one, its = images[k : k + 1].clone().requires_grad_(), weights[k].clone().requires_grad_()
        (invconv.solve(one, its, groups=2) ** 2).sum().backward()
        assert torch.equal(y.grad[k : k + 1], one.grad)
        assert torch.equal(w.grad[k], its.grad)


@pytest.mark.parametrize("in_dims", [(0, None), (None, 0), (1, 2)], ids=str)
def test_vmap_is_a_loop(in_dims: tuple[int | None, int | None]) -> None:
    """Of batches whose images have their weights; the sums of 16 terms of order 1 to rounding."""
    images, weights = tensors(2)
    pairs = [(images * (k + 1), weights + 0.01 * k) for k in range(2)]
    batched = [
        column[0] if dim is None else torch.stack(column, dim)
        for column, dim in zip(zip(*pairs, strict=True), in_dims, strict=True)
    ]

    def loss(y: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return (invconv.solve(y, w, groups=2) ** 2).sum()

    def each(y: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        return invconv.weight_grad(y, g, 2, groups=2, per_sample=True)

    grads = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1)), in_dims=in_dims)(*batched)
    sums = (
        torch.func.vmap(each, in_dims=(in_dims[0], None))(batched[0], images)
        if (in_dims[0] is not None)
        else None
    )
    for k in range(2):
        y = pairs[k if in_dims[0] is not None else 0][0]
        w = pairs[k if in_dims[1] is not None else 0][1]
        expected = torch.func.grad(loss, argnums=(0, 1))(y, w)
        torch.testing.assert_close(grads[0][k], expected[0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(grads[1][k], expected[1], rtol=1e-12, atol=1e-12)
        if sums is not None:
            torch.testing.assert_close(sums[k], each(y, images), rtol=1e-12, atol=1e-12)


def test_compiled() -> None:
    """One graph, the bits of eager, also for another batch of a dynamic shape."""
    images, weights = tensors(2)

    def model(y: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return invconv.conv(invconv.solve(y, w, groups=2), w, groups=2, transpose=True)

    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=True)
    for batch in (3, 2):
        ours = [t[:batch].clone().requires_grad_() for t in (images, weights)]
        theirs = [t[:batch].clone().requires_grad_() for t in (images, weights)]
        result, expected = compiled(*ours), model(*theirs)
        assert torch.equal(result, expected)
        (result**2).sum().backward()
        (expected**2).sum().backward()
        for mine, other in zip(ours, theirs, strict=True):
            assert torch.equal(mine.grad, other.grad)


def test_operators_pass_opcheck() -> None:
    images, weights = tensors(2, batch=2)
    corner = "br,tl"
    for function in ("solve", "conv"):
        arguments = (images, weights, corner, True, 2, False)
        torch.library.opcheck(getattr(torch.ops.invconv, function).default, arguments)
    torch.library.opcheck(
        torch.ops.invconv.weight_grad.default, (images, images, 2, 2, corner, True, 2, True)
    )


# ---- errors --------------------------------------------------------------------------------------

BAD_CALLS: dict[str, tuple[Callable[[torch.Tensor, torch.Tensor], Any], str]] = {
    "weights of another batch": (
        lambda y, w: invconv.solve(y, w[:2]),
        r"\[solve\] expected weight of shape \(B, C, C/groups, kh, kw\) with B = 3, C = 4, "
        r"groups = 1, but got \(2, 4, 4, 2, 2\)",
    ),
    "weights of other channels": (
        lambda y, w: invconv.conv(y, w[:, :2]),
        r"\[conv\] expected weight of shape \(B, C, C/groups, kh, kw\) with B = 3, C = 4, "
        r"groups = 1, but got \(3, 2, 4, 2, 2\)",
    ),
    "weights for an image without a batch": (
        lambda y, w: invconv.solve(y[0], w),
        r"\[solve\] expected weight of shape \(C, C/groups, kh, kw\), but got \(3, 4, 4, 2, 2\)",
    ),
    "weights of six axes": (
        lambda y, w: invconv.solve(y, w[None]),
        r"\[solve\] expected weight of shape \(C, C/groups, kh, kw\) or "
        r"\(B, C, C/groups, kh, kw\), but got \(1, 3, 4, 4, 2, 2\)",
    ),
    "per_sample of one image": (
        lambda y, w: invconv.weight_grad(y[0], y[0], 2, per_sample=True),
        r"\[weight_grad\] expected x of shape \(B, C, H, W\) with per_sample=True, but got "
        r"\(4, 5, 4\)",
    ),
}


@pytest.mark.parametrize("kind", ["numpy", "torch", "meta"])
@pytest.mark.parametrize("call", BAD_CALLS)
def test_bad_calls(call: str, kind: str) -> None:
    function, message = BAD_CALLS[call]
    arguments: Any = tensors(1)
    if kind == "numpy":
        arguments = [t.numpy() for t in arguments]
    elif kind == "meta":
        arguments = [t.to("meta") for t in arguments]
    with pytest.raises(ValueError, match=f"^{message}$"):
        function(*arguments)


def test_per_sample_is_a_bool() -> None:
    for y in (np.ones((2, 1, 3, 3)), torch.ones(2, 1, 3, 3)):
        with pytest.raises(TypeError, match=r"^\[weight_grad\] expected per_sample to be a bool"):
            invconv.weight_grad(y, y, 2, per_sample="yes")  # type: ignore[arg-type]
