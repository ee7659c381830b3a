"""Threads, and what was built."""

from __future__ import annotations

from invconv import _core
from invconv._check import integer


def get_num_threads() -> int:
    """Return the largest number of threads that a call uses.

    It is what :func:`set_num_threads` said, else the environment's ``INVCONV_NUM_THREADS``, else
    torch's own number once a tensor has been used, else ``OMP_NUM_THREADS``, else the number of
    processors that this process may run on.

    Raises:
        ValueError: If ``INVCONV_NUM_THREADS`` is not a number from 1 to 1024.
    """
    return _core.num_threads()


def set_num_threads(threads: int) -> None:
    """Set the largest number of threads that a call uses, for this process.

    The number changes how long a call takes and never what it returns, to the bit.

    Args:
        threads: From 1 to 1024.

    Raises:
        TypeError: If ``threads`` is not an integer.
        ValueError: If it is out of range.
    """
    _core.set_num_threads(integer("set_num_threads", "threads", threads))


def build_info() -> dict[str, str]:
    """Return what this build of the core is and uses.

    Returns:
        ``version``; ``instruction_set``, the CPU kernels in use (``"avx512"``, ``"avx2"``,
        ``"neon"`` or ``"baseline"``; the environment's ``INVCONV_ISA`` forces one);
        ``cuda_kernels``, whether it has them (``"yes"`` or ``"no"``), with or without a device;
        ``jax``, the version of XLA's foreign function interface that ``invconv.jax`` is for, or
        ``"no"``.
    """
    return {
        "version": _core.version(),
        "instruction_set": _core.instruction_set(),
        "cuda_kernels": "yes" if _core.has_cuda() else "no",
        "jax": _core.jax_ffi_version() or "no",
    }
