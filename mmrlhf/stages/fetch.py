"""Stage `fetch`: bring a data set or a checkpoint from a Hugging Face hub into a plain folder.

It says what it is about to fetch first, goes on where an interrupted run stopped (file by file between runs, byte by
byte within one), and unpacks the archives of image and video folders that the MM-RLHF data set ships. Where no hub can
be reached it stops within seconds and says which two folders to give instead.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from glob import escape
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,  # of the HTTP client that this hub library uses: # pyright: ignore[reportPrivateImportUsage]
)
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
    filter_repo_objects,
)

from mmrlhf.chain.runtime import Runtime
from mmrlhf.errors import ConfigError, HubError, UserError
from mmrlhf.models.hub import format_bytes, hub_errors
from mmrlhf.records.archives import archive_stem, find_archives, unpack
from mmrlhf.terminal.progress import track

log = logging.getLogger(__name__)

RepoType = Literal["dataset", "model"]
_SECONDS_TO_ANSWER = 6.0
_ATTEMPTS = 3


@dataclass(frozen=True)
class Listing:
    """The files of one revision that are wanted: name -> bytes."""

    commit: str
    files: dict[str, int]

    @property
    def num_bytes(self) -> int:
        """Bytes of all wanted files."""
        return sum(self.files.values())

    def missing_bytes(self, folder: Path) -> int:
        """Bytes of the wanted files that are not yet in a folder at their full size."""
        return sum(size for name, size in self.files.items() if not _is_complete(folder / name, size))


# another number builds the stage anew, whatever `code` says
VERSION = 1
# what is in a finished artefact; checked before it is published
PROMISES = ("files",)


def run(
    out: Path,
    *,
    repo_id: str,
    repo_type: RepoType,
    revision: str | None = None,
    allow_patterns: list[str] | None = None,
    endpoint: str | None = None,
    runtime: Runtime,
) -> dict[str, Any]:
    """Fetch a repository into `out/files`; for a data set, unpack its archives there and drop them.

    Args:
        repo_id: repository on the hub.
        repo_type: `dataset` or `model`.
        revision: branch, tag or commit; None: the newest.
        allow_patterns: names of files to fetch, e.g. `["*.jsonl", "long.zip"]`; None: all.
        endpoint: address of another hub; None: the usual one (or the environment variable HF_ENDPOINT).

    Raises HubError where the hub cannot be reached or refuses, ConfigError where the patterns match no file,
    UserError where the disk is too small.
    """
    folder = out / "files"
    folder.mkdir(parents=True, exist_ok=True)
    with hub_errors(repo_id, revision):
        listing = list_files(repo_id, repo_type, revision or "main", allow_patterns, endpoint)
    unpacks = repo_type == "dataset"
    _announce(listing, folder, repo_id, unpacks)
    with hub_errors(repo_id, revision), _progress_bars(runtime.progress):
        _download(listing, folder, repo_id, repo_type, endpoint)
    unpacked = _unpack_all(folder, runtime) if unpacks else {}
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # the hub library's book-keeping, of no use any more
    return {
        "repo_id": repo_id,
        "repo_type": repo_type,
        "commit": listing.commit,
        "files": len(listing.files),
        "bytes": listing.num_bytes,
        "unpacked": unpacked,
    }


def list_files(
    repo_id: str, repo_type: RepoType, revision: str, allow_patterns: list[str] | None, endpoint: str | None
) -> Listing:
    """Ask the hub which files a revision has and how large they are, without fetching any.

    Raises ConfigError where no file matches `allow_patterns`, and the hub library's own errors.
    """
    api = HfApi(endpoint=endpoint)
    info = api.repo_info(
        repo_id, repo_type=repo_type, revision=revision, files_metadata=True, timeout=_SECONDS_TO_ANSWER
    )
    sizes = {file.rfilename: file.size or 0 for file in getattr(info, "siblings", None) or []}
    wanted = {name: sizes[name] for name in filter_repo_objects(sizes, allow_patterns=allow_patterns)}
    if not wanted:
        raise ConfigError(
            f"no file of {repo_id} matches",
            argument="allow_patterns",
            given=allow_patterns,
            expected="patterns such as *.jsonl or long.zip; the repository has " + ", ".join(sorted(sizes)[:20]),
        )
    return Listing(str(info.sha), wanted)


def _announce(listing: Listing, folder: Path, repo_id: str, unpacks: bool) -> None:
    """Log how much will be fetched, and refuse if it does not fit on the disk."""
    missing, free = listing.missing_bytes(folder), shutil.disk_usage(folder).free
    archives = sum(size for name, size in listing.files.items() if archive_stem(name) is not None) if unpacks else 0
    log.info(
        "%s at %s: %d files, %s, of which %s still to fetch%s; %s free on the disk",
        repo_id,
        listing.commit[:12],
        len(listing.files),
        format_bytes(listing.num_bytes),
        format_bytes(missing),
        f", then {format_bytes(archives)} of archives to unpack" if archives else "",
        format_bytes(free),
    )
    if missing + archives > free:
        raise UserError(
            f"{repo_id} does not fit on the disk",
            where=folder,
            given=f"{format_bytes(free)} free",
            expected=f"{format_bytes(missing + archives)} (download, and unpacked archives beside it)",
            fix="set paths.artifacts to a folder on a larger disk, or fetch less with allow_patterns",
        )


def _download(listing: Listing, folder: Path, repo_id: str, repo_type: RepoType, endpoint: str | None) -> None:
    """Download what is missing; cut transfers resume, other passing faults get a few fresh attempts."""
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            snapshot_download(
                repo_id,
                repo_type=repo_type,
                revision=listing.commit,
                local_dir=folder,
                allow_patterns=[escape(name) for name in listing.files],
                endpoint=endpoint,
            )
            break
        except (HTTPError, OSError) as error:
            passing = error.response.status_code >= 500 if isinstance(error, HfHubHTTPError) else True
            if attempt == _ATTEMPTS or not passing:
                raise
            log.warning("fetching %s was interrupted (%s); attempt %d of %d", repo_id, error, attempt + 1, _ATTEMPTS)
            time.sleep(attempt)
    # With its network gone the library may hand back the folder as it stands, so completeness is checked here.
    short = [name for name, size in listing.files.items() if not _is_complete(folder / name, size)]
    if short:
        raise HubError(
            f"{len(short)} of {len(listing.files)} files of {repo_id} did not arrive whole",
            where=folder,
            given=", ".join(short[:5]),
            fix="run again: files that are complete are kept",
        )


def _unpack_all(folder: Path, runtime: Runtime) -> dict[str, int]:
    """Unpack every archive once (a marker is left per finished one), then delete the archives and the markers."""
    markers = folder / ".unpacked"
    counts: dict[str, int] = {}
    archives = find_archives(folder)
    for archive in archives:
        marker = markers / archive.name
        if not marker.exists():
            number = unpack(archive, folder, watch=partial(track, enabled=runtime.progress))
            markers.mkdir(exist_ok=True)
            marker.write_text(str(number), encoding="utf-8")
        counts[archive.name] = int(marker.read_text(encoding="utf-8"))
    for archive in archives:
        archive.unlink()
    shutil.rmtree(markers, ignore_errors=True)
    return counts


@contextmanager
def _progress_bars(shown: bool) -> Iterator[None]:
    """Show or hide the hub library's own bars, and leave its setting as it was."""
    hide = not shown and not are_progress_bars_disabled()
    if hide:
        disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            enable_progress_bars()


def _is_complete(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size
