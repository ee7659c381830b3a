"""A bijection as a transform of torch.distributions, from noise to data."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from invconv.flows import Bijection
from invconv.interop._bijection import check_bijection, result_shape


class Transform(torch.distributions.Transform):
    """``torch.distributions.Transform`` from latent to image: its ``inv`` calls ``forward``.

    Domain and codomain are real ``(C, H, W)``; any number of batch axes, or none, may stand before
    them, and ``log_abs_det_jacobian`` has the shape of these axes and the input's dtype.

    Args:
        bijection: what the inverse does. Its parameters are in ``bijection.parameters()``; a
            transform of torch.distributions is no module.
        context: its condition, of shape ``(D,)`` or, with axes that broadcast against the batch
            axes of the images, ``(..., D)``.
        cache_size: 0, or 1 to keep the last pair. Whoever keeps it must not call the transform with
            the same tensor before and after a change of the parameters.

    Raises:
        TypeError: not a bijection.
        ValueError: when called, images of fewer than three axes.

    Example:
        >>> import torch
        >>> from torch.distributions import Independent, Normal, TransformedDistribution
        >>> from invconv.flows import InverseConvolution, Sequential, Squeeze
        >>> from invconv.interop.distributions import Transform
        >>> flow = Sequential([Squeeze(), InverseConvolution(4)])
        >>> base = Independent(Normal(torch.zeros(4, 3, 3), torch.ones(4, 3, 3)), 3)
        >>> images = TransformedDistribution(base, [Transform(flow)])
        >>> images.event_shape, images.log_prob(images.sample((5,))).shape
        (torch.Size([1, 6, 6]), torch.Size([5]))
    """

    domain = constraints.independent(constraints.real, 3)
    codomain = constraints.independent(constraints.real, 3)
    bijective = True

    def __init__(
        self, bijection: Bijection, context: Tensor | None = None, *, cache_size: int = 0
    ) -> None:
        """Wrap a bijection."""
        super().__init__(cache_size=cache_size)
        self.bijection = check_bijection("distributions.Transform", bijection)
        self.context = context
        self._last: tuple[Tensor, Tensor, Tensor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without what belongs to the last call: it is part of a graph and cannot be copied."""
        return {**super().__getstate__(), "_last": None}  # type: ignore[no-untyped-call]

    def with_cache(self, cache_size: int = 1) -> "Transform":
        """The same transform with that cache."""
        if cache_size == self._cache_size:
            return self
        return type(self)(self.bijection, self.context, cache_size=cache_size)

    def _map(
        self, function: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]], x: Tensor
    ) -> tuple[Tensor, Tensor]:
        if x.ndim < 3:
            raise ValueError(
                f"[distributions.Transform] expected images of shape (..., C, H, W), "
                f"but got {tuple(x.shape)}"
            )
        batch, image = x.shape[:-3], x.shape[-3:]
        context = self.context
        if context is not None:
            # A context with more axes than the images asks for an image for each of its vectors.
            batch = torch.broadcast_shapes(batch, context.shape[:-1])
            x = x.expand(*batch, *image)
            features = context.shape[-1]
            context = context.expand(*batch, features).reshape(-1, features)
        results, logabsdet = function(x.reshape(-1, *image), context)
        return results.reshape(*batch, *results.shape[1:]), logabsdet.reshape(batch)

    def _call(self, x: Tensor) -> Tensor:
        y, logabsdet = self._map(self.bijection.inverse, x)
        self._last = x, y, logabsdet
        return y

    def _inverse(self, y: Tensor) -> Tensor:
        x, logabsdet = self._map(self.bijection, y)
        self._last = x, y, -logabsdet
        return x

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """``log|det dy/dx|`` of latent x and image y, of the shape of their batch axes."""
        # One of the two is a result that nothing but that call has made.
        if self._last is not None and self._last[0] is x and self._last[1] is y:
            return self._last[2]
        return self._map(self.bijection.inverse, x)[1]

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        """The shape of images from that of latents."""
        return self._shape(self.bijection.inverse, shape)

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        """The shape of latents from that of images."""
        return self._shape(self.bijection, shape)

    def _shape(
        self,
        function: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]],
        shape: torch.Size,
    ) -> torch.Size:
        features = None if self.context is None else self.context.shape[-1]
        image = result_shape(self.bijection, function, tuple(shape[-3:]), features)
        return torch.Size((*shape[:-3], *image))
