"""A bijection as a transform of nflows, whose convention is ours."""

import nflows.transforms
from torch import Tensor

from invconv.flows import Bijection
from invconv.interop._bijection import check_bijection


class Transform(nflows.transforms.Transform):
    """``nflows.transforms.Transform``: ``forward`` from image to latent, ``inverse`` back.

    Both take ``(batch, C, H, W)`` and a context ``(batch, D)`` or None, and return the mapped batch
    and the log-determinant of the direction called, ``(batch,)``, in the input's dtype.

    Args:
        bijection: what it does, registered as a submodule.

    Raises:
        TypeError: not a bijection.

    Example:
        >>> import nflows.distributions, nflows.flows, nflows.transforms, torch
        >>> from invconv.flows import InverseConvolution
        >>> from invconv.interop.nflows import Transform
        >>> layers = [Transform(InverseConvolution(4)), nflows.transforms.SqueezeTransform()]
        >>> flow = nflows.flows.Flow(
        ...     nflows.transforms.CompositeTransform(layers),
        ...     nflows.distributions.StandardNormal((16, 4, 4)),
        ... )
        >>> flow.log_prob(torch.randn(5, 4, 8, 8)).shape, flow.sample(3).shape
        (torch.Size([5]), torch.Size([3, 4, 8, 8]))
    """

    def __init__(self, bijection: Bijection) -> None:
        """Wrap a bijection."""
        super().__init__()
        self.bijection = check_bijection("nflows.Transform", bijection)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Image to latent."""
        return self.bijection(inputs, context)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Latent to image."""
        return self.bijection.inverse(inputs, context)
