"""Flows on two processes: ActNorm's first batch is common to both, and DistributedDataParallel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from invconv.flows import ActNorm, InverseFlow

BATCH = 12


def images() -> Tensor:
    """A batch whose two parts differ in mean and spread."""
    random = torch.Generator().manual_seed(0)
    bright = torch.randint(100, 256, (BATCH - 4, 1, 8, 8), generator=random)
    dark = torch.randint(0, 50, (4, 1, 8, 8), generator=random)
    return torch.cat([bright, dark])


def values() -> Tensor:
    x = images().double() / 100
    return torch.cat([x, x.square()], 1)


def run(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    part = slice(BATCH - 4) if rank == 0 else slice(BATCH - 4, None)
    found: dict[str, Any] = {}

    layer, alone = ActNorm(2).double(), ActNorm(2).double()
    layer(values()[part])
    alone(values()[:0] if rank == 0 else values())
    found["layer"], found["alone"] = layer.state_dict(), alone.state_dict()
    never = ActNorm(2).double()
    never(values()[:0])
    found["never"] = never.state_dict()

    # Unlike weights, which DistributedDataParallel makes alike, and reversible levels.
    torch.manual_seed(rank)
    model = InverseFlow(image_shape=(1, 8, 8), levels=2, steps=2, hidden=6, reversible=True)
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    noise = torch.Generator().manual_seed(rank)
    first = None
    for _ in range(10):
        optimizer.zero_grad()
        loss = -ddp(images()[part], generator=noise).mean()
        loss.backward()
        if first is None:
            first = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        optimizer.step()
    found["first"], found["last"] = first, model.state_dict()
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_stay_alike(tmp_path: Path) -> None:
    mp.spawn(run, args=(tmp_path,), nprocs=2)
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for stage in one:
        assert one[stage].keys() == other[stage].keys()
        for name, tensor in one[stage].items():
            assert torch.equal(tensor, other[stage][name]), (stage, name)

    # What one process finds on the whole batch, up to the order of sums.
    whole = ActNorm(2).double()
    whole(values())
    for name, tensor in whole.state_dict().items():
        for stage in ("layer", "alone"):
            torch.testing.assert_close(one[stage][name], tensor, rtol=1e-13, atol=1e-13)
    assert not one["never"]["initialized"]

    flags = [name for name in one["first"] if name.endswith("initialized")]
    assert len(flags) == 5 and all(one["first"][name] for name in flags)
    moved = [not torch.equal(one["first"][name], one["last"][name]) for name in one["first"]]
    assert sum(moved) == len(moved) - len(flags)
