"""From integer images to the real line and back."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from invconv.flows._bijection import Bijection, per_image, sum_over_image


class Dequantization(Bijection):
    """Uniform dequantization: integers 0 ... Q - 1 become reals in [0, 1).

    ``z = (x + u) / Q`` with u uniform on [0, 1), so ``log|det| = -D log Q`` for D values per image
    (Theis, van den Oord and Bethge, ICLR 2016). ``inverse`` is ``floor(Q z)``, which is exact.

    Args:
        quantization: Q, how many values a channel can take; 256 for 8-bit images.

    Raises:
        ValueError: fewer than 2 values.

    Example:
        >>> import torch
        >>> from invconv.flows import Dequantization
        >>> x = torch.randint(0, 256, (2, 1, 4, 4))
        >>> z, _ = Dequantization()(x)
        >>> torch.equal(Dequantization().inverse(z)[0].long(), x)
        True
    """

    def __init__(self, quantization: int = 256) -> None:
        super().__init__()
        if quantization < 2:
            raise ValueError(
                f"[Dequantization] expected quantization of at least 2, but got {quantization}"
            )
        self.quantization = quantization

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Add noise drawn from ``generator`` (of any device) and scale to [0, 1).

        Integer tensors become torch's default dtype, floating-point ones keep their own.

        Raises:
            TypeError: the dtype has too few digits for Q values and noise between them.
        """
        if not x.is_floating_point():
            x = x.to(torch.get_default_dtype())
        # The sum, the division and the product with Q each round by at most Q eps / 2: noise that
        # stays further than that from 0 and 1 never moves an image to another level.
        margin = 2 * self.quantization * torch.finfo(x.dtype).eps
        if margin >= 0.25:
            raise TypeError(
                f"[Dequantization] expected a dtype with more digits for {self.quantization} "
                f"values, but got {x.dtype}"
            )
        device = x.device if generator is None else generator.device
        noise = torch.rand(x.shape, generator=generator, device=device, dtype=x.dtype)
        z = (x + noise.to(x.device).clamp(margin, 1 - margin)) / self.quantization
        return z, per_image(z, -self._log_volume(z))

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the level that z lies in, clamped to 0 ... Q - 1, in z's dtype."""
        x = (z * self.quantization).floor().clamp(0, self.quantization - 1)
        return x, per_image(z, self._log_volume(z))

    def _log_volume(self, x: Tensor) -> float:
        return math.prod(x.shape[1:]) * math.log(self.quantization)


class Logit(Bijection):
    """From the unit interval to the real line: ``z = logit(alpha + (1 - 2 alpha) x)``.

    ``log|dz/dx| = log(1 - 2 alpha) - log p - log(1 - p)`` with ``p = alpha + (1 - 2 alpha) x``
    (Dinh, Sohl-Dickstein and Bengio, *Density estimation using Real NVP*, ICLR 2017, section 4.1).

    Args:
        alpha: keeps 0 and 1 at a finite distance; in [0, 0.5).

    Raises:
        ValueError: alpha outside its range.

    Example:
        >>> import torch
        >>> from invconv.flows import Logit
        >>> z, _ = Logit(0.05)(torch.tensor([[[[0.0, 0.5, 1.0]]]]))
        >>> z.flatten()
        tensor([-2.9444,  0.0000,  2.9444])
    """

    def __init__(self, alpha: float = 1e-6) -> None:
        super().__init__()
        if not 0 <= alpha < 0.5:
            raise ValueError(f"[Logit] expected alpha in [0, 0.5), but got {alpha}")
        self.alpha = alpha

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map [0, 1] to the real line."""
        scale = 1 - 2 * self.alpha
        # 1 - p from x itself: 1 - (alpha + scale x) would lose the digits of a small difference.
        log_p = (self.alpha + scale * x).log()
        log_rest = (self.alpha + scale * (1 - x)).log()
        logabsdet = sum_over_image(math.log(scale) - log_p - log_rest)
        return log_p - log_rest, logabsdet

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map the real line back to an interval a little wider than [0, 1]."""
        scale = 1 - 2 * self.alpha
        x = (z.sigmoid() - self.alpha) / scale
        return x, sum_over_image(F.logsigmoid(z) + F.logsigmoid(-z) - math.log(scale))
