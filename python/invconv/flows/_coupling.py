"""Affine coupling, and the split prior, which is the same map read as a density."""

import torch
from torch import Tensor

from invconv.flows._bijection import Bijection, check_channels, check_context, sum_over_image

# |log_scale| stays below this, so one layer stretches by at most e^2 in either direction.
_LARGEST_LOG_SCALE = 2.0


class AffineCoupling(Bijection):
    """The first half of the channels shifts and scales the second half.

    ``z1 = x1``, ``z2 = (x2 - shift) exp(-log_scale)`` with ``(shift, log_scale) = net(x1)``, so
    ``log|det| = -sum(log_scale)`` (Dinh, Sohl-Dickstein and Bengio, *Real NVP*, ICLR 2017). The net
    is 3x3, 1x1 and 3x3 convolutions with ReLU, as in Glow; its last layer starts at zero, hence the
    layer at the identity. ``log_scale`` is bounded by +-2 through tanh. With ``context_features``
    the net has a second input, a vector for each image, of which a linear map is added to the
    result of the first convolution.

    Args:
        channels: C, at least 2; the first C // 2 are the condition.
        hidden: channels inside the net.
        context_features: D, and ``context`` is ``(batch, D)``; with 0 it is ignored.

    Raises:
        ValueError: fewer than two channels, less than one hidden channel or a negative D; when
            called, images of other channels, or a context that is not of shape ``(batch, D)``.

    Example:
        >>> import torch
        >>> from invconv.flows import AffineCoupling
        >>> layer = AffineCoupling(4, hidden=8)
        >>> x = torch.randn(2, 4, 6, 6)
        >>> z, logabsdet = layer(x)
        >>> torch.equal(z, x), logabsdet.shape
        (True, torch.Size([2]))
    """

    def __init__(self, channels: int, hidden: int = 64, *, context_features: int = 0) -> None:
        super().__init__()
        if channels < 2 or hidden < 1 or context_features < 0:
            raise ValueError(
                f"[{type(self).__name__}] expected channels >= 2, hidden >= 1 and "
                f"context_features >= 0, but got channels = {channels}, hidden = {hidden}, "
                f"context_features = {context_features}"
            )
        self.channels = channels
        self.condition = channels // 2
        rest = channels - self.condition
        last = torch.nn.Conv2d(hidden, 2 * rest, 3, padding=1)
        torch.nn.init.zeros_(last.weight)
        if last.bias is not None:
            torch.nn.init.zeros_(last.bias)
        self.net = torch.nn.Sequential(
            torch.nn.Conv2d(self.condition, hidden, 3, padding=1),
            torch.nn.ReLU(inplace=True),
            torch.nn.Conv2d(hidden, hidden, 1),
            torch.nn.ReLU(inplace=True),
            last,
        )
        # On CPUs convolutions in this layout are up to twice as fast.
        torch.nn.utils.convert_conv2d_weight_memory_format(self.net, torch.channels_last)
        self.embed = (
            torch.nn.Linear(context_features, hidden, bias=False) if context_features else None
        )

    def _split(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        check_channels(self, x, self.channels)
        first, second = x.tensor_split([self.condition], 1)
        if self.embed is None:
            result = self.net(first)
        else:
            condition = check_context(self, x, context, self.embed.in_features)
            enter, *rest = self.net
            result = enter(first) + self.embed(condition)[:, :, None, None]
            for layer in rest:
                result = layer(result)
        # Under autocast the net alone is in a half type.
        shift, raw = result.to(x.dtype).chunk(2, 1)
        log_scale = _LARGEST_LOG_SCALE * (raw / _LARGEST_LOG_SCALE).tanh()
        return first, second, shift, log_scale

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Normalise the second half, given the first."""
        first, second, shift, log_scale = self._split(x, context)
        z = torch.cat([first, (second - shift) * (-log_scale).exp()], 1)
        return z, -sum_over_image(log_scale)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Undo :meth:`forward`; the first half is its own condition."""
        x, log_scale = self._undo(z, context)
        return x, sum_over_image(log_scale)

    def decode(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """The same without the volume."""
        return self._undo(z, context)[0]

    def _undo(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        first, second, shift, log_scale = self._split(z, context)
        return torch.cat([first, second * log_scale.exp() + shift], 1), log_scale


class SplitPrior(AffineCoupling):
    """Half of the channels leave the flow, as standard normal noise given the other half.

    The density ``x2 | x1 ~ N(shift(x1), exp(log_scale(x1))^2)`` is an affine coupling whose second
    half is standard normal: ``log N(x2; shift, scale^2) = log N(z2; 0, 1) - sum(log_scale)``. So
    ``forward`` returns x1, which goes on, followed by z2, which is final: split them with
    ``z.tensor_split([C // 2], 1)``. Arguments and errors are those of :class:`AffineCoupling`.

    Example:
        >>> import torch
        >>> from invconv.flows import SplitPrior
        >>> z, _ = SplitPrior(8, hidden=8)(torch.randn(2, 8, 4, 4))
        >>> [half.shape[1] for half in z.tensor_split([4], 1)]
        [4, 4]
    """
