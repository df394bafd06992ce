"""Loggers that leave training curves in a file (`mmrlhf.summaries.curve_file`), and as a table beside it.

A resumed run drops what the interrupted one wrote past the resumed step, so a curve has no doubles.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only
from typing_extensions import override

from mmrlhf.files import written
from mmrlhf.summaries.curve_file import FILE_NAME, HEADER, read_rows

SECONDS_BETWEEN_WRITES = 5.0


class CurveLogger(Logger):
    """A Lightning logger that writes every logged scalar to `curves.csv`.

    Args:
        folder: where the file goes; an existing file is continued.
        name: the stage's name.
    """

    def __init__(self, folder: str | Path, *, name: str = "curves") -> None:
        super().__init__()
        self._folder, self._name = Path(folder), name
        self._rows: list[tuple[int, str, float]] = []
        self._written = 0.0
        self._opened = False

    @property
    def path(self) -> Path:
        """The CSV file."""
        return self._folder / FILE_NAME

    @property
    @override
    def name(self) -> str:
        return self._name

    @property
    @override
    def version(self) -> str:
        return ""

    @property
    @override
    def save_dir(self) -> str:
        return str(self._folder)

    @override
    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the resolved config lies beside the curves."""

    @override
    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Remember scalars of a step; written to disk every few seconds and by `save`."""
        step = 0 if step is None else int(step)
        if not self._opened:
            _open_from(self.path, step)
            self._opened = True
        self._rows += [(step, name, float(value)) for name, value in metrics.items() if name != "epoch"]
        if time.monotonic() - self._written >= SECONDS_BETWEEN_WRITES:
            self.save()

    @override
    @rank_zero_only
    def save(self) -> None:
        """Append what is not on disk yet."""
        self._written = time.monotonic()
        if self._rows:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.writer(file, lineterminator="\n").writerows(self._rows)
            self._rows.clear()

    @override
    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the rest."""
        self.save()


class WideCurves(Logger):
    """A Lightning logger that leaves `curves.csv` as a table, too: one row for each step, one column for each number.

    Made from the curves themselves, which survive a stop, whenever a checkpoint is saved and at the end.

    Args:
        folder: holds `curves.csv`, whose logger comes before this one.
        path: the table.
    """

    def __init__(self, folder: Path, path: Path) -> None:
        super().__init__()
        self._curves, self.path = folder / FILE_NAME, path

    @property
    @override
    def name(self) -> str:
        return "csv"

    @property
    @override
    def version(self) -> str:
        return ""

    @override
    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the resolved config lies beside the curves."""

    @override
    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Do nothing: the curves have them."""

    @override
    @rank_zero_only
    def save(self) -> None:
        """Write the table anew."""
        if not self._curves.is_file():
            return
        rows: dict[int, dict[str, float]] = {}
        for step, name, value in read_rows(self._curves):
            rows.setdefault(step, {})[name] = value
        columns = dict.fromkeys(name for row in rows.values() for name in row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with written(self.path) as part, part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["step", *columns], lineterminator="\n")
            writer.writeheader()
            writer.writerows({"step": step, **rows[step]} for step in sorted(rows))

    @override
    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the table of everything that was logged."""
        self.save()


def _open_from(path: Path, step: int) -> None:
    """Create the file, or cut an existing one down to the rows before `step` (also a last line cut by a crash)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = [row for row in read_rows(path) if row[0] < step] if path.is_file() else []
    with written(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(HEADER)
        writer.writerows(kept)
