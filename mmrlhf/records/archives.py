"""Unpack the archives that a data set ships into the folders its records name (`long/`, `short/`, `video/`, ...)."""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

from mmrlhf.errors import DataError

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
_IGNORED = "__MACOSX"

Watch = Callable[[Iterable, str, int], Iterable]


def archive_stem(name: str) -> str | None:
    """Say what an archive's name is without its suffix, or None if it is no archive that can be unpacked here."""
    return next((name[: -len(suffix)] for suffix in SUFFIXES if name.lower().endswith(suffix)), None)


def find_archives(folder: Path) -> list[Path]:
    """List the archives directly inside a folder, sorted by name."""
    return sorted(path for path in folder.iterdir() if path.is_file() and archive_stem(path.name) is not None)


def unpack(archive: Path, root: Path, *, watch: Watch) -> int:
    """Unpack one archive so that its files lie where records expect them, and count the files.

    `long.zip` becomes `root/long/...`, whether or not its members already start with `long/`. Unpacking again
    overwrites, so an interrupted run is simply repeated. Raises DataError if the archive is damaged.
    """
    try:
        if zipfile.is_zipfile(archive):
            return _unpack_zip(archive, root, watch)
        return _unpack_tar(archive, root, watch)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise DataError(
            "an archive of the data set is damaged",
            where=archive,
            given=str(error),
            fix="delete this file and run again: it is fetched anew",
        ) from error


def _unpack_zip(archive: Path, root: Path, watch: Watch) -> int:
    with zipfile.ZipFile(archive) as source:
        members = [m for m in source.infolist() if not m.is_dir() and not m.filename.startswith(_IGNORED)]
        target = _target(archive, root, [m.filename for m in members])
        for member in watch(members, f"unpacking {archive.name}", len(members)):
            source.extract(member, target)
    return len(members)


def _unpack_tar(archive: Path, root: Path, watch: Watch) -> int:
    with tarfile.open(archive) as source:
        members = [m for m in source.getmembers() if m.isfile()]
        target = _target(archive, root, [m.name for m in members])
        for member in watch(members, f"unpacking {archive.name}", len(members)):
            source.extract(member, target, filter="data")
    return len(members)


def _target(archive: Path, root: Path, names: list[str]) -> Path:
    """Choose the root itself when every member already lies in the archive's own folder, else that folder."""
    stem = archive_stem(archive.name) or archive.stem
    tops = {next((part for part in PurePosixPath(name).parts if part != "."), "") for name in names}
    return root if tops == {stem} else root / stem
