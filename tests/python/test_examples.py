"""The examples: each runs as a program, and what it prints is what it claims to show."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples"
# No warning but torch's own, from its forward mode.
WARNINGS = ("-W", "error", "-W", "ignore:`torch.jit.script` is deprecated:DeprecationWarning")


def run(name: str, *arguments: str, folder: Path) -> str:
    """What the example prints; its picture must be in the folder."""
    picture = folder / "picture.png"
    done = subprocess.run(
        [sys.executable, *WARNINGS, EXAMPLES / name, "--out", picture, *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert [path.name for path in folder.iterdir()] == [picture.name]
    with Image.open(picture) as image:
        assert min(image.size) > 300
        low, high = image.convert("L").getextrema()
        assert low < high
    return done.stdout


def figures(printed: str, title: str) -> list[float]:
    """The numbers on the line that begins with the title."""
    line = re.search(rf"^ *{re.escape(title)} (.*)$", printed, re.MULTILINE)
    assert line is not None, printed
    return [float(number) for number in re.findall(r"[-+.\de]*\d", line[1])]


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_help(name: str) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "--out" in done.stdout


def test_deblur(tmp_path: Path) -> None:
    printed = run("deblur.py", folder=tmp_path)
    (error,) = figures(printed, "largest error of its inverse")
    assert error < 1e-4
    scores = {
        name: figures(printed, name)[1:3]
        for name in ("Richardson-Lucy", "Wiener, Laplacian", "Wiener, D", "least squares")
    }
    ours = scores.pop("least squares")
    for others in scores.values():
        assert ours[0] > others[0]
        assert ours[1] > others[1]
    without, _ = figures(printed, "without preconditioner")
    preconditioned, _ = figures(printed, "a pair of solves")
    assert 3 * preconditioned < without


def test_deblur_refuses_a_wrong_size() -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / "deblur.py", "--size", "513"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "expected 64 to 512, but got 513" in done.stderr


def test_recursive_filter(tmp_path: Path) -> None:
    printed = run("recursive_filter.py", folder=tmp_path)
    biased, biased_ratio, _ = figures(printed, "equation error")
    assert biased > 0.1
    assert biased_ratio > 10
    for name in ("gradient descent, 1500 steps", "Gauss-Newton, 8 steps"):
        largest, ratio, output = figures(printed, name)
        assert largest < 0.01
        # The mean of eight squares of about 1; correlated, so no sharper than this.
        assert ratio < 3
        assert output < 1


def test_classify(tmp_path: Path) -> None:
    # A few epochs: far from the best accuracy, and past what a linear classifier can reach.
    printed = run("classify.py", "--epochs", "6", folder=tmp_path)
    taps, _, validation, test, _ = figures(printed, "inverse")
    assert taps == 16
    _, _, linear_validation, linear_test, _ = figures(printed, "none")
    assert validation + test > linear_validation + linear_test + 2
    assert test > 92
    assert "97.6%" in printed
