"""Activation normalization."""

import contextlib
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from invconv.flows._bijection import Bijection, check_channels, per_image


class ActNorm(Bijection):
    """Per-channel affine map ``z = (x - mean) exp(-log_std)``, initialised from the first batch.

    The first batch in training mode sets both parameters so that every channel leaves with mean 0
    and standard deviation 1 (Kingma and Dhariwal, *Glow*, NeurIPS 2018, section 3.1); from then on
    they are trained. ``log|det| = -H W sum(log_std)``. Whether that happened is a buffer, so
    loading a state never initialises again. A channel that is constant in that batch keeps scale 1.

    Where ``torch.distributed`` is initialised, the first batch is that of all processes together:
    they exchange their statistics, once, and end with the same bits, those that one process would
    find up to rounding. (The first process's own statistics, sent to the others, would be of a part
    of the batch that shrinks as processes are added.) So all must make that call.

    Args:
        channels: C.

    Raises:
        ValueError: when called, images of other channels.

    Example:
        >>> import torch
        >>> from invconv.flows import ActNorm
        >>> z, _ = ActNorm(3)(5 + 2 * torch.randn(100, 3, 4, 4))
        >>> torch.allclose(z.std((0, 2, 3), correction=0), torch.ones(3))
        True
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mean = torch.nn.Parameter(torch.zeros(channels))
        self.log_std = torch.nn.Parameter(torch.zeros(channels))
        self.initialized: Tensor
        self.register_buffer("initialized", torch.tensor(False))

    @torch.no_grad()
    def _initialize(self, x: Tensor) -> None:
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            found = _common_std_mean(x)
        else:
            found = torch.std_mean(x, (0, 2, 3), correction=0) if x.numel() else None
        if found is None:
            return
        std, mean = found
        # Below this the spread is rounding error, or denormal: dividing by it would magnify that.
        rounding = 16 * torch.finfo(x.dtype).eps * mean.abs() + torch.finfo(x.dtype).tiny
        self.mean.copy_(mean)
        self.log_std.copy_(torch.where(std > rounding, std, 1.0).log())
        self.initialized.fill_(True)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Shift and scale every channel; in training mode the first batch initialises."""
        check_channels(self, x, len(self.mean))
        if self.training and not self.initialized:
            self._initialize(x)
        z = (x - self.mean.view(-1, 1, 1)) * (-self.log_std).exp().view(-1, 1, 1)
        return z, per_image(x, -self._log_volume(x))

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Undo :meth:`forward`; never initialises."""
        return self.decode(z), per_image(z, self._log_volume(z))

    def decode(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """The same without the volume."""
        check_channels(self, z, len(self.mean))
        return z * self.log_std.exp().view(-1, 1, 1) + self.mean.view(-1, 1, 1)

    def _log_volume(self, x: Tensor) -> Tensor:
        return x.shape[-2] * x.shape[-1] * self.log_std.sum()


@contextlib.contextmanager
def never_initialising(module: torch.nn.Module) -> Iterator[None]:
    """No ActNorm in ``module`` initialises, nor speaks to other processes to that end."""
    norms = [m for m in module.modules() if isinstance(m, ActNorm) and m.training]
    for norm in norms:
        norm.training = False
    try:
        yield
    finally:
        for norm in norms:
            norm.training = True


def _common_std_mean(x: Tensor) -> tuple[Tensor, Tensor] | None:
    """Std and mean of each channel over the batches of all processes; None if all are empty."""
    channels = x.shape[1]
    own = x.new_zeros(3, channels, dtype=torch.promote_types(x.dtype, torch.float32))
    if x.numel():
        std, mean = torch.std_mean(x.to(own.dtype), (0, 2, 3), correction=0)
        own = torch.stack([torch.full_like(mean, x.numel() // channels), mean, std.square()])
    # All gather and add in the same order, so all find the same bits; a reduction promises less.
    everyone = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, own)
    count, mean, variance = torch.stack(everyone).unbind(1)
    if not count.any():
        return None
    share = count / count.sum(0)
    common = (share * mean).sum(0)
    return (share * (variance + (mean - common).square())).sum(0).sqrt(), common
