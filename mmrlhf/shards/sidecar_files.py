"""The files of a side-car table: `_meta.json` (columns and fingerprint) and Parquet parts.

A part appears by rename, under a name that no other writer uses and that ends with the CRC-32 of its bytes; so it is
complete, absent, or known to be damaged.
"""

from __future__ import annotations

import io
import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmrlhf.errors import DataError, UserError
from mmrlhf.files import expanded, is_remote, read_regular, write_bytes
from mmrlhf.parts import begin, remedy

KEY, HASH = "key", "response_hash"
META_FILE, PARTS, LEFT_OUT = "_meta.json", "part-*.parquet", "left-out-*.json"
_CHECKSUM = re.compile(r"-([0-9a-f]{8})\.parquet$")


def begin_table(folder: Path, meta: Mapping[str, Any]) -> None:
    """Write a table's `_meta.json`, or compare it with the one that is there; several processes may do so at once.

    Raises:
        DataError: the folder holds a table with other columns or another fingerprint; the message says what differs.
    """
    begin(folder / META_FILE, meta, what="side-car table", read=lambda: read_meta(folder))


def read_meta(folder: Path) -> dict[str, Any]:
    """Read a table's columns and fingerprint; raises DataError if there is no table."""
    path = folder / META_FILE
    try:
        meta = json.loads(read_regular(path, what="side-car table"))
        if not (_is_names(meta["columns"]) and isinstance(meta["fingerprint"], dict)):
            raise ValueError("`columns` and `fingerprint` are not a list of names and an object")
        return meta
    except (ValueError, RecursionError, TypeError, KeyError) as error:
        given = error.given if isinstance(error, DataError) else str(error)
        expected = "a folder of a table that a stage wrote, such as `rewards` of stage=score"
        inside = sorted(each.parent for each in folder.glob(f"*/{META_FILE}")) if folder.is_dir() else []
        fix = f"there is one in {', '.join(map(str, inside))}" if inside else None
        raise DataError("no side-car table here", where=path, given=given, expected=expected, fix=fix) from error


def require_tables(folders: Mapping[str, object]) -> None:
    """Look at folders (argument -> folder) that were given in place of a stage's.

    Raises, naming the argument:
        DataError: a folder holds no table.
        ConfigError: as `expanded`.
    """
    for argument, folder in folders.items():
        if folder is None or str(folder).startswith("stage:") or is_remote(str(folder)):
            continue
        try:
            read_meta(expanded(str(folder)))
        except UserError as error:
            given = f"{folder} ({META_FILE}: {error.given})" if isinstance(error, DataError) else error.given
            raise type(error)(
                error.problem, argument=argument, given=given, expected=error.expected, fix=error.fix
            ) from error  # fmt: skip


def _is_names(value: Any) -> bool:
    texts = isinstance(value, list) and all(isinstance(name, str) for name in value)
    return texts and len({KEY, HASH, *value}) == len(value) + 2


def write_part(folder: Path, name: str, table: pa.Table) -> None:
    """Write `part-NAME-CHECKSUM.parquet`."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    data = buffer.getvalue()
    write_bytes(folder / f"part-{name}-{zlib.crc32(data):08x}.parquet", data)


def read_part(path: Path, columns: list[str]) -> pa.Table:
    """Read columns of one part; raises DataError, naming it, if it is damaged."""
    try:
        data = read_regular(path, what="part of a side-car table")
        checksum = _CHECKSUM.search(path.name)  # tables of early versions have none
        if checksum is not None and int(checksum[1], 16) != zlib.crc32(data):
            raise OSError(f"its checksum is {zlib.crc32(data):08x}, its name says {checksum[1]}")
        table = pq.read_table(io.BytesIO(data), columns=columns)
        table.validate(full=True)
        _check_columns(table, columns)
        return table
    except (pa.ArrowException, OSError, TypeError) as error:
        raise DataError(
            "part of a side-car table is damaged",
            where=path,
            given=str(error),
            fix=remedy(path, "delete this part and run the pass again: only the groups in it are made anew"),
        ) from error


def _check_columns(table: pa.Table, columns: list[str]) -> None:
    """Raise TypeError for columns that no writer of ours writes: anyone may send a table."""
    if table.column_names != columns:
        raise TypeError(f"it has the columns {table.column_names}, not {columns}")
    for name, kind in zip(columns, table.schema.types, strict=True):
        text = pa.types.is_string(kind)
        if not text and (name in (KEY, HASH) or not (pa.types.is_floating(kind) or pa.types.is_integer(kind))):
            raise TypeError(f"its column {name} holds {kind}")
        if name in (KEY, HASH) and table.column(name).null_count:
            raise TypeError(f"its column {name} lacks values")


def stored_keys(folder: Path) -> set[str]:
    """Keys of all groups in a table's parts; raises as `read_part`."""
    return {key for path in folder.glob(PARTS) for key in read_part(path, [KEY]).column(KEY).to_pylist()}


def write_left_out(folder: Path, name: str, reasons: Mapping[str, str]) -> None:
    """Write `left-out-NAME.json`: the groups that a writer could not give values, each with why."""
    write_bytes(folder / LEFT_OUT.replace("*", name), (json.dumps(dict(reasons), indent=1) + "\n").encode())


def read_left_out(folder: Path) -> dict[str, str]:
    """The groups that any writer left out, key -> reason; raises DataError, naming the file, if one is damaged."""
    found: dict[str, str] = {}
    for path in sorted(folder.glob(LEFT_OUT)):
        try:
            reasons = json.loads(read_regular(path, what="list of queries"))
            if not isinstance(reasons, dict) or not all(isinstance(reason, str) for reason in reasons.values()):
                raise ValueError("no object of keys and reasons")
            found |= reasons
        except (ValueError, RecursionError) as error:
            raise DataError(
                "what a table says of the queries that it left out is damaged", where=path, given=str(error),
                fix=remedy(path, "delete this file and run the pass again"),
            ) from error  # fmt: skip
    return found
