"""invconv.flows.InverseFlow: likelihoods, latents, samples, and the configuration."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import invconv.flows
from invconv.flows import PRESETS, FlowConfig, InverseConvolution, InverseFlow, StandardNormal

EPS = torch.finfo(torch.float64).eps
TINY: dict[str, Any] = {"image_shape": (1, 8, 8), "levels": 2, "steps": 2, "hidden": 6}


def build(seed: int = 0, **fields: Any) -> InverseFlow:
    """A float64 model with initialised ActNorms and random parameters, in evaluation mode."""
    torch.manual_seed(seed)
    flow = InverseFlow(**{**TINY, **fields}).double()
    flow.log_prob(images(flow, 20))
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, dtype=parameter.dtype))
    return flow.eval()


def images(flow: InverseFlow, batch: int) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    shape = (batch, *flow.config.image_shape)
    return torch.randint(0, flow.config.quantization, shape, generator=generator)


def flatten(latents: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([z.flatten(1) for z in latents], 1)


@pytest.mark.parametrize("mixing", ["inverse_conv", "reverse"])
@pytest.mark.parametrize(
    "fields", [{}, {"image_shape": (3, 4, 8), "levels": 1}, {"bound": None, "kernel_size": 2}]
)
def test_log_prob_by_hand(mixing: str, fields: dict[str, Any]) -> None:
    flow = build(mixing=mixing, **fields)
    x, _ = flow.dequantize(images(flow, 2))
    z = flatten(flow.encode(x))
    dims = math.prod(flow.config.image_shape)
    assert z.shape == (2, dims)
    for index in range(2):
        jacobian = torch.autograd.functional.jacobian(
            lambda v: flatten(flow.encode(v[None]))[0], x[index]
        )
        volume = torch.linalg.slogdet(jacobian.reshape(dims, dims)).logabsdet
        normal = -0.5 * (z[index].square().sum() + dims * math.log(2 * math.pi))
        # Both are sums of some hundred terms of order 1 to 100, one of them through an LU.
        torch.testing.assert_close(
            flow.log_prob(x)[index], normal + volume, rtol=1e4 * EPS, atol=1e5 * EPS
        )


def test_log_prob_of_integers_includes_the_dequantization() -> None:
    flow = build(quantization=17)
    x = images(flow, 4)
    continuous, volume = flow.dequantize(x, generator=torch.Generator().manual_seed(5))
    assert volume.tolist() == pytest.approx([-64 * math.log(17)] * 4)
    expected = flow.log_prob(continuous) + volume
    actual = flow.log_prob(x, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(actual, expected, rtol=1e-14, atol=0)
    assert torch.equal(flow(x, generator=torch.Generator().manual_seed(5)), actual)


def test_the_density_integrates_to_one() -> None:
    # Importance sampling from the uniform density on the cube: the mean of p(x) is its integral.
    # Four dimensions and a smooth model keep the variance small.
    flow = build(image_shape=(1, 2, 2), levels=1, steps=2, logit_alpha=0.0)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(200_000, 1, 2, 2, dtype=torch.float64, generator=generator)
    density = flow.log_prob(x).exp().detach()
    error = density.std() / math.sqrt(len(density))
    # Five standard errors: a chance of 6e-7 if the integral is 1.
    assert error < 0.05
    assert abs(density.mean() - 1) < 5 * error


def test_bits_per_dim_of_a_known_density() -> None:
    # With every layer at the identity only the logit acts. The density of x is then the logistic
    # one of z = logit(x) replaced by a normal: by hand for images that are constant.
    flow = InverseFlow(**TINY, logit_alpha=0.0).double().eval()
    for module in flow.modules():
        if isinstance(module, InverseConvolution):
            torch.nn.init.zeros_(module.module.taps)
    levels = torch.tensor([3, 128, 250])
    x = levels.view(3, 1, 1, 1).expand(3, 1, 8, 8)
    noise = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    u = (levels.view(3, 1, 1, 1) + noise) / 256
    z = torch.logit(u)
    density = -0.5 * z**2 - 0.5 * math.log(2 * math.pi) - torch.log(u * (1 - u))
    # The splines bend nothing at first, up to the float32 value that gives them the slope 1: each
    # of the five in a pixel's way is off by 6e-8.
    expected = -(density.sum((1, 2, 3)) / 64 - math.log(256)) / math.log(2)
    actual = flow.bits_per_dim(x, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(actual, expected, rtol=0, atol=5e-7)


@pytest.mark.parametrize("quantization", [2, 17, 256])
def test_bits_per_dim_of_the_uniform_density_is_log2(quantization: int) -> None:
    # The same change of variables with the density of log_prob set to that of a uniform image.
    class Uniform(InverseFlow):
        def log_prob(
            self,
            x: Tensor,
            context: Tensor | None = None,
            *,
            generator: torch.Generator | None = None,
        ) -> Tensor:
            return self.dequantize(x, generator=generator)[1]

    flow = Uniform(**TINY, quantization=quantization)
    bits = flow.bits_per_dim(images(flow, 2))
    assert bits.tolist() == pytest.approx([math.log2(quantization)] * 2)


def test_bits_per_dim_refuses_densities() -> None:
    flow = build()
    with pytest.raises(TypeError, match=r"^\[bits_per_dim\] expected an integer .* torch.float32"):
        flow.bits_per_dim(torch.rand(1, 1, 8, 8))


@pytest.mark.parametrize("mixing", ["inverse_conv", "reverse"])
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_decode_undoes_encode(mixing: str, levels: int) -> None:
    flow = build(mixing=mixing, levels=levels, image_shape=(2, 8, 16))
    x, _ = flow.dequantize(images(flow, 5))
    latents = flow.encode(x)
    assert [tuple(z.shape[1:]) for z in latents] == flow.latent_shapes
    assert sum(math.prod(shape) for shape in flow.latent_shapes) == 2 * 8 * 16
    # Up to 3 levels x 2 steps, each with slopes of a few units.
    torch.testing.assert_close(flow.decode(latents), x, rtol=0, atol=1e6 * EPS)
    noise = torch.Generator().manual_seed(1)
    assert torch.equal(
        flatten(flow.encode(images(flow, 5), generator=noise)),
        flatten(flow.encode(flow.dequantize(images(flow, 5), generator=noise.manual_seed(1))[0])),
    )


def test_samples_follow_their_generator_and_temperature() -> None:
    flow = build(quantization=17)
    first = flow.sample(6, generator=torch.Generator().manual_seed(3))
    assert first.shape == (6, 1, 8, 8)
    assert first.dtype == torch.uint8
    assert first.max() <= 16
    assert torch.equal(first, flow.sample(6, generator=torch.Generator().manual_seed(3)))
    cold = flow.sample(4, temperature=0.0)
    assert torch.equal(cold, cold[:1].expand_as(cold))
    mode = flow.decode([torch.zeros(1, *shape) for shape in flow.latent_shapes])
    assert torch.equal(cold[:1], (mode * 17).floor().clamp(max=16).to(torch.uint8))
    assert flow.sample(0).shape == (0, 1, 8, 8)
    assert build(quantization=1000).sample(1).dtype == torch.int64


def test_samples_have_the_models_density() -> None:
    # The latents of samples are standard normal again, up to the rounding to levels.
    flow = build(quantization=2**16)
    x = flow.sample(2000, generator=torch.Generator().manual_seed(0))
    z = flatten(flow.encode(x, generator=torch.Generator().manual_seed(1))).detach()
    # 128000 independent values: five standard errors of the mean and of the variance, plus the
    # effect of rounding by 1e-5 of the range.
    assert abs(z.mean()) < 5 / math.sqrt(z.numel()) + 1e-3
    assert abs(z.var() - 1) < 5 * math.sqrt(2 / z.numel()) + 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_everything_has_the_models_dtype(dtype: torch.dtype) -> None:
    flow = InverseFlow(**TINY).to(dtype)
    for x in (
        images(flow, 2),
        images(flow, 2).to(torch.uint8),
        torch.rand(2, 1, 8, 8, dtype=torch.float64),
        torch.rand(2, 1, 8, 8),
    ):
        assert flow.log_prob(x).dtype == dtype
        latents = flow.encode(x)
        assert {z.dtype for z in latents} == {dtype}
        assert flow.decode(latents).dtype == dtype
        assert flow.decode([z.double() for z in latents]).dtype == dtype
        for parameter in flow.parameters():
            assert parameter.dtype == dtype
    for buffer in flow.buffers():
        assert buffer.dtype in (dtype, torch.bool)


def test_state_dict_restores_the_model_and_its_initialisation() -> None:
    flow = build()
    file = io.BytesIO()
    torch.save(flow.state_dict(), file)
    file.seek(0)
    again = InverseFlow(flow.config).double()
    again.load_state_dict(torch.load(file, weights_only=True))
    x, _ = flow.dequantize(images(flow, 3))
    # In training mode, where an ActNorm that forgot its flag would initialise from x.
    again.train()
    assert torch.equal(again.log_prob(x), flow.log_prob(x))


def test_reverse_is_the_same_model_without_inverse_convolutions() -> None:
    full, ablation = InverseFlow(**TINY), InverseFlow(**TINY, mixing="reverse")

    def layers(flow: InverseFlow) -> list[str]:
        return [
            type(module).__name__ for module in flow.modules()
            if not isinstance(module, (InverseConvolution, invconv.nn.InverseConv2d))
        ]  # fmt: skip

    assert layers(full) == layers(ablation)
    corners = [m.module.corner for m in full.modules() if isinstance(m, InverseConvolution)]
    assert corners == ["tl", "br", "tr", "bl"]


def test_standard_normal() -> None:
    z = torch.randn(3, 2, 4, 5, dtype=torch.float64)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum((1, 2, 3))
    torch.testing.assert_close(StandardNormal().log_prob(z), expected, rtol=1e-14, atol=0)


def test_training_lowers_the_loss() -> None:
    torch.manual_seed(0)
    flow = InverseFlow(**TINY)
    # Dark images with a few bright pixels.
    x = images(flow, 64) * (images(flow, 64) > 200)
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = flow.bits_per_dim(x).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5


# --- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 8, 8), r"shape \(batch, 1, 8, 8\), but got \(2, 8, 8\)"),
        (torch.zeros(2, 3, 8, 8), r"but got \(2, 3, 8, 8\)"),
        (torch.full((1, 1, 8, 8), 256), "integer images with values from 0 to 255, .* 256 to 256"),
        (torch.full((1, 1, 8, 8), -1), "but got values from -1"),
        (torch.full((1, 1, 8, 8), 7.0), "floating-point images with values from 0 to 1, but"),
        (torch.full((1, 1, 8, 8), torch.nan), "but got values from nan to nan"),
    ],
)
def test_bad_images(x: Tensor, message: str) -> None:
    flow = InverseFlow(**TINY)
    for method in (flow.log_prob, flow.encode, flow.dequantize):
        with pytest.raises(ValueError, match=rf"^\[InverseFlow\] expected .*{message}"):
            method(x)


def test_empty_batches() -> None:
    flow = InverseFlow(**TINY)
    assert flow.log_prob(torch.zeros(0, 1, 8, 8, dtype=torch.uint8)).shape == (0,)
    assert flow.decode(flow.encode(torch.zeros(0, 1, 8, 8))).shape == (0, 1, 8, 8)


def test_bad_latents_and_samples() -> None:
    flow = InverseFlow(**TINY)
    with pytest.raises(ValueError, match=r"^\[InverseFlow\] expected latents of shapes"):
        flow.decode([torch.zeros(1, 2, 4, 4)])
    for n, temperature in ((-1, 1.0), (1, -0.5), (1, math.inf), (1, math.nan)):
        with pytest.raises(ValueError, match=r"^\[sample\] expected n >= 0 and a finite temp"):
            flow.sample(n, temperature)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_shape": (1, 8, 10)}, r"divisible by 4 \(levels = 2\), but got 8 x 10"),
        ({"image_shape": (8, 8)}, r"image_shape \(C, H, W\), but got \(8, 8\)"),
        ({"image_shape": (0, 8, 8)}, "but got"),
        ({"levels": 0}, "levels of at least 1, but got 0"),
        ({"steps": 0}, "steps of at least 1, but got 0"),
        ({"mixing": "glow"}, "mixing in .* but got 'glow'"),
    ],
)
def test_bad_configurations(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^\[FlowConfig\] expected .*{message}"):
        InverseFlow(**{**TINY, **fields})
    with pytest.raises(TypeError, match="config or its fields"):
        InverseFlow(FlowConfig(**TINY), **fields)


def test_config_round_trips_through_json() -> None:
    config = FlowConfig(image_shape=(3, 16, 8), quantization=17, bound=None, mixing="reverse")
    assert FlowConfig.from_json(config.to_json()) == config
    for text in ("nothing", '{"image_shape": [1, 8, 8], "depth": 3}', "{}", "[1]"):
        with pytest.raises(ValueError):
            FlowConfig.from_json(text)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_configurations(name: str) -> None:
    FlowConfig(image_shape=(1, 28, 28), **PRESETS[name])
