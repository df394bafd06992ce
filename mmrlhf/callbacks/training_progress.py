"""Progress with time left for every long loop: `track` for the loops of a stage, `TrainingProgress` for the Trainer.

Only rank 0 shows anything. `MMRLHF_PROGRESS=0` or `progress_switch(False)` turns everything off.
"""

from __future__ import annotations

import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from typing_extensions import override

from mmrlhf.terminal.lines import Line, open_line
from mmrlhf.terminal.progress import progress_enabled

SHARE_BETWEEN_LOG_LINES = 0.1


class TrainingProgress(ProgressBar):
    """Lightning's progress bar for modules whose batch is one optimizer step.

    Shows the stage, the step of all steps, the time left, and the newest logged metrics whose last name part (after
    `/`) is in `shown`. Validation gets its own line while it runs. Off a terminal: a log line every tenth of the steps.

    Args:
        stage: the stage's name in front of the bar.
        shown: last name parts of the metrics to show, in this order.
        refresh_seconds: reading a metric waits for the device, so notes are renewed only this often.
        enabled: show nothing when false.
    """

    def __init__(
        self,
        stage: str = "train",
        *,
        shown: tuple[str, ...] = ("loss", "accuracy", "groups_per_second"),
        refresh_seconds: float = 0.5,
        enabled: bool = True,
    ) -> None:
        super().__init__()
        self._stage, self._shown, self._refresh_seconds = stage, tuple(shown), refresh_seconds
        self._enabled = enabled
        self._train: Line | None = None
        self._validation: Line | None = None
        self._note, self._noted = "", 0.0

    @override
    def disable(self) -> None:
        self._enabled = False

    @override
    def enable(self) -> None:
        self._enabled = True

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._enabled and progress_enabled():
            total, done = _finite(self.total_train_batches), _first_batch(trainer)
            self._train = open_line(self._stage, total, done=done, share=SHARE_BETWEEN_LOG_LINES)

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._train is None:
            return
        now = time.monotonic()
        last = batch_idx + 1 == _finite(self.total_train_batches)
        if last or now - self._noted >= self._refresh_seconds:
            self._note, self._noted = self._describe(trainer.callback_metrics), now
        self._train.update(batch_idx + 1, self._note)

    @override
    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._enabled and progress_enabled() and not trainer.sanity_checking:
            self._current_eval_dataloader_idx = 0
            total = _finite(self.total_val_batches_current_dataloader)
            self._validation = open_line(f"{self._stage} validation", total)

    @override
    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._validation is not None:
            self._validation.update(batch_idx + 1)

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._validation is not None:
            self._validation.close()
            self._validation = None

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._close()

    @override
    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        for line in (self._validation, self._train):
            if line is not None:
                line.close()
        self._validation = self._train = None

    def _describe(self, metrics: Any) -> str:
        notes = []
        for name in self._shown:
            found = [key for key in metrics if key.rsplit("/", 1)[-1] == name and not key.startswith("val")]
            if found:
                notes.append(f"{name.replace('_per_second', '/s')} {float(metrics[found[0]]):.3g}")
        return "  ".join(notes)


def _finite(batches: int | float | list[int | float]) -> int | None:
    number = sum(batches) if isinstance(batches, list) else batches
    return int(number) if number != float("inf") else None


def _first_batch(trainer: L.Trainer) -> int:
    """Batches that an earlier run of this training has finished (0 unless resumed)."""
    return trainer.fit_loop.epoch_loop.batch_progress.current.completed
