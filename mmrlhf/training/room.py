"""What training takes of a rank's memory and what the rank has: what is sure not to fit is refused before it loads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from mmrlhf.errors import ConfigError
from mmrlhf.files import expanded
from mmrlhf.models.footprint import footprint
from mmrlhf.models.load import stored_dtype
from mmrlhf.models.step_bytes import Footprint
from mmrlhf.models.weight_files import base_of, weight_files
from mmrlhf.training.advice import smaller
from mmrlhf.training.ranks import Ranks, device_memory, host_memory
from mmrlhf.training.settings import TrainSettings

GIB = 2**30
# The estimate is within a tenth of the tensors that live at once (docs/memory.md); media, the tower's own activations
# and what an allocator holds back come on top.
RESERVE = 1.25
# Training in full takes 16 bytes for a parameter, of which a file in 16 bits has two, and float32 twice that.
_MOST_BYTES_PER_STORED = 8


class Claim(NamedTuple):
    """Bytes that a rank needs of one of its memories, and what it has there."""

    what: str
    size: float
    room: int

    @property
    def share(self) -> float:
        """Of what the rank has; more than 1 does not fit."""
        return self.size / self.room


def claims(
    memory: Mapping[str, float],
    host: Mapping[str, float],
    *,
    device_bytes: int | None,
    host_bytes: int | None,
    on_host: bool,
    reserve: float = 1.0,
) -> list[Claim]:
    """What has to fit where; what a memory has is not always known, and then nothing is claimed of it.

    Args:
        memory: bytes on a rank's device, by part and in `total`.
        host: bytes of a rank on the host, as `host_need`.
        device_bytes, host_bytes: what a rank has of either.
        on_host: whether both are one memory.
        reserve: what is estimated on the device counts that many times.
    """
    parts = {**memory, "shards": host["shards"] if on_host else 0.0}
    device = reserve * parts.pop("total") + parts["shards"]
    listed = ", ".join(f"{size / GIB:.1f} of {part}" for part, size in parts.items() if size)
    found = [
        (f"({listed})", device, device_bytes),
        ("on the host while it loads", host["loading"], host_bytes),
        ("of shards on the host (trainer.cpu_offload)", host["shards"], host_bytes),
    ]
    return [Claim(what, size, room) for what, size, room in found if room is not None]


def host_need(
    needs: Footprint, checkpoint: str | Path, ranks: Ranks, *, moments: float, frozen_copy: float = 0.0
) -> dict[str, float]:
    """Bytes of one rank on the host.

    `loading` a checkpoint, before its model is split or moved, and `shards` that stay there while it trains
    (`trainer.cpu_offload`). moments, frozen_copy: as in `Footprint.predict`.
    """
    mapped = needs.mapped if needs.mapped and stored_dtype(checkpoint) is torch.bfloat16 else 0
    return {
        "loading": needs.whole_bytes + frozen_copy - mapped,
        "shards": needs.host_bytes(num_shards=ranks.sharing, moments=moments) if ranks.offloaded else 0.0,
    }


def require_room(checkpoint: str | Path, training: TrainSettings, ranks: Ranks, *, stage: str) -> None:
    """Raise ConfigError where a model, its gradients and the optimizer's state alone are more than a rank's memory.

    As are those of the host, where every rank loads the whole model and shards may stay. Whatever a step reads comes on
    top; `plan=true` says what that is.
    """
    rooms = [room for room in (device_memory(ranks), host_memory(ranks)) if room is not None]
    if not rooms or _is_small(checkpoint, min(rooms)):
        return

    def most(training: TrainSettings, ranks: Ranks) -> Claim:
        return max(_least(checkpoint, training, ranks), key=lambda claim: claim.share)

    found = most(training, ranks)
    if found.share > 1:
        raise ConfigError(
            "this training does not fit into memory, whatever it reads",
            where=f"stages.{stage}: model.settings, optim, trainer",
            given=f"{checkpoint}: {found.size / GIB:.1f} GiB on each rank {found.what}",
            expected=f"less than the {found.room / GIB:.1f} GiB that a rank has here",
            fix=smaller(
                training, ranks, lambda training, ranks: most(training, ranks).share, start=expanded(checkpoint)
            ),
        )


def _least(checkpoint: str | Path, training: TrainSettings, ranks: Ranks) -> list[Claim]:
    """What a rank needs for a model that reads nothing."""
    needs, moments = footprint(checkpoint, training.model, on_host=ranks.on_host), training.optim.moments
    return claims(
        needs.predict(
            row_tokens=0, label_tokens=0, num_shards=ranks.sharing, moments=moments, offloaded=ranks.offloaded
        ),
        host_need(needs, checkpoint, ranks, moments=moments),
        device_bytes=device_memory(ranks),
        host_bytes=host_memory(ranks),
        on_host=ranks.on_host,
    )


def _is_small(checkpoint: str | Path, room: int) -> bool:
    """Whether a folder's weights are so small that they fit however they are trained; cheaper than counting."""
    folder = Path(base_of(expanded(checkpoint)))
    if not folder.is_dir():
        return False
    return _MOST_BYTES_PER_STORED * sum(file.stat().st_size for file in weight_files(folder)) < room
