"""Monotonic rational-quadratic splines as an activation with learned shape."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from invconv._torch import rounds_factors, without_autocast
from invconv.flows._bijection import Bijection, check_channels, check_context, sum_over_image

# The narrowest bin and the flattest knot, so that neither direction divides by almost nothing.
_MIN_FRACTION = 1e-3  # of the whole interval
_MIN_DERIVATIVE = 1e-3


class RationalQuadraticSpline(Bijection):
    """Elementwise monotonic spline, one learned curve per channel; the identity at first.

    Inside ``[-tail_bound, tail_bound]`` the curve is a monotonic rational-quadratic spline (Durkan,
    Bekasov, Murray and Papamakarios, *Neural Spline Flows*, NeurIPS 2019, section 3.1): in bin k,
    of width w, height h and derivatives d_k and d_k+1 at its ends, with ``t = (x - x_k) / w`` and
    ``s = h / w``,

        ``y = y_k + h (s t^2 + d_k t (1 - t)) / (s + (d_k + d_k+1 - 2 s) t (1 - t))``.

    Outside it is the identity, and the derivatives at both ends are 1. With ``context_features``
    every image has curves of its own: a linear map of its context, zero at first, is added to the
    parameters.

    Args:
        channels: number of curves.
        bins: number of rational-quadratic pieces of each.
        tail_bound: half the length of the interval in which the curve bends.
        context_features: D, and ``context`` is ``(batch, D)``; with 0 it is ignored.

    Raises:
        ValueError: no channels, fewer than two bins or too many for the least width, a tail_bound
            that is not positive or a negative D; when called, images of other channels, or a
            context that is not of shape ``(batch, D)``.

    Example:
        >>> import torch
        >>> from invconv.flows import RationalQuadraticSpline
        >>> spline = RationalQuadraticSpline(3)
        >>> x = torch.randn(2, 3, 4, 4)
        >>> z, logabsdet = spline(x)
        >>> torch.allclose(z, x, atol=1e-5), logabsdet.shape
        (True, torch.Size([2]))
    """

    def __init__(
        self,
        channels: int,
        bins: int = 16,
        tail_bound: float = 3.0,
        *,
        context_features: int = 0,
    ) -> None:
        super().__init__()
        most = int(0.5 / _MIN_FRACTION)
        if channels < 1 or not 2 <= bins <= most or not tail_bound > 0 or context_features < 0:
            raise ValueError(
                f"[RationalQuadraticSpline] expected channels >= 1, 2 <= bins <= {most}, "
                f"tail_bound > 0 and context_features >= 0, but got channels = {channels}, "
                f"bins = {bins}, tail_bound = {tail_bound}, context_features = {context_features}"
            )
        self.bins = bins
        self.tail_bound = tail_bound
        self.widths = torch.nn.Parameter(torch.zeros(channels, bins))
        self.heights = torch.nn.Parameter(torch.zeros(channels, bins))
        # softplus(this) + _MIN_DERIVATIVE = 1: the identity's slope.
        slope_one = math.log(math.expm1(1 - _MIN_DERIVATIVE))
        self.derivatives = torch.nn.Parameter(torch.full((channels, bins - 1), slope_one))
        self.embed = None
        if context_features:
            self.embed = torch.nn.Linear(context_features, channels * (3 * bins - 1), bias=False)
            torch.nn.init.zeros_(self.embed.weight)

    def _rows(self, x: Tensor) -> Tensor:
        """The values that share a curve as one row each: of a channel, or of an image's channel."""
        check_channels(self, x, len(self.widths))
        return x.movedim(1, 0).flatten(1) if self.embed is None else x.flatten(2).flatten(0, 1)

    def _images(self, rows: Tensor, like: Tensor) -> Tensor:
        """Undo ``_rows(like)``."""
        if self.embed is not None:
            return rows.view(like.shape)
        return rows.view(like.shape[1], like.shape[0], *like.shape[2:]).movedim(0, 1).contiguous()

    def _pieces(
        self, v: Tensor, x: Tensor, context: Tensor | None, on_y: bool, count: int = 9
    ) -> tuple[Tensor, ...]:
        """For each element of v, ``_rows`` of x's shape, the first coefficients of its piece."""
        with without_autocast(v):
            free = torch.cat([self.widths, self.heights, self.derivatives], 1)
            if self.embed is not None:
                condition = check_context(self, x, context, self.embed.in_features)
                offset = self.embed(condition.to(self.embed.weight.dtype)).unflatten(1, free.shape)
                free = (free + offset).flatten(0, 1)
            return self._pick(v, self._table(free)[:, :count], on_y)

    def _table(self, free: Tensor) -> Tensor:
        """The nine coefficients of every piece, ``(curves, 9, bins)``."""
        widths, heights, derivatives = free.tensor_split([self.bins, 2 * self.bins], 1)
        # Both axes at once: each of shape (2, curves, bins), as shares of the whole interval.
        share = (
            F.softmax(torch.stack([widths, heights]), 2) * (1 - _MIN_FRACTION * self.bins)
            + _MIN_FRACTION
        )
        length = share * (2 * self.tail_bound)
        (w, h), (x_k, y_k) = length, length.cumsum(2) - length - self.tail_bound
        slope = F.pad(F.softplus(derivatives) + _MIN_DERIVATIVE, (1, 1), value=1.0)
        d_k, d_next = slope[:, :-1], slope[:, 1:]
        s = h / w
        p, q = d_k / s, (d_k + d_next) / s - 2
        return torch.stack([x_k, 1 / w, y_k, h, p, q, d_k, 2 * s, d_next], 1)

    def _pick(self, v: Tensor, table: Tensor, on_y: bool) -> tuple[Tensor, ...]:
        left = table[:, 2 if on_y else 0, 1:, None]
        beyond = v.detach().unsqueeze(1) >= left
        rounds = table.dtype == torch.float32 and rounds_factors()
        if not torch.is_grad_enabled() or rounds:
            # Small integers add faster; there are up to bins - 1 ones.
            kind = torch.int8 if self.bins <= 128 else torch.int16
            piece = beyond.view(torch.int8).sum(1, keepdim=True, dtype=kind).long()
            return table.gather(2, piece.expand(-1, table.shape[1], -1)).unbind(1)
        # Picking by a product with 0 and 1 is exact, unless torch may round the factors. Its
        # backward is a product as well, several times faster than the scattered additions that
        # undo a gather.
        beyond = F.pad(beyond, (0, 0, 1, 0), value=True)
        chosen = beyond ^ F.pad(beyond[:, 1:], (0, 0, 0, 1), value=False)
        return (table @ chosen.to(table.dtype)).unbind(1)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Bend every channel by its curve."""
        rows = self._rows(x)
        # Both ends of the curve are fixed points of slope 1: clamp, bend, add back what was cut.
        v = rows.clamp(-self.tail_bound, self.tail_bound)
        x_k, w_inverse, y_k, h, p, q, *slopes = self._pieces(v, x, context, on_y=False)
        t = (v - x_k) * w_inverse
        square = t * t
        u = t - square
        below = q * u + 1
        z = torch.addcmul(y_k, h, torch.addcmul(square, p, u) / below) + (rows - v)
        return self._images(z, x), self._sum_log_slope(t, u, below, slopes, x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Undo :meth:`forward`: with ``r = (y - y_k) / h``, t is a root of a quadratic.

        ``(1 - b) t^2 + b t - r = 0``, where ``b = d_k / s - r ((d_k + d_k+1) / s - 2)``.
        """
        rows = self._rows(z)
        v = rows.clamp(-self.tail_bound, self.tail_bound)
        x_k, w_inverse, y_k, h, p, q, *slopes = self._pieces(v, z, context, on_y=True)
        t = _root((v - y_k) / h, p, q)
        u = t - t * t
        x = x_k + t / w_inverse + (rows - v)
        return self._images(x, z), -self._sum_log_slope(t, u, q * u + 1, slopes, z)

    def decode(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """The same without the volume."""
        rows = self._rows(z)
        v = rows.clamp(-self.tail_bound, self.tail_bound)
        x_k, w_inverse, y_k, h, p, q = self._pieces(v, z, context, on_y=True, count=6)
        return self._images(x_k + _root((v - y_k) / h, p, q) / w_inverse + (rows - v), z)

    def _sum_log_slope(
        self, t: Tensor, u: Tensor, below: Tensor, slopes: list[Tensor], like: Tensor
    ) -> Tensor:
        """``sum log dy/dx`` over every image; all terms of the numerator are positive."""
        d_k, s_twice, d_next = slopes
        above = d_k * (1 - t) ** 2 + s_twice * u + d_next * t * t
        return sum_over_image(self._images((above / (below * below)).log(), like))


def _root(r: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """The t in [0, 1] of :meth:`RationalQuadraticSpline.inverse`, with ``b = p - r q``."""
    r = r.clamp(0, 1)
    b = p - r * q
    size = b.abs()
    # The discriminant b^2 + 4 (1 - b) r as a sum of two squares, and of the two forms of the root
    # the one that adds: nothing cancels.
    above = torch.addcmul((b - 2 * r).square(), r, 1 - r, value=4).sqrt() + size
    return torch.where(b >= 0, 2 * r / above, above / (2 + 2 * size))
