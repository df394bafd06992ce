"""Tars that someone else wrote, adopted as they are: one scan writes the index and the manifest that reading needs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from mmrlhf.errors import DataError
from mmrlhf.shards.index import Index
from mmrlhf.shards.manifest import write_index
from mmrlhf.shards.scan import ShardScan, scan_shard

# scans the tars in this order; yields a scan, or the error that describes what is wrong with the tar
Scan = Callable[[Iterable[Path]], Iterator[ShardScan | DataError]]


def find_tars(folder: Path) -> list[Path]:
    """Return the tars of a folder, by name.

    Raises:
        DataError: no such folder, no tars, or compressed ones only.
    """
    tars = sorted(folder.glob("*.tar"))
    if not tars:
        found = sorted(path.name for path in folder.iterdir())[:12] if folder.is_dir() else "no such folder"
        raise DataError(
            "folder has no shards",
            where=folder,
            given=found,
            expected="*.tar files, not compressed: samples are read by byte range",
            fix="unpack compressed shards with gunzip",
        )
    return tars


def scan_or_report(path: Path) -> ShardScan | DataError:
    """Scan a tar, or return what is wrong with it."""
    try:
        return scan_shard(path)
    except DataError as error:
        return error


def adopt_tars(folder: Path, out: Path | None = None, *, scan: Scan | None = None) -> Index:
    """Scan a folder of tars and write index and manifest.

    Args:
        folder: the tars; they are not changed.
        out: where index and manifest go, with links to the tars; by default beside the tars.
        scan: how to go through them, e.g. in parallel; by default one after the other.

    Raises:
        DataError: no tars, compressed tars, one key in two tars, or any damage or member of another schema that
            `scan_shard` finds; the first one in full, with the number of tars that have others.
    """
    folder, tars = Path(folder), find_tars(Path(folder))
    found = list(scan(tars) if scan else map(scan_or_report, tars))
    errors = [item for item in found if isinstance(item, DataError)]
    if errors:
        first = errors[0]
        more = "" if len(errors) == 1 else f"; {len(errors) - 1} more of {len(tars)} tars cannot be used either"
        raise DataError(
            first.problem, where=first.where, given=f"{first.given or ''}{more}" or None,
            expected=first.expected, fix=first.fix,
        ) from first  # fmt: skip
    out = Path(out or folder)
    out.mkdir(parents=True, exist_ok=True)
    for path in tars if not out.samefile(folder) else ():  # a link in the place of a tar would be all that is left
        link = out / path.name
        link.unlink(missing_ok=True)
        os.symlink(path.resolve(), link)
    write_index(out, [item for item in found if isinstance(item, ShardScan)])
    return Index.load(out)
