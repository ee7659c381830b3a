"""The two modules: one constrained weight, used in one direction or the other."""

import sys
import warnings
from collections.abc import Callable, Sequence
from types import FrameType

import torch
from torch import Tensor

import invconv
from invconv import _check
from invconv._torch import has_values, without_autocast
from invconv.nn._bounded import anchor_of, bounded_weight

# Rounding the input once moves the result by up to growth * eps times its largest value.
# Above 1e-3 fewer than three digits are left, and the promise of an exact inverse is empty.
_LARGEST_RELATIVE_ERROR = 1e-3


def _stacklevel() -> int:
    """For a warning in the calling function: the first frame outside of torch and this package."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and _package(frame) in ("invconv", "torch"):
        level, frame = level + 1, frame.f_back
    return level


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


class _TriangularConv2d(torch.nn.Module):
    """The weight of a causal convolution, derived from free parameters, and the shared checks."""

    def __init__(
        self,
        channels: int,
        kernel_size: int | tuple[int, int] = 3,
        *,
        corner: str | Sequence[str] = "tl",
        groups: int = 1,
        unit_diagonal: bool = True,
        bound: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        channels = _check.integer(name, "channels", channels)
        if channels < 1:
            raise ValueError(f"[{name}] expected channels of at least 1, but got {channels}")
        groups = _check.groups_of(name, groups, channels)
        kernel = _check.kernel_size(name, kernel_size)
        unit_diagonal = _check.boolean(name, "unit_diagonal", unit_diagonal)
        given = _check.corners(name, corner)
        _check.fitting_corners(name, given, groups)
        if bound is not None:
            _check.bound(name, bound)
        if dtype is not None:
            _check.dtype(name, "parameters", str(dtype).removeprefix("torch."))

        self.channels = channels
        self.kernel_size = kernel
        self.corner = given[0] if len(given) == 1 else given
        self.groups = groups
        self.unit_diagonal = unit_diagonal
        self.bound = bound
        self._calls = 0
        self._warned = False

        size = channels // groups
        # Row sums of about 0.1 over all taps: close to the identity, yet no two channels alike.
        spread = 0.1 / (size * kernel[0] * kernel[1])
        self.taps = torch.nn.Parameter(
            torch.randn(channels, size, *kernel, device=device, dtype=dtype) * spread
        )
        if unit_diagonal:
            self.register_parameter("log2_diagonal", None)
        else:
            self.log2_diagonal = torch.nn.Parameter(
                torch.zeros(channels, device=device, dtype=dtype)
            )

    @property
    def weight(self) -> Tensor:
        """The weight that both directions use, of shape ``(C, C/groups, kh, kw)``.

        The anchor's diagonal is written out (1 if ``unit_diagonal``) and its upper triangle is 0,
        so this tensor is also right for ``torch.nn.functional.conv2d``.
        """
        with without_autocast(self.taps):
            return self._constrained()

    def _constrained(self) -> Tensor:
        taps: Tensor = self.taps
        if self.bound is not None:
            weight = bounded_weight(taps, self.bound, self.corner, self.groups)
            # M = D (I + L) (I + V).
            if self.log2_diagonal is None:
                return weight
            return self._diagonal().reshape(-1, 1, 1, 1) * weight
        size = self.channels // self.groups
        at_anchor = anchor_of(taps, self.corner, self.groups)
        lower = (taps * at_anchor).sum((2, 3)).view(self.groups, size, size).tril(-1)
        identity = torch.eye(size, device=taps.device, dtype=taps.dtype)
        anchor = lower + identity * self._diagonal()
        return taps * (1 - at_anchor) + anchor.reshape(self.channels, size, 1, 1) * at_anchor

    def _diagonal(self) -> Tensor:
        """The anchor's diagonal as ``(groups, C/groups, 1)``, positive; in [1/2, 2] if bounded."""
        if self.log2_diagonal is None:
            diagonal = self.taps.new_ones(self.channels)
        elif self.bound is None:
            diagonal = self.log2_diagonal.exp2()
        else:
            diagonal = self.log2_diagonal.tanh().exp2()
        return diagonal.view(self.groups, -1, 1)

    def _solve(self, y: Tensor) -> Tensor:
        return self._call(invconv.solve, y)

    def _conv(self, x: Tensor) -> Tensor:
        return self._call(invconv.conv, x)

    def _call(self, function: Callable[..., Tensor], images: Tensor) -> Tensor:
        if images.dim() in (3, 4) and images.shape[-3] != self.channels:
            raise ValueError(
                f"[{type(self).__name__}] expected images of shape (B, C, H, W) or (C, H, W) with "
                f"C = {self.channels}, but got {tuple(images.shape)}"
            )
        weight = self.weight
        self._check_growth(images, weight)
        return function(
            images, weight, corner=self.corner, unit_diagonal=self.unit_diagonal, groups=self.groups
        )

    def _conv_logabsdet(self, size: int | tuple[int, int]) -> Tensor:
        height, width = (size, size) if isinstance(size, int) else size
        return height * width * self._diagonal().log().sum()

    def _check_growth(self, x: Tensor, weight: Tensor) -> None:
        """Warn once when rounding errors grow too much in the solve; bounded weights cannot."""
        if self.bound is not None or self._warned or torch.compiler.is_compiling():
            return
        # growth() reads numbers, which tensors inside torch.func transforms do not give.
        if torch._C._are_functorch_transforms_active() or not has_values(weight):
            return
        self._calls += 1
        # It costs a solve with one impulse per channel: on calls 1, 2, 4, 8, ... only.
        if self._calls & (self._calls - 1):
            return
        size = (x.shape[-2], x.shape[-1])
        growth = invconv.growth(
            weight.detach(),
            size,
            corner=self.corner,
            unit_diagonal=self.unit_diagonal,
            groups=self.groups,
        )
        # float16 and bfloat16 are storage types: their arithmetic is float32.
        arithmetic = torch.float64 if x.dtype == torch.float64 else torch.float32
        if not growth * torch.finfo(arithmetic).eps <= _LARGEST_RELATIVE_ERROR:
            self._warned = True
            warnings.warn(
                f"[{type(self).__name__}] on {size[0]} x {size[1]} images the inverse of this "
                f"weight multiplies errors by up to {growth:.1e}: {arithmetic} keeps fewer than "
                "three digits of the solution. Use bound=, for example bound=0.9, or float64",
                RuntimeWarning,
                stacklevel=_stacklevel(),
            )

    def extra_repr(self) -> str:
        """The arguments, as in the constructor."""
        return (
            f"{self.channels}, kernel_size={self.kernel_size}, corner={self.corner!r}, "
            f"groups={self.groups}, unit_diagonal={self.unit_diagonal}, bound={self.bound}"
        )


