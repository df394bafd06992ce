"""Histograms of what a step's mean hides, every pair's beta and margin, in Weights & Biases and TensorBoard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from torch import Tensor
from typing_extensions import override


class PairHistograms(L.Callback):
    """Logs histograms of per-pair values of a step, as rank 0 saw them, and of the margins of held-out pairs.

    Needs the `record` that a training step returns; names that it does not hold are passed over. The margins are those
    of the module's `heldout_scores` after each validation, where it has some.

    Args:
        names: values to show.
        every_steps: optimizer steps between two histograms; the last step always has one.
    """

    def __init__(self, names: Sequence[str] = ("beta", "margin", "reward_margin"), *, every_steps: int = 50) -> None:
        if every_steps < 1:
            raise ValueError(f"every_steps must be at least 1, got {every_steps}")
        self._names, self._every_steps = tuple(names), every_steps

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        record = outputs.get("record")
        is_last = batch_idx + 1 >= trainer.num_training_batches  # so that a short run has one, too
        due = is_last or trainer.global_step % self._every_steps == 0
        if record is None or not trainer.is_global_zero or not due:
            return
        for name in self._names:
            values = record.values(name) if name in record else None
            if values is not None and len(values):
                for logger in trainer.loggers:
                    log_histogram(logger, f"train/{name}_histogram", values.float().cpu(), trainer.global_step)

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        scores: Any = getattr(pl_module, "heldout_scores", None)
        if scores is None or not trainer.is_global_zero:
            return
        margins = torch.tensor(scores.chosen) - torch.tensor(scores.rejected)
        for logger in trainer.loggers:
            log_histogram(logger, "val/margin_histogram", margins, trainer.global_step)


def log_histogram(logger: Logger, name: str, values: Tensor, step: int) -> None:
    """Log values (n,) as a histogram where the logger can show one."""
    if isinstance(logger, WandbLogger):
        import wandb

        logger.experiment.log({name: wandb.Histogram(values.tolist()), "trainer/global_step": step})
    elif isinstance(logger, TensorBoardLogger):
        logger.experiment.add_histogram(name, values, global_step=step)
