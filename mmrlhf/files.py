"""Paths and addresses, and files and folders that a reader never sees half of."""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mmrlhf.errors import ConfigError, DataError
from mmrlhf.text import without_credentials

# from so many files on, one flush of the whole machine is cheaper than one for each
_MANY_FILES = 256
_UNFINISHED = re.compile(r"\..+\.[0-9a-f]{16}\.part")
# a picture or clip is read whole; what is larger is no sample (or a sparse file that claims to be)
LARGEST_FILE = 4 << 30


def is_remote(place: object) -> bool:
    """Say whether a place is an address (`https://...`, `s3://...`) and no path."""
    return isinstance(place, str) and "://" in place


def hide_credentials(value: Any) -> Any:
    """Copy text, or settings at any depth, with `***` for user and password, or secret parameters, of addresses."""
    if isinstance(value, str):
        return without_credentials(value)
    if isinstance(value, Mapping):
        return {hide_credentials(key): hide_credentials(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [hide_credentials(item) for item in value]
    return value


def mask_files(folder: Path, pattern: str) -> None:
    """Hide credentials in text files that another program has written, where they have any."""
    for path in folder.glob(pattern):
        text = path.read_text(encoding="utf-8")
        masked = hide_credentials(text)
        if masked != text:
            write_bytes(path, masked.encode())


class MaskCredentials(logging.Filter):
    """Hides credentials in what a handler writes."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Pass on every record, its message masked."""
        text = record.getMessage()
        if (masked := hide_credentials(text)) != text:
            record.msg, record.args = masked, ()
        return True


def publish_file(part: Path, final: Path) -> None:
    """Give a finished file its name, after flushing it to disk: it is there in full, also after a power cut, or not."""
    _sync(part)
    os.replace(part, final)
    _sync_folder(final.parent)


def publish_folder(part: Path, final: Path) -> None:
    """Give a finished folder its name, after flushing everything in it; a folder that has the name is replaced.

    What writers that were killed left unfinished in it is removed.
    """
    for leftover in [path for path in part.rglob(".*.part") if _UNFINISHED.fullmatch(path.name)]:
        _remove(leftover)
    files = [path for path in part.rglob("*") if path.is_file() and not path.is_symlink()]
    if len(files) < _MANY_FILES:
        for path in files:
            _sync(path)
        for folder in {part, *(path.parent for path in files)}:
            _sync_folder(folder)
    else:
        os.sync()
    replaced = _unfinished(final)
    with suppress(FileNotFoundError):
        os.rename(final, replaced)
    os.rename(part, final)
    _sync_folder(final.parent)
    _remove(replaced)


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """Yield a place beside `path` to write to; what is there at the end becomes `path`, after an error nothing does.

    The place is unique, whatever other processes on this machine or another write at the same time.
    """
    part = _unfinished(path)
    try:
        yield part
        publish_file(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that a reader never sees half of it."""
    with written(path) as part:
        part.write_bytes(data)


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that a reader never sees half of it."""
    write_bytes(path, (json.dumps(content, indent=2) + "\n").encode())


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _unfinished(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # some network file systems cannot flush a folder
        _sync(folder)


def read_lines(path: Path) -> list[str]:
    """Read the lines of a file of ours, split at line feeds only: a text may hold every other sort of line break.

    A last line that no line feed ends, as a crash leaves it, is the last item; it is empty otherwise.

    Raises:
        DataError: bytes that are not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise DataError("a file is not UTF-8", where=path, given=str(error), fix="write it again as UTF-8") from error


def expanded(path: Path | str) -> Path:
    """A path with `~` and `~user` replaced by home folders.

    Raises:
        ConfigError: there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(
            "a path begins with a home folder that does not exist",
            given=path, expected="~/... for your own, or ~USER/... of a user of this machine",
            fix=f"write ./{path} for a folder of that name",
        ) from error  # fmt: skip


def short_path(path: Path) -> str:
    """Write a path as a user would type it: relative where it lies below the working directory, absolute elsewhere."""
    path = Path(path).absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def read_regular(path: Path, *, what: str = "file", limit: int = LARGEST_FILE) -> bytes:
    """Read a file whole: a regular one, of a size that memory holds. A pipe or a device would be waited for for ever.

    Args:
        what: what to call it in an error.
        limit: bytes that it may have.

    Raises:
        DataError: it is missing, no regular file, larger than the limit, or cannot be read.
    """
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise DataError(f"{what} is no regular file", where=path, given=stat.filemode(facts.st_mode))
            if facts.st_size > limit:
                raise DataError(
                    f"{what} is too large to read whole",
                    where=path, given=f"{facts.st_size} bytes", expected=f"at most {limit} bytes",
                )  # fmt: skip
            return file.read()
    except OSError as error:
        raise DataError(f"{what} cannot be read", where=path, given=error.strerror or str(error)) from error
