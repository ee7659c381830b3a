"""One part of ``python -m bench gpu``, in a process: ``python -m bench.gpu.part NAME``.

What is imported here needs neither invconv, which the first part installs, nor torch.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .. import cmake
from ..shapes import GPU_SHAPES, Shape

# Of compute-sanitizer. Each of torch's errors that it asks for and handles would count as one.
TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
SANITIZER = ("--error-exitcode", "9", "--report-api-errors", "no", "--print-limit", "20")


def run(
    command: list[str], seconds: float, environment: Mapping[str, str] | None = None
) -> tuple[int | None, str]:
    """Run a command from the repository's root; return its status and what it printed.

    The status is None if it took longer: then it was ended, and all that it started.
    """
    with tempfile.TemporaryFile("w+") as printed:
        process = subprocess.Popen(
            command,
            cwd=cmake.ROOT,
            env={**os.environ, **(environment or {})},
            stdout=printed,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        status: int | None
        try:
            status = process.wait(max(seconds, 0))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            status = None
        printed.seek(0)
        return status, printed.read()


class Part:
    """What the command line says, and the rows that are kept as they come."""

    def __init__(self, name: str, arguments: argparse.Namespace) -> None:
        """Nothing is asked of the device yet."""
        self.name = name
        self.until: float = arguments.until
        self.seconds: float = arguments.seconds
        self.output: Path = arguments.output
        self.commit: str | None = arguments.commit
        self.shapes = {name: GPU_SHAPES[name] for name in arguments.shape or GPU_SHAPES}
        self._run: dict[str, Any] | None = None
        self.rows: dict[str, dict[str, Any]] = {}
        self.failed = False

    @property
    def left(self) -> float:
        """Seconds."""
        return self.until - time.time()

    def keep(self, row: str, figures: dict[str, Any], **about: Any) -> None:
        """Add a row to the part's section of the results; ``about`` is said of the whole run."""
        from . import record

        if self._run is None:
            self._run = record.provenance(self.commit) | about
        self.rows[row] = figures
        record.save(self.name, self.rows, self._run, self.output)

    def say(self, line: str, *, failed: bool = False) -> None:
        """Print a line at once."""
        self.failed |= failed
        print(f"{self.name}: {line}", flush=True)


def build(part: Part) -> None:
    """Install invconv with kernels for this device's architecture, and build the baselines."""
    import torch

    from . import native

    major, minor = torch.cuda.get_device_capability()
    architecture = os.environ.get("CUDAARCHS", f"{major}{minor}")
    environment = {"CUDAARCHS": architecture}
    install = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps"]
    install += ["--force-reinstall", "-C", "cmake.define.INVCONV_CUDA=ON", "."]
    start = time.time()
    status, printed = run(install, part.left, environment)
    installed = time.time() - start
    if status != 0:
        part.say(f"{printed[-6000:]}\npip install: {_outcome(status)}", failed=True)
        return
    try:
        cmake.build(native.PRESET, environment)
    except cmake.Missing as missing:
        part.say(str(missing), failed=True)
        return
    baselines = time.time() - start - installed
    importlib.invalidate_caches()
    part.keep(architecture, {"install_seconds": installed, "baselines_seconds": baselines})
    part.say(f"architecture {architecture}, {installed:.0f} s, baselines {baselines:.0f} s")


def test(part: Part) -> None:
    """Run tests/gpu."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "tests/gpu", "-q", f"--junitxml={report}"]
        start = time.time()
        status, printed = run(command, part.left)
        counts = _counts(report) if report.exists() else {}
    figures = {"status": status, "seconds": time.time() - start, **counts}
    part.say(f"{printed[-4000:]}\ntests/gpu: {_outcome(status)}", failed=status != 0)
    part.keep("tests/gpu", figures)
    # All of them are skipped where torch or the build has no CUDA: nothing was shown then.
    if status == 0 and counts.get("tests", 0) <= counts.get("skipped", 0):
        part.say("no test ran", failed=True)


def sanitize(part: Part) -> None:
    """Run every kernel under each tool of compute-sanitizer."""
    from . import every_kernel

    script = [sys.executable, "-m", "bench.gpu.every_kernel"]
    status, printed = run([*script, "--list"], part.left)
    names = re.findall(r"^kernel (.+)$", printed, re.MULTILINE)
    launched = {name.partition("<")[0] for name in names}
    missing = sorted(set(every_kernel.in_source()) - launched)
    said = f"never launched: {', '.join(missing)}" if missing else "all of cuda/"
    part.keep("kernels", {"launched": names, "missing": missing})
    part.say(f"kernels: {said}", failed=bool(missing) or status != 0)
    if status != 0:
        part.say(printed[-4000:])
    program = shutil.which("compute-sanitizer", path=f"{os.environ['PATH']}:/usr/local/cuda/bin")
    if program is None:
        part.say("compute-sanitizer is not installed", failed=True)
        return
    # Each tensor in an allocation of its own, or what is next to it would be seen as its own.
    alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    for place, tool in enumerate(TOOLS):
        start = time.time()
        # What is left is shared by the tools that are left.
        limit = part.left / (len(TOOLS) - place)
        status, printed = run([program, "--tool", tool, *SANITIZER, *script], limit, alone)
        summary = sanitizer_summary(printed)
        part.keep(tool, {"status": status, "summary": summary, "seconds": time.time() - start})
        if status != 0:
            part.say(printed[-4000:])
        part.say(f"{tool}: {summary or _outcome(status)}", failed=status != 0 or not summary)


def sanitizer_summary(printed: str) -> str | None:
    """Return the line in which a tool says how much it found; it ends in how many errors."""
    found = re.findall(r"^=+ ((?:\w+ )?SUMMARY: .*)$", printed, re.MULTILINE)
    return str(found[-1]) if found else None


def measure_operation(part: Part) -> None:
    """Time solve, backward or conv of every shape."""
    import torch

    from . import limits, operations

    measured = limits.measure()
    about = {name: value for name, value in measured._asdict().items()}
    for name, shape in part.shapes.items():
        if part.left <= 0:
            part.say(f"{name}: no time left", failed=True)
            continue
        try:
            row = operations.measure(part.name, shape, part.seconds, measured)
        except Exception as failure:  # what one shape meets is a finding, and no end of the others
            torch.cuda.synchronize()
            row = {"shape": list(shape), "failed": f"{type(failure).__name__}: {failure}"}
        part.keep(name, row, limits=about)
        part.say(_line(name, row), failed="failed" in row)
        torch.cuda.empty_cache()


def measure_peers(part: Part) -> None:
    """Time every peer of every shape, the smallest systems first."""
    import torch

    from . import peers

    for name, shape in sorted(part.shapes.items(), key=lambda item: _size(item[1])):
        if part.left <= 0:
            part.say(f"{name}: no time left", failed=True)
            continue
        row = peers.measure_all(shape, part.seconds, part.until)
        part.keep(name, row)
        for peer, figures in row["peers"].items():
            failed = "failed" in figures or figures.get("skipped") == "no time left"
            part.say(f"{name}: {peer}: {_peer(figures)}", failed=failed)
        torch.cuda.empty_cache()


def measure_flows(part: Part) -> None:
    """Time Inverse-Flow and its neighbours at the paper's size."""
    import torch

    from .. import flows
    from .timing import DEVICE

    for size in flows.SHAPES:
        if part.left <= 0:
            part.say(f"{size}: no time left", failed=True)
            continue
        try:
            # A call is hundreds of launches.
            rows = flows.speed(size, 10 * part.seconds, torch.device(DEVICE))
        except Exception as failure:  # one size takes nothing from the other
            part.say(f"{size}: FAILED: {type(failure).__name__}: {failure}", failed=True)
            continue
        for name, row in rows.items():
            part.keep(name, row)
            kinds = (f"{kind} {row[f'{kind}_ms']:.2f} ms" for kind in flows.KINDS)
            part.say(f"{name}: {', '.join(kinds)}")
        torch.cuda.empty_cache()


