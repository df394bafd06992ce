"""Where rows come from: JSON lines, a JSON array, Parquet tables, or a function of the user's; read the same way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from mmrlhf.errors import ConfigError, DataError
from mmrlhf.files import read_regular
from mmrlhf.records.embedded import embed_media
from mmrlhf.records.json_text import Row, as_row, parse_array, parse_row, plain_row

OnBadLine = Literal["error", "reject"]
TABLES = (".jsonl", ".json", ".parquet")
_MOST_SHOWN = 12
_ROWS_AT_ONCE = 64
_LONGEST_REASON = 300
# what Arrow and Python say of a value that Python cannot hold
_NO_VALUE = (ValueError, ArithmeticError, pa.ArrowException)


@dataclass(frozen=True)
class RowSource:
    """Rows that can be read as often as needed.

    Args:
        name: what to call them in an error.
        root: folder that media paths are relative to.
        read: begins another pass: (place, row or what is wrong with it) one after the other.
    """

    name: str
    root: Path
    read: Callable[[], Iterator[tuple[str, Row | DataError]]]

    def rows(self, on_bad_line: OnBadLine) -> Iterator[tuple[str, Row | DataError]]:
        """Yield (place, row); a bad row comes as the error that describes it, or is raised.

        Raises:
            DataError: for a bad row, unless on_bad_line is "reject".
        """
        if on_bad_line not in ("error", "reject"):
            raise ConfigError("unknown on_bad_line", given=on_bad_line, expected="error or reject")
        for where, row in self.read():
            yield where, checked(row, on_bad_line) if isinstance(row, DataError) else row

    def first(self) -> Row:
        """The first row that can be read, or an empty one."""
        return next((row for _, row in self.read() if not isinstance(row, DataError)), {})


def checked(error: DataError, on_bad_line: OnBadLine) -> DataError:
    """Raise the error, or hand it back where bad lines are to be rejected."""
    if on_bad_line == "error":
        raise error
    return error


def file_source(path: Path, root: Path | None = None, *, name: str | None = None) -> RowSource:
    """Read one file by its extension: `.jsonl`, `.json` (an array) or `.parquet`.

    Args:
        path: the file.
        root: folder that media paths are relative to; by default the file's own.
        name: what to call the file in an error; by default its name.
    """
    name = name or path.name
    read = {".parquet": _parquet_rows, ".json": _array_rows}.get(path.suffix.lower(), _line_rows)
    return RowSource(name, root or path.parent, lambda: read(path, name))


def files_source(paths: list[Path], root: Path) -> RowSource:
    """Read several files as one, in this order; places name files relative to the root."""
    parts = [file_source(path, root, name=path.relative_to(root).as_posix()) for path in paths]
    name = parts[0].name if len(parts) == 1 else f"{len(parts)} files, {parts[0].name} ... {parts[-1].name}"
    return RowSource(name, root, lambda: (item for part in parts for item in part.read()))


def items_source(items: Callable[[], Iterable[Any]], root: Path, name: str) -> RowSource:
    """Read what a function yields; anything but a mapping is a bad row."""

    def read() -> Iterator[tuple[str, Row | DataError]]:
        for number, item in enumerate(items(), start=1):
            where = f"{name}:{number}"
            try:
                yield where, plain_row(item if isinstance(item, Mapping) else as_row(item, where), where)
            except DataError as error:
                yield where, error

    return RowSource(name, root, read)


def _line_rows(path: Path, name: str) -> Iterator[tuple[str, Row | DataError]]:
    start = 0
    with path.open("rb") as stream:
        for number, raw in enumerate(stream, start=1):
            at, start = start, start + len(raw)
            if not raw.strip():
                continue
            where = f"{name}:{number}"
            try:
                yield where, embed_media(parse_row(raw, where), path, at)
            except DataError as error:
                yield where, error


def _array_rows(path: Path, name: str) -> Iterator[tuple[str, Row | DataError]]:
    for number, item in enumerate(parse_array(read_regular(path, what="file of records"), name), start=1):
        where = f"{name}:{number}"
        try:
            yield where, as_row(item, where)
        except DataError as error:
            yield where, error


def _parquet_rows(path: Path, name: str) -> Iterator[tuple[str, Row | DataError]]:
    number = 0
    try:
        with pq.ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=_ROWS_AT_ONCE):
                for row in _python_rows(batch):
                    number += 1
                    where = f"{name}:{number}"
                    try:
                        yield where, embed_media(plain_row(row(), where), path, number - 1)
                    except _NO_VALUE as error:
                        yield where, error if isinstance(error, DataError) else _unreadable(where, error)
    except (OSError, *_NO_VALUE) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            "Parquet file cannot be read", where=f"{name}:{number + 1}", given=str(error)[:300], fix="fetch it again"
        ) from error


def _python_rows(batch: pa.RecordBatch) -> list[Callable[[], Row]]:
    """For each row a function that gives it, or raises what is wrong with it alone."""
    for place, column in enumerate(batch.columns):
        if pa.types.is_temporal(column.type):  # Python's own dates know no year 10,000, and no nanosecond
            text = column.cast(pa.string())
            batch = batch.set_column(place, batch.schema.field(place).with_type(text.type), text)
    try:
        return [partial(dict, row) for row in batch.to_pylist()]
    except _NO_VALUE:
        return [partial(lambda one: one.to_pylist()[0], batch.slice(place, 1)) for place in range(batch.num_rows)]


def _unreadable(where: str, error: Exception) -> DataError:
    given = f"{type(error).__name__}: {error}"[:_LONGEST_REASON]
    return DataError("row cannot be read", where=where, given=given, fix="repair the value, or leave the column out")


def find_file(root: Path, file: str | None, known: tuple[str, ...], layout: str) -> Path:
    """Return the file to import: the given one, else the first known name that exists below root.

    Raises:
        DataError: no such folder or file, with what was found there and what the layout looks like.
    """
    _require_folder(root, layout)
    wanted = (file,) if file else known
    for name in wanted:
        if (root / name).is_file():
            return root / name
    raise _no_file(root, " or ".join(wanted), layout)


def find_tables(root: Path, file: str | None, layout: str) -> list[Path]:
    """Return the tables to import, by name: those that match the pattern `file`, else the only kind there is.

    Without a pattern, all Parquet files below the root count (or the root itself, if it is a file), else the one
    `.jsonl` or `.json` file in it; several of those are no choice that a program should make.

    Raises:
        DataError: no such folder, nothing found, or several files of rows.
    """
    if root.is_file():
        return [root]
    _require_folder(root, layout)
    found = _match(root, file or "**/*.parquet")
    found = [path for path in found if path.is_file()]
    if not file and not found:
        found = sorted(path for path in root.iterdir() if path.suffix.lower() in TABLES and path.is_file())
        if len(found) > 1:
            raise DataError(
                "data folder has several files of records",
                where=root,
                given=", ".join(path.name for path in found[:_MOST_SHOWN]),
                fix="name one, or a pattern: data.importer.file=NAME",
            )
    if not found:
        raise _no_file(root, file or "*.parquet, *.jsonl or *.json", layout)
    return found


def _match(root: Path, pattern: str) -> list[Path]:
    problem: ValueError | None = None
    if not Path(pattern).is_absolute():
        try:
            return sorted(root.glob(pattern))
        except ValueError as error:
            problem = error
    raise ConfigError(
        "importer.file is no pattern below the data folder", given=pattern, expected='e.g. "data/train-*.parquet"'
    ) from problem


def _require_folder(root: Path, layout: str) -> None:
    if not root.is_dir():
        raise DataError(
            "data folder does not exist",
            where=root, expected=layout, fix="give the folder that holds the records and the media folders",
        )  # fmt: skip


def _no_file(root: Path, wanted: str, layout: str) -> DataError:
    names = sorted(path.name + "/" * path.is_dir() for path in root.iterdir())
    shown = ", ".join(names[:_MOST_SHOWN]) + (f" and {len(names) - _MOST_SHOWN} more" if names[_MOST_SHOWN:] else "")
    return DataError(
        f"data folder has no {wanted}",
        where=root,
        given=shown or "an empty folder",
        expected=layout,
        fix="give the folder one level up or down, name the file with data.importer.file=..., or choose another layout "
        "(data=llava_pairs, data=preference_rows, data=rlaif_v)",
    )
