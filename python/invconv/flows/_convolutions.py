"""Convolutions as layers of a flow: causal ones, in either direction, and 1x1."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from invconv._torch import without_autocast
from invconv.flows._bijection import Bijection, check_channels, per_image
from invconv.nn import CausalConv2d, InverseConv2d

# |log s| of the 1x1 convolution stays below this, so its diagonal within e^-4 to e^4. The pivots of
# random rotations, with which it starts, have |log s| of up to 3 at some hundred channels.
_LARGEST_LOG_PIVOT = 4.0


class _Causal(Bijection):
    """A module of :mod:`invconv.nn`, whose two directions and log-determinant it has."""

    _kind: ClassVar[type[CausalConv2d] | type[InverseConv2d]]

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
        self.module = self._kind(
            channels,
            kernel_size,
            corner=corner,
            groups=groups,
            unit_diagonal=unit_diagonal,
            bound=bound,
        )

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Apply the module."""
        check_channels(self, x, self.module.channels)
        return self.module(x), per_image(x, self.module.logabsdet((x.shape[-2], x.shape[-1])))

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Undo :meth:`forward`."""
        x = self.decode(z)
        return x, per_image(z, -self.module.logabsdet((z.shape[-2], z.shape[-1])))

    def decode(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """The same without the volume."""
        check_channels(self, z, self.module.channels)
        x: Tensor = self.module.inverse(z)
        return x


class InverseConvolution(_Causal):
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

    Raises:
        ValueError: as :class:`invconv.nn.InverseConv2d`.

    Example:
        >>> import torch
        >>> from invconv.flows import InverseConvolution
        >>> layer = InverseConvolution(4, 3, corner="tr", bound=0.9)
        >>> x = torch.randn(2, 4, 6, 6)
        >>> z, logabsdet = layer(x)
        >>> torch.allclose(layer.inverse(z)[0], x, atol=1e-5), logabsdet.tolist()
        (True, [0.0, 0.0])
    """

    _kind = InverseConv2d


class CausalConvolution(_Causal):
    """Image to latent by a causal convolution, latent to image by a solve.

    ``z = M x``: :class:`InverseConvolution` turned round, with the same arguments, errors and
    state, and ``log|det| = H W sum log diag(anchor)``. The layer of FInC Flow (Kallappa, Nagar and
    Varma, *FInC Flow: Fast and Invertible k x k Convolutions for Normalizing Flows*, 2023), whose
    sampling is a solve. The bound limits how far that can grow.

    Example:
        >>> import torch
        >>> from invconv.flows import CausalConvolution, InverseConvolution
        >>> layer, other = CausalConvolution(4, bound=0.9), InverseConvolution(4, bound=0.9)
        >>> other.load_state_dict(layer.state_dict())
        <All keys matched successfully>
        >>> x = torch.randn(2, 4, 6, 6)
        >>> torch.equal(layer(x)[0], other.inverse(x)[0])
        True
    """

    _kind = CausalConv2d


class Convolution1x1(Bijection):
    """Invertible 1x1 convolution: every pixel's channels times one matrix W.

    ``W = P L (U + diag(s))`` with a fixed permutation P, L lower triangular with a unit diagonal
    and U strictly upper triangular, so ``log|det| = H W sum log|s|`` (Kingma and Dhariwal, *Glow*,
    NeurIPS 2018, section 3.2). W starts as a random rotation, whose factors these are; the signs of
    s stay. ``log|s|`` is bounded by +-4 through tanh, so W is never singular, whatever an optimiser
    does. W, or its inverse for :meth:`inverse`, is computed once per call and in float64, so each
    undoes the other up to the rounding of its entries.

    Args:
        channels: C.

    Raises:
        ValueError: less than one channel; when called, images of other channels.

    Example:
        >>> import torch
        >>> from invconv.flows import Convolution1x1
        >>> layer = Convolution1x1(4)
        >>> x = torch.randn(2, 4, 6, 6)
        >>> z, logabsdet = layer(x)
        >>> torch.allclose(layer.inverse(z)[0], x, atol=1e-5), logabsdet.shape
        (True, torch.Size([2]))
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(
                f"[Convolution1x1] expected channels of at least 1, but got {channels}"
            )
        rotation = torch.linalg.qr(torch.randn(channels, channels, dtype=torch.float64)).Q
        permutation, lower, upper = torch.linalg.lu(rotation)
        pivots = upper.diagonal()
        # What tanh will make log|s| of.
        free = _LARGEST_LOG_PIVOT * (pivots.abs().log() / _LARGEST_LOG_PIVOT).atanh()
        # One matrix holds all that is free, as LAPACK packs it: L below the diagonal, U above.
        packed = lower.tril(-1) + upper.triu(1) + free.diag()
        self.factors = torch.nn.Parameter(packed.to(torch.get_default_dtype()))
        self.signs: Tensor
        self.rows: Tensor
        self.register_buffer("signs", pivots.sign().to(self.factors.dtype))
        # P x = x[rows].
        self.register_buffer("rows", permutation.argmax(1))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Multiply by W."""
        check_channels(self, x, len(self.rows))
        with without_autocast(x):
            log_pivots, lower, upper = self._factors()
            weight = (lower @ upper)[self.rows]
            return self._times(weight, x), self._volume(x, log_pivots)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Multiply by ``W^-1``."""
        check_channels(self, z, len(self.rows))
        with without_autocast(z):
            log_pivots, *factors = self._factors()
            return self._times(self._inverse(*factors), z), -self._volume(z, log_pivots)

    def decode(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """The same without the volume."""
        check_channels(self, z, len(self.rows))
        with without_autocast(z):
            return self._times(self._inverse(*self._factors()[1:]), z)

    def _factors(self) -> tuple[Tensor, Tensor, Tensor]:
        """``log|s|``, L and ``U + diag(s)`` in float64."""
        packed = self.factors.double()
        log_pivots = _LARGEST_LOG_PIVOT * (packed.diagonal() / _LARGEST_LOG_PIVOT).tanh()
        identity = torch.eye(len(packed), dtype=packed.dtype, device=packed.device)
        pivots = self.signs.double() * log_pivots.exp()
        return log_pivots, packed.tril(-1) + identity, packed.triu(1) + pivots.diag()

    def _inverse(self, lower: Tensor, upper: Tensor) -> Tensor:
        """``W^-1 = (U + diag(s))^-1 L^-1 P^T``."""
        permuted = torch.eye(len(lower), dtype=lower.dtype, device=lower.device)[self.rows].mT
        half = torch.linalg.solve_triangular(lower, permuted, upper=False, unitriangular=True)
        inverse: Tensor = torch.linalg.solve_triangular(upper, half, upper=True)
        return inverse

    def _times(self, weight: Tensor, x: Tensor) -> Tensor:
        # A product for each image: matmul would copy x, and differently where gradients are wanted.
        weights = weight.to(self.factors.dtype).expand(len(x), -1, -1)
        return torch.bmm(weights, x.flatten(2)).view(x.shape)

    def _volume(self, x: Tensor, log_pivots: Tensor) -> Tensor:
        return per_image(x, x.shape[-2] * x.shape[-1] * log_pivots.sum())
