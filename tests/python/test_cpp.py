"""The C++ library on its own: built without Python, tested by its own tests, installed and used.

Needs CMake, a C++ compiler and GoogleTest; where one is missing CMake's own message is the failure.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

pytestmark = pytest.mark.native

ROOT = Path(__file__).parents[2]
# cmake and ninja may come from the environment of this Python, which need not be activated.
PATH = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])


def run(*command: str | Path) -> str:
    """Run a command and return what it printed; fail with all of that if the command fails."""
    program = shutil.which(command[0], path=PATH)
    assert program is not None, f"{command[0]} is not installed"
    result = subprocess.run(
        [program, *command[1:]],
        env=os.environ | {"PATH": PATH},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    line = " ".join(map(str, command))
    assert result.returncode == 0, f"{line}\nexited with {result.returncode}:\n{result.stdout}"
    return result.stdout


def configure(source: Path, build: Path, *options: str) -> None:
    # Without a choice CMake on Linux takes make, which a machine with ninja need not have.
    generator = ["-G", "Ninja"] if shutil.which("ninja", path=PATH) else []
    run("cmake", "-S", source, "-B", build, *generator, *options)


def build(directory: Path) -> None:
    run("cmake", "--build", directory, "--parallel", str(os.cpu_count() or 1))


def has_benchmark() -> bool:
    """Whether Google Benchmark's header is where the compiler looks."""
    compiler = shutil.which("c++")
    if compiler is None:
        return False
    done = subprocess.run(
        [compiler, "-E", "-x", "c++", "-"],
        input="#include <benchmark/benchmark.h>",
        capture_output=True,
        text=True,
    )
    return done.returncode == 0


@pytest.fixture(scope="module")
def native_build() -> Path:
    """The `native-only` preset in a folder of its own, which keeps what was compiled."""
    directory = ROOT / "build" / "pytest"
    bench = "ON" if has_benchmark() else "OFF"
    configure(ROOT, directory, "--preset", "native-only", f"-DINVCONV_BENCH={bench}")
    build(directory)
    return directory


def test_the_cpp_tests_pass(native_build: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    run(
        *("ctest", "--test-dir", native_build, "--output-on-failure", "--no-tests=error"),
        *("--parallel", str(os.cpu_count() or 1), "--output-junit", report),
    )
    suite = ET.parse(report).getroot()
    counts = {
        name: int(suite.attrib[name]) for name in ("tests", "failures", "skipped", "disabled")
    }
    assert counts["tests"] > 0
    assert counts["failures"] == counts["disabled"] == 0
    # The reasons to skip are an instruction set that this machine lacks, and then the library must
    # have said so, and its best one, with which all tests run anyway.
    skipped = [case for case in suite if case.find("skipped") is not None]
    assert len(skipped) == counts["skipped"]
    for case in skipped:
        assert case.attrib["name"].startswith("all.")
        output = case.findtext("system-out", "")
        best = f"{case.attrib['name'].removeprefix('all.')} is the best instruction set"
        assert "expected INVCONV_ISA to be one of" in output or best in output


def test_the_benchmark_runs(native_build: Path) -> None:
    if not has_benchmark():
        pytest.skip("Google Benchmark is not installed")
    names = ("solve", "solve_transpose", "conv", "weight_grad", "solve_backward", "plain_solve")
    program = native_build / "bench" / "cpp" / "invconv_bench"
    runs = [text for name in (*names, "peak", "chain") for text in ("--run", name)]
    quick = ("--threads", "1", "--seconds", "0.001", "--repetitions", "1")
    printed = run(program, "--shape", "tiny=1,1,4,4,3", *quick, *runs)
    assert all(f"{name}:tiny:1" in printed for name in names)


def test_no_python_is_needed(native_build: Path) -> None:
    cache = (native_build / "CMakeCache.txt").read_text(encoding="utf-8")
    entries = dict(re.findall(r"^([^#/\n][^:\n]*):[A-Z]+=(.*)$", cache, flags=re.MULTILINE))
    assert entries["INVCONV_PYTHON"] == "OFF"
    # What find_package(Python) and find_package(nanobind) leave behind.
    assert not [name for name in entries if re.match(r"_?Python3?_|nanobind_|NB_", name)]


def test_an_installed_library_serves_a_project_elsewhere(
    native_build: Path, tmp_path: Path
) -> None:
    run("cmake", "--install", native_build, "--prefix", tmp_path / "installed")
    # A package must not remember where it was first put.
    prefix = (tmp_path / "installed").rename(tmp_path / "moved")
    source = shutil.copytree(ROOT / "tests" / "cmake_consume", tmp_path / "consumer")
    configure(source, tmp_path / "build", f"-DCMAKE_PREFIX_PATH={prefix}")
    build(tmp_path / "build")
    version = re.search(r"project\(invconv VERSION (\S+)", (ROOT / "CMakeLists.txt").read_text())
    assert version is not None
    assert f"invconv {version[1]} " in run(tmp_path / "build" / "consumer")
