"""Where a benchmark's rows come from: a folder of Parquet files in the published columns, the user's or a hub's."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from huggingface_hub import HfApi, constants, get_session, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,  # of the HTTP client that this hub library uses: # pyright: ignore[reportPrivateImportUsage]
    LocalEntryNotFoundError,
)

from mmrlhf.errors import DataError, HubError
from mmrlhf.files import expanded
from mmrlhf.suites.columns import Columns
from mmrlhf.suites.harness_program import tables_of
from mmrlhf.text import first_line

# pictures can be large, so few rows are held at once
_ROWS_AT_ONCE = 64
_COMMIT = re.compile("[0-9a-f]{40}")
_PART = re.compile(r"(.*-)(\d+)-of-(\d+)(.*)")
_CLIPS = "videos"
# seconds that a hub may take to say what it has
_PATIENCE = 20.0
_HUB_ERRORS = (HfHubHTTPError, LocalEntryNotFoundError, HTTPError, OSError, ValueError)


@cache
def pinned_revisions() -> Mapping[str, str]:
    """Benchmark -> commit of its data that is read where the user names none."""
    return yaml.safe_load((Path(__file__).parent / "revisions.yaml").read_text(encoding="utf-8"))


def fetch(columns: Columns, revision: str | None) -> Path:
    """The folder of a published data set, downloaded or from the hub library's cache: what is read of it, no more.

    Raises:
        HubError: it is not there, gated, of no such revision or another layout, or the hub cannot be reached.
    """
    wanted, at = revision or "main", f"{columns.repo}@{revision or 'main'}"
    try:
        known = HfApi().dataset_info(columns.repo, revision=wanted, timeout=_PATIENCE)
        # of VQAv2's 45 GB the validation questions alone
        every = [file.rfilename for file in known.siblings or ()]
        tables = tables_of(every, columns.subset, columns.split)
        names = [escape(name) for name in (*tables, *(name for name in every if name.startswith(f"{_CLIPS}/")))]
        if tables:
            commit = known.sha or wanted
            return Path(snapshot_download(columns.repo, repo_type="dataset", revision=commit, allow_patterns=names))
    except _HUB_ERRORS as error:
        if (cached := _cached(columns, wanted)) is not None:
            return cached
        raise HubError("a benchmark cannot be fetched", where=at, given=first_line(error)) from error
    raise HubError("a benchmark has another layout", where=at, given=", ".join(every[:5]), expected=_said(columns))


def _cached(columns: Columns, revision: str) -> Path | None:
    """What the hub library's cache has of a revision, None without any; whether it is complete, its reader finds."""
    wanted = [f"*{columns.subset or ''}*/{columns.split}-*.parquet", f"{columns.split}-*.parquet"]
    try:
        return Path(
            snapshot_download(
                columns.repo, repo_type="dataset", revision=revision, allow_patterns=wanted, local_files_only=True
            )
        )
    except _HUB_ERRORS:
        return None


def hub_answers() -> bool:
    """Whether the hub can be reached at all."""
    try:
        get_session().head(constants.ENDPOINT, timeout=_PATIENCE)
        return True
    except _HUB_ERRORS:
        return False


def revision_of(folder: Path) -> str | None:
    """The commit that a folder of the hub library's cache holds (`snapshots/COMMIT`); None for any other folder."""
    return folder.name if folder.parent.name == "snapshots" and _COMMIT.fullmatch(folder.name) else None


def parquet_files(folder: Path, columns: Columns) -> list[Path]:
    """The files of a benchmark's subset and split below a folder (`tables_of`).

    Raises:
        DataError: there is none, or one of `-00000-of-00003` and its like is missing.
    """
    root = expanded(folder)
    every = [path.relative_to(root).as_posix() for path in root.rglob("*.parquet") if path.is_file()]
    tables = tables_of(every, columns.subset, columns.split)
    if not tables:
        given = f"only {', '.join(sorted(every)[:3])}" if every else ""
        raise DataError(
            "there are no Parquet files of a benchmark here", where=folder, given=given, expected=_said(columns)
        )
    if missing := _missing_parts(tables):
        raise DataError(
            "a benchmark's files are not complete", where=folder,
            given=f"no {', '.join(missing[:3])}" + (f" and {len(missing) - 3} more" if len(missing) > 3 else ""),
            expected="all parts of a table", fix="download the folder again",
        )  # fmt: skip
    return [root / name for name in tables]


def _missing_parts(names: Sequence[str]) -> list[str]:
    """Of tables in numbered parts, those that are not there."""
    parts = [found for name in names if (found := _PART.fullmatch(name)) and int(found[3]) < 10_000]
    # a hash behind the number differs between parts
    have = {(found[1], found[3], int(found[2])) for found in parts}
    tables = {(start, total, len(found[2])) for found in parts for start, total in [(found[1], found[3])]}
    return [
        f"{start}{number:0{width}}-of-{total}.parquet"
        for start, total, width in sorted(tables)
        for number in range(int(total))
        if (start, total, number) not in have
    ]


def _said(columns: Columns) -> str:
    where = f"{columns.subset}/" if columns.subset else ""
    return f"{where}{columns.split}-*.parquet with columns {', '.join(columns.needs)}, as {columns.repo} has them"


def read_rows(
    folder: Path, columns: Columns, *, limit: int | None, seed: int
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield (number, row) of a benchmark: all, or `limit` of them drawn at random, in their order.

    Raises:
        DataError: no file, or one that is damaged.
    """
    files = parquet_files(folder, columns)
    try:
        counts = [pq.read_metadata(path).num_rows for path in files]
        total, start = sum(counts), 0
        chosen = np.arange(total)
        if limit is not None and limit < total:
            chosen = np.sort(np.random.default_rng(seed).permutation(total)[:limit])
        for path, count in zip(files, counts, strict=True):
            own = chosen[(chosen >= start) & (chosen < start + count)] - start
            yield from ((start + number, row) for number, row in _rows_of(path, own, expanded(folder)))
            start += count
    except (pa.ArrowException, OSError) as error:
        raise DataError("a benchmark's file cannot be read", where=folder, given=first_line(error)) from error


def _rows_of(path: Path, wanted: np.ndarray, root: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if len(wanted) == 0:
        return
    start, numbers = 0, set(wanted.tolist())
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE):
            own = [n for n in range(len(batch)) if start + n in numbers]
            for n, row in zip(own, batch.take(pa.array(own, pa.int64())).to_pylist(), strict=True):
                yield start + n, _with_clip(row, root)
            start += len(batch)


def _with_clip(row: dict[str, Any], root: Path) -> dict[str, Any]:
    """A row that names a clip, with the clip: its file lies in `videos/`."""
    if "video" not in row and isinstance(row.get("videoID"), str):
        path = root / _CLIPS / f"{row['videoID']}.mp4"
        return {**row, "video": path.read_bytes() if path.is_file() else None}
    return row
