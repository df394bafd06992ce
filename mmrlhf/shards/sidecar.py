"""Side-car tables: values per (group key, response hash), such as rewards, with the fingerprint of what made them.

A table is a folder of files (`sidecar_files`). A pass that was cut off goes on with the groups that no part holds.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from mmrlhf.errors import DataError, MissingRowError
from mmrlhf.parts import remedy
from mmrlhf.shards.sidecar_files import (
    HASH,
    KEY,
    PARTS,
    begin_table,
    read_left_out,
    read_meta,
    read_part,
    stored_keys,
    write_left_out,
    write_part,
)

_LARGEST = float(np.finfo(np.float32).max)  # values are looked up in float32


class SideCarWriter:
    """Append rows to a side-car table, going on where an earlier writer stopped.

    Responses of one group are added one after another; only whole groups are written by themselves. Use it as a
    context manager, or call `flush` at the end.

    Args:
        folder: the table's folder, made if needed.
        columns: names of the value columns.
        fingerprint: what determines the values (checkpoint, template, settings); JSON-able.
        rank: several processes may write to one folder; a part's name tells by which rank it was written.
        rows_per_part: rows after which a part is written.

    Raises:
        DataError: the folder holds a table with other columns or another fingerprint; the message says what differs.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        columns: Sequence[str],
        fingerprint: Mapping[str, Any],
        rank: int = 0,
        rows_per_part: int = 4096,
    ) -> None:
        if not columns or len(set(columns) | {KEY, HASH}) != len(columns) + 2:
            raise ValueError(f"columns must be distinct and other than {KEY}, {HASH}: {list(columns)}")
        self.folder, self.columns = Path(folder), tuple(columns)
        self._writer, self._rows_per_part = f"r{rank:04d}-{secrets.token_hex(4)}", rows_per_part
        self._num_parts = 0
        self._rows: list[dict[str, Any]] = []
        self._seen: set[str] = set()
        self._left_out: dict[str, str] = {}
        begin_table(self.folder, {"columns": list(columns), "fingerprint": json.loads(json.dumps(dict(fingerprint)))})
        self._done = stored_keys(self.folder)

    def done_keys(self) -> set[str]:
        """Keys of all groups that are written or added, by any rank up to the time this writer was made."""
        return self._done | {row[KEY] for row in self._rows}

    def add(self, key: str, response_hash: str, values: Mapping[str, float | str]) -> None:
        """Add one response's values: numbers, or strings in a column that holds strings only.

        Of responses with equal text in one group the first counts: their values differ by rounding at most.

        Raises:
            DataError: a number that is not finite, named by key, response and column.
        """
        if set(values) != set(self.columns):
            raise ValueError(f"got values for {sorted(values)}, the table has {sorted(self.columns)}")
        if self._rows and self._rows[-1][KEY] != key:
            self._seen.clear()
            if len(self._rows) >= self._rows_per_part:
                self.flush()
        if response_hash in self._seen:
            return
        self._seen.add(response_hash)
        cells = {name: value if isinstance(value, str) else float(value) for name, value in values.items()}
        for name, value in cells.items():
            if isinstance(value, float) and not abs(value) <= _LARGEST:
                raise _not_finite(self.folder, key, response_hash, name, value, "nothing of this query was written")
        self._rows.append({KEY: key, HASH: response_hash, **cells})

    def leave_out(self, reasons: Mapping[str, str]) -> None:
        """Say which groups get no values, and why (key -> reason); replaces what this writer has said before."""
        if dict(reasons) != self._left_out:
            self._left_out = dict(reasons)
            write_left_out(self.folder, self._writer, reasons)

    def flush(self) -> None:
        """Write what has been added as one part; call it between groups."""
        if not self._rows:
            return
        schema = pa.schema(
            [(KEY, pa.string()), (HASH, pa.string())]
            + [(name, pa.string() if isinstance(self._rows[0][name], str) else pa.float64()) for name in self.columns]
        )
        table = pa.Table.from_pylist(self._rows, schema=schema)
        write_part(self.folder, f"{self._writer}-{self._num_parts:06d}", table)
        self._num_parts += 1
        self._done |= {row[KEY] for row in self._rows}
        self._rows.clear()
        self._seen.clear()

    def __enter__(self) -> SideCarWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an error the last group may be incomplete, so what was not flushed is dropped.
        if error is None:
            self.flush()


