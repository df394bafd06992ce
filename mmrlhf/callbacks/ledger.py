"""What became of every place of an epoch: delivered, padded or quarantined; at the end of each, the three add up."""

from __future__ import annotations

import logging
from typing import Any

import lightning as L
import torch
from typing_extensions import override

from mmrlhf.tensors import StepBatch

logger = logging.getLogger(__name__)

NAMES = ("delivered", "padded", "quarantined")


class EpochLedger(L.Callback):
    """Counts what the ranks trained on, and compares the sum with the plan when an epoch of the data is over.

    The count is kept in checkpoints, so it holds across restarts and for any number of ranks.

    Args:
        steps_per_epoch, groups_per_step: of the plan; their product is the number of an epoch's places.
    """

    def __init__(self, *, steps_per_epoch: int, groups_per_step: int) -> None:
        self._steps_per_epoch, self._groups_per_step = steps_per_epoch, groups_per_step
        self._counts = [0, 0, 0]
        self.epochs: list[dict[str, int]] = []

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: StepBatch, batch_idx: int
    ) -> None:
        delivered = sum(int((micro.group_weight > 0).sum()) for micro in batch.micro_batches)
        for place, count in enumerate((delivered, batch.num_padded, batch.num_quarantined)):
            self._counts[place] += count
        if (batch.step + 1) % self._steps_per_epoch == 0:
            self._close(batch.epoch, self._total(trainer))

    @override
    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:  # fmt: skip
        checkpoint["epoch_ledger"] = {"epochs": self.epochs, "counts": self._total(trainer)}

    @override
    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:  # fmt: skip
        kept = checkpoint["epoch_ledger"]
        self.epochs = list(kept["epochs"])
        # The stored counts are the sum over ranks, so one rank carries them on.
        self._counts = list(kept["counts"]) if trainer.is_global_zero else [0, 0, 0]

    def _total(self, trainer: L.Trainer) -> list[int]:
        counts = torch.tensor(self._counts, dtype=torch.float64, device=trainer.strategy.root_device)
        return [int(count) for count in trainer.strategy.reduce(counts, reduce_op="sum").tolist()]

    def _close(self, epoch: int, counts: list[int]) -> None:
        places = self._steps_per_epoch * self._groups_per_step
        text = " + ".join(f"{count} {name}" for count, name in zip(counts, NAMES, strict=True))
        if sum(counts) != places:
            raise RuntimeError(f"epoch {epoch}: {text} is not the plan's {places}")
        logger.info("epoch %d: %s = %d", epoch, text, places)
        self.epochs.append({"epoch": epoch, **dict(zip(NAMES, counts, strict=True))})
        self._counts = [0, 0, 0]
