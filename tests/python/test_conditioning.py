"""Contexts: couplings and splines that depend on one, models of classes, and their training."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from invconv import data as datasets
from invconv.cli import main
from invconv.flows import (
    ActNorm,
    AffineCoupling,
    Bijection,
    FlowConfig,
    InverseFlow,
    RationalQuadraticSpline,
    Reverse,
    Sequential,
    SplitPrior,
)
from invconv.train import load_model

EPS = torch.finfo(torch.float64).eps
FEATURES = 3
LAYERS = {
    "coupling": lambda: AffineCoupling(4, hidden=6, context_features=FEATURES),
    "split_prior": lambda: SplitPrior(4, hidden=6, context_features=FEATURES),
    "spline": lambda: RationalQuadraticSpline(4, bins=5, context_features=FEATURES),
    "sequential": lambda: Sequential(
        [
            ActNorm(4),
            RationalQuadraticSpline(4, context_features=FEATURES),
            Reverse(),
            AffineCoupling(4, hidden=6, context_features=FEATURES),
        ]
    ),
}
TINY: dict[str, Any] = {"image_shape": (1, 8, 8), "levels": 2, "steps": 1, "hidden": 6}


def build(name: str) -> Bijection:
    torch.manual_seed(0)
    layer = LAYERS[name]().double().eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return layer


def images(batch: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 4, 4, 2, generator=generator, dtype=torch.float64)


def contexts(batch: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(batch, FEATURES, generator=generator, dtype=torch.float64)


# --- layers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
def test_given_its_context_every_image_has_a_bijection(name: str) -> None:
    layer, x, context = build(name), images(), contexts()
    z, logabsdet = layer(x, context)
    again, opposite = layer.inverse(z, context)
    # A few tens of roundings, times slopes and growths well below a thousand.
    torch.testing.assert_close(again, x, rtol=0, atol=1e5 * EPS)
    torch.testing.assert_close(opposite, -logabsdet, rtol=0, atol=1e5 * EPS)
    for index in range(3):
        one = context[index : index + 1]
        jacobian = torch.autograd.functional.jacobian(
            lambda v, one=one: layer(v[None], one)[0][0], x[index]
        )
        volume = torch.linalg.slogdet(jacobian.reshape(32, 32)).logabsdet
        torch.testing.assert_close(logabsdet[index], volume, rtol=0, atol=1e5 * EPS)
        # No image depends on the context of another.
        single, change = layer(x[index : index + 1], one)
        torch.testing.assert_close(single[0], z[index], rtol=0, atol=1e3 * EPS)
        torch.testing.assert_close(change[0], logabsdet[index], rtol=0, atol=1e3 * EPS)


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_reach_context_and_parameters(name: str) -> None:
    layer, context = build(name), contexts().requires_grad_()
    for function in (layer, layer.inverse):
        z, logabsdet = function(images(), context)
        gradients = torch.autograd.grad(
            z.square().sum() + logabsdet.sum(), [context, *layer.parameters()]
        )
        for gradient in gradients:
            assert gradient.isfinite().all() and gradient.abs().max() > 0
    assert torch.autograd.gradcheck(lambda c: layer(images(), c), (context,))


@pytest.mark.parametrize("name", LAYERS)
def test_no_context_layers_change_before_training(name: str) -> None:
    """At the start neither layer depends on its context."""
    torch.manual_seed(0)
    layer, x = LAYERS[name]().double().eval(), images()
    one, other = layer(x, contexts()), layer(x, 5 - contexts())
    assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


@pytest.mark.parametrize("name", LAYERS)
def test_dtypes_and_empty_batches(name: str) -> None:
    layer = build(name)
    one_hot = torch.eye(3, dtype=torch.int64)
    z, logabsdet = layer(images(), one_hot)
    assert z.dtype == logabsdet.dtype == torch.float64
    expected, _ = layer(images(), one_hot.double())
    assert torch.equal(z, expected)
    assert layer(images(0), contexts(0))[1].shape == (0,)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("context", [None, contexts(2), contexts()[:, :2], contexts()[0]])
def test_wrong_contexts(name: str, context: Tensor | None) -> None:
    layer = build(name)
    message = r"^\[\w+\] expected context of shape \(batch, 3\) with batch = 3, but got "
    for function in (layer, layer.inverse):
        with pytest.raises(ValueError, match=message):
            function(images(), context)


def test_autocast_with_a_half_type() -> None:
    torch.manual_seed(0)
    spline = RationalQuadraticSpline(2, context_features=3)
    x, context = torch.randn(2, 2, 3, 3, dtype=torch.bfloat16), torch.randn(2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        z, _ = spline(x, context)
    expected, _ = spline(x.float(), context.bfloat16().float())
    # Computed in float32 and stored once: half of bfloat16's eps, and as much again for ties.
    torch.testing.assert_close(z.float(), expected, rtol=2**-8, atol=0)


def test_wrong_arguments() -> None:
    for build_layer in (
        lambda: AffineCoupling(4, context_features=-1),
        lambda: RationalQuadraticSpline(4, context_features=-1),
    ):
        with pytest.raises(ValueError, match=r"context_features >= 0.* context_features = -1"):
            build_layer()


def test_layers_without_a_condition_ignore_the_context() -> None:
    flow = Sequential([ActNorm(4), RationalQuadraticSpline(4), AffineCoupling(4, 6)]).double()
    flow.eval()
    assert torch.equal(flow(images(), contexts())[0], flow(images())[0])


# --- models of classes --------------------------------------------------------------------------


def stripes(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Noisy images that are bright above (class 0), below (1) or nowhere (2)."""
    x = torch.randint(0, 60, (len(labels), 1, 8, 8), generator=generator)
    x[labels == 0, :, :4] += 180
    x[labels == 1, :, 4:] += 180
    return x


