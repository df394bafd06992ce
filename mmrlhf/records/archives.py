"""Unpack the archives that a data set ships into the folders its records name (`long/`, `short/`, `video/`, ...)."""

from __future__ import annotations

import gzip
import lzma
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

from mmrlhf.errors import DataError

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
_IGNORED = "__MACOSX"
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_BLOCK = 1 << 20

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
        # by its first bytes: a tar that ends in a zip file is a tar
        with archive.open("rb") as stream:
            unpack_kind = _unpack_zip if stream.read(4) in _ZIP else _unpack_tar
        return unpack_kind(archive, root, watch)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError,
            NotImplementedError, RuntimeError) as error:  # fmt: skip
        # zipfile's word for a password is RuntimeError, for a method that it lacks NotImplementedError
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
        _check_room(archive, root, sum(m.file_size for m in members))
        for member in watch(members, f"unpacking {archive.name}", len(members)):
            source.extract(member, target)
    return len(members)


def _unpack_tar(archive: Path, root: Path, watch: Watch) -> int:
    packed = archive.name.lower().endswith(("gz", "tgz"))
    with (
        (gzip.open if packed else open)(archive, "rb") as stream,
        tarfile.open(fileobj=stream, mode="r:", encoding="utf-8") as source,
    ):
        members = [m for m in source.getmembers() if m.isfile()]
        while stream.read(_BLOCK):
            pass  # to the end, where gzip compares its checksum
        target = _target(archive, root, [m.name for m in members])
        _check_room(archive, root, sum(m.size for m in members))
        for member in watch(members, f"unpacking {archive.name}", len(members)):
            source.extract(member, target, filter="data")
    return len(members)


def _check_room(archive: Path, root: Path, needed: int) -> None:
    root.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(root).free
    if needed > free:
        raise DataError(
            "an archive does not fit on the disk once it is unpacked",
            where=archive,
            given=f"{needed / 2**30:.1f} GiB",
            expected=f"at most the {free / 2**30:.1f} GiB that are free",
            fix=f"make room below {root}, or unpack it elsewhere and give that folder as data.root",
        )


def _target(archive: Path, root: Path, names: list[str]) -> Path:
    """Choose the root itself when every member already lies in the archive's own folder, else that folder."""
    stem = archive_stem(archive.name) or archive.stem
    tops = {next((part for part in PurePosixPath(name).parts if part != "."), "") for name in names}
    return root if tops == {stem} else root / stem
