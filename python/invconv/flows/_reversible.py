"""A composition that keeps only its output, and finds its activations again by inversion."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import torch
from torch import Tensor

from invconv.flows._actnorm import never_initialising
from invconv.flows._bijection import Bijection, Sequential
from invconv.flows._preprocessing import Dequantization

_Map = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]


class Reversible(Sequential):
    """A :class:`Sequential` whose memory in training does not grow with the number of layers.

    It keeps its output alone. The backward pass undoes the layers one by one, last first, and
    computes each of them once more from the input so found (Gomez, Ren, Urtasun and Grosse, *The
    Reversible Residual Network*, NeurIPS 2017): the time of one inverse and one forward pass more.
    Results and states are those of :class:`Sequential`; gradients are too, up to the rounding
    errors of the inverses.

    Layers must be deterministic. Their buffers may change in ``forward`` and change no more in the
    backward pass. Autocast is as it was in ``forward``. Under ``torch.compile`` it runs uncompiled.

    Args:
        layers: the bijections, first the one next to the image.

    Raises:
        ValueError: a layer is, or holds, a :class:`Dequantization`, whose input cannot be found
            again.
        RuntimeError: in the backward pass: with ``create_graph=True``, for it has no second
            derivative; if a parameter was replaced or changed in place since ``forward``; or if one
            has a hook (:meth:`torch.Tensor.register_hook`), which would run twice.

    Example:
        >>> import torch
        >>> from invconv.flows import ActNorm, InverseConvolution, Reversible
        >>> flow = Reversible([ActNorm(4), InverseConvolution(4, bound=0.9)])
        >>> z, logabsdet = flow(torch.randn(2, 4, 6, 6))
        >>> (z.square().sum() - logabsdet.sum()).backward()
        >>> flow.layers[0].mean.grad.shape
        torch.Size([4])
    """

    def __init__(self, layers: Iterable[Bijection]) -> None:
        super().__init__(layers)
        if any(isinstance(module, Dequantization) for module in self.modules()):
            raise ValueError(
                "[Reversible] expected layers that their output determines, but got Dequantization"
            )

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Apply the layers from first to last."""
        return cast(tuple[Tensor, Tensor], _recomputed(self, False, context, x))

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Apply the layers' inverses from last to first."""
        return cast(tuple[Tensor, Tensor], _recomputed(self, True, context, z))

    def decode(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """The same without the volumes; with them, where gradients are wanted."""
        if torch.is_grad_enabled():
            return self.inverse(z, context)[0]
        return super().decode(z, context)


# Dynamo would trace the backward pass as if nothing were recomputed.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _recomputed(
    flow: Reversible, inverse: bool, context: Tensor | None, x: Tensor
) -> tuple[Tensor, Tensor]:
    z, logabsdet = _Recompute.apply(flow, inverse, context, x, *flow.parameters())  # type: ignore[no-untyped-call]
    return z, logabsdet


class _Recompute(torch.autograd.Function):
    """One direction of a :class:`Reversible`; its parameters are arguments for their gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        flow: Reversible,
        inverse: bool,
        context: Tensor | None,
        x: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.flow, ctx.inverse, ctx.parameters = flow, inverse, parameters
        device = x.device.type
        ctx.autocast = (device, False, None)
        if torch.amp.is_autocast_available(device):
            enabled = torch.is_autocast_enabled(device)
            ctx.autocast = (device, enabled, torch.get_autocast_dtype(device))
        run = Sequential.inverse if inverse else Sequential.forward
        with _autocast(*ctx.autocast):
            z, logabsdet = run(flow, x, context)
        # The parameters too: autograd then tells when one of them was changed in place.
        ctx.save_for_backward(z, context, *parameters)
        return z, logabsdet

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "[Reversible] expected a backward pass without create_graph=True, because it has "
                "no second derivative; Sequential, with the same layers, has one"
            )
        flow: Reversible = ctx.flow
        context: Tensor | None
        z, context, *_ = ctx.saved_tensors
        if [id(p) for p in flow.parameters()] != [id(p) for p in ctx.parameters]:
            raise RuntimeError(
                "[Reversible] expected the parameters of the forward pass, but they were replaced"
            )
        if any(parameter._backward_hooks for parameter in ctx.parameters):
            raise RuntimeError(
                "[Reversible] expected parameters without hooks, which would run twice; "
                "register_post_accumulate_grad_hook adds one that runs once"
            )
        if context is not None:
            context = context.detach().requires_grad_(ctx.needs_input_grad[2])
        grad, grad_logabsdet = grads
        totals: dict[int, Tensor] = {}
        with _autocast(*ctx.autocast), _kept_buffers(flow):
            layers = cast(Iterable[Bijection], flow.layers)
            for layer in layers if ctx.inverse else reversed(list(layers)):
                maps = (layer.inverse, layer) if ctx.inverse else (layer, layer.inverse)
                z, grad = _undo(layer, maps, context, z, grad, grad_logabsdet, totals)
        of_parameters = (totals.get(id(parameter)) for parameter in ctx.parameters)
        return None, None, totals.get(id(context)), grad, *of_parameters


def _undo(
    layer: Bijection,
    maps: tuple[_Map, _Map],
    context: Tensor | None,
    z: Tensor,
    grad: Tensor,
    grad_logabsdet: Tensor,
    totals: dict[int, Tensor],
) -> tuple[Tensor, Tensor]:
    """A layer's input and the gradient there; adds the others to ``totals``, by the tensor's id."""
    there, back = maps
    with never_initialising(layer):  # an inverse's way back is forward
        x = back(z, context)[0].detach().requires_grad_()
    with torch.enable_grad():
        results = there(x, context)
    wanted: list[Tensor] = [
        parameter for parameter in layer.parameters() if parameter.requires_grad
    ]
    if context is not None and context.requires_grad:
        wanted.append(context)
    # A layer without parameters may have a constant determinant.
    pairs = [
        (result, incoming.to(result.dtype))
        for result, incoming in zip(results, (grad, grad_logabsdet), strict=True)
        if result.requires_grad
    ]
    outputs, incomings = zip(*pairs, strict=True)
    found = torch.autograd.grad(outputs, [x, *wanted], incomings, allow_unused=True)
    for tensor, value in zip(wanted, found[1:], strict=True):
        if value is not None:
            known = totals.get(id(tensor))
            totals[id(tensor)] = value if known is None else known + value
    return x.detach(), found[0]


def _autocast(
    device: str, enabled: bool, dtype: torch.dtype | None
) -> contextlib.AbstractContextManager[Any]:
    if not torch.amp.is_autocast_available(device):
        return contextlib.nullcontext()
    # Its cache would hand weights that were cast without gradients to passes that need them.
    return torch.autocast(device, dtype, enabled, cache_enabled=False)


@contextlib.contextmanager
def _kept_buffers(flow: Reversible) -> Iterator[None]:
    """The buffers are afterwards as they were before."""
    before = [(buffer, buffer.clone()) for buffer in flow.buffers()]
    try:
        yield
    finally:
        for buffer, value in before:
            # To write the same values again would spoil other graphs that keep the buffer.
            if not torch.allclose(buffer, value, rtol=0, atol=0, equal_nan=True):
                buffer.copy_(value)
