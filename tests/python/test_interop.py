"""invconv.interop: bijections inside the containers of other flow libraries, and the documentation.

nflows, zuko, Pyro and FrEIA ship no test helpers in their packages; normflows ships ``FlowTest``.
SurVAE flows are in no package index: where they are not installed, their base classes are stood in
for by ones that have the same attributes, in containers that do with them what SurVAE's do.
"""

from __future__ import annotations

import copy
import doctest
import importlib
import importlib.util
import io
import re
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal, TransformedDistribution

from invconv.flows import (
    ActNorm,
    AffineCoupling,
    Bijection,
    CausalConvolution,
    Convolution1x1,
    InverseConvolution,
    InverseFlow,
    RationalQuadraticSpline,
    Reverse,
    Reversible,
    Sequential,
    Squeeze,
    StandardNormal,
)
from invconv.interop._bijection import result_shape
from invconv.nn import InverseConv2d

LIBRARIES = ("distributions", "freia", "nflows", "normflows", "pyro", "survae", "zuko")
IMAGE, LATENT, FEATURES = (2, 6, 4), (8, 3, 2), 3


@pytest.fixture(autouse=True)
def survae_or_stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    torch.manual_seed(0)
    if importlib.util.find_spec("survae") is None:
        package, transforms = types.ModuleType("survae"), types.ModuleType("survae.transforms")
        attributes = {"bijective": True, "has_inverse": True, "lower_bound": False,
                      "stochastic_forward": False, "stochastic_inverse": False}  # fmt: skip
        for name in ("Bijection", "ConditionalBijection"):
            setattr(transforms, name, type(name, (torch.nn.Module,), dict(attributes)))
        package.transforms = transforms  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "survae", package)
        monkeypatch.setitem(sys.modules, "survae.transforms", transforms)
    yield
    sys.modules.pop("invconv.interop.survae", None)


@pytest.fixture
def double() -> Iterator[None]:
    """nflows draws its samples in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def library(name: str) -> Any:
    return importlib.import_module(f"invconv.interop.{name}")


def bijection(context: bool = False, container: type[Sequential] = Sequential) -> Sequential:
    """Every kind of layer, with random parameters, in float64: from IMAGE to LATENT."""
    features = FEATURES if context else 0
    flow = container(
        [
            Squeeze(),
            ActNorm(8),
            InverseConvolution(8, bound=0.8, unit_diagonal=False),
            Reverse(),
            CausalConvolution(8, bound=0.8),
            Convolution1x1(8),
            RationalQuadraticSpline(8, bins=5, context_features=features),
            AffineCoupling(8, hidden=4, context_features=features),
        ]
    ).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return flow.eval()


def images(batch: int = 5) -> Tensor:
    return torch.randn(batch, *IMAGE, dtype=torch.float64)


def expected_log_prob(flow: Bijection, x: Tensor, context: Tensor | None = None) -> Tensor:
    z, logabsdet = flow(x, context)
    return StandardNormal().log_prob(z) + logabsdet


def assert_close(actual: Any, expected: Any) -> None:
    # Some hundreds of roundings of numbers of order 1 to 100.
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64)


def standard_normal(shape: tuple[int, ...]) -> Independent:
    return Independent(Normal(zeros(*shape), 1 + zeros(*shape)), len(shape))


# --- what holds for all of them ---------------------------------------------------------------


def test_importing_the_package_imports_no_library() -> None:
    names = ["FrEIA", "nflows", "normflows", "pyro", "survae", "zuko"]
    code = f"import sys, invconv.interop; print([n for n in {names} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", LIBRARIES)
def test_examples(name: str) -> None:
    found = doctest.testmod(library(name))
    assert found.attempted > 0 and found.failed == 0


ADAPTERS: dict[str, Callable[[Any, Bijection], Any]] = {
    "distributions": lambda module, flow: module.Transform(flow),
    "freia": lambda module, flow: module.InvertibleModule([IMAGE], bijection=flow),
    "nflows": lambda module, flow: module.Transform(flow),
    "normflows": lambda module, flow: module.Flow(flow),
    "pyro": lambda module, flow: module.TransformModule(flow),
    "survae": lambda module, flow: module.Bijection(flow),
    "zuko": lambda module, flow: module.LazyTransform(flow),
}


WRONG = [lambda: InverseConv2d(2), lambda: InverseFlow(image_shape=IMAGE, levels=1)]


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize("wrong", WRONG, ids=["module", "model"])
def test_only_bijections(name: str, wrong: Callable[[], Any]) -> None:
    with pytest.raises(TypeError, match=r"^\[.*\] expected a Bijection of invconv.flows, but got "):
        ADAPTERS[name](library(name), wrong())


@pytest.mark.parametrize("name", [name for name in LIBRARIES if name != "distributions"])
def test_states_round_trip(name: str) -> None:
    """torch.distributions' transforms are no modules; their bijection has the state."""
    one, other = (ADAPTERS[name](library(name), bijection()) for _ in range(2))
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    x = images()
    assert len(list(one.parameters())) == len(list(one.bijection.parameters())) > 5
    for first, second in zip(one.bijection(x), other.bijection(x), strict=True):
        assert torch.equal(first, second)


