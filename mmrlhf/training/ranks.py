"""The ranks that train together, on which kind of device, and what memory each of them has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmrlhf.errors import ConfigError
from mmrlhf.processes import count_devices

_GPU = ("gpu", "cuda")
MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True)
class Ranks:
    """Ranks that train together, how many of them lie on one machine, and how many share one model (FSDP).

    split: whether models are split over ranks at all, be it one; offloaded: shards lie on the host; accelerator: kind
    of device, as in `lightning.Trainer`.
    """

    number: int = 1
    on_machine: int = 1
    sharing: int = 1
    split: bool = False
    offloaded: bool = False
    accelerator: str = "auto"

    @classmethod
    def of(cls, trainer: Mapping[str, Any]) -> Ranks:
        """Read them off the settings of a trainer."""
        accelerator = str(trainer.get("accelerator", "auto"))
        on_machine = count_devices(trainer.get("devices", 1), accelerator)
        number = on_machine * int(trainer.get("num_nodes", 1))
        split = isinstance(trainer.get("strategy"), Mapping)
        return cls(
            number=number,
            on_machine=on_machine,
            sharing=(trainer.get("shard_size") or number) if split else 1,
            split=split,
            offloaded=split and bool(trainer.get("cpu_offload")),
            accelerator=accelerator,
        )

    @property
    def on_host(self) -> bool:
        """Whether the ranks compute on processors, in the machine's own memory.

        This machine is asked only where the settings leave it open: a plan may be made for another one.
        """
        return self.accelerator not in _GPU and (self.accelerator == "cpu" or not torch.cuda.is_available())

    def require_device(self) -> None:
        """Raise ConfigError where GPUs are asked for and this machine has none."""
        # Lightning counts Apple's among the GPUs
        found = torch.cuda.is_available() or (self.accelerator == "gpu" and torch.backends.mps.is_available())
        if self.accelerator in _GPU and not found:
            raise ConfigError(
                "training is to run on a GPU, and torch finds none on this machine",
                where="trainer.accelerator",
                given=self.accelerator,
                expected="a GPU with a driver that this torch can use",
                fix="trainer=cpu, or trainer=auto, which takes a GPU where there is one",
            )


def host_memory(ranks: Ranks) -> int | None:
    """Bytes of the machine's memory for each of its ranks; None where it cannot be asked."""
    if not MEMINFO.is_file():
        return None
    text = MEMINFO.read_text(encoding="utf-8")
    return int(text.split("MemTotal:")[1].split()[0]) * 1024 // ranks.on_machine


def device_memory(ranks: Ranks) -> int | None:
    """Bytes of the first GPU, or a rank's share of the machine's memory; None where neither can be asked."""
    if ranks.on_host:
        return host_memory(ranks)
    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None
