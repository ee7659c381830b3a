"""A bijection as an invertible module of FrEIA."""

from collections.abc import Sequence

import FrEIA.modules
from torch import Tensor

from invconv.flows import Bijection
from invconv.interop._bijection import check_bijection, result_shape


class InvertibleModule(FrEIA.modules.InvertibleModule):
    """``FrEIA.modules.InvertibleModule``: from image to latent, or back with ``rev=True``.

    Args:
        dims_in: one shape ``(C, H, W)``; FrEIA gives it.
        dims_c: the shape ``(D,)`` of one condition, or none; FrEIA gives it.
        bijection: what the module does without ``rev``, registered as a submodule.

    Raises:
        TypeError: not a bijection.
        ValueError: not one input, or several conditions.

    Example:
        >>> import FrEIA.framework as ff, torch
        >>> from invconv.flows import InverseConvolution, Squeeze
        >>> from invconv.interop.freia import InvertibleModule
        >>> flow = ff.SequenceINN(4, 6, 6)
        >>> flow.append(InvertibleModule, bijection=InverseConvolution(4))
        >>> flow.append(InvertibleModule, bijection=Squeeze())
        >>> z, logabsdet = flow(torch.randn(5, 4, 6, 6))
        >>> z.shape, logabsdet.shape, flow(z, rev=True)[0].shape
        (torch.Size([5, 16, 3, 3]), torch.Size([5]), torch.Size([5, 4, 6, 6]))
    """

    def __init__(
        self,
        dims_in: Sequence[tuple[int, ...]],
        dims_c: Sequence[tuple[int, ...]] | None = None,
        *,
        bijection: Bijection,
    ) -> None:
        """Wrap a bijection."""
        super().__init__(dims_in, dims_c)
        if len(self.dims_in) != 1 or len(self.dims_c) > 1:
            raise ValueError(
                "[freia.InvertibleModule] expected one input and at most one condition, "
                f"but got {len(self.dims_in)} and {len(self.dims_c)}"
            )
        self.bijection = check_bijection("freia.InvertibleModule", bijection)

    def forward(
        self,
        x_or_z: Sequence[Tensor],
        c: Sequence[Tensor] | None = None,
        rev: bool = False,
        jac: bool = True,
    ) -> tuple[tuple[Tensor], Tensor]:
        """Map ``(x,)`` to ``(z,)``, or back; the log-determinant is of the direction called."""
        (x,) = x_or_z
        context = c[0] if c else None
        function = self.bijection.inverse if rev else self.bijection
        result, logabsdet = function(x, context)
        return (result,), logabsdet

    def output_dims(self, input_dims: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """The shape of z from that of x, each in a list of one."""
        (shape,) = input_dims
        features = self.dims_c[0][0] if self.dims_c else None
        return [result_shape(self.bijection, self.bijection, tuple(shape), features)]