# --- nflows -----------------------------------------------------------------------------------


def test_nflows(double: None) -> None:
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow
    from nflows.transforms import CompositeTransform, InverseTransform, ReversePermutation

    Transform = library("nflows").Transform
    inner, other = bijection(), bijection()
    twice = CompositeTransform(
        [ReversePermutation(6, dim=2), Transform(inner), InverseTransform(Transform(other)),
         Transform(other)]
    )  # fmt: skip
    flow = Flow(twice, StandardNormal(LATENT))
    x = images()
    assert_close(flow.log_prob(x), expected_log_prob(inner, x.flip(2)))
    samples, log_prob = flow.sample_and_log_prob(4)
    assert_close(flow.log_prob(samples), log_prob)

    conditional = bijection(context=True)
    flow = Flow(Transform(conditional), StandardNormal(LATENT))
    context = torch.randn(5, FEATURES, dtype=torch.float64)
    assert_close(flow.log_prob(x, context), expected_log_prob(conditional, x, context))
    samples, log_prob = flow.sample_and_log_prob(2, context)
    assert samples.shape == (5, 2, *IMAGE)
    repeated = context.repeat_interleave(2, 0)
    assert_close(flow.log_prob(samples.flatten(0, 1), repeated), log_prob.flatten())


def test_nflows_multiscale(double: None) -> None:
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow
    from nflows.transforms import MultiscaleCompositeTransform

    Transform = library("nflows").Transform
    first, second = bijection(), InverseConvolution(4, unit_diagonal=False).double()
    multiscale = MultiscaleCompositeTransform(2)
    assert multiscale.add_transform(Transform(first), LATENT) == (4, 3, 2)
    multiscale.add_transform(Transform(second), (4, 3, 2))
    flow = Flow(multiscale, StandardNormal([48]))
    x = images()
    z, change = first(x)
    final, rest = z.chunk(2, 1)
    direct = change + expected_log_prob(second, rest) + expected_log_prob(Sequential([]), final)
    assert_close(flow.log_prob(x), direct)
    samples, log_prob = flow.sample_and_log_prob(4)
    assert_close(flow.log_prob(samples), log_prob)


# --- normflows --------------------------------------------------------------------------------


def test_normflows() -> None:
    import normflows
    from normflows.flows.flow_test import FlowTest

    Flow = library("normflows").Flow
    first, second = bijection(), Sequential([ActNorm(8), InverseConvolution(8)]).double()
    same = Sequential([InverseConvolution(2, bound=0.8), AffineCoupling(2, hidden=4)]).double()
    FlowTest().checkForwardInverse(Flow(same), images(), atol=1e-11, rtol=0)

    # Its flows are listed from latent to image.
    base = normflows.distributions.DiagGaussian(LATENT).double()
    flow = normflows.NormalizingFlow(base, [Flow(second.eval()), Flow(first)])
    x = images()
    assert_close(flow.log_prob(x), expected_log_prob(Sequential([first, second]), x))
    samples, log_prob = flow.sample(4)
    assert samples.dtype == torch.float64
    assert_close(flow.log_prob(samples), log_prob)

    conditional = bijection(context=True)
    flow = normflows.ConditionalNormalizingFlow(Unconditional(base), [Flow(conditional)])
    context = torch.randn(5, FEATURES, dtype=torch.float64)
    actual = flow.log_prob(x, context)
    assert_close(actual, expected_log_prob(conditional, x, context))
    samples, log_prob = flow.sample(5, context)
    assert_close(flow.log_prob(samples, context), log_prob)


