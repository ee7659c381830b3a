"""What a run was made on and with, and the files that keep the figures."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy
import scipy
import torch

import invconv

from .cmake import ROOT as ROOT
from .shapes import GPU_SHAPES, SHAPES, SQUARES

FOLDER = ROOT / "bench" / "results"

# Figures: what a command measured, by shape or size, as it goes into JSON.
Rows = dict[str, dict[str, Any]]


class Load:
    """How much of the cores other processes take, from its making on."""

    def __init__(self) -> None:
        """Start to count."""
        self._start = self._seconds()

    def others(self) -> float | None:
        """The cores that others kept busy meanwhile, on average; None where nobody can tell."""
        if self._start is None or (now := self._seconds()) is None:
            return None
        elapsed, everyone, own = (now[index] - self._start[index] for index in range(3))
        return max(everyone - own, 0.0) / elapsed if elapsed > 0 else None

    @staticmethod
    def _seconds() -> tuple[float, float, float] | None:
        """Of the clock; of all cores not idle; of this process and those that it waited for."""
        try:
            first = Path("/proc/stat").read_text().partition("\n")[0].split()[1:9]
        except OSError:
            return None
        user, nice, system, _, _, irq, softirq, steal = map(int, first)
        everyone = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
        times = os.times()
        return times.elapsed, everyone, sum(times[:4])


def provenance(threads: int) -> dict[str, Any]:
    """Return what the figures depend on: machine, instruction set, threads, versions, commit."""
    return {
        "machine": _processor(),
        "cores": os.cpu_count(),
        "instruction_set": invconv.build_info()["instruction_set"],
        "threads": threads,
        "versions": {
            "invconv": invconv.__version__,
            "torch": torch.__version__,
            "numpy": numpy.__version__,
            "scipy": scipy.__version__,
            "python": platform.python_version(),
        },
        **_commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def path_of(run: dict[str, Any]) -> Path:
    """The file of this machine's kind."""
    return FOLDER / f"cpu-{run['instruction_set']}.json"


def save(path: Path, section: str, rows: Rows, run: dict[str, Any]) -> Path:
    """Put the rows of one command into a machine's file and return the file.

    Rows of earlier runs stay if all that they depend on, but the day and the load, is the same; so
    shapes can be measured one by one.
    """
    figures = json.loads(path.read_text()) if path.exists() else {}
    before = figures.get(section, {"run": {}, "rows": {}})
    passing = {"date": None, "others": None}
    if before["run"] | passing == run | passing and not run["dirty"]:
        rows = {**before["rows"], **rows}
    # In the order of the table, whatever was measured first.
    order = {name: place for place, name in enumerate((*SHAPES, *SQUARES, *GPU_SHAPES))}
    rows = dict(sorted(rows.items(), key=lambda row: order.get(row[0], 0)))
    figures[section] = {"run": run, "rows": rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    # Whole or not at all: a run can be cut off.
    written = path.with_suffix(".part")
    written.write_text(json.dumps(figures, indent=1) + "\n")
    written.replace(path)
    return path


def load() -> dict[str, dict[str, Any]]:
    """Return the figures of every file, by the file's name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _commit() -> dict[str, Any]:
    """The commit that is checked out, and whether the sources differ from it."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    # What a benchmark or its report writes does not change what is measured.
    sources = ("cpp", "cuda", "python", "bench", "CMakeLists.txt", ":!bench/results")
    try:
        return {
            "commit": git("rev-parse", "HEAD"),
            "dirty": bool(git("status", "--porcelain", "--", *sources)),
        }
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": True}
