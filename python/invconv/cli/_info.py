"""What this installation is; needs numpy alone."""

import platform
from collections.abc import Mapping

import numpy

import invconv


def describe() -> str:
    """Return the versions, the compiled core and the devices in use, a line for each."""
    rows: Mapping[str, object] = {
        "invconv": invconv.__version__,
        **{f"core: {name}": value for name, value in invconv.build_info().items()},
        "threads": invconv.get_num_threads(),
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "numpy": numpy.__version__,
        **_torch(),
    }
    width = max(map(len, rows))
    return "\n".join(f"{name:{width}}  {value}" for name, value in rows.items())


def _torch() -> Mapping[str, str]:
    try:
        import torch
    except ModuleNotFoundError:
        return {"torch": "not installed"}
    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return {"torch": torch.__version__, "devices": ", ".join(["cpu", *gpus])}
