"""The contract of every layer, and their composition."""

import abc
from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor


class Bijection(torch.nn.Module, abc.ABC):
    """An invertible map of image batches, with the logarithm of its volume change.

    ``forward`` goes from the image to the latent, ``inverse`` back: the convention of nflows.
    Both take ``(batch, C, H, W)`` and return the mapped batch and ``log|det J|`` of the direction
    called, in nats, as a fresh contiguous tensor of shape ``(batch,)`` with x's dtype and device.
    ``context`` is handed to every layer of a composition; layers without a condition ignore it.
    """

    @abc.abstractmethod
    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map image to latent: return ``(z, log|det dz/dx|)``."""

    @abc.abstractmethod
    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map latent to image: return ``(x, log|det dx/dz|)``."""

    def decode(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Map latent to image: return x alone, for samples, whose volumes nobody asks for."""
        return self.inverse(z, context)[0]


def per_image(x: Tensor, value: Tensor | float = 0.0) -> Tensor:
    """``value`` once for each image of x: fresh memory, so that callers may add to it in place."""
    return x.new_zeros(x.shape[0]) + value


def sum_over_image(x: Tensor) -> Tensor:
    """Sum of every axis but the batch, shape ``(batch,)``."""
    return x.flatten(1).sum(1)


def check_channels(layer: Bijection, x: Tensor, channels: int) -> None:
    """Check that images have a layer's channels; one channel would be taken for all of them.

    Raises:
        ValueError: x is not ``(batch, channels, H, W)``.
    """
    if x.ndim != 4 or x.shape[1] != channels:
        raise ValueError(
            f"[{type(layer).__name__}] expected images of shape (batch, {channels}, H, W), "
            f"but got {tuple(x.shape)}"
        )


def check_context(layer: Bijection, x: Tensor, context: Tensor | None, features: int) -> Tensor:
    """The context of a layer that has a condition: a vector for each image of x, in x's dtype.

    Raises:
        ValueError: there is none, or it is not ``(batch, features)``.
    """
    shape = (x.shape[0], features)
    if context is None or tuple(context.shape) != shape:
        raise ValueError(
            f"[{type(layer).__name__}] expected context of shape (batch, {features}) with batch = "
            f"{shape[0]}, but got {None if context is None else tuple(context.shape)}"
        )
    return context.to(x.dtype)


class Sequential(Bijection):
    """The composition of several bijections, in the order of the image-to-latent pass.

    ``log|det J| = sum_i log|det J_i|``, by the chain rule.

    Args:
        layers: the bijections, first the one next to the image.

    Example:
        >>> import torch
        >>> from invconv.flows import ActNorm, Sequential, Squeeze
        >>> flow = Sequential([Squeeze(), ActNorm(4)])
        >>> z, logabsdet = flow(torch.randn(2, 1, 4, 4))
        >>> z.shape, logabsdet.shape
        (torch.Size([2, 4, 2, 2]), torch.Size([2]))
    """

    def __init__(self, layers: Iterable[Bijection]) -> None:
        super().__init__()
        if not isinstance(layers, Iterable):
            name = type(layers).__name__
            raise TypeError(f"[Sequential] expected a list of bijections, but got {name}")
        self.layers = torch.nn.ModuleList(layers)
        for layer in self.layers:
            if not isinstance(layer, Bijection):
                name = type(layer).__name__
                raise TypeError(f"[Sequential] expected bijections, but got {name} among them")

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Apply the layers from first to last."""
        logabsdet = per_image(x)
        for layer in self.layers:
            x, change = layer(x, context)
            logabsdet = logabsdet + change
        return x, logabsdet

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Apply the layers' inverses from last to first."""
        logabsdet = per_image(z)
        for layer in reversed(self.layers):
            z, change = cast(Bijection, layer).inverse(z, context)
            logabsdet = logabsdet + change
        return z, logabsdet

    def decode(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Apply the layers' inverses from last to first, without their volumes."""
        for layer in reversed(self.layers):
            z = cast(Bijection, layer).decode(z, context)
        return z
