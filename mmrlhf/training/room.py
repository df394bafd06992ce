"""What memory a rank has, and which training is sure not to fit into it, before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmrlhf.errors import ConfigError
from mmrlhf.files import expanded
from mmrlhf.models.footprint import footprint
from mmrlhf.models.weight_files import weight_files
from mmrlhf.processes import count_devices
from mmrlhf.training.settings import TrainSettings

GIB = 2**30
# The estimate is within a tenth of the tensors that live at once (docs/memory.md); media, the tower's own activations
# and what an allocator holds back come on top.
RESERVE = 1.25
# Training in full takes 16 bytes for a parameter, of which a file in 16 bits has two, and float32 twice that.
_MOST_BYTES_PER_STORED = 8


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
        """Whether the ranks compute on the machine's processors, in its own memory."""
        return self.accelerator == "cpu" or not torch.cuda.is_available()


def host_memory(ranks: Ranks) -> int | None:
    """Bytes of the machine's memory for each of its ranks; None where it cannot be asked."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return None
    text = meminfo.read_text(encoding="utf-8")
    return int(text.split("MemTotal:")[1].split()[0]) * 1024 // ranks.on_machine


def device_memory(ranks: Ranks) -> int | None:
    """Bytes of the first GPU, or a rank's share of the machine's memory; None where neither can be asked."""
    return host_memory(ranks) if ranks.on_host else torch.cuda.get_device_properties(0).total_memory


def require_room(checkpoint: str | Path, training: TrainSettings, ranks: Ranks, *, stage: str) -> None:
    """Raise ConfigError where a model, its gradients and the optimizer's state alone are more than a rank's memory.

    Whatever a step reads comes on top; `plan=true` says what that is.
    """
    room = device_memory(ranks)
    if room is None or _is_small(checkpoint, room):
        return
    needs = footprint(checkpoint, training.model)
    moments = training.optim.moments
    memory = needs.predict(
        row_tokens=0, label_tokens=0, num_shards=ranks.sharing, moments=moments, offloaded=ranks.offloaded
    )
    if ranks.offloaded and ranks.on_host:
        memory["total"] += needs.host_bytes(num_shards=ranks.sharing, moments=moments)
    if memory["total"] > room:
        parts = ", ".join(f"{memory[part] / GIB:.1f} of {part}" for part in ("parameters", "gradients", "optimizer"))
        raise ConfigError(
            "this training does not fit into memory, whatever it reads",
            where=f"stages.{stage}: model.settings, optim, trainer",
            given=f"{checkpoint}: {memory['total'] / GIB:.1f} GiB on each rank ({parts})",
            expected=f"less than the {room / GIB:.1f} GiB that a rank has here",
            fix=smaller(training, ranks),
        )


def _is_small(checkpoint: str | Path, room: int) -> bool:
    """Whether a folder's weights are so small that they fit however they are trained; cheaper than counting."""
    folder = expanded(checkpoint)
    if not folder.is_dir():
        return False
    return _MOST_BYTES_PER_STORED * sum(file.stat().st_size for file in weight_files(folder)) < room


def smaller(training: TrainSettings, ranks: Ranks) -> str:
    """Settings that would take less memory and are not in use yet, what saves most first."""
    model = training.model
    if model.language == "full":
        ways = ["model.settings.language=lora model.settings.projector=frozen"]
    else:
        ways = ["model.settings.weights=nf4"] if model.weights in ("float32", "bf16") else []
    if not model.gradient_checkpointing:
        ways.append("model.settings.gradient_checkpointing=true")
    if training.optim.name == "adamw" and not ranks.split:
        ways.append("optim.name=adamw_8bit")
    ways.append("trainer=fsdp on more devices" if not ranks.split else "more devices that share a model")
    if ranks.split and not ranks.offloaded:
        ways.append("trainer.cpu_offload=true")
    return "; or ".join([*ways, f"model.token_budget below {training.schedule.token_budget}"])
