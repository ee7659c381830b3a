"""invconv.flows, layer by layer: inverses, log-determinants, shapes and dtypes, and edge cases."""

from __future__ import annotations

import doctest
import importlib
import math
import pkgutil
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import invconv.flows
import invconv.nn
from invconv.flows import (
    ActNorm,
    AffineCoupling,
    Bijection,
    CausalConvolution,
    Convolution1x1,
    Dequantization,
    InverseConvolution,
    Logit,
    RationalQuadraticSpline,
    Reverse,
    Sequential,
    SplitPrior,
    Squeeze,
)

EPS = torch.finfo(torch.float64).eps

# Layers on (batch, 4, 4, 6) images of the real line.
LAYERS: dict[str, Callable[[], Bijection]] = {
    "squeeze": Squeeze,
    "reverse": Reverse,
    "actnorm": lambda: ActNorm(4),
    "inverse_convolution": lambda: InverseConvolution(4, 3, corner="br", bound=0.8),
    "inverse_convolution_diagonal": lambda: InverseConvolution(
        4, (2, 3), corner=("tl", "tr"), groups=2, unit_diagonal=False
    ),
    "causal_convolution": lambda: CausalConvolution(4, 3, corner="bl", bound=0.8),
    "causal_convolution_diagonal": lambda: CausalConvolution(
        4, (3, 2), corner=("tl", "tr", "bl", "br"), groups=4, unit_diagonal=False
    ),
    "convolution_1x1": lambda: Convolution1x1(4),
    "spline": lambda: RationalQuadraticSpline(4, bins=5, tail_bound=2.0),
    "spline_two_bins": lambda: RationalQuadraticSpline(4, bins=2),
    "coupling": lambda: AffineCoupling(4, hidden=6),
    "split_prior": lambda: SplitPrior(4, hidden=6),
    "sequential": lambda: Sequential(
        [ActNorm(4), Sequential([Reverse(), RationalQuadraticSpline(4)]), Squeeze(),
         AffineCoupling(16, hidden=4)]
    ),
    "empty_sequential": lambda: Sequential([]),
}  # fmt: skip
TAKE_ANY_CHANNELS = {"squeeze", "reverse", "empty_sequential"}


def build(name: str, dtype: torch.dtype = torch.float64) -> Bijection:
    """The layer with random parameters, in evaluation mode."""
    torch.manual_seed(0)
    layer = LAYERS[name]().to(dtype).eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, dtype=dtype))
    return layer