class SideCar:
    """A side-car table in memory; `SideCar.load` makes one. A look-up costs the same however long the table is.

    Attributes:
        left_out: groups that the pass which made it could not use, key -> reason.
    """

    def __init__(
        self, folder: Path, fingerprint: Mapping[str, Any], table: pa.Table, left_out: Mapping[str, str] | None = None
    ) -> None:
        self.folder, self.fingerprint = folder, fingerprint
        self.columns = tuple(name for name in table.column_names if name not in (KEY, HASH))
        _require_finite(table, self.columns, folder)
        table = _sorted_distinct(table, self.columns, folder)
        keys = table.column(KEY).to_numpy(zero_copy_only=False)
        self._hashes = table.column(HASH).to_numpy(zero_copy_only=False)
        self._values = {name: table.column(name).to_numpy(zero_copy_only=False) for name in self.columns}
        starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]]) if len(keys) else np.empty(0, np.int64)
        ends = np.append(starts[1:], len(keys))[: len(starts)]
        self._rows = {keys[start]: (int(start), int(end)) for start, end in zip(starts, ends, strict=True)}
        self.left_out = {key: why for key, why in (left_out or {}).items() if key not in self._rows}

    @classmethod
    def load(cls, folder: Path | str, columns: Sequence[str] | None = None) -> SideCar:
        """Read a table's parts, all columns or some.

        Raises:
            DataError: no table, a damaged part, a column that it lacks, two parts that contradict each other, or a
                value that is missing or not finite.
        """
        folder = Path(folder)
        meta = read_meta(folder)
        wanted = list(meta["columns"] if columns is None else columns)
        lacking = sorted(set(wanted) - set(meta["columns"]))
        if lacking:
            raise DataError(f"side-car table lacks columns {lacking}", where=folder, given=meta["columns"])
        parts = [read_part(path, [KEY, HASH, *wanted]) for path in sorted(folder.glob(PARTS))]
        empty = pa.table({name: pa.array([], pa.string()) for name in (KEY, HASH)})
        try:
            table = pa.concat_tables(parts) if parts else empty
        except pa.ArrowInvalid as error:
            raise DataError("parts of a side-car table differ in type", where=folder, given=str(error)) from error
        return cls(folder, meta["fingerprint"], table, read_left_out(folder))

    def __len__(self) -> int:
        """Responses in the table."""
        return len(self._hashes)

    def __contains__(self, key: object) -> bool:
        """Whether a group is in the table."""
        return key in self._rows

    def keys(self) -> set[str]:
        """Keys of all groups in the table."""
        return set(self._rows)

    def count_positive(self, column: str) -> int:
        """Responses whose value in a numeric column is above 0."""
        return int((self._values[column] > 0).sum()) if len(self) else 0

    def lookup(self, key: str, hashes: Sequence[str]) -> dict[str, Tensor]:
        """Every numeric column's values (K,) float32 for a group's responses.

        Raises:
            MissingRowError: a response is not in the table; names the key, the hash and the fingerprint.
        """
        rows = self._find(key, hashes)
        return {
            name: torch.from_numpy(values[rows].astype(np.float32))
            for name, values in self._values.items()
            if values.dtype != object
        }

    def texts(self, key: str, hashes: Sequence[str], column: str) -> list[str]:
        """A text column's values for a group's responses; raises as `lookup`."""
        rows = self._find(key, hashes)
        if column not in self._values or self._values[column].dtype != object:
            raise ValueError(f"{column} is no text column of {self.folder}; it holds {self.columns}")
        return self._values[column][rows].tolist()

    def _find(self, key: str, hashes: Sequence[str]) -> list[int]:
        start, end = self._rows.get(key, (0, 0))
        place = {self._hashes[row]: row for row in range(start, end)}
        missing = [name for name in hashes if name not in place]
        if missing:
            raise MissingRowError(
                f"side-car table has no values for group {key}" + (", or not for all its responses" if place else ""),
                where=self.folder,
                given=f"key {key}, response hashes {', '.join(missing[:4])}",
                expected=f"a row for every response; the table was made from {json.dumps(self.fingerprint)}",
                fix="make the table again from the shards in use, or point to the one that belongs to them",
            )
        return [place[name] for name in hashes]


def _require_finite(table: pa.Table, columns: Sequence[str], folder: Path) -> None:
    for name in columns:
        column = table.column(name)
        wrong = column.is_null(nan_is_null=True).to_numpy()
        if pa.types.is_floating(column.type):
            wrong = wrong | (np.abs(column.to_numpy()) > _LARGEST)
        for row in np.flatnonzero(wrong)[:1].tolist():
            key, response_hash = (table.column(at)[row].as_py() for at in (KEY, HASH))
            more = f"{int(wrong.sum())} such values in the column"
            raise _not_finite(folder, key, response_hash, name, column[row].as_py(), more)


def _not_finite(folder: Path, key: str, response_hash: str, name: str, value: object, more: str) -> DataError:
    return DataError(
        f"a value of the column '{name}' is {'missing' if value is None else 'not finite'}",
        where=f"{folder}, key {key}, response hash {response_hash}",
        given=f"{value} ({more})",
        expected="for every response a finite number that float32 holds, or a text in a column of texts",
        fix="find out what made it (a model whose weights are not finite?), then make the table again",
    )


def _sorted_distinct(table: pa.Table, columns: Sequence[str], folder: Path) -> pa.Table:
    """Sort by key and hash; drop repeated rows, which must agree up to rounding."""
    table = table.sort_by([(KEY, "ascending"), (HASH, "ascending")]).combine_chunks()
    if len(table) < 2:
        return table
    keys, hashes = (table.column(name).to_numpy(zero_copy_only=False) for name in (KEY, HASH))
    again = np.r_[False, (keys[1:] == keys[:-1]) & (hashes[1:] == hashes[:-1])]
    for row in np.flatnonzero(again):
        for name in columns:
            one, other = sorted(table.column(name)[at].as_py() for at in (row - 1, row))
            if not _agree(one, other):
                raise DataError(
                    "side-car table contradicts itself",
                    where=folder,
                    given=f"key {keys[row]}, response hash {hashes[row]}, {name}: {one!r} and {other!r}",
                    expected="one value for each response",
                    fix=remedy(folder, "delete the table and make it again"),
                )
    return table.filter(pa.array(~again))


def _agree(one: float | str, other: float | str) -> bool:
    if isinstance(one, str) or isinstance(other, str):
        return one == other
    return math.isclose(one, other, rel_tol=1e-3, abs_tol=1e-4)