def _outcome(status: int | None) -> str:
    return "cut off" if status is None else "done" if status == 0 else f"failed with {status}"


def _counts(report: Path) -> dict[str, int]:
    """How many tests there were, by outcome, in what pytest wrote."""
    suite = xml.etree.ElementTree.parse(report).getroot().find("testsuite")
    names = ("tests", "failures", "errors", "skipped")
    return {} if suite is None else {name: int(suite.get(name, 0)) for name in names}


def _size(shape: Shape) -> int:
    return shape.batch * shape.unknowns


def _line(name: str, row: Mapping[str, Any]) -> str:
    if "failed" in row:
        return f"{name}: FAILED: {row['failed']}"
    aim = row["target_us"]
    return (
        f"{name}: graph {row['ours_graph_us']:.2f} us, eager {row['ours_eager_us']:.2f}, "
        f"cold {row['ours_cold_us']:.2f}; conv2d {row['conv2d_graph_us']:.2f}, "
        f"eager {row['conv2d_eager_us']:.2f}, TF32 {row['tf32_graph_us']:.2f}; "
        f"ratio {row['ratio']:.2f}; floor {row['floor_us']:.2f} {row['floor_of']}; "
        + (f"target {aim[0]:g}-{aim[1]:g}; " if aim else "")
        + f"error {row['error']:.1e}; {', '.join(row['kernels'])}"
    )


def _peer(figures: Mapping[str, Any]) -> str:
    for reason in ("failed", "skipped"):
        if reason in figures:
            return f"{reason}: {figures[reason]}"
    graph = f"graph {figures['peer_graph_us']:.2f} us, " if "peer_graph_us" in figures else ""
    return (
        f"{graph}eager {figures['peer_eager_us']:.2f} us, {figures['ratio']:.1f}x ours, "
        f"set-up {figures['setup_ms']:.1f} ms, error {figures['error']:.1e}"
    )


# What runs each part, and what it does; in the order in which they run.
PARTS: dict[str, tuple[Callable[[Part], None], str]] = {
    "build": (build, "install invconv with kernels for this device, and build the baselines"),
    "test": (test, "tests/gpu"),
    "sanitize": (sanitize, "every kernel under the four tools of compute-sanitizer"),
    "solve": (measure_operation, "times of solve, against cuDNN's conv2d"),
    "backward": (measure_operation, "times of both gradients, against those of conv2d"),
    "conv": (measure_operation, "times of conv, against conv2d"),
    "peers": (
        measure_peers,
        "times of other ways to solve, and of a launch for each diagonal and channel",
    ),
    "flows": (measure_flows, "times of Inverse-Flow and its neighbours at the paper's size"),
}


def parse(arguments: list[str] | None = None) -> Part:
    """Read a command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.part")
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--until", type=float, required=True)
    parser.add_argument("--seconds", type=float, default=0.2)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--commit")
    parser.add_argument("--shape", action="append", choices=list(GPU_SHAPES))
    parsed = parser.parse_args(arguments)
    return Part(parsed.part, parsed)


def main() -> int:
    """Run a part; the status is 0 if all of it was done."""
    part = parse()
    function, _ = PARTS[part.name]
    if function in (build, test, sanitize):
        function(part)
        return int(part.failed)
    import torch

    # On a stream of its own: the default one cannot be captured, and waits for others.
    with torch.cuda.stream(torch.cuda.Stream()):
        function(part)
    return int(part.failed)


if __name__ == "__main__":
    sys.exit(main())
