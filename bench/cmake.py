"""What CMake builds for the benchmarks. Needs nothing that is not in Python."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]


class Missing(RuntimeError):
    """A part of the benchmark cannot be built here."""


def folder(preset: str) -> Path:
    """Where a preset's build lies."""
    return ROOT / "build" / preset


def build(preset: str, environment: Mapping[str, str] | None = None) -> None:
    """Build a preset of CMakePresets.json, or bring it up to date.

    Raises:
        Missing: If CMake, a compiler or a library is missing.
    """
    # cmake and ninja may come from the environment of this Python, which need not be activated.
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
    cmake = shutil.which("cmake", path=path)
    if cmake is None:
        raise Missing("cmake is not installed")
    cache = folder(preset) / "CMakeCache.txt"
    configure = [] if cache.exists() else [[cmake, "--preset", preset, "-G", "Ninja"]]
    for command in [*configure, [cmake, "--build", "--preset", preset]]:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, "PATH": path, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode != 0:
            if configure and command is configure[0]:
                cache.unlink(missing_ok=True)
            raise Missing(f"{' '.join(command[1:])} failed:\n{done.stdout[-2000:].rstrip()}")