def halves(x: Tensor) -> Tensor:
    return x.double().unflatten(2, (2, 4)).mean((1, 3, 4))


def test_a_model_learns_its_classes() -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    flow = InverseFlow(**{**TINY, "steps": 2}, num_classes=3)
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    for _ in range(150):
        labels = torch.randint(0, 3, (48,), generator=generator)
        optimizer.zero_grad()
        flow.bits_per_dim(stripes(labels, generator), labels, generator=generator).mean().backward()
        optimizer.step()
    flow.eval()
    labels = torch.arange(3).repeat_interleave(20)
    with torch.no_grad():
        x = stripes(labels, generator)
        scores = torch.stack([flow.log_prob(x, torch.full((60,), k)) for k in range(3)], 1)
    # Bayes' rule with equal priors; chance is a third.
    assert (scores.argmax(1) == labels).double().mean() > 0.95
    samples = halves(flow.sample(60, 0.7, context=labels, generator=generator))
    above = samples[:, 0] - samples[:, 1]
    # By 180 in the images; the model is far from done, but its samples are of their class.
    assert (above[:20] > 20).double().mean() > 0.8
    assert (above[20:40] < -20).double().mean() > 0.8
    assert (above[40:].abs() < 20).double().mean() > 0.8


def conditional() -> InverseFlow:
    torch.manual_seed(0)
    flow = InverseFlow(**TINY, num_classes=3).double()
    flow.log_prob(torch.randint(0, 256, (9, 1, 8, 8)), torch.arange(9) % 3)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return flow.eval()


def test_a_conditional_model_is_a_density_for_each_class() -> None:
    flow, labels = conditional(), torch.tensor([2, 0])
    x, _ = flow.dequantize(torch.randint(0, 256, (2, 1, 8, 8)))
    latents = flow.encode(x, labels)
    torch.testing.assert_close(flow.decode(latents, labels), x, rtol=0, atol=1e6 * EPS)
    assert (flow.decode(latents, labels.flip(0)) - x).abs().max() > 1e-3
    for index in range(2):
        jacobian = torch.autograd.functional.jacobian(
            lambda v, index=index: torch.cat(
                [z.flatten() for z in flow.encode(v[None], labels[index : index + 1])]
            ),
            x[index],
        )
        z = torch.cat([latent[index].flatten() for latent in latents])
        normal = -0.5 * (z.square().sum() + 64 * math.log(2 * math.pi))
        expected = normal + torch.linalg.slogdet(jacobian.reshape(64, 64)).logabsdet
        actual = flow.log_prob(x, labels)[index]
        torch.testing.assert_close(actual, expected, rtol=1e4 * EPS, atol=1e5 * EPS)
    assert torch.equal(flow(x, labels), flow.log_prob(x, labels))


def test_labels_of_samples() -> None:
    flow = conditional()
    seed = torch.Generator
    many = flow.sample(3, context=torch.tensor([1, 1, 1]), generator=seed().manual_seed(0))
    assert torch.equal(flow.sample(3, context=1, generator=seed().manual_seed(0)), many)
    assert not torch.equal(flow.sample(3, context=2, generator=seed().manual_seed(0)), many)
    assert flow.sample(0, context=1).shape == (0, 1, 8, 8)
    uint8 = torch.tensor([1, 1, 1], dtype=torch.uint8)
    assert torch.equal(flow.sample(3, context=uint8, generator=seed().manual_seed(0)), many)


