"""Training in processes of its own: on two of them as on one, and through kills."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from invconv.train import load_model

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def command(processes: int, out: Path, *options: str) -> list[str]:
    start = [sys.executable, "-m"]
    if processes > 1:
        start += ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    return [*start, "invconv", "train", "--out", str(out), *options]


def finish(processes: int, out: Path, *options: str) -> None:
    done = subprocess.run(
        command(processes, out, *options), env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def losses(out: Path) -> list[float]:
    """The bits/dim of every step, as TensorBoard reads them."""
    log = EventAccumulator(str(out / "tensorboard")).Reload()
    scalars = log.Scalars("step/bits_per_dim")
    assert [scalar.step for scalar in scalars] == list(range(1, len(scalars) + 1))
    return [scalar.value for scalar in scalars]


def outcome(out: Path) -> dict[str, Any]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    model = load_model(out)
    return {
        "rows": [{**row, "seconds": 0} for row in rows],
        "weights": {name: tensor.tolist() for name, tensor in model.state_dict().items()},
    }


def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    """Each takes half of a batch that is twice as large, in two parts."""
    options = ["--data=digits", "--preset=tiny", "--epochs=2", "--tensorboard"]
    finish(1, tmp_path / "one", *options, "--batch-size=128")
    finish(2, tmp_path / "two", *options, "--batch-size=128", "--accumulate=2", "--workers=1")
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == len(two) >= 20
    torch.testing.assert_close(torch.tensor(two), torch.tensor(one), rtol=0, atol=1e-4)
    assert one[-1] < one[0] - 0.5


@pytest.mark.parametrize("processes", [1, 2])
def test_runs_that_are_killed_three_times_end_at_the_same_bits(
    processes: int, tmp_path: Path
) -> None:
    options = ["--data=digits", "--preset=tiny", "--epochs=8", "--batch-size=64"]
    finish(processes, tmp_path / "unbroken", *options)
    out = tmp_path / "killed"
    options.append("--checkpoint-minutes=0")
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    for kill in range(3):
        resume = [] if kill == 0 else ["--resume"]
        before = (out / "checkpoint.safetensors").stat().st_mtime_ns if kill else 0
        process = subprocess.Popen(
            command(processes, out, *options, *resume),
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        with process:
            checkpoint = out / "checkpoint.safetensors"
            while not checkpoint.exists() or checkpoint.stat().st_mtime_ns == before:
                assert process.poll() is None, process.stderr and process.stderr.read()
                time.sleep(0.01)
            time.sleep(chance.uniform(0, 0.5))
            family = [process, *psutil.Process(process.pid).children(recursive=True)]
            for member in family:
                member.kill()
        assert not (out / "summary.json").exists(), f"the kill came too late, seed {seed}"
    finish(processes, out, *options, "--resume")
    assert outcome(out) == outcome(tmp_path / "unbroken"), f"seed {seed}"


def test_a_batch_that_is_too_small_for_the_processes_is_refused(tmp_path: Path) -> None:
    done = subprocess.run(
        command(1, tmp_path / "run", "--data=digits", "--batch-size=2", "--accumulate=3"),
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "batches of 1 images cannot be shared out in 3 parts" in done.stderr
