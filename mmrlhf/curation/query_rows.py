"""Sets of queries as rows that are read again in any order: what importers found, in one file, media still unread.

Importers run once and stream; a row waits as one line of JSON, in memory stay a few columns. So ten million queries
take a few hundred bytes each on the disk and some tens in memory, and no medium is copied before its query is chosen.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmrlhf.curation.draft_records import draft_record, read_draft
from mmrlhf.errors import ConfigError, DataError
from mmrlhf.files import read_regular, write_json, written
from mmrlhf.parts import remedy
from mmrlhf.records.draft import Draft, Rejection
from mmrlhf.records.members import safe_key
from mmrlhf.shards.index import Index
from mmrlhf.shards.manifest import MANIFEST_FILE
from mmrlhf.types import PreferenceGroup

LINES, TABLE, FACTS = "queries.jsonl", "queries.parquet", "queries.json"
Importer = Callable[[Path], Iterator[Draft | Rejection]]
_ROWS_AT_ONCE = 1 << 16
_EXAMPLES = 20
_SCHEMA = pa.schema(
    {
        "key": pa.string(),
        "type": pa.dictionary(pa.int32(), pa.string()),
        "set": pa.dictionary(pa.int32(), pa.string()),
        "offset": pa.uint64(),
        "size": pa.uint32(),
    }
)


@dataclass(frozen=True)
class QuerySet:
    """Where one set of queries is.

    Args:
        root: folder (or file) with records; a packed set (stage `pack`, `index`) is read as one.
        importer: reads the records; unused for a packed set.
        type: written into every query instead of its category; None keeps that.
        against: the queries are not to be chosen, but pool queries like them are left out: a benchmark.
    """

    root: Path
    importer: Importer
    type: str | None = None
    against: bool = False

    def items(self) -> Iterator[Draft | Rejection | tuple[Path, int, PreferenceGroup]]:
        """What is in it, in order: drafts and rejections, or (folder, row, text) of a packed set."""
        if (self.root / MANIFEST_FILE).is_file():
            index = Index.load(self.root)
            yield from ((self.root, row, index.read(row, media=False)) for row in range(len(index)))
        else:
            yield from self.importer(self.root)


@dataclass
class Rejected:
    """Records that no query was made of: how many by reason, with the first few of each set."""

    reasons: Counter[str] = field(default_factory=Counter)
    examples: list[dict[str, str]] = field(default_factory=list)

    def add(self, found: Rejection) -> None:
        """Count one."""
        self.reasons[found.reason] += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append(asdict(found))


def write_queries(folder: Path, sets: Mapping[str, QuerySet], *, limit: int | None = None) -> None:
    """Read all sets once, one after the other, and write their rows; they appear when all are read.

    Args:
        limit: the first so many queries of each set only.

    Raises:
        ConfigError: no set to choose from.
        DataError: what importers raise; a set, or all of them, without a usable query.
    """
    if not any(not each.against for each in sets.values()):
        raise ConfigError("there is no set of queries to choose from", argument="sets", given=list(sets))
    folder.mkdir(parents=True, exist_ok=True)
    digest, rejected, counts = hashlib.blake2b(digest_size=16), Rejected(), Counter[str]()
    with written(folder / LINES) as part, part.open("wb") as lines, written(folder / TABLE) as table:
        with pq.ParquetWriter(table, _SCHEMA) as writer:
            for rows in _batches(_rows(sets, limit, rejected)):
                columns: dict[str, list[Any]] = {name: [] for name in _SCHEMA.names}
                for key, kind, name, line in rows:
                    digest.update(f"{key}\0{kind}\0{name}\0{len(line)}\0".encode() + line)
                    counts[name] += 1
                    for column, value in zip(columns.values(), (key, kind, name, lines.tell(), len(line)), strict=True):
                        column.append(value)
                    lines.write(line)
                writer.write_batch(_as_batch(columns))
        _require_queries(sets, counts, rejected)
    facts = {
        "digest": digest.hexdigest(),
        "rows": counts.total(),
        "sets": {name: {"root": str(each.root), "queries": counts[name], "against": each.against}
                 for name, each in sets.items()},
        "rejected_by_reason": dict(rejected.reasons.most_common()),
        "rejected": rejected.examples,
    }  # fmt: skip
    write_json(folder / FACTS, facts)


class Queries:
    """Rows that `write_queries` wrote: columns in memory, one query at a time from the file.

    `keys`, `types` and `sets` (N,) are in the order of the sets and of their records; `against` (N,) marks rows of
    benchmarks. `digest` says which rows these are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.facts: dict[str, Any] = _facts(folder)
        try:
            self._table = pq.read_table(folder / TABLE).combine_chunks()
        except (OSError, pa.ArrowException) as error:
            raise _damaged(folder / TABLE, str(error)) from error
        size = (folder / LINES).stat().st_size if (folder / LINES).is_file() else None
        wanted = int(np.sum(self._table.column("size").to_numpy(), dtype=np.uint64))
        if len(self._table) != self.facts["rows"] or size != wanted:
            raise _damaged(folder / LINES, f"{len(self._table)} rows of {size} bytes")
        self._offsets, self._sizes = (self._table.column(name).to_numpy() for name in ("offset", "size"))

    def __len__(self) -> int:
        return len(self._table)

    @property
    def digest(self) -> str:
        """Which rows these are, and in which order."""
        return self.facts["digest"]

    @cached_property
    def types(self) -> np.ndarray:
        """The type of each row (N,)."""
        return self._names("type")

    @cached_property
    def sets(self) -> np.ndarray:
        """The name of each row's set (N,)."""
        return self._names("set")

    @cached_property
    def against(self) -> np.ndarray:
        """Which rows (N,) are of a benchmark."""
        return np.isin(self.sets, [name for name, each in self.facts["sets"].items() if each["against"]])

    def key(self, row: int) -> str:
        """A row's key, which no other has."""
        return self._table.column("key")[row].as_py()

    def keys(self) -> pa.Array:
        """All keys (N,)."""
        return self._table.column("key").combine_chunks()

    def read(self, row: int) -> PreferenceGroup:
        """One query under its key, its media read and decoded once.

        Raises:
            DataError: media that cannot be read.
        """
        record = self._record(row)
        if "packed" in record:
            found = _packed(record["packed"]).read(record["row"])
        else:
            found = read_draft(record).load()
        return replace(found, key=self.key(row), shard="")

    def text(self, row: int) -> str:
        """What a row asks, as people read it."""
        record = self._record(row)
        if "packed" in record:
            return _packed(record["packed"]).read(record["row"], media=False).prompt.transcript
        return read_draft(record).group.prompt.transcript

    def where(self, row: int) -> str:
        """Where a row comes from: set and place in it."""
        record = self._record(row)
        return f"{self.sets[row]}: {record['where'] if 'where' in record else record['packed']}: {self.key(row)}"

    def _record(self, row: int) -> dict[str, Any]:
        with (self.folder / LINES).open("rb") as file:
            line = os.pread(file.fileno(), int(self._sizes[row]), int(self._offsets[row]))
        try:
            return json.loads(line)
        except ValueError as error:
            raise _damaged(self.folder / LINES, f"row {row}: {error}") from error

    def _names(self, column: str) -> np.ndarray:
        encoded = self._table.column(column).combine_chunks()
        return np.array(encoded.dictionary.to_pylist(), dtype=object)[encoded.indices.to_numpy()]