class InverseConv2d(_TriangularConv2d):
    """Inverse of a causal convolution: ``forward`` solves ``y = M x`` for x.

    ``forward(y) = M^-1 y`` is :func:`invconv.solve`, ``inverse(x) = M x`` is :func:`invconv.conv`,
    where M is the convolution with ``weight`` (Nagar and Varma, AISTATS 2025, arXiv 2410.14634).

    Args:
        channels: C, the number of channels in and out.
        kernel_size: kh and kw, one number for both or a pair, in pixels.
        corner: the two sides where the image is padded: ``"tl"``, ``"tr"``, ``"bl"``, ``"br"``,
            or a sequence with one name per group.
        groups: the channels fall into this many independent groups.
        unit_diagonal: the anchor's diagonal is 1 (volume preserving), else a positive parameter.
        bound: rho in (0, 1), or None for a free weight.
        device: of the parameters.
        dtype: of the parameters, float32 if None; inputs must have the same.

    Shapes:
        ``(batch, C, H, W)`` or ``(C, H, W)`` in, the same out. ``weight`` is
        ``(C, C/groups, kh, kw)``.

    **With a bound** the weight is ``M = A (I + V)`` with the anchor ``A = D (I + L)``: L, strictly
    lower triangular, is scaled until ``norm(L, inf) <= rho``; V, the other taps after ``A^-1``,
    until the sum over the taps of their induced infinity norms is at most rho; D is 1 or within
    [1/2, 2].
    Neumann series give ``norm((I + V)^-1, inf) <= 1 / (1 - rho)`` and ``norm((I + L)^-1, inf) <=
    1 / (1 - rho)``, hence in every group and on images of any size

        ``norm(M^-1, inf) <= d / (1 - rho)^2``, where d = 1 (unit diagonal) or 2.

    This holds for every value of the parameters but NaN, so no optimiser step can leave it.

    **Without a bound** nothing limits the inverse. The module then measures :func:`invconv.growth`
    on its calls 1, 2, 4, 8, ... and gives one RuntimeWarning when growth times the machine epsilon
    of the arithmetic (float32; float64 for float64 inputs) passes 1e-3: rounding the input alone
    then leaves fewer than three digits of the solution.

    Raises:
        ValueError: an argument is outside its range, or two of them contradict each other.

    Example:
        >>> import torch
        >>> from invconv.nn import InverseConv2d
        >>> module = InverseConv2d(4, 3, corner="br", bound=0.9)
        >>> y = torch.randn(2, 4, 8, 8)
        >>> torch.allclose(module.inverse(module(y)), y, atol=1e-5)
        True
    """

    def forward(self, y: Tensor) -> Tensor:
        """Return x with ``M x = y``; same shape and dtype as y."""
        return self._solve(y)

    def inverse(self, x: Tensor) -> Tensor:
        """Return ``M x``, which undoes :meth:`forward`; same shape and dtype as x."""
        return self._conv(x)

    def logabsdet(self, size: int | tuple[int, int]) -> Tensor:
        """``log|det|`` of :meth:`forward` on (H, W) images, in nats: ``-H W sum(log diagonal)``."""
        # The negative of 0 would print as -0.
        return 0 - self._conv_logabsdet(size)


class CausalConv2d(_TriangularConv2d):
    """Causal convolution with an exact inverse: ``forward`` convolves, ``inverse`` solves.

    ``forward(x) = M x`` is :func:`invconv.conv`, ``inverse(y) = M^-1 y`` is :func:`invconv.solve`:
    the two directions of :class:`InverseConv2d` swapped. Arguments, shapes, the bound and the
    warning are the same; the bound limits ``inverse``.

    Example:
        >>> import torch
        >>> from invconv.nn import CausalConv2d
        >>> module = CausalConv2d(4, (3, 2), groups=2, unit_diagonal=False)
        >>> x = torch.randn(2, 4, 8, 8)
        >>> torch.allclose(module.inverse(module(x)), x, atol=1e-5)
        True
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return ``M x``; same shape and dtype as x."""
        return self._conv(x)

    def inverse(self, y: Tensor) -> Tensor:
        """Return x with ``M x = y``, which undoes :meth:`forward`; same shape and dtype as y."""
        return self._solve(y)

    def logabsdet(self, size: int | tuple[int, int]) -> Tensor:
        """``log|det|`` of :meth:`forward` on (H, W) images, in nats: ``H W sum(log diagonal)``."""
        return self._conv_logabsdet(size)
