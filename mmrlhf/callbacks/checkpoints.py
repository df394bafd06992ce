"""Checkpoints that are whole or absent, and a preemption that loses no step.

A checkpoint is written to `step-N.ckpt.tmp` and renamed, so a killed process leaves the older ones untouched. A sharded
checkpoint is a folder: after every rank has written its part, rank 0 adds a `COMMIT` file with the names and sizes of
all members before it renames. Saves happen only between optimizer steps.

On SIGTERM, SIGINT (Ctrl-C), SIGUSR1 or SIGUSR2 (what SLURM sends with `--signal`) the handler only sets a flag. At the
end of the step all ranks agree (a signal may have reached one of them), save together, and stop; `TrainingInterrupted`
then leaves `trainer.fit`, so that no stage takes the half-trained model for the result. A second Ctrl-C stops at once.
Data-loading workers must ignore these signals, because a signal that is sent to the whole process group would
otherwise end them before the step does.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
import threading
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint
from typing_extensions import override

from mmrlhf.data.preemption import PREEMPTION

logger = logging.getLogger(__name__)

COMMIT = "COMMIT"
_NAME = re.compile(r"step-(\d+)\.ckpt")


class TrainingInterrupted(Exception):
    """Training stopped on a signal after saving; starting it again continues from that checkpoint."""


class StepCheckpoint(Checkpoint):
    """Saves `step-N.ckpt` (N: optimizer steps) every so many steps, at the end, and on a signal.

    Args:
        folder: where checkpoints go.
        every_steps: optimizer steps between two saves; None: only at the end and on a signal.
        keep: how many of the newest to keep.
        save_last: whether to save at the end of training.
        signals: which ones save and stop (only possible in a process's main thread).
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        every_steps: int | None = None,
        keep: int = 2,
        save_last: bool = True,
        signals: Sequence[signal.Signals] = PREEMPTION,
    ) -> None:
        if (every_steps is not None and every_steps < 1) or keep < 1:
            raise ValueError(f"every_steps ({every_steps}) and keep ({keep}) must be at least 1")
        self._folder, self._every_steps, self._keep = Path(folder), every_steps, keep
        self._save_last, self._signals = save_last, tuple(signals)
        self._signalled: signal.Signals | None = None
        self._stopped = False
        self._saved_step = -1
        self._previous: dict[signal.Signals, Any] = {}
        self._pid = os.getpid()

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._signalled, self._stopped = None, False
        self._saved_step = trainer.global_step
        if trainer.is_global_zero:
            self._folder.mkdir(parents=True, exist_ok=True)
            for leftover in self._folder.glob("step-*.ckpt.tmp"):
                _remove(leftover)
        # Here and not in on_fit_start: Lightning registers its own handlers in between.
        if threading.current_thread() is threading.main_thread():
            self._pid = os.getpid()
            self._previous = {number: signal.signal(number, self._on_signal) for number in self._signals}

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        stop = bool(trainer.strategy.reduce_boolean_decision(self._signalled is not None, all=False))
        # After the last step the loop itself ends training: on_train_end saves, marked as complete.
        if batch_idx + 1 >= trainer.num_training_batches:
            return
        step = trainer.global_step
        if step <= self._saved_step:
            return  # in the middle of a gradient accumulation; a signal waits for the step's end
        if stop or (self._every_steps is not None and step % self._every_steps == 0):
            self.save(trainer)
        if stop:
            logger.warning("%s: stopping after step %d", self._cause(), step)
            self._stopped = trainer.should_stop = True

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._save_last and not self._stopped:
            self.save(trainer)
        self._restore_handlers()

    @override
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._stopped:
            raise TrainingInterrupted(
                f"stopped by {self._cause()} after step {self._saved_step}; saved in {self._folder}; "
                "run it again to continue"
            )

    @override
    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._restore_handlers()

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

    def _on_signal(self, number: int, frame: Any) -> None:
        if os.getpid() != self._pid:
            # A forked child has inherited this handler: it dies as it would have without it.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        if self._signalled is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signalled = signal.Signals(number)

    def _cause(self) -> str:
        return self._signalled.name if self._signalled is not None else "a signal to another rank"

    def _restore_handlers(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous = {}


def commit(partial: Path, final: Path) -> None:
    """Flush a finished checkpoint to disk and give it its final name; a folder gets its COMMIT file first."""
    if partial.is_dir():
        members = {str(path.relative_to(partial)): path.stat().st_size for path in _files(partial)}
        (partial / COMMIT).write_text(json.dumps(members, sort_keys=True))
    for path in [*_files(partial), partial] if partial.is_dir() else [partial]:
        _sync(path)
    _remove(final)
    os.replace(partial, final)
    _sync(final.parent)


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
        members = json.loads((path / COMMIT).read_text())
        damaged = [name for name, size in members.items() if (path / name).stat().st_size != size]
    except (OSError, json.JSONDecodeError) as error:
        logger.warning("ignoring the checkpoint %s: %s", path, error)
        return False
    if damaged:
        logger.warning("ignoring the checkpoint %s: members of another size than committed: %s", path, damaged)
    return not damaged


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
