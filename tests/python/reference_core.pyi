# ruff: noqa
# fmt: off
# The stub of the compiled module as it was generated; test_stubs.py compares it with the installed one.

"""The compiled core of invconv. Use the functions of the package itself."""



def version() -> str:
    """The version of the library."""

def solve(y: object, weight: object, x: object, corner: object, unit_diagonal: object, groups: object, transpose: object, where: object = None) -> bool:
    """
    Write M^-1 y into x, if the arguments are plain, and say whether they are. `where` is None for the CPU, or a tuple (device, stream, address and bytes of the workspace) for CUDA.
    """

def conv(x: object, weight: object, y: object, corner: object, unit_diagonal: object, groups: object, transpose: object, where: object = None) -> bool:
    """
    Write M x into y, if the arguments are plain, and say whether they are; `where` as in solve.
    """

def weight_grad(x: object, g: object, dw: object, corner: object, unit_diagonal: object, groups: object, where: object = None) -> bool:
    """
    Write the derivative of <g, M x> with respect to the weight into dw, if the arguments are plain, and say whether they are; `where` as in solve.
    """

def solve_backward(x: object, g: object, weight: object, dy: object, dw: object, corner: object, unit_diagonal: object, groups: object, transpose: object, where: object = None) -> bool:
    """
    Write both gradients of x = M^-1 y for an incoming g into dy and dw, which overlap with nothing, if the arguments are plain, and say whether they are; `where` as in solve.
    """

def logabsdet(weight: object, height: object, width: object, corner: object, unit_diagonal: object, groups: object) -> float | None:
    """The logarithm of |det M|, or None if the arguments are not plain."""

def growth(weight: object, height: object, width: object, corner: object, unit_diagonal: object, groups: object) -> float | None:
    """The infinity norm of M^-1, or None if the arguments are not plain."""

def bounded_weight(taps: object, weight: object, bound: float, corner: object, groups: object) -> bool:
    """
    Write (I + L)(I + V), a weight of bounded inverse, into weight, if the arguments are plain, and say whether they are.
    """

def workspace_size(operation: str, dtype: str, images: tuple[int, ...], weight: tuple[int, ...], groups: int, device: int) -> int:
    """Bytes of the workspace that an operation needs on a CUDA device."""

def use_exchange_table(type: type) -> bool:
    """
    From now on, take objects of this type, torch.Tensor, as arguments, through DLPack's table of functions in C; say whether the type has one. The caller answers for what a description of memory does not say.
    """

def read_dlpack(capsule: object) -> tuple[int, int, int, str, tuple[int, ...], tuple[int, ...], bool]:
    """
    What a DLPack capsule describes for as long as it lives: kind and number of the device, address, name of the dtype, shape, strides in elements, and whether it is read-only. It is not consumed.
    """

class PlanInfo:
    """How a call is carried out."""

    @property
    def kernel(self) -> str: ...

    @property
    def threads(self) -> int: ...

    @property
    def launches(self) -> int: ...

    @property
    def shared_bytes(self) -> int: ...

    @property
    def workspace_bytes(self) -> int: ...

def describe_plan(operation: str, dtype: str, images: tuple[int, ...], weight: tuple[int, ...], groups: int, device: int | None = None, shared_bytes: int = 0) -> PlanInfo:
    """
    The plan of an operation on a CUDA device, or on the CPU for None. `shared_bytes`, if not 0, stands for what a thread block of the device may have, and no device is looked at.
    """

class CudaDevice:
    """A CUDA device."""

    @property
    def name(self) -> str: ...

    @property
    def major(self) -> int: ...

    @property
    def minor(self) -> int: ...

    @property
    def memory_bytes(self) -> int: ...

    @property
    def shared_bytes(self) -> int: ...

class CudaInfo:
    """CUDA in this build and on this machine."""

    @property
    def compiler(self) -> str: ...

    @property
    def architectures(self) -> str: ...

    @property
    def runtime(self) -> int: ...

    @property
    def driver(self) -> int: ...

    @property
    def devices(self) -> list[CudaDevice]: ...

def cuda_info() -> CudaInfo:
    """CUDA in this build and on this machine."""

def cuda_devices() -> int:
    """How many CUDA devices there are."""

def synchronize(device: int, stream: int) -> None:
    """Wait until what was put on a stream is done."""

def jax_ffi_version() -> str:
    """
    The version of XLA's foreign function interface that jax_handlers() is for; empty in a build without it.
    """

def jax_handlers() -> dict[str, object]:
    """
    The operations on the CPU as capsules for jax.ffi, by name; none in a build without it.
    """

def has_cuda() -> bool:
    """Whether this build has CUDA kernels; it does not look for a device."""

def num_threads() -> int:
    """The number of threads that a call may use."""

def set_num_threads(threads: int) -> None:
    """Set the number of threads that a call may use."""

def share_openmp() -> bool:
    """Use the threads of the OpenMP runtime that this process has loaded."""

def instruction_set() -> str:
    """The instruction set of the kernels in use."""
