"""Lines of progress: bars on a terminal, log lines everywhere else.

All lines of a process share one display, so a loop inside a training step (generation during an evaluation) becomes a
second line and not a second bar that fights for the terminal.
"""

from __future__ import annotations

import logging
import time
from typing import Protocol

from rich import get_console
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text
from typing_extensions import override

from mmrlhf.text import one_line

logger = logging.getLogger("mmrlhf.progress")

SECONDS_BETWEEN_LOG_LINES = 30.0
_LONGEST = 120  # signs of a description or a note


class Line(Protocol):
    """One line of progress: `update` takes the absolute number of finished items."""

    def update(self, done: int, note: str = "") -> None:
        """Show that `done` items are finished, with a note such as the loss."""
        ...

    def close(self) -> None:
        """Take the line off the display."""
        ...


def open_line(
    description: str, total: int | None, *, done: int = 0, unit: str = "steps", share: float | None = None
) -> Line:
    """Start a line on the terminal, or in the log where standard output is no terminal.

    Args:
        description: what is being done.
        total: the number of items, if known.
        done: items finished before (after a resume); they do not count for the rate.
        unit: what an item is called, in log lines.
        share: log after every such share of the total; otherwise every 30 seconds.
    """
    console, description = get_console(), one_line(description, _LONGEST)
    if console.is_terminal and not console.is_dumb_terminal:
        return TerminalLine(description, total, done=done)
    return LogLine(description, total, done=done, unit=unit, share=share)


class RateColumn(ProgressColumn):
    """Items per second, or seconds per item where that is the larger number."""

    @override
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(format_rate(speed) if speed else "", style="progress.data.speed")


class _Display:
    """The one rich display of this process: started with its first line and stopped with its last."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._open = 0

    def add(self, description: str, total: int | None, done: int) -> tuple[Progress, TaskID]:
        """Add a line; completed: items finished before."""
        if self._progress is None:
            self._progress = _build_display(get_console())
            self._progress.start()
        self._open += 1
        return self._progress, self._progress.add_task(description, total=total, completed=done, note="")

    def remove(self, task: TaskID) -> None:
        """Finish a line: the outermost one stays readable above what follows, inner ones disappear."""
        assert self._progress is not None
        self._open -= 1
        self._progress.stop_task(task)
        if self._open == 0:
            self._progress.stop()
            self._progress = None
        else:
            self._progress.remove_task(task)


def _build_display(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        RateColumn(),
        TextColumn("{task.fields[note]}", style="cyan", markup=False),
        console=console,
        refresh_per_second=4,
    )


_display = _Display()


class TerminalLine:
    """A line of the shared rich display."""

    def __init__(self, description: str, total: int | None, *, done: int = 0) -> None:
        self._progress, self._task = _display.add(description, total, done)
        self._closed = False

    def update(self, done: int, note: str = "") -> None:
        """Move the bar."""
        self._progress.update(self._task, completed=done, note=one_line(note, _LONGEST))

    def close(self) -> None:
        """Leave the display; a second call does nothing."""
        if not self._closed:
            self._closed = True
            _display.remove(self._task)


class LogLine:
    """Log lines at the start, at the end and now and then: every `share` of the total, else every 30 seconds."""

    def __init__(
        self, description: str, total: int | None, *, done: int = 0, unit: str = "steps", share: float | None = None
    ) -> None:
        self._description, self._total, self._unit = description, total, unit
        self._stride = max(1, round(total * share)) if total and share else None
        self._first = self._done = self._logged = done
        self._note = ""
        self._started = self._spoke = time.monotonic()
        self._closed = False
        logger.info("%s: started%s", description, f", {total} {unit}" if total else "")

    def update(self, done: int, note: str = "") -> None:
        """Remember the state and log it when its turn has come."""
        self._done, self._note = done, note or self._note
        due = (
            done // self._stride > self._logged // self._stride
            if self._stride
            else time.monotonic() - self._spoke >= SECONDS_BETWEEN_LOG_LINES
        )
        if due and done != self._total:  # the last one is `close`'s to tell
            self._log(self._time_left())

    def close(self) -> None:
        """Log the end; a second call does nothing."""
        if not self._closed:
            self._closed = True
            word = "stopped after" if self._total and self._done < self._total else "finished in"
            self._log(f"{word} {format_seconds(time.monotonic() - self._started)}")

    def _log(self, state: str) -> None:
        of = f"/{self._total}" if self._total else ""
        rate = format_rate((self._done - self._first) / max(time.monotonic() - self._started, 1e-9))
        parts = [f"{self._done}{of} {self._unit}", state, rate, self._note]
        logger.info("%s: %s", self._description, ", ".join(part for part in parts if part))
        self._logged, self._spoke = self._done, time.monotonic()

    def _time_left(self) -> str:
        done = self._done - self._first
        if not self._total or done <= 0:
            return ""
        left = (time.monotonic() - self._started) / done * (self._total - self._done)
        return f"{format_seconds(left)} left"


def format_seconds(seconds: float) -> str:
    """Write a duration the short way: `4.2 s`, `3:07`, `2:03:07`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def format_rate(rate: float) -> str:
    """Write items per second, as seconds per item below one; empty for zero."""
    if rate <= 0:
        return ""
    return f"{rate:.1f}/s" if rate >= 1 else f"{format_seconds(1 / rate)} each"


def duration(seconds: float) -> str:
    """Say how long something took: `0.4 s`, `12 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
