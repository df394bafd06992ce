"""Unpack the archives that a data set ships into the folders its records name (`long/`, `short/`, `video/`, ...)."""

from __future__ import annotations

import errno
import gzip
import logging
import lzma
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import IO, cast

from mmrlhf.errors import DataError
from mmrlhf.records.tars import tar_members

log = logging.getLogger(__name__)

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
_IGNORED = "__MACOSX"
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_BLOCK = 1 << 20
# zipfile's word for a password is RuntimeError, for a method that it lacks a kind of it; the others are what its parts
# say of numbers and names that are none
_DAMAGE = (
    zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, struct.error,
    RuntimeError, ValueError, LookupError, ArithmeticError,
)  # fmt: skip
# what a file system says of a name that it cannot have, or not beside the others
_NAMES = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ)

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
    overwrites, so an interrupted run is simply repeated.

    Raises:
        DataError: the archive is damaged, does not fit on the disk, or has names that no folder can hold.
    """
    try:
        # by its first bytes: a tar that ends in a zip file is a tar
        with archive.open("rb") as stream:
            unpack_kind = _unpack_zip if stream.read(4) in _ZIP else _unpack_tar
        return unpack_kind(archive, root, watch)
    except DataError:
        raise
    except _DAMAGE as error:
        raise DataError(
            "an archive of the data set is damaged",
            where=archive,
            given=f"{type(error).__name__}: {error}",
            fix="delete this file and run again: it is fetched anew",
        ) from error
    except OSError as error:
        if error.errno not in _NAMES:
            raise
        raise DataError(
            "an archive of the data set has names that no folder can hold",
            where=archive, given=str(error), expected="short names, each of a file or of a folder",
            fix="unpack it by hand, under other names, and give that folder as data.root",
        ) from error  # fmt: skip


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
    with gzip.open(archive) if packed else archive.open("rb") as file:
        stream = cast(IO[bytes], file)
        found = [member for member in tar_members(stream) if not member.isdir()]
        while stream.read(_BLOCK):
            pass  # to the end, where gzip compares its checksum
        plain = {member.name: member for member in found if member.isreg() and not member.issparse()}
        # tar writes a file that has two names once, and then a hard link to the first
        files = {m.name: plain[m.linkname if m.islnk() else m.name] for m in found
                 if (m.linkname if m.islnk() else m.name) in plain}  # fmt: skip
        if len(files) < len({member.name for member in found}):
            log.warning(
                "%s: %d of %d members are links, sparse files or devices, and are not unpacked",
                archive.name, len(found) - len(files), len(found),
            )  # fmt: skip
        target = _target(archive, root, [*files])
        _check_room(archive, root, sum(member.size for member in files.values()))
        # a gzip file is read from its beginning again wherever it goes back
        ordered = sorted(files.items(), key=lambda item: item[1].offset_data)
        for name, member in watch(ordered, f"unpacking {archive.name}", len(files)):
            _write(stream, member, target, name)
    return len(files)


def _write(stream: IO[bytes], member: tarfile.TarInfo, target: Path, name: str) -> None:
    """Write one file of a tar; raises TarError where its name leads out of the folder, or its bytes end early."""
    path = target / tarfile.data_filter(member.replace(name=name), str(target)).name
    path.parent.mkdir(parents=True, exist_ok=True)
    stream.seek(member.offset_data)
    left = member.size
    with path.open("wb") as file:
        while left and (block := stream.read(min(left, _BLOCK))):
            left -= file.write(block)
    if left:
        raise tarfile.ReadError(f"{member.name} lacks {left} of {member.size} bytes")


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
