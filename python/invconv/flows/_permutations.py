"""Rearrangements: no parameters, no change of volume."""

from torch import Tensor

from invconv.flows._bijection import Bijection, per_image


class Squeeze(Bijection):
    """Each 2 x 2 block of pixels becomes four channels: ``(C, H, W)`` to ``(4 C, H/2, W/2)``.

    Channel ``4 c + 2 dy + dx`` holds pixel (dy, dx) of channel c, as in nflows and normflows.

    Example:
        >>> import torch
        >>> from invconv.flows import Squeeze
        >>> Squeeze()(torch.arange(4.0).view(1, 1, 2, 2))[0].flatten().tolist()
        [0.0, 1.0, 2.0, 3.0]
    """

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Move pixels into channels.

        Raises:
            ValueError: the height or the width is odd.
        """
        b, c, h, w = x.shape
        if h % 2 or w % 2:
            raise ValueError(f"[Squeeze] expected even height and width, but got {h} x {w}")
        z = x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4)
        return z.reshape(b, 4 * c, h // 2, w // 2), per_image(x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Move channels back into pixels.

        Raises:
            ValueError: the number of channels is not a multiple of 4.
        """
        b, c, h, w = z.shape
        if c % 4:
            raise ValueError(f"[Squeeze] expected channels in multiples of 4, but got {c}")
        x = z.reshape(b, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3)
        return x.reshape(b, c // 4, 2 * h, 2 * w), per_image(z)


class Reverse(Bijection):
    """The channels in reverse order, so that a coupling layer meets the other half next.

    Example:
        >>> import torch
        >>> from invconv.flows import Reverse
        >>> Reverse()(torch.arange(3.0).view(1, 3, 1, 1))[0].flatten().tolist()
        [2.0, 1.0, 0.0]
    """

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Reverse the channels."""
        return x.flip(1), per_image(x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Reverse them again."""
        return self.forward(z)

    def decode(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """The same without the volume."""
        return z.flip(1)
