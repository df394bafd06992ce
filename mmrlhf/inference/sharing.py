"""Several processes on one pass: which rows are this one's, on which device, and waiting for the others."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import lightning as L
import numpy as np
import torch
import torch.distributed as dist

from mmrlhf.chain.runtime import Runtime
from mmrlhf.processes import Group

# Ranks end a pass at different times; whoever is first waits for the slowest, longer than in a training.
_PATIENCE = timedelta(days=2)
T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among those that share a pass."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    group: dist.ProcessGroup | None = None

    @property
    def leads(self) -> bool:
        """Whether this process writes what there is only one of."""
        return self.rank == 0

    def share(self, rows: np.ndarray) -> np.ndarray:
        """This rank's rows: every size-th of all, done or not, so that ranks never disagree about them."""
        return rows[self.rank :: self.size]

    def total(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """Wait until every rank is here; the sum of each number over ranks."""
        every = self.gather(dict(numbers))
        return {name: sum(each[name] for each in every) for name in numbers}

    def gather(self, value: T) -> list[T]:
        """Wait until every rank is here; each one's value, in the order of ranks."""
        if self.size == 1:
            return [value]
        every: list[Any] = [None] * self.size
        dist.all_gather_object(every, value, group=self.group)
        return every


@contextmanager
def share_pass(runtime: Runtime) -> Iterator[Ranks]:
    """Join the processes that torchrun or srun started for this stage; a single process is a group of one.

    The group of all processes is never left between stages: its next one would find the addresses of this one, which a
    slower rank no longer listens to, in the store of the launch. The pass has a group of its own inside of it.
    """
    group = Group.from_environment()
    if group.size == 1:
        yield Ranks(0, 1, pick_device(runtime))
        return
    settings = runtime.machine
    fabric = L.Fabric(
        accelerator=settings.get("accelerator", "auto"),
        devices=settings.get("devices", "auto"),
        num_nodes=settings.get("num_nodes", 1),
        strategy="ddp",
    )
    fabric.launch()
    # what ranks tell each other are plain objects, also where their models are on GPUs
    own = dist.new_group(backend="gloo", timeout=_PATIENCE)
    assert isinstance(own, dist.ProcessGroup)  # every rank is in it
    try:
        yield Ranks(fabric.global_rank, fabric.world_size, fabric.device, own)
    finally:
        dist.destroy_process_group(own)


def pick_device(runtime: Runtime) -> torch.device:
    """The device that the run's trainer would use, for a stage that one process runs alone."""
    accelerator = runtime.machine.get("accelerator", "auto")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*available but not used.*")
        return L.Fabric(accelerator=accelerator, devices=1).device
