"""The two files beside a folder of shards: `index.parquet` (one row per sample) and `manifest.json` (the shards)."""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmrlhf.errors import DataError
from mmrlhf.files import read_regular, write_bytes
from mmrlhf.parts import remedy
from mmrlhf.records.members import SCHEMA_VERSION
from mmrlhf.shards.index_checks import check_rows
from mmrlhf.shards.scan import DEFAULTS, SCHEMA, ShardScan

INDEX_FILE, MANIFEST_FILE = "index.parquet", "manifest.json"
# a shard's name becomes a path below the folder (in a mixture below a set's folder), its checksum a file of the cache
_SHARD_NAME = re.compile(r"(?!\.)[^/\\\x00-\x1f\ud800-\udfff]+(?:/(?!\.)[^/\\\x00-\x1f\ud800-\udfff]+)*")
_LARGEST = 1 << 60
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Shard:
    """One shard as the manifest lists it."""

    name: str
    bytes: int
    count: int
    sha256: str

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Shard:
        """Read one entry of a manifest; raises ValueError or TypeError for one that no program of ours wrote."""
        shard = cls(**record)
        if not _SHARD_NAME.fullmatch(shard.name) or not _SHA256.fullmatch(shard.sha256):
            raise ValueError(f"shard {shard.name!r} with checksum {shard.sha256!r}")
        if any(type(number) is not int or not 0 <= number <= _LARGEST for number in (shard.bytes, shard.count)):
            raise ValueError(f"shard {shard.name!r} with bytes={shard.bytes!r}, count={shard.count!r}")
        return shard


def write_index(folder: Path, scans: Sequence[ShardScan]) -> None:
    """Write `index.parquet` and then `manifest.json` for shards that have been scanned.

    Raises:
        DataError: one key in two samples.
    """
    table = _without_defaults(pa.concat_tables([scan.rows for scan in scans]).combine_chunks())
    keys = table.column("key").value_counts()
    twice = keys.field("values").to_numpy(zero_copy_only=False)[keys.field("counts").to_numpy() > 1]
    if len(twice):
        places = [scan.name for scan in scans if twice[0] in scan.rows.column("key").to_pylist()]
        raise DataError(
            f"{len(twice)} keys occur in more than one sample",
            where=f"{twice[0]} in {', '.join(places)}",
            expected="every key once",
        )
    shards = [Shard(scan.name, scan.bytes, len(scan.rows), scan.sha256) for scan in scans]
    digest = content_digest(shards)
    buffer = io.BytesIO()
    pq.write_table(
        table.replace_schema_metadata({"digest": digest}), buffer, compression="zstd", write_page_checksum=True
    )
    write_bytes(folder / INDEX_FILE, buffer.getvalue())
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "creator": f"mmrlhf {_version()}",
        "digest": digest,
        "num_groups": len(table),
        "index_sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
        "shards": [vars(shard) for shard in shards],
    }
    write_bytes(folder / MANIFEST_FILE, (json.dumps(manifest, indent=1) + "\n").encode())


def _without_defaults(table: pa.Table) -> pa.Table:
    """A table of samples without the columns in which no sample says anything."""
    columns = {name: table.column(name).combine_chunks() for name in DEFAULTS}
    texts = {name: column.flatten() if pa.types.is_list(column.type) else column for name, column in columns.items()}
    return table.drop_columns([name for name, values in texts.items() if not any(values.unique().to_pylist())])


def _with_defaults(table: pa.Table) -> pa.Table:
    """The inverse of `_without_defaults`."""
    for name, nothing in DEFAULTS.items():
        if name not in table.schema.names:
            values = pa.array([nothing] * len(table), SCHEMA.field(name).type)
            table = table.append_column(SCHEMA.field(name), values)
    in_order = sorted(table.schema.names) == sorted(SCHEMA.names)
    return table.select(SCHEMA.names) if in_order else table


def set_of_shard(shard: str) -> str:
    """Name the set of a mixture that a shard belongs to: its folder; empty for shards that lie beside their index."""
    return shard.rpartition("/")[0]


