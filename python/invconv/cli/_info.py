"""What this installation is; needs numpy alone."""

import platform
from collections.abc import Mapping

import numpy

import invconv
from invconv import _check, _core
from invconv._core import PlanInfo

# What a thread block may have on an H100 or H200, in bytes.
HOPPER_SHARED = 227 * 1024


def describe() -> str:
    """Return the versions, the compiled core and the devices in use, a line for each."""
    rows: Mapping[str, object] = {
        "invconv": invconv.__version__,
        **{f"core: {name}": value for name, value in invconv.build_info().items()},
        **_cuda(),
        "threads": invconv.get_num_threads(),
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "numpy": numpy.__version__,
        **_torch(),
    }
    return _lines(rows)


def describe_plan(
    shape: tuple[int, int, int, int],
    kernel_size: tuple[int, int],
    operation: str,
    groups: int,
    dtype: str,
) -> str:
    """Return which kernels a call takes, on the CPU and on CUDA, and what they need.

    Raises:
        ValueError: If the shape, the groups, the operation or the dtype do not fit.
    """
    channels = shape[1]
    groups = _check.groups_of("info", groups, channels)
    problem = (operation, dtype, shape, (channels, channels // groups, *kernel_size), groups)
    cpu = _core.describe_plan(*problem)
    rows = {
        "cpu": f"{cpu.kernel}; {cpu.threads} threads; workspace {_size(cpu.workspace_bytes)}",
    }
    if not _core.has_cuda():
        rows["cuda"] = "no kernels in this build"
    elif devices := _core.cuda_info().devices:
        for index, device in enumerate(devices):
            plan = _core.describe_plan(*problem, index)
            rows[f"cuda:{index}"] = f"{_on_cuda(plan)} ({device.name})"
    else:
        plan = _core.describe_plan(*problem, 0, HOPPER_SHARED)
        rows["cuda"] = (
            f"{_on_cuda(plan)} (no device here: for {_size(HOPPER_SHARED)} of shared memory, as of "
            "an H100 or H200)"
        )
    return _lines(rows)


def _lines(rows: Mapping[str, object]) -> str:
    width = max(map(len, rows))
    return "\n".join(f"{name:{width}}  {value}" for name, value in rows.items())


def _size(size: int) -> str:
    return f"{size} bytes" if size < 1024 else f"{size / 1024:.5g} KiB"


def _on_cuda(plan: PlanInfo) -> str:
    return (
        f"{plan.kernel}; {plan.threads} threads and {_size(plan.shared_bytes)} of shared memory "
        f"to a block; launches: {plan.launches}; workspace {_size(plan.workspace_bytes)}"
    )


def _cuda() -> Mapping[str, str]:
    info = _core.cuda_info()
    if not info.compiler:
        return {"cuda: build": "no kernels"}

    def version(number: int) -> str:
        return f"{number // 1000}.{number % 1000 // 10}"

    driver = f"for CUDA {version(info.driver)}" if info.driver else "none"
    rows = {
        "cuda: build": f"{info.compiler} for {info.architectures}",
        "cuda: runtime": version(info.runtime),
        "cuda: driver": driver,
    }
    for index, device in enumerate(info.devices):
        rows[f"cuda:{index}"] = (
            f"{device.name}, compute capability {device.major}.{device.minor}, "
            f"{device.memory_bytes / 2**30:.1f} GiB"
        )
    return rows if info.devices else {**rows, "cuda: devices": "none"}


def _torch() -> Mapping[str, str]:
    try:
        import torch
    except ModuleNotFoundError:
        return {"torch": "not installed"}
    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return {"torch": torch.__version__, "devices": ", ".join(["cpu", *gpus])}
