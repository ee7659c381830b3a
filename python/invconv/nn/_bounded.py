"""The weight of the modules with a bound, but for its diagonal."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from invconv import _check
from invconv._torch import bounded, bounded_by_core, without_autocast


def anchor_of(taps: Tensor, corner: str | Sequence[str], groups: int) -> Tensor:
    """1 at the taps that multiply the pixel itself and 0 elsewhere, ``(C, 1, kh, kw)``.

    Made from the corners each time: a buffer would be left without values by ``to_empty``.
    """
    names = (corner,) * groups if isinstance(corner, str) else corner
    anchor = taps.new_zeros(groups, len(taps) // groups, *taps.shape[-2:])
    for group, name in enumerate(names):
        anchor[(group, slice(None), *_check.ANCHORS[name])] = 1
    return anchor.view(-1, 1, *taps.shape[-2:])


def bounded_weight(
    taps: Tensor, bound: float, corner: str | tuple[str, ...], groups: int
) -> Tensor:
    """``(I + L)(I + V)`` of :class:`invconv.nn.InverseConv2d`, ``(C, C/groups, kh, kw)`` as taps.

    In one step of the core where that will do, which is a tenth of the time for a small layer;
    whether a gradient is recorded changes no bit.
    """
    options = bound, corner, groups
    derived = bounded_by_core(_Derived, taps, *options)
    return _by_torch(taps, *options) if derived is None else derived


def _by_torch(taps: Tensor, bound: float, corner: str | Sequence[str], groups: int) -> Tensor:
    channels, size, *kernel = taps.shape
    at_anchor = anchor_of(taps, corner, groups)
    # An infinite parameter stands for the largest one, so that the sums below stay finite.
    largest = torch.finfo(taps.dtype).max / taps.numel()
    taps = taps.clamp(-largest, largest)
    lower = (taps * at_anchor).sum((2, 3)).view(groups, size, size).tril(-1)
    others = (taps * (1 - at_anchor)).view(groups, size, size, -1)
    rows = lower.abs().sum(2, keepdim=True)
    identity = torch.eye(size, device=taps.device, dtype=taps.dtype)
    anchor = lower * (bound / rows.clamp_min(bound)) + identity
    norms = others.abs().sum(2).amax(1).sum(1)
    others = others * (bound / norms.clamp_min(bound)).view(-1, 1, 1, 1)
    # M = D (I + L) (I + V), so V, the bounded part, is what A^-1 leaves of the taps.
    others = (anchor @ others.flatten(2)).reshape(channels, size, *kernel)
    return others + anchor.reshape(channels, size, 1, 1) * at_anchor


class _Derived(torch.autograd.Function):
    """The core's weight; for the gradient torch derives it once more."""

    @staticmethod
    def forward(ctx: Any, taps: Tensor, *options: Any) -> Any:
        ctx.save_for_backward(taps)
        ctx.options = options
        return bounded(taps, *options)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (taps,) = ctx.saved_tensors
        twice = torch.is_grad_enabled()
        with torch.enable_grad(), without_autocast(taps):
            taps = taps if twice else taps.detach().requires_grad_()
            weight = _by_torch(taps, *ctx.options)
        (gradient,) = torch.autograd.grad(weight, taps, gradients, create_graph=twice)
        return (gradient, *(None for _ in ctx.options))
