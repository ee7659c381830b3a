"""A bijection as a flow of normflows, whose directions are the other way round."""

import normflows
from torch import Tensor

from invconv.flows import Bijection
from invconv.interop._bijection import check_bijection


class Flow(normflows.flows.Flow):
    """``normflows.flows.Flow``: ``forward`` from latent to image, ``inverse`` from image to latent.

    Both take ``(batch, C, H, W)`` and a context ``(batch, D)`` or None, and return the mapped batch
    and the log-determinant of the direction called, ``(batch,)``, in the input's dtype.

    Args:
        bijection: what ``inverse`` does, registered as a submodule.

    Raises:
        TypeError: not a bijection.

    Example:
        >>> import normflows, torch
        >>> from invconv.flows import InverseConvolution
        >>> from invconv.interop.normflows import Flow
        >>> base = normflows.distributions.DiagGaussian((16, 4, 4))
        >>> layers = [normflows.flows.Squeeze(), Flow(InverseConvolution(4))]
        >>> flow = normflows.NormalizingFlow(base, layers)
        >>> flow.log_prob(torch.randn(5, 4, 8, 8)).shape, flow.sample(3)[0].shape
        (torch.Size([5]), torch.Size([3, 4, 8, 8]))
    """

    def __init__(self, bijection: Bijection) -> None:
        """Wrap a bijection."""
        super().__init__()
        self.bijection = check_bijection("normflows.Flow", bijection)

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Latent to image."""
        return self.bijection.inverse(z, context)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Image to latent."""
        return self.bijection(z, context)