@pytest.mark.parametrize(
    ("context", "error", "message"),
    [
        (None, ValueError, "2 labels, because the model has 3 classes, but got None"),
        (torch.tensor([0.0, 1.0]), TypeError, "integer labels, but got torch.float32"),
        (torch.tensor([True, False]), TypeError, "integer labels, but got torch.bool"),
        (torch.tensor([0]), ValueError, r"labels of shape \(2,\), but got \(1,\)"),
        (torch.tensor([0, 3]), ValueError, "labels from 0 to 2, but got labels from 0 to 3"),
        (torch.tensor([-1, 0]), ValueError, "but got labels from -1 to 0"),
    ],
)
def test_bad_labels(context: Tensor | None, error: type[Exception], message: str) -> None:
    flow = conditional()
    x = torch.zeros(2, 1, 8, 8)
    latents = [torch.zeros(2, *shape) for shape in flow.latent_shapes]
    for call in (
        lambda: flow.log_prob(x, context),
        lambda: flow.encode(x, context),
        lambda: flow.decode(latents, context),
        lambda: flow.sample(2, context=context),
        lambda: flow.bits_per_dim(x.long(), context),
    ):
        with pytest.raises(error, match=rf"^\[InverseFlow\] expected .*{message}"):
            call()


def test_models_without_classes_refuse_labels() -> None:
    flow = InverseFlow(**TINY)
    with pytest.raises(ValueError, match="expected context None, because the model has no classes"):
        flow.log_prob(torch.zeros(1, 1, 8, 8), torch.tensor([0]))
    with pytest.raises(ValueError, match="context None"):
        flow.sample(1, context=0)
    with pytest.raises(ValueError, match=r"^\[FlowConfig\] expected num_classes .* -1"):
        FlowConfig(image_shape=(1, 8, 8), num_classes=-1)


def test_old_configurations_still_load() -> None:
    text = '{"image_shape": [1, 8, 8], "levels": 2, "steps": 1, "hidden": 6}'
    assert FlowConfig.from_json(text) == FlowConfig(**TINY)


# --- training -----------------------------------------------------------------------------------


def test_labels_are_split_like_their_images() -> None:
    from sklearn.datasets import load_digits

    data, whole = datasets.load("digits"), load_digits()
    known = {image.tobytes(): label for image, label in
             zip(whole.images.astype(np.uint8), whole.target, strict=True)}  # fmt: skip
    assert data.num_classes == 10
    for part in (data.train, data.validation, data.test):
        assert part.labels is not None and part.labels.dtype == np.int64
        images = part.images[np.arange(len(part))]
        assert [known[image.tobytes()] for image in images[:, 0]] == part.labels.tolist()


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out + captured.err


def test_conditional_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "run")
    options = ["--data", "digits", "--preset", "tiny", "--epochs", "1", "--out", out]
    assert run(capsys, "train", *options, "--conditional", "--reversible")[0] == 0
    config = load_model(out).config
    assert (config.num_classes, config.reversible) == (10, True)
    pictures = []
    for label in (["--class", "3"], ["--class", "0"], []):
        code, text = run(capsys, "sample", out, "-n", "4", *label)
        assert code == 0
        pictures.append(Path("".join(text.split())).read_bytes())
    assert len(set(pictures)) == 3
    code, text = run(capsys, "sample", out, "--class", "10")
    assert code == 1 and "has the classes 0 to 9, so it has no class 10" in text
    assert run(capsys, "train", "--resume", "--conditional", "--out", out)[0] == 0
    assert run(capsys, "eval", out)[0] == 0


def test_images_without_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index in range(10):
        Image.fromarray(np.full((4, 4), 20 * index, np.uint8)).save(tmp_path / f"{index}.png")
    options = ["train", "--data", str(tmp_path), "--preset", "tiny", "--epochs", "1"]
    code, text = run(capsys, *options, "--conditional", "--out", str(tmp_path / "run"))
    assert code == 1 and "has no classes, so no conditional model" in text
    assert run(capsys, *options, "--out", str(tmp_path / "run"))[0] == 0
    code, text = run(capsys, "sample", str(tmp_path / "run"), "--class", "0")
    assert code == 1 and "is not conditional, so it has no class 0" in text
    code, text = run(capsys, "train", "--resume", "--conditional", "--out", str(tmp_path / "run"))
    assert code == 1 and "begun with --conditional False" in text
