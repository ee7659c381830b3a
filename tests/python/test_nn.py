"""invconv.nn: the weight that the modules derive, its bound, and the warning when there is none."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import invconv
from invconv.nn import CausalConv2d, InverseConv2d, _bounded

CORNERS = ("tl", "tr", "bl", "br")
# Where each corner's table in the design pads: (left, right, top, bottom) per kernel size.
PADDING = {
    "tl": lambda kh, kw: (kw - 1, 0, kh - 1, 0),
    "tr": lambda kh, kw: (0, kw - 1, kh - 1, 0),
    "bl": lambda kh, kw: (kw - 1, 0, 0, kh - 1),
    "br": lambda kh, kw: (0, kw - 1, 0, kh - 1),
}
ANCHOR = {"tl": (-1, -1), "tr": (-1, 0), "bl": (0, -1), "br": (0, 0)}
EPS = torch.finfo(torch.float64).eps


def randomize(module: torch.nn.Module, spread: float, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.copy_(spread * noise)


def blocks(module: InverseConv2d | CausalConv2d) -> list[tuple[Tensor, Tensor]]:
    """For each group the anchor ``(n, n)`` and the other taps ``(n, n, kh * kw - 1)``."""
    weight = module.weight.detach()
    corners = [module.corner] * module.groups if isinstance(module.corner, str) else module.corner
    result = []
    for part, corner in zip(weight.chunk(module.groups), corners, strict=True):
        taps = part.flatten(2)
        row, column = ANCHOR[corner]
        position = (row % part.shape[2]) * part.shape[3] + column % part.shape[3]
        others = [t for t in range(taps.shape[2]) if t != position]
        result.append((taps[:, :, position], taps[:, :, others]))
    return result


@pytest.mark.parametrize("corner", CORNERS)
@pytest.mark.parametrize("bound", [None, 0.7])
@pytest.mark.parametrize("unit_diagonal", [True, False])
def test_inverse_is_torch_convolution_with_the_weight(
    corner: str, bound: float | None, unit_diagonal: bool
) -> None:
    kernel = (3, 2)
    module = InverseConv2d(
        6, kernel, corner=corner, groups=2, unit_diagonal=unit_diagonal, bound=bound,
        dtype=torch.float64,
    )  # fmt: skip
    randomize(module, 0.2)
    x = torch.randn(2, 6, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = F.conv2d(F.pad(x, PADDING[corner](*kernel)), module.weight, groups=2)
    # Two sums of the same 3 * 6 products of order 1, in another order.
    torch.testing.assert_close(module.inverse(x), expected, rtol=0, atol=100 * EPS)


@pytest.mark.parametrize("corner", [*CORNERS, ("tl", "tr", "bl", "br")])
@pytest.mark.parametrize("unit_diagonal", [True, False])
@pytest.mark.parametrize("bound", [None, 0.8])
def test_both_modules_undo_themselves(
    corner: str | tuple[str, ...], unit_diagonal: bool, bound: float | None
) -> None:
    x = torch.randn(3, 8, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for kind in (InverseConv2d, CausalConv2d):
        module = kind(
            8, 3, corner=corner, groups=4, unit_diagonal=unit_diagonal, bound=bound,
            dtype=torch.float64,
        )  # fmt: skip
        randomize(module, 0.1)
        for there, back in ((module, module.inverse), (module.inverse, module)):
            # The inverse grows by less than 100 here, and each of 20 terms rounds once.
            torch.testing.assert_close(back(there(x)), x, rtol=0, atol=1e4 * EPS)


def test_the_two_modules_are_each_others_inverse() -> None:
    solve, conv = InverseConv2d(4, bound=0.9), CausalConv2d(4, bound=0.9)
    conv.load_state_dict(solve.state_dict())
    x = torch.randn(2, 4, 8, 8)
    assert torch.equal(solve.inverse(x), conv(x))
    assert torch.equal(solve(x), conv.inverse(x))


@pytest.mark.parametrize("unit_diagonal", [True, False])
@pytest.mark.parametrize("bound", [None, 0.5])
def test_anchor_is_triangular(unit_diagonal: bool, bound: float | None) -> None:
    module = InverseConv2d(6, (2, 3), corner=("tr", "bl"), groups=2, unit_diagonal=unit_diagonal,
                           bound=bound)  # fmt: skip
    randomize(module, 1.0)
    for anchor, _ in blocks(module):
        assert torch.equal(anchor, anchor.tril())
        assert anchor.tril(-1).abs().sum() > 0
        if unit_diagonal:
            assert torch.equal(anchor.diagonal(), torch.ones(3))
        else:
            assert (anchor.diagonal() > 0).all()


def test_starts_near_the_identity_and_without_symmetry() -> None:
    module = InverseConv2d(12, 3, unit_diagonal=False)
    assert invconv.growth(module.weight.detach(), (64, 64), unit_diagonal=False) < 2
    ((anchor, others),) = blocks(module)
    assert torch.equal(anchor.diagonal(), torch.ones(12))
    assert others.unique().numel() == others.numel()


@pytest.mark.parametrize("spread", [1e-3, 1.0, 1e7])
@pytest.mark.parametrize("rho", [0.3, 0.9])
@pytest.mark.parametrize("unit_diagonal", [True, False])
@pytest.mark.parametrize("by_torch", [True, False])
def test_bound_holds_for_any_parameters(
    spread: float, rho: float, unit_diagonal: bool, by_torch: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by_torch:
        monkeypatch.setattr(_bounded, "bounded_by_core", lambda *_: None)
    module = InverseConv2d(
        6, 3, corner=("tl", "br"), groups=2, unit_diagonal=unit_diagonal, bound=rho,
        dtype=torch.float64,
    )  # fmt: skip
    randomize(module, spread)
    for anchor, others in blocks(module):
        scaled = torch.einsum("oi,ict->oct", anchor.inverse(), others)
        norms = scaled.abs().sum(1).amax(0)
        # Scaling, the product with A and its inverse each round 3 x 9 terms, and A is far from
        # singular: a hundred roundings at most.
        assert norms.sum() <= rho * (1 + 100 * EPS)
        if spread >= 1:
            assert norms.sum() >= rho * (1 - 100 * EPS)
    largest = (1 if unit_diagonal else 2) / (1 - rho) ** 2
    for size in ((1, 1), (7, 9), (40, 40)):
        growth = invconv.growth(
            module.weight.detach(),
            size,
            corner=module.corner,
            groups=2,
            unit_diagonal=unit_diagonal,
        )
        assert growth <= largest * (1 + 1000 * EPS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kernel_size", [(1, 1), (2, 3), (3, 3), (4, 1)])
def test_the_core_derives_the_bounded_weight_that_torch_does(
    dtype: torch.dtype, kernel_size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for channels, groups in ((1, 1), (5, 1), (6, 2), (3, 3)):
        for corner in (*CORNERS, tuple(CORNERS[g] for g in range(groups))):
            module = InverseConv2d(
                channels, kernel_size, corner=corner, groups=groups, bound=0.7, dtype=dtype
            )
            for spread in (0.01, 30.0):
                randomize(module, spread)
                weight = module.weight
                assert type(weight.grad_fn).__name__ == "_DerivedBackward"
                with torch.no_grad():
                    assert torch.equal(module.weight, weight)
                with monkeypatch.context() as patched:
                    patched.setattr(_bounded, "bounded_by_core", lambda *_: None)
                    expected = module.weight
                # Weights are at most about 2; sums of up to 5 x 9 numbers are rounded otherwise.
                eps = torch.finfo(dtype).eps
                torch.testing.assert_close(weight, expected, rtol=0, atol=20 * eps)
                g = torch.randn_like(weight)
                assert torch.equal(
                    *(torch.autograd.grad(one, module.taps, g)[0] for one in (weight, expected))
                )


def test_derivatives_of_the_bounded_weight() -> None:
    module = InverseConv2d(4, 2, groups=2, bound=0.7, dtype=torch.float64)
    taps = torch.randn(4, 2, 2, 2, dtype=torch.float64, requires_grad=True)

    def weight(taps: Tensor) -> Tensor:
        return _bounded.bounded_weight(taps, 0.7, module.corner, 2)

    assert type(weight(taps).grad_fn).__name__ == "_DerivedBackward"
    assert torch.autograd.gradcheck(weight, taps)
    assert torch.autograd.gradgradcheck(weight, taps)


def test_the_core_derives_the_bounded_weight_of_half_types_and_any_strides() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        module = InverseConv2d(4, 3, bound=0.9, dtype=dtype).to(memory_format=torch.channels_last)
        weight = module.weight
        assert type(weight.grad_fn).__name__ == "_DerivedBackward"
        with torch.no_grad():
            assert torch.equal(module.weight, weight)
        # Their arithmetic is float32's, and rounded once.
        assert torch.equal(weight, module.float().weight.to(dtype))


def test_bound_holds_for_infinite_parameters() -> None:
    module = InverseConv2d(3, 3, unit_diagonal=False, bound=0.9)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.view(-1)[::2] = torch.inf
            parameter.view(-1)[1::2] = -torch.inf
    assert module.weight.isfinite().all()
    growth = invconv.growth(module.weight.detach(), (16, 16), unit_diagonal=False)
    # float32 weights: the bound up to a relative 3 * 9 roundings, divided by 1 - rho twice.
    assert growth <= 2 / (1 - 0.9) ** 2 * (1 + 1e-4)


def test_absurd_learning_rate_stays_finite_on_large_images() -> None:
    torch.manual_seed(0)
    module = InverseConv2d(2, 3, corner="br", unit_diagonal=False, bound=0.9)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e6)
    y = torch.randn(1, 2, 256, 256)
    for _ in range(10):
        optimizer.zero_grad()
        x = module(y)
        assert x.isfinite().all()
        assert x.abs().max() <= 2 / (1 - 0.9) ** 2 * (1 + 1e-3) * y.abs().max()
        # Maximising the solution drives the weight towards the least stable one.
        (-x.square().mean()).backward()
        optimizer.step()
    assert module.taps.abs().max() > 1e6


@pytest.mark.parametrize("spread", [1e-3, 1.0])
def test_gradients_of_the_bounded_weight(spread: float) -> None:
    # Two spreads: with the scaling inactive and active.
    module = InverseConv2d(4, 2, groups=2, unit_diagonal=False, bound=0.6, dtype=torch.float64)
    randomize(module, spread)
    names, parameters = zip(*module.named_parameters(), strict=True)
    x = torch.randn(1, 4, 3, 3, dtype=torch.float64)

    def solution(*values: Tensor) -> Tensor:
        named = dict(zip(names, values, strict=True))
        result: Tensor = torch.func.functional_call(module, named, x)
        return result

    # Steps that stay on one side of the scaling's kink: the values are of the order of spread.
    assert torch.autograd.gradcheck(solution, parameters, eps=1e-6 * spread, atol=1e-4)


@pytest.mark.parametrize("bound", [None, 0.9])
def test_logabsdet_is_that_of_forward(bound: float | None) -> None:
    for kind in (InverseConv2d, CausalConv2d):
        module = kind(3, (2, 3), unit_diagonal=False, bound=bound, dtype=torch.float64)
        randomize(module, 0.3)
        x = torch.randn(1, 3, 4, 5, dtype=torch.float64)
        jacobian = torch.autograd.functional.jacobian(module, x).reshape(60, 60)
        expected = torch.linalg.slogdet(jacobian).logabsdet
        # 60 logarithms of order 1, and an LU factorisation of a well-conditioned matrix.
        torch.testing.assert_close(module.logabsdet((4, 5)), expected, rtol=0, atol=1e4 * EPS)
        assert torch.equal(module.logabsdet(4), module.logabsdet((4, 4)))
    for unit in (InverseConv2d(3), CausalConv2d(3)):
        assert str(unit.logabsdet((4, 5)).item()) == "0.0"


def unstable(module: InverseConv2d | CausalConv2d) -> None:
    """Neighbours of weight -2: the inverse doubles with every pixel."""
    with torch.no_grad():
        module.taps.fill_(-2.0)


@pytest.mark.parametrize("kind", [InverseConv2d, CausalConv2d])
def test_warns_once_when_float32_cannot_carry_the_inverse(
    kind: type[InverseConv2d] | type[CausalConv2d],
) -> None:
    module = kind(1)
    unstable(module)
    x = torch.ones(1, 1, 16, 16)
    message = rf"\[{kind.__name__}\] on 16 x 16 images .* bound="
    with pytest.warns(RuntimeWarning, match=message) as caught:
        module(x)
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(8):
            module(x)


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_the_warning_points_at_the_callers_line(depth: int) -> None:
    module = InverseConv2d(1)
    unstable(module)
    outer: torch.nn.Module = module
    for _ in range(depth):
        outer = torch.nn.Sequential(outer)
    with pytest.warns(RuntimeWarning) as caught:
        outer(torch.ones(1, 1, 16, 16))
    assert caught[0].filename == __file__
    module._warned, module._calls = False, 0
    with pytest.warns(RuntimeWarning) as caught:
        module.inverse(torch.ones(1, 1, 16, 16))
    assert caught[0].filename == __file__


def test_growth_is_looked_at_on_calls_that_are_powers_of_two() -> None:
    module = InverseConv2d(1)
    x = torch.ones(1, 1, 16, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module(x)
        module.inverse(x)
        unstable(module)
        module(x)
    with pytest.warns(RuntimeWarning):
        module.inverse(x)


def test_does_not_warn_without_need() -> None:
    x = torch.ones(1, 1, 16, 16)
    bounded, small, exact = InverseConv2d(1, bound=0.9), InverseConv2d(1), InverseConv2d(1).double()
    unstable(bounded)
    # The inverse of the running difference is the running sum: it grows to 16 * 16, no further.
    with torch.no_grad():
        small.taps.copy_(torch.tensor([[[[0.0, 0, 0], [0, 1, -1], [0, -1, 0]]]]))
        # 2^15 over the 16 columns: too much for float32, little for float64.
        exact.taps.zero_()
        exact.taps[0, 0, 2, 1] = -2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bounded(x)
        small(x)
        exact(x.double())
    with pytest.warns(RuntimeWarning):
        exact.float()(x)


@pytest.mark.parametrize("bound", [None, 0.9])
def test_compiles_and_transforms(bound: float | None) -> None:
    module = InverseConv2d(3, 3, bound=bound)
    y = torch.randn(2, 3, 5, 6)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    if bound is None:
        assert torch.equal(compiled(y), module(y))
    else:  # compiled, torch derives the weight, whose sums it rounds otherwise than the core
        torch.testing.assert_close(compiled(y), module(y))

    parameters = dict(module.named_parameters())

    def loss(values: dict[str, Tensor]) -> Tensor:
        result: Tensor = torch.func.functional_call(module, values, y)
        return result.square().sum()

    transformed = torch.func.grad(loss)(parameters)["taps"]
    loss(parameters).backward()
    torch.testing.assert_close(transformed, module.taps.grad)


def test_free_weight_learns_a_known_filter() -> None:
    torch.manual_seed(0)
    target = CausalConv2d(2, 2, unit_diagonal=False, dtype=torch.float64)
    randomize(target, 0.2)
    x = torch.randn(8, 2, 10, 10, dtype=torch.float64)
    y = target(x).detach()
    module = InverseConv2d(2, 2, unit_diagonal=False, dtype=torch.float64)
    optimizer = torch.optim.LBFGS(module.parameters(), max_iter=200, tolerance_change=1e-16)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (module(y) - x).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    # The filter is determined by the data, so the gradient leads to it, to half of the digits.
    torch.testing.assert_close(module.weight, target.weight, rtol=0, atol=1e-5)


def test_state_holds_the_free_parameters_only() -> None:
    assert list(InverseConv2d(2).state_dict()) == ["taps"]
    assert list(InverseConv2d(2, unit_diagonal=False).state_dict()) == ["taps", "log2_diagonal"]


def test_one_image_without_a_batch() -> None:
    module = InverseConv2d(3, bound=0.9)
    y = torch.randn(3, 6, 5)
    assert torch.equal(module(y), module(y[None])[0])


def test_repr_names_every_argument() -> None:
    module = CausalConv2d(4, (3, 1), corner=("tl", "br"), groups=2, unit_diagonal=False, bound=0.5)
    assert repr(module) == (
        "CausalConv2d(4, kernel_size=(3, 1), corner=('tl', 'br'), groups=2, unit_diagonal=False, "
        "bound=0.5)"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": 12, "groups": 5}, "expected groups to divide C = 12, but got 5"),
        ({"channels": 0}, "expected channels of at least 1, but got 0"),
        ({"kernel_size": 0}, "expected kernel_size .* but got 0 x 0"),
        ({"corner": "left"}, "expected corner to be 'tl', .* but got 'left'"),
        ({"groups": 2, "corner": ("tl",) * 3}, "one for each of the groups = 2, but got 3"),
        ({"bound": 1.0}, "expected bound between 0 and 1, but got 1.0"),
        ({"bound": 0.0}, "but got 0.0"),
        ({"bound": float("nan")}, "but got nan"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^\[InverseConv2d\] .*{message}"):
        InverseConv2d(**{"channels": 4, **arguments})


@pytest.mark.parametrize("module", [InverseConv2d, CausalConv2d])
@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (3, 8, 8)])
def test_images_of_other_channels_are_refused(
    module: type[InverseConv2d] | type[CausalConv2d], shape: tuple[int, ...]
) -> None:
    message = (
        rf"^\[{module.__name__}\] expected images .* with C = 4, but got {re.escape(str(shape))}"
    )
    with pytest.raises(ValueError, match=message):
        module(4)(torch.zeros(shape))


def test_wrong_dtype_is_refused() -> None:
    with pytest.raises(TypeError):
        InverseConv2d(2)(torch.zeros(1, 2, 3, 3, dtype=torch.float64))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": 4.0}, "expected channels to be an integer, but got 4.0"),
        ({"kernel_size": 2.5}, "expected kernel_size to be two integers, .* but got 2.5"),
        ({"kernel_size": True}, "expected kernel_size to be two integers, .* but got True"),
        ({"kernel_size": (3, 3, 3)}, r"expected kernel_size .* but got \(3, 3, 3\)"),
        ({"corner": 3}, "expected corner to be a string, 'tl', .* but got 3"),
        ({"unit_diagonal": "no"}, "expected unit_diagonal to be a bool, but got str"),
        ({"dtype": torch.int32}, "expected parameters of dtype float16, .* but got int32"),
        ({"bound": "a"}, "expected bound to be a number.* but got 'a'"),
    ],
)
def test_arguments_of_the_wrong_kind(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=rf"^\[InverseConv2d\] {message}"):
        InverseConv2d(**{"channels": 4, **arguments})


def test_the_module_can_be_made_without_values_and_filled_later() -> None:
    source = CausalConv2d(3, 3, unit_diagonal=False, bound=0.9)
    with torch.device("meta"):
        module = CausalConv2d(3, 3, unit_diagonal=False, bound=0.9)
    assert module(torch.empty(1, 3, 5, 5, device="meta")).shape == (1, 3, 5, 5)
    module.to_empty(device="cpu").load_state_dict(source.state_dict())
    y = torch.randn(1, 3, 5, 5)
    assert torch.equal(module(y), source(y))


def test_growth_is_not_asked_of_tensors_without_values() -> None:
    assert InverseConv2d(3, device="meta")(torch.empty(1, 3, 5, 5, device="meta")).is_meta
    with FakeTensorMode():
        assert InverseConv2d(3)(torch.empty(1, 3, 5, 5)).shape == (1, 3, 5, 5)


@pytest.mark.parametrize("kind", [InverseConv2d, CausalConv2d])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_runs_in_float32(kind: type[InverseConv2d], dtype: torch.dtype) -> None:
    """Images from a half-type layer before it: the result is float32's, and so are gradients."""
    module = kind(16, bound=0.9)
    x = torch.randn(1, 16, 4, 4).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        y = module(x)
        y.sum().backward()
    assert torch.equal(y, module(x.detach().float()))
    assert x.grad is not None and x.grad.dtype == dtype
    assert module.taps.grad is not None and module.taps.grad.isfinite().all()
