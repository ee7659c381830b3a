"""The inverse convolution as a layer of a flow."""

from collections.abc import Sequence

from torch import Tensor

from invconv.flows._bijection import Bijection, per_image
from invconv.nn import InverseConv2d


class InverseConvolution(Bijection):
    """Image to latent by a solve, latent to image by plain convolution.

    ``z = M^-1 x`` with M a causal convolution, so ``log|det| = -H W sum log diag(anchor)``, which
    is 0 for a unit diagonal (Nagar and Varma, AISTATS 2025, arXiv 2410.14634). Sampling, the other
    direction, is one convolution.

    Args:
        channels: C.
        kernel_size: one number or (kh, kw), in pixels.
        corner: as for :class:`invconv.nn.InverseConv2d`.
        groups: the channels fall into this many independent groups.
        unit_diagonal: fix the anchor's diagonal at 1 (volume preserving).
        bound: rho in (0, 1) limits how far ``M^-1`` can grow, see
            :class:`invconv.nn.InverseConv2d`; None leaves the weight free.

    Example:
        >>> import torch
        >>> from invconv.flows import InverseConvolution
        >>> layer = InverseConvolution(4, 3, corner="tr", bound=0.9)
        >>> x = torch.randn(2, 4, 6, 6)
        >>> z, logabsdet = layer(x)
        >>> torch.allclose(layer.inverse(z)[0], x, atol=1e-5), logabsdet.tolist()
        (True, [0.0, 0.0])
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int | tuple[int, int] = 3,
        *,
        corner: str | Sequence[str] = "tl",
        groups: int = 1,
        unit_diagonal: bool = True,
        bound: float | None = None,
    ) -> None:
        super().__init__()
        self.module = InverseConv2d(
            channels,
            kernel_size,
            corner=corner,
            groups=groups,
            unit_diagonal=unit_diagonal,
            bound=bound,
        )

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Solve ``M z = x``."""
        return self.module(x), per_image(x, self.module.logabsdet((x.shape[-2], x.shape[-1])))

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Convolve: ``x = M z``."""
        logabsdet = per_image(z, -self.module.logabsdet((z.shape[-2], z.shape[-1])))
        return self.module.inverse(z), logabsdet
