"""Histograms of what a step's mean hides, every pair's beta and margin: in a file, in W&B and in TensorBoard.

A resumed run drops what was written to the file (`mmrlhf.summaries.histogram_file`) past the resumed step.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from torch import Tensor
from typing_extensions import override

from mmrlhf.files import write_bytes
from mmrlhf.summaries.histogram_file import FILE_NAME, Histogram, read_rows

NAMES = ("beta", "margin", "reward_margin")
NUM_BINS = 32


class PairHistograms(L.Callback):
    """Writes histograms of a step's pairs, as rank 0 saw them, and of the margins of held-out pairs.

    Needs the `record` that a training step returns; names that it does not hold are passed over. The margins are those
    of the module's `heldout_scores` after each validation, where it has some. Only finite values are counted: a curve
    shows that others were there.

    Args:
        folder: where the file goes; an existing one is continued.
        names: values to show.
        every_steps: optimizer steps between two histograms; the last step always has one.
    """

    def __init__(self, folder: Path, names: Sequence[str] = NAMES, *, every_steps: int = 1) -> None:
        if every_steps < 1:
            raise ValueError(f"every_steps must be at least 1, got {every_steps}")
        self._path = Path(folder) / FILE_NAME
        self._names, self._every_steps = tuple(names), every_steps

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero and self._path.is_file():
            _cut(self._path, trainer.global_step)

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        record = outputs.get("record")
        is_last = batch_idx + 1 >= trainer.num_training_batches  # so that a short run has one, too
        if record is None or not (is_last or trainer.global_step % self._every_steps == 0):
            return
        self._log(trainer, {f"train/{name}": record.values(name) for name in self._names if name in record})

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        scores: Any = getattr(pl_module, "heldout_scores", None)
        if scores is not None:
            self._log(trainer, {"val/margin": torch.tensor(scores.chosen) - torch.tensor(scores.rejected)})

    def _log(self, trainer: L.Trainer, found: Mapping[str, Tensor]) -> None:
        finite = {f"{name}_histogram": values.float().cpu() for name, values in found.items()}
        finite = {name: kept for name, values in finite.items() if len(kept := values[values.isfinite()])}
        if not finite or not trainer.is_global_zero:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            for name, values in finite.items():
                file.write(json.dumps(asdict(count(name, values, trainer.global_step))) + "\n")
        for logger in trainer.loggers:
            log_histograms(logger, finite, trainer.global_step)


def count(name: str, values: Tensor, step: int) -> Histogram:
    """Count finite values (n,), n >= 1, in bins from the smallest to the largest."""
    array = values.double().numpy()
    low, high = float(array.min()), float(array.max())
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-30):  # equal values, as DPO's beta: bins need a width
        width = 1e-6 * max(abs(low), 1e-6)
        low, high = low - width, high + width
    counts, _ = np.histogram(array, bins=NUM_BINS, range=(low, high))
    return Histogram(step, name, low, high, tuple(int(number) for number in counts))


def log_histograms(logger: Logger, found: Mapping[str, Tensor], step: int) -> None:
    """Log values (n,) by name as histograms where the logger can show them."""
    if isinstance(logger, WandbLogger):
        import wandb

        histograms = {name: wandb.Histogram(values.tolist()) for name, values in found.items()}
        logger.experiment.log({**histograms, "trainer/global_step": step})
    elif isinstance(logger, TensorBoardLogger):
        for name, values in found.items():
            logger.experiment.add_histogram(name, values, global_step=step)


def _cut(path: Path, step: int) -> None:
    """Keep what was written up to a step."""
    write_bytes(path, "".join(json.dumps(asdict(row)) + "\n" for row in read_rows(path) if row.step <= step).encode())
