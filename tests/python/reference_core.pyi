# ruff: noqa
# fmt: off
# The stub of the compiled module as it was generated; test_stubs.py compares it with the installed one.
"""The compiled core of invconv. Use the functions of the package itself."""

from collections.abc import Sequence
import enum


def version() -> str:
    """The version of the library."""

class Corner(enum.Enum):
    """
    The sides of the image that are padded: t(op) or b(ottom), l(eft) or r(ight).
    """

    tl = 0

    tr = 1

    bl = 2

    br = 3

def solve(y: object, weight: object, x: object, corners: Sequence[Corner], unit_diagonal: bool, groups: int, transpose: bool) -> None:
    """Write M^-1 y into x."""

def conv(x: object, weight: object, y: object, corners: Sequence[Corner], unit_diagonal: bool, groups: int, transpose: bool) -> None:
    """Write M x into y."""

def weight_grad(x: object, g: object, dw: object, corners: Sequence[Corner], unit_diagonal: bool, groups: int) -> None:
    """Write the derivative of <g, M x> with respect to the weight into dw."""

def logabsdet(weight: object, height: int, width: int, corners: Sequence[Corner], unit_diagonal: bool, groups: int) -> float:
    """The logarithm of |det M|."""

def growth(weight: object, height: int, width: int, corners: Sequence[Corner], unit_diagonal: bool, groups: int) -> float:
    """The infinity norm of M^-1."""

def num_threads() -> int:
    """The number of threads that a call may use."""

def set_num_threads(threads: int) -> None:
    """Set the number of threads that a call may use."""

def share_openmp() -> bool:
    """Use the threads of the OpenMP runtime that this process has loaded."""

def instruction_set() -> str:
    """The instruction set of the kernels in use."""
