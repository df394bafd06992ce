"""Checkpoints that are whole or absent, and a preemption that loses no step.

A checkpoint is written to `step-N.ckpt.tmp` and renamed, so a killed process leaves the older ones untouched. A sharded
checkpoint is a folder: after every rank has written its part, rank 0 adds a `COMMIT` file with the names and sizes of
all members before it renames. Saves happen only between optimizer steps.

When a signal has asked for a stop (`preemption`), all ranks agree at the end of the step, save together, and leave
`trainer.fit` with `TrainingInterrupted`, so that no stage takes the half-trained model for the result. A signal in the
last step or in the validation behind it counts as well: what is left of the stage is done when it is started again.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint
from typing_extensions import override

from mmrlhf.callbacks.preemption import Preemption
from mmrlhf.files import publish_file, publish_folder
from mmrlhf.processes import TrainingInterrupted

logger = logging.getLogger(__name__)

COMMIT = "COMMIT"
_NAME = re.compile(r"step-(\d+)\.ckpt")


class StepCheckpoint(Checkpoint):
    """Saves `step-N.ckpt` (N: optimizer steps) every so many steps, at the end, and on a signal.

    Args:
        folder: where checkpoints go.
        preemption: notices signals.
        every_steps: optimizer steps between two saves; None: only at the end and on a signal.
        keep: how many of the newest to keep.
        save_last: whether to save at the end of training.
    """

    def __init__(
        self,
        folder: str | Path,
        preemption: Preemption,
        *,
        every_steps: int | None = None,
        keep: int = 2,
        save_last: bool = True,
    ) -> None:
        if (every_steps is not None and every_steps < 1) or keep < 1:
            raise ValueError(f"every_steps ({every_steps}) and keep ({keep}) must be at least 1")
        self._folder, self._every_steps, self._keep = Path(folder), every_steps, keep
        self._save_last, self._preemption = save_last, preemption
        self._stopped, self._complete = False, True
        self._saved_step = -1

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stopped = False
        self._saved_step = trainer.global_step
        if trainer.is_global_zero:
            self._folder.mkdir(parents=True, exist_ok=True)
            for leftover in self._folder.glob("step-*.ckpt.tmp"):
                _remove(leftover)

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        stop = self._preemption.agreed(trainer)
        step = trainer.global_step
        if step <= self._saved_step:
            return  # in the middle of a gradient accumulation; a signal waits for the step's end
        # After the last step the loop itself ends training: on_train_end saves, marked as complete.
        last = self._complete = batch_idx + 1 >= trainer.num_training_batches
        if stop or (not last and self._every_steps is not None and step % self._every_steps == 0):
            self.save(trainer)
        if stop:  # not raised here: Lightning has yet to log the step
            self._stopped = trainer.should_stop = True

    @override
    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._stopped:  # Lightning validates before it stops, which may take longer than there is time
            raise self._interrupted()

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._stopped:
            raise self._interrupted()
        # what something else has ended early would be taken for complete by whoever goes on from it
        if self._save_last and self._complete:
            self.save(trainer)
        if self._preemption.agreed(trainer):
            raise self._interrupted()

    def _interrupted(self) -> TrainingInterrupted:
        return TrainingInterrupted(
            f"stopped by {self._preemption.cause} after step {self._saved_step}; saved in {self._folder}; "
            "run it again to continue",
            self._preemption.received,
        )

    def save(self, trainer: L.Trainer) -> Path:
        """Write a checkpoint of the current step, on all ranks together; returns its path."""
        final = self._folder / f"step-{trainer.global_step:08d}.ckpt"
        partial = final.with_name(final.name + ".tmp")
        if trainer.is_global_zero:
            _remove(partial)
        trainer.strategy.barrier("before checkpoint")
        trainer.save_checkpoint(partial)
        if trainer.is_global_zero:
            commit(partial, final)
            for old in committed_checkpoints(self._folder)[: -self._keep]:
                _remove(old)
            for destination in trainer.loggers:
                destination.save()
        trainer.strategy.barrier("after checkpoint")
        self._saved_step = trainer.global_step
        return final


def commit(partial: Path, final: Path) -> None:
    """Flush a finished checkpoint to disk and give it its final name; a folder gets its COMMIT file first."""
    if partial.is_dir():
        members = {str(path.relative_to(partial)): path.stat().st_size for path in _files(partial)}
        (partial / COMMIT).write_text(json.dumps(members, sort_keys=True), encoding="utf-8")
    if final.is_dir() != partial.is_dir():  # of another strategy
        _remove(final)
    publish = publish_folder if partial.is_dir() else publish_file
    publish(partial, final)


def committed_checkpoints(folder: str | Path) -> list[Path]:
    """List the whole checkpoints of a folder, oldest step first; a damaged one is named in a warning and left out."""
    found = []
    for path in Path(folder).glob("step-*.ckpt"):
        match = _NAME.fullmatch(path.name)
        if match and _is_whole(path):
            found.append((int(match[1]), path))
    return [path for _, path in sorted(found)]


def latest_checkpoint(folder: str | Path) -> Path | None:
    """Find the newest whole checkpoint of a folder; None where there is none (or no folder)."""
    found = committed_checkpoints(folder)
    return found[-1] if found else None


def _is_whole(path: Path) -> bool:
    if path.is_file():
        if not zipfile.is_zipfile(path):  # what torch writes; its table of contents is at the end
            logger.warning("ignoring the checkpoint %s: it is cut off", path)
            return False
        return True
    try:
        members = json.loads((path / COMMIT).read_text(encoding="utf-8"))
        damaged = [name for name, size in members.items() if (path / name).stat().st_size != size]
    except (OSError, ValueError, RecursionError, AttributeError) as error:  # absent, no JSON, or no object
        logger.warning("ignoring the checkpoint %s: %s", path, error)
        return False
    if damaged:
        logger.warning("ignoring the checkpoint %s: members of another size than committed: %s", path, damaged)
    return not damaged


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
