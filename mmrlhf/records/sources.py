"""Where rows come from: JSON lines, a JSON array, Parquet or Arrow tables, or a function of the user's.

All are read the same way, once, row by row.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from mmrlhf.errors import ConfigError, DataError
from mmrlhf.records.embedded import embed_media, may_embed, open_arrow
from mmrlhf.records.json_arrays import is_array, read_items
from mmrlhf.records.json_text import Row, as_row, parse_row, plain_row

OnBadLine = Literal["error", "reject"]
_ROWS_AT_ONCE = 64
_LONGEST_REASON = 300
# what Arrow and Python say of a value that Python cannot hold
_NO_VALUE = (ValueError, ArithmeticError, pa.ArrowException)
_BLOCK = 1 << 16
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)

Read = Callable[[], Iterator[tuple[str, Row | DataError]]]


@dataclass(frozen=True)
class RowSource:
    """Rows that are read one after the other.

    Args:
        name: what to call them in an error.
        root: folder that media paths are relative to.
        read: begins a pass: (place, row or what is wrong with it) one after the other.
        count: says how many rows there are, where that is cheap to know; 0 elsewhere.
    """

    name: str
    root: Path
    read: Read
    count: Callable[[], int] = lambda: 0

    def rows(self, on_bad_line: OnBadLine) -> Iterator[tuple[str, Row | DataError]]:
        """Yield (place, row); a bad row comes as the error that describes it, or is raised.

        Raises:
            DataError: for a bad row, unless on_bad_line is "reject".
        """
        if on_bad_line not in ("error", "reject"):
            raise ConfigError("unknown on_bad_line", given=on_bad_line, expected="error or reject")
        for where, row in self.read():
            yield where, checked(row, on_bad_line) if isinstance(row, DataError) else row

    def begun(self) -> tuple[Row, RowSource]:
        """The first row that can be read, or an empty one, and the same source, whose next pass goes on from there."""
        rows, passed, first = self.read(), [], {}
        for item in rows:
            passed.append(item)
            if not isinstance(item[1], DataError):
                first = item[1]
                break
        passes = iter([chain(passed, rows)])
        return first, replace(self, read=lambda: next(passes, None) or self.read())

    def converted(self, convert: Callable[[Row, str], Row]) -> RowSource:
        """The same source with every good row, and its place, passed through a function that may raise DataError."""

        def read() -> Iterator[tuple[str, Row | DataError]]:
            for where, row in self.read():
                try:
                    yield where, row if isinstance(row, DataError) else convert(row, where)
                except DataError as error:
                    yield where, error

        return replace(self, read=read)


def checked(error: DataError, on_bad_line: OnBadLine) -> DataError:
    """Raise the error, or hand it back where bad lines are to be rejected."""
    if on_bad_line == "error":
        instead = "set on_bad_line=reject to leave it out and list it in the report"
        error.fix = f"{error.fix}, or {instead}" if error.fix else instead  # the only place that knows it would help
        raise error
    return error


def file_source(path: Path, root: Path | None = None, *, name: str | None = None) -> RowSource:
    """Read one file: `.parquet` and `.arrow` by their names, JSON by what it holds: an array, or one record a line.

    Args:
        path: the file.
        root: folder that media paths are relative to; by default the file's own.
        name: what to call the file in an error; by default its name.
    """
    name = name or path.name
    kind = path.suffix.lower()
    read, count = {".parquet": (_parquet_rows, _parquet_count), ".arrow": (_arrow_rows, _arrow_count)}.get(
        kind, (_json_rows, _line_count)
    )
    return RowSource(name, root or path.parent, lambda: read(path, name), lambda: count(path))


def files_source(paths: list[Path], root: Path) -> RowSource:
    """Read several files as one, in this order; places name files relative to the root."""
    parts = [file_source(path, root, name=path.relative_to(root).as_posix()) for path in paths]
    if len(parts) == 1:
        return parts[0]
    return joined(parts, root, f"{len(parts)} files, {parts[0].name} ... {parts[-1].name}")


def joined(parts: list[RowSource], root: Path, name: str) -> RowSource:
    """Read several sources as one, in this order."""

    def count() -> int:
        counts = [part.count() for part in parts]
        return sum(counts) if all(counts) else 0

    return RowSource(name, root, lambda: (item for part in parts for item in part.read()), count)


def items_source(items: Callable[[], Iterable[Any]], root: Path, name: str) -> RowSource:
    """Read what a function yields, embedded media too; anything but a mapping is a bad row."""

    def read() -> Iterator[tuple[str, Row | DataError]]:
        for number, item in enumerate(items(), start=1):
            where = f"{name}:{number}"
            try:
                row = item if isinstance(item, Mapping) else as_row(item, where)
                yield where, plain_row(embed_media(row), where)
            except DataError as error:
                yield where, error
            except RecursionError as error:
                yield where, DataError("record contains itself", where=where, given=str(error))

    return RowSource(name, root, read)


def _json_rows(path: Path, name: str) -> Iterator[tuple[str, Row | DataError]]:
    with path.open("rb") as stream:
        if stream.read(2) in _UTF16:
            raise DataError(
                "file of records is UTF-16", where=path, expected="UTF-8",
                fix=f"write it again: iconv -f UTF-16 -t UTF-8 {name}",
            )  # fmt: skip
    yield from (_array_rows if is_array(path) else _line_rows)(path, name)


def _line_rows(path: Path, name: str) -> Iterator[tuple[str, Row | DataError]]:
    start = 0
    with path.open("rb") as stream:
        for number, raw in enumerate(stream, start=1):
            at, start = start, start + len(raw)
            if not raw.strip():
                continue
            where = f"{name}:{number}"
            try:
                row = parse_row(raw, where)
                yield where, embed_media(row, path, at) if may_embed(raw) else row
            except DataError as error:
                yield where, error


def _array_rows(path: Path, name: str) -> Iterator[tuple[str, Row | DataError]]:
    for number, (at, value, raw) in enumerate(read_items(path, name), start=1):
        where = f"{name}:{number}"
        try:
            row = value if isinstance(value, DataError) else as_row(value, where)
            yield where, embed_media(row, path, at) if isinstance(row, dict) and may_embed(raw) else row
        except DataError as error:
            yield where, error


def _line_count(path: Path) -> int:
    """Lines of a file that is no array: counting them is reading without looking."""
    if is_array(path):
        return 0
    with path.open("rb") as stream:
        return sum(block.count(b"\n") for block in iter(lambda: stream.read(_BLOCK), b""))


def _parquet_rows(path: Path, name: str) -> Iterator[tuple[str, Row | DataError]]:
    def batches() -> Iterator[pa.RecordBatch]:
        with pq.ParquetFile(path) as table:
            yield from table.iter_batches(batch_size=_ROWS_AT_ONCE)

    return _table_rows(batches(), path, name)


def _arrow_rows(path: Path, name: str) -> Iterator[tuple[str, Row | DataError]]:
    def batches() -> Iterator[pa.RecordBatch]:
        for batch in open_arrow(path):
            for start in range(0, batch.num_rows, _ROWS_AT_ONCE):
                yield batch.slice(start, _ROWS_AT_ONCE)

    return _table_rows(batches(), path, name)


def _table_rows(batches: Iterator[pa.RecordBatch], path: Path, name: str) -> Iterator[tuple[str, Row | DataError]]:
    number = 0
    try:
        for batch in batches:
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
            f"{path.suffix[1:].capitalize()} file cannot be read",
            where=f"{name}:{number + 1}", given=str(error)[:300], fix="fetch it again",
        ) from error  # fmt: skip


def _parquet_count(path: Path) -> int:
    try:
        return pq.read_metadata(path).num_rows
    except (OSError, pa.ArrowException):
        return 0  # reading it says what is wrong


def _arrow_count(path: Path) -> int:
    try:
        return sum(batch.num_rows for batch in open_arrow(path))
    except (OSError, pa.ArrowException):
        return 0


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
