"""invconv.flows.Reversible: the gradients of Sequential, in memory that depth does not change."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from bench import depth
from invconv.flows import (
    ActNorm,
    AffineCoupling,
    Bijection,
    CausalConvolution,
    Convolution1x1,
    Dequantization,
    InverseConvolution,
    InverseFlow,
    RationalQuadraticSpline,
    Reverse,
    Reversible,
    Sequential,
    Squeeze,
)


def layers(steps: int = 2, context_features: int = 0) -> list[Bijection]:
    """Every kind of layer, with random parameters, on images of 4 channels."""
    torch.manual_seed(0)
    found: list[Bijection] = [Squeeze()]
    for step in range(steps):
        found += [
            ActNorm(16),
            InverseConvolution(16, corner=("tl", "br", "tr", "bl")[step % 4], bound=0.8),
            Reverse(),
            CausalConvolution(16, corner="br", bound=0.8),
            Convolution1x1(16),
            RationalQuadraticSpline(16, bins=6, context_features=context_features),
            AffineCoupling(16, hidden=8, context_features=context_features),
        ]
    with torch.no_grad():
        for layer in found:
            for parameter in layer.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return found


def images(dtype: torch.dtype = torch.float64, batch: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 4, 6, 4, generator=generator, dtype=dtype)


def outcome(
    flow: Bijection, x: Tensor, context: Tensor | None = None, inverse: bool = False
) -> tuple[list[Tensor], list[Tensor]]:
    """Results, and the gradients of a loss that weighs every value of both differently."""
    x = x.clone().requires_grad_()
    if context is not None:
        context = context.clone().requires_grad_()
    z, logabsdet = (flow.inverse if inverse else flow)(x, context)
    weights = torch.linspace(-1, 2, z.numel(), dtype=z.dtype).view(z.shape)
    loss = (z * weights).sum() + (logabsdet * (1 + torch.arange(len(x)))).sum()
    wanted = [x, *flow.parameters()] + ([] if context is None else [context])
    return [z, logabsdet], list(torch.autograd.grad(loss, wanted))


def assert_close(actual: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * other.abs().max().item())


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("context_features", [0, 3])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # The rounding of an inverse, magnified by the growth of the layers: about 100 units.
    [(torch.float64, 1e-12), (torch.float32, 1e-5)],
)
def test_gradients_are_those_of_sequential(
    dtype: torch.dtype, tolerance: float, context_features: int, inverse: bool
) -> None:
    plain = Sequential(layers(context_features=context_features)).to(dtype)
    x = images(dtype)
    context = torch.randn(3, context_features, dtype=dtype) if context_features else None
    x, _ = plain(x, context)  # initialises the ActNorms
    x = (x if inverse else images(dtype)).detach()
    ours = Reversible(copy.deepcopy(list(plain.layers)))
    results, gradients = outcome(ours, x, context, inverse)
    expected, expected_gradients = outcome(plain, x, context, inverse)
    assert all(torch.equal(*pair) for pair in zip(results, expected, strict=True))
    assert_close(gradients, expected_gradients, tolerance)


def test_actnorm_initialises_in_the_same_way() -> None:
    plain, ours = Sequential(layers()).double(), Reversible(layers()).double()
    _, expected = outcome(plain, images())
    _, gradients = outcome(ours, images())
    assert_close(gradients, expected, 1e-12)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, ours.state_dict()[name]), name


def test_a_shared_layer_gets_both_gradients() -> None:
    first, second, *rest = layers()[1:]
    shared = [first, second, *rest, second]
    x = torch.randn(2, 16, 3, 4, dtype=torch.float64)
    plain = Sequential(copy.deepcopy(shared)).double()
    plain(x)
    _, expected = outcome(plain, x)
    _, gradients = outcome(Reversible(plain.layers), x)
    assert_close(gradients, expected, 1e-12)


def test_nested_and_frozen() -> None:
    plain = Sequential(layers()).double()
    plain(images())
    for parameter in plain.layers[1].parameters():
        parameter.requires_grad_(False)
    squeeze, *rest = plain.layers
    ours = Reversible([squeeze, Reversible(rest[:5]), Sequential(rest[5:])])
    for flow in (plain, ours):
        z, logabsdet = flow(images())
        (z.square().sum() - logabsdet.sum()).backward()
        flow.gradients = [p.grad for p in flow.parameters()]
        flow.zero_grad(set_to_none=True)
    assert sum(gradient is None for gradient in ours.gradients) == 2
    for one, other in zip(ours.gradients, plain.gradients, strict=True):
        assert one is other is None or torch.allclose(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("used", ["z", "logabsdet"])
def test_one_result_alone(used: str) -> None:
    plain = Sequential(layers()).double()
    plain(images())
    found = []
    for flow in (plain, Reversible(plain.layers)):
        x = images().requires_grad_()
        z, logabsdet = flow(x)
        loss = z.sum() if used == "z" else logabsdet.sum()
        found.append(torch.autograd.grad(loss, [x, *flow.parameters()], materialize_grads=True))
    assert_close(list(found[1]), list(found[0]), 1e-12)


def test_without_gradients_nothing_is_kept() -> None:
    flow = Reversible(layers())
    with torch.no_grad():
        z, logabsdet = flow(images(torch.float32))
        again, _ = flow.inverse(z)
    assert not z.requires_grad and not logabsdet.requires_grad
    torch.testing.assert_close(again, images(torch.float32), rtol=0, atol=1e-5)
    assert flow(images(torch.float32, batch=0))[0].shape == (0, 16, 3, 2)
    assert torch.equal(Reversible([])(z)[0], z)


def test_decoding_is_the_inverse_without_its_volume() -> None:
    plain = Sequential(layers()).double()
    z, _ = plain(images())
    found = []
    for flow in (plain, Reversible(plain.layers)):
        leaf = z.detach().requires_grad_()
        x = flow.decode(leaf)
        assert torch.equal(x, plain.inverse(z)[0])
        with torch.no_grad():
            assert torch.equal(flow.decode(leaf), x)
        inputs = [leaf, *flow.parameters()]
        found.append(torch.autograd.grad(x.square().sum(), inputs, materialize_grads=True))
    assert_close(list(found[1]), list(found[0]), 1e-12)


def test_states_are_those_of_sequential() -> None:
    plain, ours = Sequential(layers()), Reversible(layers(3)[:15])
    plain(images(torch.float32))
    ours.load_state_dict(plain.state_dict())
    for one, other in zip(plain(images(torch.float32)), ours(images(torch.float32)), strict=True):
        assert torch.equal(one, other)


def test_buffers_end_as_after_one_forward_pass() -> None:
    plain = Sequential(layers()).double()
    for layer in plain.layers:
        if isinstance(layer, AffineCoupling):
            layer.net[0].bias = None  # its gradient would be nothing but rounding
            layer.net.insert(1, torch.nn.BatchNorm2d(8, dtype=torch.float64))
    plain(images())
    ours = Reversible(copy.deepcopy(list(plain.layers)))
    _, expected = outcome(plain, images())
    _, gradients = outcome(ours, images())
    assert_close(gradients, expected, 1e-10)
    buffers = dict(plain.named_buffers())
    assert any("running_mean" in name for name in buffers)
    for name, buffer in ours.named_buffers():
        assert torch.equal(buffer, buffers[name]), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    plain = Sequential(layers())
    plain(images(torch.float32))
    seen = []
    for layer in plain.layers:
        if isinstance(layer, AffineCoupling):
            layer.net.register_forward_hook(lambda _, __, result: seen.append(result.dtype))
    found = []
    for flow in (plain, Reversible(plain.layers)):
        x = images(torch.float32).requires_grad_()
        with torch.autocast("cpu", dtype=dtype):
            z, logabsdet = flow(x)
        # The backward pass outside of autocast, as torch recommends.
        loss = z.square().sum() - logabsdet.float().sum()
        gradients = torch.autograd.grad(loss, [x, *flow.parameters()])
        found.append((z, torch.cat([gradient.flatten() for gradient in gradients])))
    # Two couplings: in the plain pass, in ours, undone, and once more with gradients.
    assert seen == [dtype] * 8
    (expected, plain_gradient), (z, gradient) = found
    assert torch.equal(z, expected)
    assert gradient.dtype == torch.float32
    # An input that is found again may differ in its last bit, and so round to other 16 bits.
    error = (gradient - plain_gradient).norm() / plain_gradient.norm()
    assert error < 4 * torch.finfo(dtype).eps


def test_autocast_leaves_no_weights_without_gradients() -> None:
    flow = Reversible(layers())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        flow(images(torch.float32))
        z, logabsdet = Sequential(flow.layers)(images(torch.float32))
        (z.sum() + logabsdet.sum()).backward()
    assert all(parameter.grad is not None for parameter in flow.parameters())


# --- what is refused --------------------------------------------------------------------------


def test_a_second_derivative_is_refused() -> None:
    flow = Reversible(layers()).double()
    x = images().requires_grad_()
    for loss in (flow(x)[0].sum(), flow(x)[0].square().sum(), flow(x)[1].sum()):
        with pytest.raises(RuntimeError, match=r"^\[Reversible\] expected .*no second derivative"):
            torch.autograd.grad(loss, x, create_graph=True)


def test_changed_parameters_are_refused() -> None:
    flow = Reversible(layers()).double()
    loss = flow(images())[0].sum()
    with torch.no_grad():
        next(flow.parameters()).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_replaced_parameters_are_refused() -> None:
    flow = Reversible(layers()).double()
    flow(images())
    others = {name: 2 * parameter for name, parameter in flow.named_parameters()}
    loss = torch.func.functional_call(flow, others, images())[0].sum()
    with pytest.raises(RuntimeError, match=r"^\[Reversible\] expected the parameters of the forw"):
        loss.backward()


def test_hooks_are_refused() -> None:
    flow = Reversible([ActNorm(2), InverseConvolution(2)])
    flow.layers[0].log_std.register_hook(lambda grad: 2 * grad)
    z, _ = flow(torch.randn(2, 2, 3, 3))
    with pytest.raises(RuntimeError, match=r"^\[Reversible\] expected parameters without hooks"):
        z.sum().backward()


def test_the_way_back_of_an_inverse_does_not_initialise() -> None:
    torch.manual_seed(0)
    z = 5 + 2 * torch.randn(4, 2, 3, 3)
    found = []
    for kind in (Sequential, Reversible):
        torch.manual_seed(1)
        flow = kind([ActNorm(2), InverseConvolution(2)]).train()
        leaf = z.clone().requires_grad_()
        x, logabsdet = flow.inverse(leaf)
        (x.square().sum() + logabsdet.sum()).backward()
        norm = flow.layers[0]
        assert norm.training and not norm.initialized and not norm.mean.any()
        assert leaf.grad is not None
        found.append([leaf.grad, *(p.grad for p in flow.parameters())])
    for plain, reversible in zip(*found, strict=True):
        torch.testing.assert_close(reversible, plain)


def test_dequantization_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^\[Reversible\] expected .* but got Dequantization"):
        Reversible([Sequential([Dequantization()])])


# Dynamo asks for torch's deprecated attributes.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled() -> None:
    flow = Reversible(layers()).double()
    flow(images())
    _, expected = outcome(flow, images())

    class Loss(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            z, logabsdet = flow(x * 1)
            weights = torch.linspace(-1, 2, z.numel(), dtype=z.dtype).view(z.shape)
            return (z * weights).sum() + (logabsdet * (1 + torch.arange(len(x)))).sum()

    x = images().requires_grad_()
    loss = torch.compile(Loss(), backend="aot_eager")(x)
    assert_close(list(torch.autograd.grad(loss, [x, *flow.parameters()])), expected, 1e-12)


# --- whole models, and memory -----------------------------------------------------------------


def test_inverse_flow() -> None:
    fields: dict[str, Any] = {"image_shape": (1, 8, 8), "steps": 2, "hidden": 6, "num_classes": 3}
    plain, ours = (InverseFlow(**fields, reversible=value).double() for value in (False, True))
    x = torch.randint(0, 256, (5, 1, 8, 8))
    labels = torch.tensor([0, 1, 2, 1, 0])
    plain.log_prob(x, labels)
    ours.load_state_dict(plain.state_dict())
    gradients = []
    for flow in (plain, ours):
        loss = flow.log_prob(x, labels, generator=torch.Generator().manual_seed(0)).mean()
        gradients.append(list(torch.autograd.grad(loss, list(flow.parameters()))))
    assert sum(isinstance(module, Reversible) for module in ours.modules()) == 2
    assert_close(gradients[1], gradients[0], 1e-10)


def kept_bytes(flow: Bijection, x: Tensor) -> int:
    """What autograd keeps for the backward pass, parameters aside; nothing counts twice."""
    own = {parameter.untyped_storage().data_ptr() for parameter in flow.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        flow(x)
    return sum(storage.nbytes() for storage in kept.values())


def test_kept_tensors_do_not_grow_with_depth() -> None:
    """Exact, but blind to what the backward pass allocates: for that see the next test."""
    x = images(torch.float32)
    for steps in (1, 8):
        plain = Sequential(layers(steps))
        plain(x)
        assert kept_bytes(Reversible(plain.layers), x) == x.nbytes
        assert kept_bytes(plain, x) > 50 * steps * x.nbytes


def test_peak_memory_does_not_grow_with_depth() -> None:
    """The pages in memory at the worst moment of a forward and backward pass, as the system counts.

    Each figure is of a process of its own, whose large blocks go back to the system when they are
    freed: so neither earlier work nor the allocator's reserve is in it.
    """
    few, many = (depth.peak(steps, reversible=True) for steps in (2, 32))
    assert many < 1.3 * few
    assert depth.peak(8, reversible=False) > 2 * many
