"""Signals that ask a run to stop, kept in mind until the ranks can agree on it.

The signals are SIGTERM, SIGINT (Ctrl-C), SIGUSR1 and SIGUSR2 (what SLURM sends with `--signal`). The handler only sets
a flag; whoever can save asks for it (see `checkpoints`). A second Ctrl-C stops at once. Data-loading workers must
ignore these signals, because a signal that is sent to the whole process group would otherwise end them before the step
does.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import lightning as L
from typing_extensions import override

from mmrlhf.processes import PREEMPTION


class Preemption(L.Callback):
    """Notices signals from `with` to its end; as the first callback of a Trainer, also while that runs.

    Args:
        signals: which ones are kept in mind (only possible in a process's main thread).
    """

    def __init__(self, signals: Sequence[signal.Signals] = PREEMPTION) -> None:
        self._signals = tuple(signals)
        self._received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}
        self._pid = os.getpid()

    def __enter__(self) -> Self:
        self._received, self._pid = None, os.getpid()
        self._previous = self._install()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous = {}

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._take_back()

    @override
    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._take_back()

    @property
    def received(self) -> signal.Signals | None:
        """The signal that asked this rank to stop, if one did."""
        return self._received

    @property
    def cause(self) -> str:
        """What asked for the stop."""
        return self._received.name if self._received is not None else "a signal to another rank"

    def agreed(self, trainer: L.Trainer) -> bool:
        """Whether any rank has been asked to stop; every rank has to call this."""
        return bool(trainer.strategy.reduce_boolean_decision(self._received is not None, all=False))

    def _take_back(self) -> None:
        """Take the signals from Lightning, whose own handlers, registered when it runs, end a process with code 0."""
        if self._previous:
            self._install()

    def _install(self) -> dict[signal.Signals, Any]:
        if threading.current_thread() is not threading.main_thread():
            return {}
        return {number: signal.signal(number, self._on_signal) for number in self._signals}

    def _on_signal(self, number: int, frame: Any) -> None:
        if os.getpid() != self._pid:
            # A forked child has inherited this handler: it dies as it would have without it.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        if self._received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = signal.Signals(number)