class Unconditional(torch.nn.Module):
    """A base distribution that takes a context, as ConditionalNormalizingFlow asks, for nothing."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base = base

    def forward(self, n: int, context: Tensor) -> Any:
        return self.base(n)

    def log_prob(self, z: Tensor, context: Tensor) -> Any:
        return self.base.log_prob(z)


def test_normflows_multiscale() -> None:
    import normflows

    Flow = library("normflows").Flow
    first, second = bijection(), InverseConvolution(4, unit_diagonal=False).double()
    flow = normflows.MultiscaleFlow(
        [normflows.distributions.DiagGaussian((4, 3, 2)).double() for _ in range(2)],
        [[Flow(second)], [Flow(first)]],
        [normflows.flows.Merge()],
        class_cond=False,
    )
    samples, log_prob = flow.sample(4)
    assert_close(flow.log_prob(samples, None), log_prob)
    z, change = first(samples)
    rest, final = z.chunk(2, 1)
    direct = change + expected_log_prob(second, rest) + expected_log_prob(Sequential([]), final)
    assert_close(log_prob, direct)


# --- torch.distributions, and what stands on it -------------------------------------------------


def test_distributions() -> None:
    Transform = library("distributions").Transform
    flow = bijection()
    density = TransformedDistribution(standard_normal(LATENT), [Transform(flow)])
    assert (density.batch_shape, density.event_shape) == ((), IMAGE)
    x = images()
    assert_close(density.log_prob(x), expected_log_prob(flow, x))
    for shape in ((), (4,), (2, 3)):
        samples = density.rsample(shape)
        assert samples.shape == (*shape, *IMAGE)
        flat = expected_log_prob(flow, samples.reshape(-1, *IMAGE))
        assert_close(density.log_prob(samples), flat.reshape(shape))
    # A base of three different distributions, and a transform of its own behind ours.
    scaled = torch.distributions.transforms.AffineTransform(1.0, 2.0, event_dim=3)
    base = standard_normal(LATENT).expand((3,))
    density = TransformedDistribution(base, [Transform(flow), scaled])
    samples = density.sample((2,))
    assert samples.shape == (2, 3, *IMAGE)
    inner = expected_log_prob(flow, (samples.flatten(0, 1) - 1) / 2)
    assert_close(density.log_prob(samples).flatten(), inner - 48 * torch.tensor(2.0).double().log())


@pytest.mark.parametrize("cache_size", [0, 1])
def test_distributions_calls_once_and_copies(cache_size: int) -> None:
    flow = bijection()
    calls: list[int] = []
    flow.register_forward_hook(lambda *_: calls.append(1))
    transform = library("distributions").Transform(flow).with_cache(cache_size)
    assert transform._cache_size == cache_size
    density = TransformedDistribution(standard_normal(LATENT), [transform])
    calls.clear()  # those that find the shape
    first = density.log_prob(images())
    assert len(calls) == 1
    # Of other tensors with the same values the determinant is computed anew.
    x = images()
    z, logabsdet = flow(x)
    assert_close(transform.log_abs_det_jacobian(z, x), -logabsdet)
    assert first.requires_grad
    again = copy.deepcopy(library("distributions").Transform(flow))
    assert_close(again.inv(x), z)
    transform.with_cache(0)(z)
    copy.deepcopy(transform.with_cache(0))


def test_distributions_without_cache_follows_the_parameters() -> None:
    flow = bijection()
    density = TransformedDistribution(
        standard_normal(LATENT), [library("distributions").Transform(flow)]
    )
    x = images()
    density.log_prob(x).sum().backward()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.mul_(1.1)
    assert_close(density.log_prob(x), expected_log_prob(flow, x))


def test_distributions_context() -> None:
    Transform = library("distributions").Transform
    flow = bijection(context=True)
    x, context = images(), torch.randn(5, FEATURES, dtype=torch.float64)
    expected = expected_log_prob(flow, x, context)
    density = TransformedDistribution(standard_normal(LATENT), [Transform(flow, context)])
    assert_close(density.log_prob(x), expected)
    one = TransformedDistribution(standard_normal(LATENT), [Transform(flow, context[1])])
    assert_close(one.log_prob(x[1]), expected[1])
    assert_close(one.log_prob(x)[1], expected[1])
    assert one.sample((2,)).shape == (2, *IMAGE)
    with pytest.raises(ValueError, match=r"^\[distributions.Transform\] expected images of shape"):
        Transform(flow)(zeros(6, 4))


def test_zuko() -> None:
    import zuko

    LazyTransform = library("zuko").LazyTransform

    def base() -> Any:
        return zuko.lazy.UnconditionalDistribution(
            zuko.distributions.DiagNormal, zeros(*LATENT), 1 + zeros(*LATENT), ndims=3, buffer=True
        )

    first, second = bijection(), Sequential([InverseConvolution(8)]).double()
    flow = zuko.lazy.Flow([LazyTransform(first), LazyTransform(second)], base())
    x = images()
    assert_close(flow().log_prob(x), expected_log_prob(Sequential([first, second]), x))
    samples, log_prob = flow().rsample_and_log_prob((4,))
    assert_close(flow().log_prob(samples), log_prob)
    assert flow().event_shape == IMAGE
    assert_close(LazyTransform(first).inv()(first(x)[0]), x)

    conditional = bijection(context=True)
    flow = zuko.lazy.Flow(LazyTransform(conditional), base())
    context = torch.randn(5, FEATURES, dtype=torch.float64)
    assert_close(flow(context).log_prob(x), expected_log_prob(conditional, x, context))
    samples, log_prob = flow(context).rsample_and_log_prob((2,))
    assert samples.shape == (2, 5, *IMAGE)
    assert_close(flow(context).log_prob(samples), log_prob)
    loss = -flow(context).log_prob(x).mean()
    loss.backward()
    assert all(parameter.grad is not None for parameter in flow.parameters())


def test_pyro() -> None:
    import pyro.distributions as dist
    from pyro.distributions.torch_transform import ComposeTransformModule

    module = library("pyro")
    first, second = bijection(), Sequential([InverseConvolution(8)]).double()
    layers = ComposeTransformModule(
        [module.TransformModule(second), module.TransformModule(first)], cache_size=1
    )
    assert len(list(layers.parameters())) == len(list(first.parameters())) + 1
    density = dist.TransformedDistribution(standard_normal(LATENT), [layers])
    x = images()
    assert_close(density.log_prob(x), expected_log_prob(Sequential([first, second]), x))
    samples = density.sample((4,))
    expected = expected_log_prob(Sequential([first, second]), samples)
    assert_close(density.log_prob(samples), expected)
    # The cache must be told when the parameters change, as with Pyro's own transforms.
    with torch.no_grad():
        next(first.parameters()).add_(0.1)
    density.clear_cache()
    assert_close(density.log_prob(x), expected_log_prob(Sequential([first, second]), x))

    conditional = bijection(context=True)
    flow = dist.ConditionalTransformedDistribution(
        standard_normal(LATENT), [module.ConditionalTransformModule(conditional)]
    )
    context = torch.randn(5, FEATURES, dtype=torch.float64)
    given = flow.condition(context)
    assert_close(given.log_prob(x), expected_log_prob(conditional, x, context))


# --- FrEIA ------------------------------------------------------------------------------------


def test_freia_graph() -> None:
    import FrEIA.framework as ff
    import FrEIA.modules as fm

    InvertibleModule = library("freia").InvertibleModule
    first, second = bijection(), bijection(context=True)
    second.layers = second.layers[1:]
    start = ff.InputNode(*IMAGE, name="image")
    given = ff.ConditionNode(FEATURES, name="given")
    middle = ff.Node(start, InvertibleModule, {"bijection": first}, name="first")
    last = ff.Node(middle, InvertibleModule, {"bijection": second}, conditions=given, name="second")
    flat = ff.Node(last, fm.Flatten, {}, name="flat")
    graph = ff.GraphINN([start, given, middle, last, flat, ff.OutputNode(flat, name="latent")])
    assert last.output_dims == [LATENT]
    x, context = images(), torch.randn(5, FEATURES, dtype=torch.float64)
    z, logabsdet = graph(x, c=context)
    expected, change = first(x)
    expected, changed = second(expected, context)
    assert_close((z, logabsdet), (expected.flatten(1), change + changed))
    assert_close(graph(z, c=context, rev=True), (x, -logabsdet))


def test_freia_sequence_and_errors() -> None:
    import FrEIA.framework as ff

    InvertibleModule = library("freia").InvertibleModule
    flow = bijection(context=True)
    sequence = ff.SequenceINN(*IMAGE)
    sequence.append(InvertibleModule, cond=0, cond_shape=(FEATURES,), bijection=flow)
    assert sequence.shapes[-1] == LATENT
    x, context = images(), torch.randn(5, FEATURES, dtype=torch.float64)
    for one, other in zip(sequence(x, [context]), flow(x, context), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(ValueError, match=r"^\[freia.InvertibleModule\] expected one input .* 2 an"):
        InvertibleModule([IMAGE, IMAGE], bijection=flow)


# --- SurVAE -----------------------------------------------------------------------------------


def test_survae() -> None:
    module = library("survae")
    first, second = bijection(), Sequential([InverseConvolution(8, unit_diagonal=False)]).double()
    layers = [module.Bijection(first), module.Bijection(second)]
    x = images()
    z, total = layers[0](x)
    once, change = layers[1](z)
    total += change  # as SurVAE's containers do
    assert_close((once, total), Sequential([first, second])(x))
    assert_close(first(x)[1], layers[0](x)[1])
    assert_close(layers[0].inverse(layers[1].inverse(once)), x)
    for layer in layers:
        assert layer.bijective and layer.has_inverse
        assert not (layer.stochastic_forward or layer.stochastic_inverse or layer.lower_bound)
    conditional = bijection(context=True)
    layer = module.ConditionalBijection(conditional)
    context = torch.randn(5, FEATURES, dtype=torch.float64)
    assert_close(layer.inverse(layer(x, context)[0], context), x)


# --- other bijections ---------------------------------------------------------------------------


def test_a_shape_is_found_without_initialising(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: ActNorm, x: Tensor) -> None:
        raise AssertionError("under torch.distributed this waits for the other processes")

    monkeypatch.setattr(ActNorm, "_initialize", refuse)
    norm = ActNorm(2)
    assert result_shape(norm, norm, (2, 3, 3), None) == (2, 3, 3)
    assert norm.training


@pytest.mark.parametrize("name", ["nflows", "normflows"])
def test_reversible_inside(name: str) -> None:
    flow = bijection(container=Reversible)
    adapter = ADAPTERS[name](library(name), flow)
    x = images().requires_grad_()
    z, logabsdet = (adapter.inverse if name == "normflows" else adapter)(x)
    (z.square().sum() - logabsdet.sum()).backward()
    assert x.grad is not None and all(p.grad is not None for p in adapter.parameters())


# --- the documentation --------------------------------------------------------------------------

PAGE = Path(__file__).parents[2] / "docs" / "interop.md"
SNIPPETS = re.findall(
    r"^## (.+?)\n(?:(?!^## ).)*?```python\n(.*?)```", PAGE.read_text(), re.M | re.S
)


@pytest.mark.parametrize(("title", "code"), SNIPPETS, ids=[title for title, _ in SNIPPETS])
def test_documentation(title: str, code: str) -> None:
    exec(compile(code, f"{PAGE.name}: {title}", "exec"), {})


def test_documentation_has_every_library() -> None:
    code = "".join(code for _, code in SNIPPETS)
    assert all(f"invconv.interop.{name} " in code for name in LIBRARIES)
    assert PAGE.read_text().count("```python") == len(SNIPPETS)
    assert "docs/interop.md" in (PAGE.parents[1] / "README.md").read_text()
