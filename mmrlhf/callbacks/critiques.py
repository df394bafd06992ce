"""Held-out critiques while training: at every validation the reward model judges a few queries, as it would alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import lightning as L
from typing_extensions import override

from mmrlhf.callbacks.samples import Sample, log_samples
from mmrlhf.files import write_bytes


class HeldOutCritiques(L.Callback):
    """Writes `step-N.jsonl` (one row a query: key, and what it says of each response) and sends a table to W&B.

    Args:
        folder: where the files go.
        judge: module -> samples with their pictures (see `callbacks.samples`), judged now. Called on rank 0 only, so it
            must not communicate between ranks; nothing is written where it returns none.
    """

    def __init__(self, folder: Path, judge: Callable[[L.LightningModule], Sequence[Sample]]) -> None:
        super().__init__()
        self._folder, self._judge = Path(folder), judge

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        if trainer.is_global_zero:
            samples = self._judge(pl_module)
            if samples:
                self._write(samples, trainer.global_step)
                log_samples(trainer.loggers, samples, name="critiques", step=trainer.global_step)
        trainer.strategy.barrier("held-out critiques")

    def _write(self, samples: Sequence[Sample], step: int) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        rows = [{name: sample[name] for name in ("key", "category", "prompt", "responses")} for sample in samples]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_bytes(self._folder / f"step-{step:08d}.jsonl", lines.encode())
