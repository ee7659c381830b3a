"""A bijection as a transform module of Pyro, from noise to data."""

import pyro.distributions.conditional
import pyro.distributions.torch_transform
from torch import Tensor

from invconv.flows import Bijection
from invconv.interop import distributions
from invconv.interop._bijection import check_bijection


class TransformModule(distributions.Transform, pyro.distributions.torch_transform.TransformModule):
    """``pyro.distributions.TransformModule`` from latent to image: its ``inv`` calls ``forward``.

    :class:`invconv.interop.distributions.Transform` with the bijection as a submodule, and with the
    cache that Pyro's own transforms have: call ``clear_cache()`` of the distribution after a step
    of the optimiser.

    Args:
        bijection: what the inverse does.
        context: its condition, ``(..., D)``.
        cache_size: 1, or 0 for no cache.

    Raises:
        TypeError: not a bijection.

    Example:
        >>> import pyro.distributions as dist, torch
        >>> from invconv.flows import InverseConvolution
        >>> from invconv.interop.pyro import TransformModule
        >>> base = dist.Normal(torch.zeros(4, 3, 3), 1.0).to_event(3)
        >>> flow = dist.TransformedDistribution(base, [TransformModule(InverseConvolution(4))])
        >>> flow.log_prob(flow.sample((5,))).shape
        torch.Size([5])
    """

    def __init__(
        self, bijection: Bijection, context: Tensor | None = None, *, cache_size: int = 1
    ) -> None:
        """Wrap a bijection."""
        super().__init__(bijection, context, cache_size=cache_size)


class ConditionalTransformModule(pyro.distributions.conditional.ConditionalTransformModule):
    """``pyro.distributions.ConditionalTransformModule``: a transform for each context.

    Args:
        bijection: what the inverse of the transforms does, registered as a submodule.

    Raises:
        TypeError: not a bijection.

    Example:
        >>> import pyro.distributions as dist, torch
        >>> from invconv.flows import AffineCoupling
        >>> from invconv.interop.pyro import ConditionalTransformModule
        >>> base = dist.Normal(torch.zeros(4, 3, 3), 1.0).to_event(3)
        >>> layer = ConditionalTransformModule(AffineCoupling(4, 8, context_features=2))
        >>> flow = dist.ConditionalTransformedDistribution(base, [layer])
        >>> flow.condition(torch.ones(2)).sample((5,)).shape
        torch.Size([5, 4, 3, 3])
    """

    def __init__(self, bijection: Bijection) -> None:
        """Wrap a bijection."""
        super().__init__()
        self.bijection = check_bijection("pyro.ConditionalTransformModule", bijection)

    def condition(self, context: Tensor) -> TransformModule:
        """The transform for a context ``(..., D)``."""
        return TransformModule(self.bijection, context)