def images(dtype: torch.dtype = torch.float64, batch: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return 1.5 * torch.randn(batch, 4, 4, 6, generator=generator, dtype=dtype)


def dense_logabsdet(function: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor) -> Tensor:
    """log|det| of the whole Jacobian, image by image."""
    values = []
    for image in x:
        jacobian = torch.autograd.functional.jacobian(lambda v: function(v[None])[0], image)
        values.append(torch.linalg.slogdet(jacobian.reshape(image.numel(), -1)).logabsdet)
    return torch.stack(values)


@pytest.mark.parametrize("name", LAYERS)
def test_logabsdet_is_that_of_the_jacobian(name: str) -> None:
    layer, x = build(name), images()
    # An LU factorisation of 96 x 96 entries of order 1.
    z, logabsdet = layer(x)
    torch.testing.assert_close(logabsdet, dense_logabsdet(layer, x), rtol=0, atol=1e5 * EPS)
    back = dense_logabsdet(layer.inverse, z)
    torch.testing.assert_close(layer.inverse(z)[1], back, rtol=0, atol=1e5 * EPS)


@pytest.mark.parametrize("name", LAYERS)
def test_inverse_undoes_forward(name: str) -> None:
    layer, x = build(name), images()
    z, logabsdet = layer(x)
    again, opposite = layer.inverse(z)
    # A few tens of roundings, times slopes and growths well below a thousand.
    torch.testing.assert_close(again, x, rtol=0, atol=1e5 * EPS)
    torch.testing.assert_close(opposite, -logabsdet, rtol=0, atol=1e5 * EPS)
    other = z.flip(0).detach()
    torch.testing.assert_close(layer(layer.inverse(other)[0])[0], other, rtol=0, atol=1e5 * EPS)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_logabsdet_is_a_fresh_vector_of_the_inputs_kind(
    name: str, dtype: torch.dtype, batch: int
) -> None:
    layer, x = build(name, dtype), images(dtype, batch)
    x_before = x.clone()
    for function in (layer, layer.inverse):
        # What inverse takes has forward's shape.
        value = x if function is layer else layer(x)[0].detach()
        with torch.no_grad():
            z, logabsdet = function(value, None)
            assert z.dtype == dtype
            assert logabsdet.shape == (batch,)
            assert logabsdet.dtype == dtype
            assert logabsdet.is_contiguous()
            before = function(value)[1].clone()
            # survae and others add in place: that must reach no parameter and no other image.
            logabsdet += torch.arange(batch, dtype=dtype)
            assert torch.equal(function(value)[1], before)
    assert torch.equal(x, x_before)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_do_not_depend_on_what_is_asked_for(name: str, dtype: torch.dtype) -> None:
    layer, z = build(name, dtype), build(name, dtype)(images(dtype))[0].detach()
    x, logabsdet = layer.inverse(z)
    assert torch.equal(layer.decode(z), x)
    with torch.no_grad():
        assert torch.equal(layer.decode(z), x)
        for ours, expected in zip(layer.inverse(z), (x, logabsdet), strict=True):
            assert torch.equal(ours, expected)
        forward = layer(x)
    for ours, expected in zip(forward, layer(x.detach()), strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_reach_every_parameter(name: str) -> None:
    layer, x = build(name), images().requires_grad_()
    for function in (layer, layer.inverse):
        value = x if function is layer else layer(x)[0].detach().requires_grad_()
        z, logabsdet = function(value)
        inputs = [value, *layer.parameters()]
        gradients = torch.autograd.grad(z.square().sum() + logabsdet.sum(), inputs)
        for gradient in gradients:
            assert gradient.isfinite().all()
            assert gradient.numel() == 0 or gradient.abs().max() > 0


@pytest.mark.parametrize("name", LAYERS)
def test_layout_of_memory_does_not_matter(name: str) -> None:
    layer, x = build(name), images()
    z, logabsdet = layer(x)
    for same in (x.to(memory_format=torch.channels_last), x.flip(3).contiguous().flip(3)):
        # Reductions may run in another order.
        torch.testing.assert_close(layer(same), (z, logabsdet), rtol=0, atol=1e3 * EPS)


# --- dequantization and logit -----------------------------------------------------------------


@pytest.mark.parametrize("quantization", [2, 17, 49, 256, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dequantization_never_changes_a_level(quantization: int, dtype: torch.dtype) -> None:
    layer = Dequantization(quantization)
    levels = torch.arange(quantization).to(dtype).view(1, 1, 1, -1).expand(2000, 1, 1, -1)
    z, logabsdet = layer(levels, generator=torch.Generator().manual_seed(0))
    assert z.min() >= 0
    assert z.max() < 1
    assert torch.equal(layer.inverse(z)[0], levels)
    expected = -quantization * math.log(quantization)
    assert logabsdet.tolist() == pytest.approx([expected] * 2000, rel=torch.finfo(dtype).eps)


def test_dequantization_noise_is_uniform_and_repeatable() -> None:
    x = torch.full((1, 1, 300, 300), 7, dtype=torch.uint8)
    first, second = (Dequantization()(x, generator=torch.Generator().manual_seed(3))[0]
                     for _ in range(2))  # fmt: skip
    assert torch.equal(first, second)
    noise = (first * 256 - 7).flatten().sort().values
    ranks = (torch.arange(90000) + 0.5) / 90000
    # Kolmogorov-Smirnov: with probability 1e-6 the largest distance passes 2.7 / sqrt(90000).
    assert (noise - ranks).abs().max() < 2.7 / 300


def test_dequantization_refuses_dtypes_without_room_for_noise() -> None:
    with pytest.raises(TypeError, match=r"^\[Dequantization\] .*256 values, .* torch.bfloat16"):
        Dequantization()(torch.zeros(1, 1, 2, 2, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="but got 1"):
        Dequantization(1)


def test_dequantization_inverse_clamps() -> None:
    z = torch.tensor([[[[-0.1, 0.0, 0.999, 1.0, 1.1]]]])
    assert Dequantization(4).inverse(z)[0].flatten().tolist() == [0, 0, 3, 3, 3]


@pytest.mark.parametrize("alpha", [0.0, 1e-6, 0.05])
def test_logit(alpha: float) -> None:
    layer = Logit(alpha)
    x = torch.rand(3, 2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    z, logabsdet = layer(x)
    torch.testing.assert_close(z, torch.logit(alpha + (1 - 2 * alpha) * x), rtol=0, atol=1e5 * EPS)
    torch.testing.assert_close(logabsdet, dense_logabsdet(layer, x), rtol=1e-12, atol=0)
    again, opposite = layer.inverse(z)
    torch.testing.assert_close(again, x, rtol=0, atol=10 * EPS)
    torch.testing.assert_close(opposite, -logabsdet, rtol=1e-12, atol=0)


def test_logit_keeps_both_ends_finite() -> None:
    ends = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)
    z, logabsdet = Logit(1e-6)(ends)
    assert z.isfinite().all()
    assert logabsdet.isfinite().all()
    # float32 holds 1 - 1e-6 with a relative error of 3e-2 in the difference from 1; none is lost
    # here, because that difference is never taken.
    assert z[1].item() == pytest.approx(-z[0].item(), rel=1e-6)
    with pytest.raises(ValueError, match=r"\[0, 0.5\), but got 0.5"):
        Logit(0.5)


# --- rearrangements ---------------------------------------------------------------------------


def test_squeeze_order() -> None:
    x = torch.arange(2 * 4 * 6).view(1, 2, 4, 6)
    z, _ = Squeeze()(x)
    assert z.shape == (1, 8, 2, 3)
    for c in range(2):
        for dy in range(2):
            for dx in range(2):
                assert torch.equal(z[0, 4 * c + 2 * dy + dx], x[0, c, dy::2, dx::2])


def test_squeeze_refuses_odd_sizes() -> None:
    with pytest.raises(ValueError, match=r"^\[Squeeze\] expected even height and width, .* 5 x 4"):
        Squeeze()(torch.zeros(1, 1, 5, 4))
    with pytest.raises(ValueError, match="multiples of 4, but got 3"):
        Squeeze().inverse(torch.zeros(1, 3, 2, 2))


# --- Sequential -------------------------------------------------------------------------------


def test_sequential_takes_a_list_of_bijections() -> None:
    # What is refused here at run time mypy refuses before: hence the two comments.
    with pytest.raises(TypeError, match=r"^\[Sequential\] expected a list of .* but got ActNorm"):
        Sequential(ActNorm(4))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^\[Sequential\] expected bijections, but got Linear"):
        Sequential([ActNorm(4), torch.nn.Linear(4, 4)])  # type: ignore[list-item]


# --- ActNorm ----------------------------------------------------------------------------------


def test_actnorm_initialises_once_and_only_in_training() -> None:
    layer = ActNorm(2).double()
    x = images()[:, :2] * torch.tensor([3.0, 0.1]).view(2, 1, 1) + 5
    layer.eval()
    assert torch.equal(layer(x)[0], x)
    assert not layer.initialized
    layer.train()
    z, _ = layer(x)
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(2).double(), rtol=0, atol=1e4 * EPS)
    std = z.std((0, 2, 3), correction=0)
    torch.testing.assert_close(std, torch.ones(2).double(), rtol=0, atol=1e4 * EPS)
    kept = layer.log_std.detach().clone()
    layer(10 * x)
    assert torch.equal(layer.log_std, kept)


def test_actnorm_does_not_initialise_again_after_loading() -> None:
    trained = ActNorm(2)
    trained(torch.randn(4, 2, 3, 3))
    loaded = ActNorm(2)
    loaded.load_state_dict(trained.state_dict())
    x = 100 * torch.randn(4, 2, 3, 3)
    assert torch.equal(loaded(x)[0], trained(x)[0])
    assert torch.equal(loaded.mean, trained.mean)


def test_actnorm_survives_a_channel_of_almost_nothing() -> None:
    layer = ActNorm(1)
    x = torch.zeros(2, 1, 4, 4)
    x[0, 0, 0, 0] = 1e-42
    z, _ = layer(x)
    assert layer.log_std[0] == 0
    torch.testing.assert_close(layer.inverse(z)[0], x, rtol=0, atol=1e-44)


@pytest.mark.parametrize("constant", [0.0, 7.3, 1e6])
def test_actnorm_survives_a_constant_channel(constant: float) -> None:
    layer = ActNorm(2)
    x = torch.randn(50, 2, 4, 4)
    x[:, 0] = constant
    z, logabsdet = layer(x)
    assert layer.log_std[0] == 0
    # The mean of equal numbers may be off by its last bits.
    assert z[:, 0].abs().max() <= 16 * torch.finfo(torch.float32).eps * constant
    assert logabsdet.isfinite().all()
    torch.testing.assert_close(layer.inverse(z)[0], x, rtol=1e-5, atol=1e-5)


def test_actnorm_waits_for_a_batch_with_images() -> None:
    layer = ActNorm(1)
    layer(torch.zeros(0, 1, 4, 4))
    assert not layer.initialized
    layer(torch.randn(2, 1, 4, 4))
    assert layer.initialized


# --- the spline -------------------------------------------------------------------------------


def test_spline_starts_as_the_identity() -> None:
    x = 4 * torch.randn(5, 3, 8, 8)
    z, logabsdet = RationalQuadraticSpline(3)(x)
    # One piece has x_k + w t with t = (x - x_k) / w: a few roundings of numbers up to 3, and 64 * 3
    # logarithms of 1 up to rounding.
    torch.testing.assert_close(z, x, rtol=0, atol=1e-5)
    assert logabsdet.abs().max() < 1e-3


def test_spline_is_the_same_with_gradients() -> None:
    spline, x = RationalQuadraticSpline(3), 2 * torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        for parameter in spline.parameters():
            parameter.normal_()
        expected = spline(x)
    assert torch.equal(spline(x)[0], expected[0])
    assert torch.equal(spline(x)[1], expected[1])
    # Where torch may round the factors of products, as on a GPU, the pieces are picked without one.
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        z = spline(x)[0]
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(z, expected[0])
    used = set()
    steps = [z.grad_fn]
    while steps:
        step = steps.pop()
        if step is not None:
            used.add(step.name())
            steps += [before for before, _ in step.next_functions]
    assert "GatherBackward0" in used and "BmmBackward0" not in used


def test_spline_is_one_graph() -> None:
    spline, x = RationalQuadraticSpline(3), 2 * torch.randn(5, 3, 8, 8)
    compiled = torch.compile(spline, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x)[0], spline(x)[0])


def test_spline_matches_the_paper() -> None:
    # Durkan et al. (2019), equations 4 and 5, written for one number at a time.
    torch.manual_seed(0)
    bins, bound = 5, 2.0
    layer = RationalQuadraticSpline(1, bins, bound).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape))

    def knots(free: Tensor) -> list[float]:
        share = 1e-3 + (1 - 1e-3 * bins) * free[0].softmax(0)
        return [-bound, *(2 * bound * share.cumsum(0) - bound).tolist()]

    xs, ys = knots(layer.widths), knots(layer.heights)
    softplus = torch.nn.functional.softplus(layer.derivatives[0]) + 1e-3
    ds = [1.0, *softplus.tolist(), 1.0]
    for value in (-1.99, -0.7, 0.0, 0.3, 1.2, 1.99):
        k = max(i for i in range(bins) if xs[i] <= value)
        s = (ys[k + 1] - ys[k]) / (xs[k + 1] - xs[k])
        t = (value - xs[k]) / (xs[k + 1] - xs[k])
        above = (ys[k + 1] - ys[k]) * (s * t**2 + ds[k] * t * (1 - t))
        below = s + (ds[k + 1] + ds[k] - 2 * s) * t * (1 - t)
        slope = s**2 * (ds[k + 1] * t**2 + 2 * s * t * (1 - t) + ds[k] * (1 - t) ** 2) / below**2
        z, logabsdet = layer(torch.full((1, 1, 1, 1), value, dtype=torch.float64))
        # The same formulas in another order of operations.
        assert z.item() == pytest.approx(ys[k] + above / below, rel=1e-12, abs=1e-12)
        assert logabsdet.item() == pytest.approx(math.log(slope), rel=1e-12, abs=1e-12)


def test_spline_is_the_identity_outside_and_continuous_at_the_ends() -> None:
    layer = build("spline")
    outside = torch.tensor([-1e6, -2.0, 2.0, 3.5, 1e6], dtype=torch.float64)
    x = outside.view(1, 1, 1, 5).expand(1, 4, 1, 5).clone().requires_grad_()
    for function in (layer, layer.inverse):
        z, logabsdet = function(x)
        # At the ends themselves the last knot, a sum of shares, may be off by its last bits.
        torch.testing.assert_close(z, x, rtol=1e-15, atol=10 * EPS)
        assert logabsdet.item() == pytest.approx(0, abs=1e3 * EPS)
        # Just inside, the slope differs from 1 by as much as a piece can bend in 1e-9.
        near = (x.detach() - 1e-9 * x.detach().sign()).requires_grad_()
        (gradient,) = torch.autograd.grad(function(near)[0].sum(), near)
        torch.testing.assert_close(gradient, torch.ones_like(x), rtol=0, atol=1e-6)


def test_spline_is_monotonic_and_inverts_with_extreme_parameters() -> None:
    torch.manual_seed(0)
    layer = RationalQuadraticSpline(50, bins=8).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(8 * torch.randn(parameter.shape))
    x = torch.linspace(-3.5, 3.5, 2001, dtype=torch.float64).expand(1, 50, 1, 2001)
    z, logabsdet = layer(x)
    assert (z.diff(dim=3) >= 0).all()
    assert logabsdet.isfinite().all()
    again, _ = layer.inverse(z)
    # Slopes reach from 1e-6 (two flat knots around a flat bin) to 1e6: as many digits are lost.
    torch.testing.assert_close(again, x, rtol=0, atol=1e-8)


@pytest.mark.parametrize("bins", [128, 129, 500])
def test_spline_of_many_pieces_without_gradients(bins: int) -> None:
    # They are counted in integers of 8 bits where those suffice.
    layer = RationalQuadraticSpline(2, bins).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.linspace(-3.5, 3.5, 4001, dtype=torch.float64).expand(1, 2, 1, 4001)
    expected = layer(x)
    with torch.no_grad():
        for ours, value in zip(layer(x), expected, strict=True):
            assert torch.equal(ours, value)


@pytest.mark.parametrize("arguments", [(0,), (3, 1), (3, 501), (3, 8, 0.0), (3, 8, float("nan"))])
def test_spline_arguments(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match=r"^\[RationalQuadraticSpline\] expected channels"):
        RationalQuadraticSpline(*arguments)


# --- couplings --------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [2, 3, 5])
def test_coupling_leaves_its_condition_alone(channels: int) -> None:
    layer = AffineCoupling(channels, hidden=4)
    torch.nn.init.normal_(layer.net[-1].weight)
    x = torch.randn(2, channels, 4, 4)
    z, _ = layer(x)
    half = channels // 2
    assert torch.equal(z[:, :half], x[:, :half])
    assert (z[:, half:] != x[:, half:]).all()


def test_coupling_scale_is_bounded() -> None:
    layer = AffineCoupling(2, hidden=4)
    torch.nn.init.constant_(layer.net[-1].bias, 1e6)
    _, logabsdet = layer(torch.randn(3, 2, 2, 2))
    assert (logabsdet.abs() <= 2 * 4 * (1 + 1e-6)).all()
    with pytest.raises(ValueError, match=r"^\[AffineCoupling\] .* channels = 1"):
        AffineCoupling(1)
    with pytest.raises(ValueError, match=r"^\[SplitPrior\] .* hidden = 0"):
        SplitPrior(4, hidden=0)


def test_split_prior_is_a_conditional_gaussian() -> None:
    layer = SplitPrior(4, hidden=6).double()
    torch.nn.init.normal_(layer.net[-1].weight, std=0.2)
    x = images()
    z, logabsdet = layer(x)
    shift, raw = layer.net(x[:, :2]).chunk(2, 1)
    scale = (2 * (raw / 2).tanh()).exp()
    density = torch.distributions.Normal(shift, scale).log_prob(x[:, 2:]).sum((1, 2, 3))
    standard = torch.distributions.Normal(0.0, 1.0).log_prob(z[:, 2:]).sum((1, 2, 3))
    torch.testing.assert_close(standard + logabsdet, density, rtol=1e-13, atol=0)


def test_inverse_convolution_warns_through_the_module() -> None:
    layer = InverseConvolution(1, bound=None)
    with torch.no_grad():
        layer.module.taps.fill_(-2.0)
    with pytest.warns(RuntimeWarning, match="growth|multiplies errors"):
        layer(torch.ones(1, 1, 16, 16))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        InverseConvolution(1, bound=0.9)(torch.ones(1, 1, 16, 16))


def test_a_causal_convolution_is_an_inverse_convolution_turned_round() -> None:
    arguments: dict[str, Any] = {"corner": ("tr", "bl"), "groups": 2, "unit_diagonal": False}
    layer = CausalConvolution(4, (2, 3), **arguments).double()
    torch.nn.init.normal_(layer.module.taps, std=0.1)
    other = InverseConvolution(4, (2, 3), **arguments).double()
    other.load_state_dict(layer.state_dict())
    x = images()
    for one, same in ((layer, other.inverse), (layer.inverse, other)):
        for result, expected in zip(one(x), same(x), strict=True):
            assert torch.equal(result, expected)
    with pytest.raises(ValueError, match=r"^\[CausalConv2d\] expected groups to divide"):
        CausalConvolution(6, groups=4)


# --- the 1x1 convolution ----------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 12, 96])
def test_convolution_1x1_starts_as_a_rotation(channels: int) -> None:
    layer = Convolution1x1(channels)
    x = torch.randn(2, channels, 3, 5)
    z, logabsdet = layer(x)
    # W is right up to the rounding of its factors, whose entries are of order 1 or less.
    torch.testing.assert_close(z.norm(dim=1), x.norm(dim=1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logabsdet, torch.zeros(2), rtol=0, atol=1e-3)
    torch.testing.assert_close(layer.inverse(z)[0], x, rtol=0, atol=1e-4)
    if channels > 1:
        assert not torch.allclose(z, x, atol=0.1)
    assert layer.factors.numel() == sum(p.numel() for p in layer.parameters()) == channels**2


def test_convolution_1x1_is_a_convolution() -> None:
    layer = build("convolution_1x1")
    one_hot = torch.eye(4, dtype=torch.float64).view(4, 4, 1, 1)
    weight = layer(one_hot)[0].view(4, 4).mT
    x = images()
    z, logabsdet = layer(x)
    torch.testing.assert_close(
        z, torch.nn.functional.conv2d(x, weight[:, :, None, None]), rtol=0, atol=100 * EPS
    )
    volume = 4 * 6 * torch.linalg.slogdet(weight).logabsdet
    torch.testing.assert_close(logabsdet, volume.expand(3), rtol=0, atol=1e4 * EPS)


@pytest.mark.parametrize("value", [-1e4, 1e4])
def test_convolution_1x1_is_never_singular(value: float) -> None:
    layer = Convolution1x1(6).double()
    x = images()[:, [0, 1, 2, 3, 0, 1]]
    with torch.no_grad():
        # L and U are the identity, since with pivots this small U alone can lose any digits.
        layer.factors.zero_().diagonal().fill_(value)
    z, logabsdet = layer(x)
    # tanh is 1 to the last bit.
    assert logabsdet.tolist() == pytest.approx([math.copysign(4, value) * 6 * 24] * 3, rel=1e-12)
    torch.testing.assert_close(layer.inverse(z)[0], x, rtol=0, atol=100 * EPS)
    with pytest.raises(ValueError, match=r"^\[Convolution1x1\] expected channels .* but got 0"):
        Convolution1x1(0)


def test_convolution_1x1_keeps_its_permutation_and_signs_in_its_state() -> None:
    layer, other = Convolution1x1(8), Convolution1x1(8)
    x = torch.randn(2, 8, 3, 3)
    assert not torch.equal(layer(x)[0], other(x)[0])
    other.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x)[0], other(x)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_convolution_1x1_is_exact_under_autocast(dtype: torch.dtype) -> None:
    layer, x = build("convolution_1x1", torch.float32), images(torch.float32)
    with torch.autocast("cpu", dtype=dtype):
        z, _ = layer(x)
        again, _ = layer.inverse(z)
    assert torch.equal(z, layer(x)[0])
    torch.testing.assert_close(again, x, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [AffineCoupling, SplitPrior])
def test_couplings_undo_themselves_under_autocast(
    kind: type[AffineCoupling], dtype: torch.dtype
) -> None:
    layer, x = kind(12, 8), torch.randn(2, 12, 64, 64)
    torch.nn.init.constant_(layer.net[-1].bias, 0.9)
    exact, logabsdet = layer(x)
    with torch.autocast("cpu", dtype=dtype):
        z, change = layer(x)
        again, back = layer.inverse(z)
    # The net's result is in the half type, here a constant, and nothing after it.
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(z, exact, rtol=4 * eps, atol=4 * eps)
    torch.testing.assert_close(change, logabsdet, rtol=eps, atol=0)
    torch.testing.assert_close(again, x, rtol=0, atol=1e-5)
    assert torch.equal(back, -change)


@pytest.mark.parametrize("name", [n for n in LAYERS if n not in TAKE_ANY_CHANNELS])
def test_images_of_other_channels_are_refused(name: str) -> None:
    layer = build(name)
    # One channel would be taken for each of them, and an image for a batch.
    for shape in ((2, 1, 4, 4), (2, 5, 4, 4), (4, 4, 4), (4, 4)):
        x = torch.zeros(shape, dtype=torch.float64)
        for call in (layer, layer.inverse, layer.decode):
            with pytest.raises(ValueError, match=r"^\[\w+\] expected .*, but got \("):
                call(x)


def test_bijection_cannot_be_incomplete() -> None:
    class OneWay(Bijection):
        def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
            return x, x.new_zeros(x.shape[0])

    with pytest.raises(TypeError, match="inverse"):
        OneWay()  # type: ignore[abstract]  # which is what this shows


# --- the examples in the docstrings -----------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    sorted(
        f"{package.__name__}.{module.name}"
        for package in (invconv.nn, invconv.flows)
        for module in pkgutil.iter_modules(package.__path__)
    ),
)
def test_examples(name: str) -> None:
    torch.manual_seed(0)
    assert doctest.testmod(importlib.import_module(name)).failed == 0
