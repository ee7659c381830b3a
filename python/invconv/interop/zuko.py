"""A bijection as a lazy transform of zuko, from data to noise."""

import torch
import zuko.lazy
from torch import Tensor

from invconv.flows import Bijection
from invconv.interop import distributions
from invconv.interop._bijection import check_bijection


class LazyTransform(zuko.lazy.LazyTransform):
    """``zuko.lazy.LazyTransform``: called with a context, a transform from image to latent.

    Args:
        bijection: what that transform does, registered as a submodule. The transform is one of
            torch.distributions, the inverse of :class:`invconv.interop.distributions.Transform`.

    Raises:
        TypeError: not a bijection.

    Example:
        >>> import torch, zuko
        >>> from invconv.flows import InverseConvolution
        >>> from invconv.interop.zuko import LazyTransform
        >>> base = zuko.lazy.UnconditionalDistribution(
        ...     zuko.distributions.DiagNormal,
        ...     torch.zeros(4, 3, 3), torch.ones(4, 3, 3), ndims=3, buffer=True,
        ... )
        >>> flow = zuko.lazy.Flow([LazyTransform(InverseConvolution(4))], base)
        >>> flow().log_prob(torch.randn(5, 4, 3, 3)).shape, flow().sample((2,)).shape
        (torch.Size([5]), torch.Size([2, 4, 3, 3]))
    """

    def __init__(self, bijection: Bijection) -> None:
        """Wrap a bijection."""
        super().__init__()
        self.bijection = check_bijection("zuko.LazyTransform", bijection)

    def forward(self, c: Tensor | None = None) -> torch.distributions.Transform:
        """The transform for a context ``(..., D)``, or for none."""
        return distributions.Transform(self.bijection, c).inv
