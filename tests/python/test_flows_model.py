"""invconv.flows.InverseFlow: likelihoods, latents, samples, and the configuration."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from invconv.flows import (
    PRESETS,
    CausalConvolution,
    Convolution1x1,
    FlowConfig,
    InverseConvolution,
    InverseFlow,
    RationalQuadraticSpline,
    Reverse,
    StandardNormal,
)

EPS = torch.finfo(torch.float64).eps
TINY: dict[str, Any] = {"image_shape": (1, 8, 8), "levels": 2, "steps": 2, "hidden": 6}
MIXINGS = ("inverse_conv", "conv", "conv1x1", "reverse")


def build(seed: int = 0, **fields: Any) -> InverseFlow:
    """A float64 model with initialised ActNorms and random parameters, in evaluation mode."""
    torch.manual_seed(seed)
    flow = InverseFlow(**{**TINY, **fields}).double()
    classes = flow.config.num_classes
    flow.log_prob(images(flow, 20), torch.arange(20) % classes if classes else None)
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


@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"image_shape": (3, 4, 8), "levels": 1},
        {"bound": None, "kernel_size": 2},
        {"activation": None, "split_prior": False, "kernel_size": 11},
    ],
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


@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("split_prior", [True, False])
def test_decode_undoes_encode(mixing: str, levels: int, split_prior: bool) -> None:
    flow = build(mixing=mixing, levels=levels, image_shape=(2, 8, 16), split_prior=split_prior)
    x, _ = flow.dequantize(images(flow, 5))
    latents = flow.encode(x)
    assert [tuple(z.shape[1:]) for z in latents] == flow.latent_shapes
    assert len(latents) == (levels if split_prior else 1)
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


@pytest.mark.parametrize("mixing", MIXINGS)
def test_state_dict_restores_the_model_and_its_initialisation(mixing: str) -> None:
    flow = build(mixing=mixing)
    file = io.BytesIO()
    torch.save(flow.state_dict(), file)
    file.seek(0)
    again = InverseFlow(flow.config).double()
    again.load_state_dict(torch.load(file, weights_only=True))
    x, _ = flow.dequantize(images(flow, 3))
    # In training mode, where an ActNorm that forgot its flag would initialise from x.
    again.train()
    assert torch.equal(again.log_prob(x), flow.log_prob(x))


@pytest.mark.parametrize("mixing", MIXINGS)
def test_only_the_mixing_differs(mixing: str) -> None:
    kinds = (InverseConvolution, CausalConvolution, Convolution1x1, Reverse)

    def layers(flow: InverseFlow) -> tuple[list[list[str]], list[str]]:
        """What mixes, step by step, and everything else."""
        steps: list[list[str]] = []
        others = []
        for level in flow.levels:
            for layer in level.layers:
                name = type(layer).__name__
                if isinstance(layer, kinds):
                    steps[-1].append(name)
                else:
                    others.append(f"{name} {[tuple(p.shape) for p in layer.parameters()]}")
                if name == "ActNorm":
                    steps.append([])
        return steps, others + [type(module).__name__ for module in flow.priors]

    steps, others = layers(InverseFlow(**TINY, mixing=mixing))
    assert others == layers(InverseFlow(**TINY))[1]
    expected = {
        "inverse_conv": ["InverseConvolution", "Reverse"],
        "conv": ["CausalConvolution", "Reverse"],
        "conv1x1": ["Convolution1x1"],
        "reverse": ["Reverse"],
    }
    assert steps == 4 * [expected[mixing]]


@pytest.mark.parametrize("mixing", ["inverse_conv", "conv"])
def test_corners(mixing: str) -> None:
    def units(**fields: Any) -> list[tuple[Any, int, tuple[int, int], float | None]]:
        return [
            (m.module.corner, m.module.groups, m.module.kernel_size, m.module.bound)
            for m in InverseFlow(**{**TINY, "mixing": mixing, **fields}).modules()
            if isinstance(m, (InverseConvolution, CausalConvolution))
        ]

    assert units() == [(corner, 1, (3, 3), 0.9) for corner in ("tl", "br", "tr", "bl")]
    unit = (("tl", "tr", "bl", "br"), 4, (5, 5), 0.7)
    assert units(four_corners=True, kernel_size=5, bound=0.7) == 4 * [unit]


@pytest.mark.parametrize("mixing", ["inverse_conv", "conv"])
@pytest.mark.parametrize("channels", [1, 3])
def test_four_corners(mixing: str, channels: int) -> None:
    flow = build(image_shape=(channels, 4, 8), mixing=mixing, four_corners=True)
    x, _ = flow.dequantize(images(flow, 3))
    torch.testing.assert_close(flow.decode(flow.encode(x)), x, rtol=0, atol=1e6 * EPS)
    # Each pixel of the latents depends on every corner of the image, and the other way round.
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(flatten(flow.encode(x)).square().sum(), x)
    assert (gradient != 0).all()


def test_without_activation_nothing_in_a_step_bends() -> None:
    flow = InverseFlow(**TINY, activation=None)
    splines = [m for m in flow.modules() if isinstance(m, RationalQuadraticSpline)]
    # The one that evens out the histogram of the pixel values is no part of a step.
    assert splines == [flow.marginal.layers[-1]]
    assert InverseFlow(**TINY).num_parameters - flow.num_parameters == 2 * (4 + 8) * (3 * 16 - 1)


@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize("num_classes", [0, 3])
def test_gradients_are_finite_and_the_same_if_reversible(mixing: str, num_classes: int) -> None:
    plain = build(mixing=mixing, num_classes=num_classes)
    ours = InverseFlow(**TINY, mixing=mixing, num_classes=num_classes, reversible=True).double()
    ours.load_state_dict(plain.state_dict())
    labels = torch.tensor([2, 0, 1, 2]) if num_classes else None
    x, _ = plain.dequantize(images(plain, 4))
    found = []
    for flow in (plain, ours):
        log_prob = flow.log_prob(x, labels)
        found.append((log_prob, torch.autograd.grad(log_prob.mean(), list(flow.parameters()))))
        noise = torch.Generator().manual_seed(0)
        samples = flow.sample(4, context=labels, generator=noise)
        assert torch.equal(samples, plain.sample(4, context=labels, generator=noise.manual_seed(0)))
    (log_prob, expected), (other, gradients) = found
    assert torch.equal(other, log_prob)
    for gradient, value in zip(gradients, expected, strict=True):
        assert value.isfinite().all()
        torch.testing.assert_close(gradient, value, rtol=0, atol=1e-10 * (1 + value.abs().max()))


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


def test_images_and_labels_of_types_that_hold_less_than_the_bound() -> None:
    flow = InverseFlow(**{**TINY, "quantization": 300, "num_classes": 257})
    x = torch.full((2, 1, 8, 8), 100, dtype=torch.uint8)
    for dtype in (torch.uint8, torch.int8, torch.int64):
        assert flow.log_prob(x.to(dtype), torch.tensor([0, 3], dtype=dtype)).shape == (2,)
    with pytest.raises(ValueError, match="labels from 0 to 256, but got labels from -1 to 3"):
        flow.log_prob(x, torch.tensor([-1, 3], dtype=torch.int8))


def test_labels_that_are_no_tensor() -> None:
    flow = InverseFlow(**TINY, num_classes=3)
    assert flow.sample(2, context=np.int64(1)).shape == (2, 1, 8, 8)
    labels: Any = [0, 1]
    with pytest.raises(TypeError, match=r"^\[sample\] expected context to be an integer, but got"):
        flow.sample(2, context=labels)
    with pytest.raises(TypeError, match=r"^\[sample\] expected context to be an integer, but got"):
        flow.sample(2, context=True)
    with pytest.raises(TypeError, match=r"^\[InverseFlow\] expected a tensor .* but got list$"):
        flow.log_prob(torch.zeros(2, 1, 8, 8), labels)
    with pytest.raises(ValueError, match=r"because the model has no classes, but got list$"):
        InverseFlow(**TINY).log_prob(torch.zeros(2, 1, 8, 8), labels)


def test_what_is_no_tensor_or_no_config() -> None:
    flow = InverseFlow(**TINY)
    x: Any = np.zeros((1, 1, 8, 8), np.uint8)
    for method in (flow.log_prob, flow.bits_per_dim, flow.encode, flow.dequantize):
        with pytest.raises(TypeError, match=r"expected .* tensor .*, but got ndarray"):
            method(x)
    shape: Any = (1, 8, 8)
    for fields in ({}, {"levels": 2}):
        with pytest.raises(TypeError, match=r"^\[InverseFlow\] expected a FlowConfig, .* tuple$"):
            InverseFlow(shape, **fields)
    with pytest.raises(TypeError, match=r"^\[sample\] expected n to be an integer, but got 2.5"):
        flow.sample(2.5)  # type: ignore[arg-type]  # which is what this shows


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
        ({"hidden": 0}, "hidden of at least 1, but got 0"),
        ({"num_classes": -1}, "num_classes of at least 0, but got -1"),
        ({"mixing": "glow"}, "mixing in .* but got 'glow'"),
        ({"kernel_size": 1}, "kernel_size from 2 to 11, but got 1"),
        ({"kernel_size": 12}, "kernel_size from 2 to 11, but got 12"),
        ({"bound": 1.0}, "bound between 0 and 1, but got 1.0"),
        ({"bound": 0, "mixing": "reverse"}, "bound between 0 and 1, but got 0"),
        ({"activation": "relu"}, "activation in .* but got 'relu'"),
        ({"four_corners": True, "mixing": "conv1x1"}, "four_corners only with .* but got 'conv1x1"),
        (
            {"four_corners": True, "mixing": "reverse"},
            "four_corners only with .* but got 'reverse'",
        ),
    ],
)
def test_bad_configurations(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^\[FlowConfig\] expected .*{message}"):
        InverseFlow(**{**TINY, **fields})
    with pytest.raises(TypeError, match="config or its fields"):
        InverseFlow(FlowConfig(**TINY), **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"levels": 1.0}, "levels to be an integer, but got 1.0"),
        ({"hidden": "64"}, "hidden to be an integer, but got '64'"),
        ({"kernel_size": (3, 3)}, r"kernel_size to be an integer, but got \(3, 3\)"),
        ({"four_corners": "no"}, "four_corners to be a bool, but got str"),
        ({"split_prior": 1}, "split_prior to be a bool, but got int"),
        ({"bound": "0.9"}, "bound to be a number or None, but got '0.9'"),
    ],
)
def test_types_of_configurations(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=rf"^\[FlowConfig\] expected {message}"):
        FlowConfig(**{**TINY, **fields})


def test_config_round_trips_through_json() -> None:
    config = FlowConfig(image_shape=(3, 16, 8), quantization=17, bound=None, mixing="reverse",
                        activation=None, split_prior=False, kernel_size=11)  # fmt: skip
    assert FlowConfig.from_json(config.to_json()) == config
    config = FlowConfig(image_shape=(3, 16, 8), mixing="conv", four_corners=True)
    assert FlowConfig.from_json(config.to_json()) == config
    for text in (
        "nothing",
        '{"image_shape": [1, 8, 8], "depth": 3}',
        "{}",
        "[1]",
        '{"image_shape": [1, 8, 8], "hidden": "64"}',
    ):
        with pytest.raises(ValueError):
            FlowConfig.from_json(text)


# --- presets ----------------------------------------------------------------------------------

SHAPES = {"tiny": (1, 8, 8), "small": (1, 28, 28), "mnist": (1, 28, 28), "cifar10": (3, 32, 32),
          "imagenet32": (3, 32, 32), "imagenet64": (3, 64, 64)}  # fmt: skip
SUFFIXES = {"": "inverse_conv", "-finc": "conv", "-glow": "conv1x1", "-realnvp": "reverse"}


def test_presets_are_sizes_and_neighbours() -> None:
    assert list(PRESETS) == [size + suffix for size in SHAPES for suffix in SUFFIXES]
    for size in SHAPES:
        for suffix, mixing in SUFFIXES.items():
            assert PRESETS[size + suffix] == {**PRESETS[size], "mixing": mixing}
    for name, levels in (("mnist", 2), ("cifar10", 2), ("imagenet32", 3), ("imagenet64", 4)):
        assert PRESETS[name]["levels"] == levels
        assert PRESETS[name]["steps"] == (16 if levels == 2 else 48)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # The paper has 1.6 and 1.76 million for these two.
        ("mnist", 1_637_429),
        ("cifar10", 1_764_159),
        ("mnist-finc", 1_637_429),
        ("mnist-glow", 1_627_189),
        ("mnist-realnvp", 1_625_909),
        ("tiny", 3_341),
        ("small", 88_277),
        ("imagenet32", 25_210_167),
        ("imagenet64", 48_749_415),
    ],
)
def test_numbers_of_parameters(name: str, parameters: int) -> None:
    # Without memory behind them: the largest has fifty million.
    with torch.device("meta"):
        flow = InverseFlow(image_shape=SHAPES[name.partition("-")[0]], **PRESETS[name])
    assert flow.num_parameters == parameters


@pytest.mark.parametrize("name", [name for name in PRESETS if not name.startswith("imagenet")])
def test_presets_round_trip(name: str) -> None:
    torch.manual_seed(0)
    flow = InverseFlow(image_shape=SHAPES[name.partition("-")[0]], **PRESETS[name])
    x = images(flow, 4)
    flow.log_prob(x)  # initialises
    flow.eval()
    values, _ = flow.dequantize(x)
    log_prob = flow.log_prob(values)
    assert log_prob.shape == (4,)
    assert log_prob.isfinite().all()
    latents = flow.encode(values)
    assert [tuple(z.shape[1:]) for z in latents] == flow.latent_shapes
    # float32 through up to 32 steps.
    torch.testing.assert_close(flow.decode(latents), values, rtol=0, atol=1e-3)
    assert flow.sample(2).shape == (2, *flow.config.image_shape)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("size", ["imagenet32", "imagenet64"])
def test_imagenet_presets_end_at_four_by_four(size: str, suffix: str) -> None:
    with torch.device("meta"):
        flow = InverseFlow(image_shape=SHAPES[size], **PRESETS[size + suffix])
    assert flow.latent_shapes[-1][1:] == (4, 4)


@pytest.mark.parametrize("mixing", MIXINGS)
def test_deep_models_round_trip_in_float32(mixing: str) -> None:
    fields = {**PRESETS["imagenet32"], "hidden": 8, "mixing": mixing}
    torch.manual_seed(0)
    flow = InverseFlow(image_shape=(3, 32, 32), **fields)
    values, _ = flow.dequantize(images(flow, 2))
    flow.log_prob(values)  # initialises
    # The roundings of 144 steps.
    torch.testing.assert_close(flow.decode(flow.encode(values)), values, rtol=0, atol=1e-3)
