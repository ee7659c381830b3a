"""The peak memory of one solve beyond its input and output, measured in a process of its own.

``python -m bench.memory CHANNELS SIZE THREADS`` prints bytes. It has numpy alone, so that nothing
else of the process grows meanwhile.
"""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np

import invconv

from .results import ROOT


def extra(channels: int, size: int, threads: int) -> int:
    """Bytes that one solve of (1, channels, size, size) took at its peak, in a fresh process."""
    command = [sys.executable, "-m", "bench.memory", str(channels), str(size), str(threads)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return int(done.stdout)


def peak() -> int:
    """Bytes: the most that this process has had in memory."""
    try:
        # Linux's getrusage would count what was in memory before this program was loaded.
        status = Path("/proc/self/status").read_text()
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


def _main(channels: int, size: int, threads: int) -> None:
    invconv.set_num_threads(threads)
    random = np.random.default_rng(0)
    weight = random.standard_normal((channels, channels, 3, 3), dtype=np.float32)
    weight *= 0.1 / channels**0.5
    small = np.ones((1, channels, 64, 64), dtype=np.float32)
    invconv.solve(small, weight)  # threads and their stacks
    y = np.empty((1, channels, size, size), dtype=np.float32)
    random.standard_normal(out=y, dtype=np.float32)
    x = np.full_like(y, 1)
    before = peak()
    invconv.solve(y, weight, out=x)
    print(peak() - before)


if __name__ == "__main__":
    _main(*map(int, sys.argv[1:]))
