"""What the adapters share."""

from collections.abc import Callable

import torch
from torch import Tensor

from invconv.flows import Bijection
from invconv.flows._actnorm import never_initialising


def check_bijection(name: str, bijection: Bijection) -> Bijection:
    """The bijection, if it is one.

    Raises:
        TypeError: it is something else, like a whole model or a module of :mod:`invconv.nn`.
    """
    if not isinstance(bijection, Bijection):
        raise TypeError(
            f"[{name}] expected a Bijection of invconv.flows, but got {type(bijection).__name__}"
        )
    return bijection


def result_shape(
    bijection: Bijection,
    function: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]],
    shape: tuple[int, ...],
    context_features: int | None,
) -> tuple[int, ...]:
    """The shape ``(C, H, W)`` that a direction of a bijection makes of ``shape``."""
    like = next(bijection.parameters(), torch.empty(0))
    context = None if context_features is None else like.new_empty(0, context_features)
    # No images: nothing is computed.
    with torch.no_grad(), never_initialising(bijection):
        return tuple(function(like.new_empty(0, *shape), context)[0].shape[1:])
