"""A bijection as a bijection of SurVAE flows, whose inverse has no log-determinant."""

import survae.transforms
from torch import Tensor

from invconv import flows
from invconv.interop._bijection import check_bijection


class Bijection(survae.transforms.Bijection):
    """``survae.transforms.Bijection``: ``forward(x) -> (z, ldj)``, ``inverse(z) -> x``.

    ``ldj`` is ``(batch,)`` and memory of its own: survae adds to it in place.

    Args:
        bijection: what it does, registered as a submodule.

    Raises:
        TypeError: not a bijection.

    Example:
        >>> import torch
        >>> from invconv.flows import InverseConvolution
        >>> from invconv.interop.survae import Bijection
        >>> layer = Bijection(InverseConvolution(4))
        >>> z, ldj = layer(torch.randn(5, 4, 3, 3))
        >>> ldj.shape, layer.inverse(z).shape
        (torch.Size([5]), torch.Size([5, 4, 3, 3]))
    """

    def __init__(self, bijection: flows.Bijection) -> None:
        """Wrap a bijection."""
        super().__init__()
        self.bijection = check_bijection("survae.Bijection", bijection)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Image to latent, and the log-determinant."""
        return self.bijection(x)

    def inverse(self, z: Tensor) -> Tensor:
        """Latent to image."""
        return self.bijection.inverse(z)[0]


class ConditionalBijection(survae.transforms.ConditionalBijection):
    """``survae.transforms.ConditionalBijection``: the same with a context ``(batch, D)``.

    Args:
        bijection: what it does, registered as a submodule.

    Raises:
        TypeError: not a bijection.
    """

    def __init__(self, bijection: flows.Bijection) -> None:
        """Wrap a bijection."""
        super().__init__()
        self.bijection = check_bijection("survae.ConditionalBijection", bijection)

    def forward(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Image to latent, and the log-determinant."""
        return self.bijection(x, context)

    def inverse(self, z: Tensor, context: Tensor) -> Tensor:
        """Latent to image."""
        return self.bijection.inverse(z, context)[0]