def content_digest(shards: Iterable[Shard]) -> str:
    """Hash what the shards hold, in order; the same input packed anywhere gives the same digest."""
    text = "".join(f"{shard.name} {shard.count} {shard.sha256}\n" for shard in shards)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def read_index(folder: Path) -> tuple[tuple[Shard, ...], str, pa.Table]:
    """Read both files: the shards, the digest, and the table of samples in one chunk per column.

    Raises:
        DataError: a file is missing or damaged, of another schema, or the two do not belong together.
    """
    manifest = _read_manifest(folder)
    try:
        shards, digest = tuple(map(Shard.from_record, manifest["shards"])), manifest["digest"]
        if len({shard.name for shard in shards}) < len(shards):
            raise ValueError("a shard is listed twice")
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged_manifest(folder / MANIFEST_FILE, error) from error
    table = _read_table(folder, manifest)
    check_rows(folder / INDEX_FILE, {shard.name: shard.bytes for shard in shards}, table)
    stored = (table.schema.metadata or {}).get(b"digest", b"").decode(errors="replace")
    if not digest == content_digest(shards) == stored:
        raise DataError(
            "index and manifest belong to different data",
            where=folder, given=f"{stored} and {digest}", fix=remedy(folder, "pack the data again"),
        )  # fmt: skip
    return shards, stored, table


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST_FILE
    if not path.is_file():
        tars = len(list(folder.glob("*.tar"))) if folder.is_dir() else 0
        raise DataError(
            "folder has no manifest",
            where=folder,
            given=f"{tars} tar files" if folder.is_dir() else "no such folder",
            expected=f"{MANIFEST_FILE} and {INDEX_FILE} beside the shards",
            fix=f"`python run.py stage=index inputs.tars={folder}` indexes tars of another program; raw records "
            f"are packed by `python run.py stage=pack data.root={folder}`",
        )
    return parse_manifest(read_regular(path, what="manifest"), path)


def parse_manifest(content: bytes, where: Path | str) -> dict[str, Any]:
    """Read a manifest; raises DataError if it is damaged or of another schema."""
    try:
        manifest = dict(json.loads(content))
    except (ValueError, TypeError, RecursionError) as error:
        raise _damaged_manifest(where, error) from error
    if manifest.get("schema_version") != SCHEMA_VERSION:
        raise DataError(
            "shards have another schema version",
            where=where, given=manifest.get("schema_version"), expected=str(SCHEMA_VERSION),
            fix=remedy(where, "pack the data again"),
        )  # fmt: skip
    return manifest


def _damaged_manifest(where: Path | str, error: Exception) -> DataError:
    given = f"{type(error).__name__}: {error}"
    return DataError("manifest is damaged", where=where, given=given, fix=remedy(where, "pack the data again"))


def check_index(manifest: Mapping[str, Any], data: bytes, where: Path | str) -> None:
    """Compare an index with the checksum in its manifest; raises DataError.

    Manifests of early versions have none: then only the pages of the index are checked, when they are read.
    """
    expected, found = manifest.get("index_sha256"), hashlib.sha256(data).hexdigest()
    if expected not in (None, found):
        raise DataError(
            "index is damaged, or of different data than its manifest",
            where=where, given=f"sha256 {found}", expected=expected,
            fix=remedy(where, "copy both again, or pack the data again"),
        )  # fmt: skip


def _read_table(folder: Path, manifest: Mapping[str, Any]) -> pa.Table:
    path = folder / INDEX_FILE
    try:
        data = read_regular(path, what="index")
        check_index(manifest, data, path)
        table = pq.read_table(pa.BufferReader(data), page_checksum_verification=True)
        table.validate(full=True)
        table = _with_defaults(table)
    except (OSError, pa.ArrowException) as error:
        fix = remedy(path, "pack the data again")
        raise DataError("index cannot be read", where=path, given=str(error), fix=fix) from error
    if not table.schema.equals(SCHEMA, check_metadata=False):
        differs = sorted({str(column) for column in table.schema} ^ {str(column) for column in SCHEMA})
        raise DataError(
            "index was written by another version",
            where=path,
            given=f"columns that differ: {', '.join(differs)}",
            expected=f"columns {SCHEMA.names}",
            fix=remedy(folder, "pack the data again"),
        )
    return table.combine_chunks()


def check_shards(folder: Path, shards: Sequence[Shard], table: pa.Table) -> None:
    """Compare every shard with the manifest by size and count, without reading it.

    Raises:
        DataError: shards that are missing, empty, cut, or of another count, up to ten of them by name.
    """
    counts = {item["values"]: item["counts"] for item in table.column("shard").value_counts().to_pylist()}
    problems = []
    for shard in shards:
        path = folder / shard.name
        size = path.stat().st_size if path.is_file() else None
        if size is None:
            problems.append(f"{shard.name} is missing")
        elif size != shard.bytes:
            problems.append(f"{shard.name} has {size} bytes instead of {shard.bytes}")
        elif counts.get(shard.name, 0) != shard.count:
            problems.append(f"{shard.name} has {counts.get(shard.name, 0)} index rows instead of {shard.count}")
    if problems:
        raise DataError(
            f"{len(problems)} of {len(shards)} shards are not as they were written",
            where=folder, given="; ".join(problems[:10]),
            fix=f"copy or fetch these shards again, or {remedy(folder, 'pack them again')}",
        )  # fmt: skip


def _version() -> str:
    try:
        return importlib.metadata.version("mmrlhf")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"
