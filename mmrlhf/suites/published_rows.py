"""Where a benchmark's rows come from: a folder of Parquet files in the published columns, the user's or a hub's."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,  # of the HTTP client that this hub library uses: # pyright: ignore[reportPrivateImportUsage]
    LocalEntryNotFoundError,
)

from mmrlhf.errors import DataError, HubError
from mmrlhf.files import expanded
from mmrlhf.suites.columns import Columns
from mmrlhf.text import first_line

# pictures can be large, so few rows are held at once
_ROWS_AT_ONCE = 64
_COMMIT = re.compile("[0-9a-f]{40}")


def fetch(columns: Columns, revision: str | None) -> Path:
    """The folder of a published data set, downloaded or from the hub library's cache.

    Raises:
        HubError: it is not there, gated, of no such revision, or the hub cannot be reached.
    """
    pattern = "*.parquet" if columns.subset is None else f"*{columns.subset}*/*.parquet"
    try:
        return Path(
            snapshot_download(
                columns.repo, repo_type="dataset", revision=revision, allow_patterns=[pattern, "videos/*", "*.parquet"]
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, HTTPError, OSError, ValueError) as error:
        at = f"{columns.repo}@{revision or 'main'}"
        raise HubError("a benchmark cannot be fetched", where=at, given=first_line(error)) from error


def revision_of(folder: Path) -> str | None:
    """The commit that a folder of the hub library's cache holds (`snapshots/COMMIT`); None for any other folder."""
    return folder.name if folder.parent.name == "snapshots" and _COMMIT.fullmatch(folder.name) else None


def parquet_files(folder: Path, columns: Columns) -> list[Path]:
    """The files of a benchmark's split below a folder: those that its name is in, or all where it is in none.

    Raises:
        DataError: there is no Parquet file.
    """
    every = sorted(path for path in expanded(folder).rglob("*.parquet") if path.is_file())
    if not every:
        raise DataError("there are no Parquet files of a benchmark here", where=folder, expected=_said(columns))
    of_subset = [path for path in every if columns.subset is not None and columns.subset in path.parts] or every
    return [path for path in of_subset if path.name.startswith(columns.split)] or of_subset


def _said(columns: Columns) -> str:
    return f"{columns.split}-*.parquet with columns {', '.join(columns.needs)}, as {columns.repo} has them"


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
        path = root / "videos" / f"{row['videoID']}.mp4"
        return {**row, "video": path.read_bytes() if path.is_file() else None}
    return row
