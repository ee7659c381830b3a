"""What a run on a GPU was made on and with, and the file that keeps the figures."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

from .. import results


def provenance(commit: str | None) -> dict[str, Any]:
    """Return what the figures depend on; ``commit`` stands in for what git would say."""
    run = results.provenance(torch.get_num_threads())
    device = torch.cuda.get_device_properties()
    versions = run["versions"] | {
        "cuda": torch.version.cuda,
        "cudnn": str(torch.backends.cudnn.version()),
        "driver": _driver(),
        "cupy": _cupy(),
    }
    stated = {} if commit is None else {"commit": commit, "dirty": False}
    return {
        "machine": device.name,
        "multiprocessors": device.multi_processor_count,
        "l2_bytes": device.L2_cache_size,
        "memory_bytes": device.total_memory,
        "host": run["machine"],
        "cores": run["cores"],
        "instruction_set": run["instruction_set"],
        "versions": versions,
        "commit": run["commit"],
        "dirty": run["dirty"],
        "date": run["date"],
    } | stated


def file_of(machine: str, folder: Path) -> Path:
    """Return the file of a device, by its name."""
    name = re.sub(r"[^a-z0-9]+", "-", machine.lower()).strip("-").removeprefix("nvidia-")
    return folder / f"nvidia-{name}.json"


def save(section: str, rows: results.Rows, run: dict[str, Any], folder: Path) -> Path:
    """Put the rows of one part into the device's file, as ``bench.results.save`` does."""
    return results.save(file_of(run["machine"], folder), section, rows, run)


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.split("\n")[0].strip() or None


def _cupy() -> str | None:
    """CuPy's distribution is named after the CUDA that it is for."""
    for name in ("cupy", "cupy-cuda13x", "cupy-cuda12x"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None