def _require_queries(sets: Mapping[str, QuerySet], counts: Mapping[str, int], rejected: Rejected) -> None:
    empty = [name for name in sets if not counts[name]]
    if empty:
        raise DataError(
            "a set has no usable query",
            where=f"{empty[0]}: {sets[empty[0]].root}",
            given="; ".join(f"{count} x {reason}" for reason, count in rejected.reasons.most_common(3)) or "no record",
            expected="at least one query",
        )


def _rows(sets: Mapping[str, QuerySet], limit: int | None, rejected: Rejected) -> Iterator[tuple[str, str, str, bytes]]:
    """(key, type, set, line) of every query, and what is no query counted."""
    for name, each in sets.items():
        taken = 0
        for item in each.items():
            if isinstance(item, Rejection):
                rejected.add(replace(item, where=f"{name}: {item.where}"))
                continue
            if isinstance(item, Draft):
                group, record = item.group, draft_record(item)
            else:
                folder, row, group = item
                record = {"packed": str(folder.resolve()), "row": row}
            key = group.key if len(sets) == 1 else safe_key(f"{name}--{group.key}")
            yield key, each.type or group.category, name, json.dumps(record, ensure_ascii=False).encode() + b"\n"
            taken += 1
            if taken == limit:
                break


def _batches(rows: Iterable[tuple[str, str, str, bytes]]) -> Iterator[list[tuple[str, str, str, bytes]]]:
    waiting = []
    for row in rows:
        waiting.append(row)
        if len(waiting) == _ROWS_AT_ONCE:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


def _as_batch(columns: Mapping[str, list[Any]]) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array(columns[field.name], field.type) for field in _SCHEMA], schema=_SCHEMA)


@lru_cache(maxsize=16)
def _packed(folder: str) -> Index:
    return Index.load(folder)


def _facts(folder: Path) -> dict[str, Any]:
    if not (folder / FACTS).is_file():
        raise DataError(
            "folder holds no queries",
            where=folder, given=f"no {FACTS}", expected="what stage=query_features writes",
            fix="give its folder, or run that stage",
        )  # fmt: skip
    try:
        facts = json.loads(read_regular(folder / FACTS, what="list of query sets"))
        _ = facts["digest"], facts["rows"] + 0, {each["against"] for each in facts["sets"].values()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _damaged(folder / FACTS, f"{type(error).__name__}: {error}") from error
    return facts


def _damaged(path: Path, given: str) -> DataError:
    fix = remedy(path, f"delete {path.parent} and run the stage again")
    return DataError("queries are damaged", where=path, given=given, fix=fix)
