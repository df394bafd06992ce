"""Where a record's media lie: a path as people write it, found below the data folder or named as what it is.

Read as they are meant: absolute paths and `file:` addresses below the data folder, other Unicode forms of a name (a Mac
writes NFD), and the backslashes of Windows where no file has that very name.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from mmrlhf.conversation import IMAGE
from mmrlhf.errors import DataError
from mmrlhf.records.fields import MediaItem
from mmrlhf.records.member_names import VIDEO_SUFFIXES
from mmrlhf.text import one_line

# A longer value is no path: file systems take names of 255 bytes, and people write a few folders.
LONGEST_SHOWN = 120
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_BASE64 = re.compile(r"(?:data:[\w/.+-]*;base64,)?[A-Za-z0-9+/\s]{64,}(?:={1,2}\s*)?")


def locate(root: Path, given: str) -> Path:
    """Return the place of a media file below root, whether or not it exists; links that the user put there are fine.

    Raises:
        DataError: a path that leaves the root, an address, base64 that is no picture, or what no file system takes.
    """
    path = _below(root, _without_scheme(given), given)
    try:
        return path if path.exists() else next((other for other in _spellings(root, path) if other.exists()), path)
    except (OSError, ValueError) as error:
        raise _base64(given) or DataError(
            "media path is not usable", where=shown(given), given=shown(str(error))
        ) from error


def locate_video(root: Path, given: str) -> Path:
    """Find a video as a file, as a file whose extension the record left out, or as a folder of frames.

    Raises:
        DataError: none of them exists.
    """
    path = locate(root, given)
    if path.exists():
        return path
    for suffix in VIDEO_SUFFIXES:
        candidate = path.with_name(f"{path.name}.{suffix}")
        if candidate.is_file():
            return candidate
    if path.suffix[1:].lower() in VIDEO_SUFFIXES and path.with_suffix("").is_dir():
        return path.with_suffix("")
    raise missing(root, path, given)


def missing(root: Path, path: Path, given: str) -> DataError:
    """The error for a medium that is not there: where it was looked for, and what it may be meant to be."""
    if (base64 := _base64(given)) is not None:
        return base64
    if path.is_dir():
        return DataError("media file is a folder", where=shown(given), given=f"{shown(path)} is a folder")
    near = next((f"there is {other.relative_to(root)}" for other in _nearly(root, path) if other.is_file()), None)
    return DataError(
        "media file is missing",
        where=shown(given),
        given=f"nothing at {shown(path)}" + (f"; {near}" if near else ""),
        expected=f"a file below {root}",
        fix="write the name as the file has it" if near else
        "give the folder that the paths are relative to: data.root, and importer.media_folder below it",
    )  # fmt: skip


def category_of(media: Sequence[MediaItem]) -> str:
    """Return the first folder of the first medium's path, a picture's before a video's, or "unknown".

    That is the released layout's category.
    """
    pictures = [item for item in media if item.slot == IMAGE] or media
    first = pictures[0].ref if pictures else None
    parts = PurePosixPath(os.path.normpath(first)).parts if isinstance(first, str) and first else ()
    return parts[0] if len(parts) > 1 and parts[0] not in ("/", "..") else "unknown"


def shown(value: object) -> str:
    """A path as an error shows it: one line, and what is longer than a path loses its middle."""
    return one_line(value, LONGEST_SHOWN)


def _without_scheme(given: str) -> str:
    """The path that a `file:` address means, or the value itself; other addresses are refused."""
    if given.startswith("file:"):
        return unquote(urlsplit(given).path)
    if _ADDRESS.match(given):
        raise DataError(
            "media are at an address",
            where=shown(given), expected="a file below the data folder",
            fix="fetch the files first: nothing is fetched while records are read",
        )  # fmt: skip
    return given


def _base64(given: str) -> DataError | None:
    if len(given) <= LONGEST_SHOWN or _BASE64.fullmatch(given) is None:
        return None
    return DataError(
        "media field holds base64 that is neither a picture nor a clip",
        where=shown(given), given=f"{len(given):,} characters of base64",
        expected="a path below the data folder, or base64 of a picture or clip",
    )  # fmt: skip


def _below(root: Path, path: str, given: str) -> Path:
    """root/path, where an absolute path counts if it lies below the root."""
    steps = PurePosixPath(os.path.normpath(path))
    if steps.is_absolute() and "\0" not in path:
        for base in (root.absolute(), root.resolve()):
            if steps.is_relative_to(base):
                return root / steps.relative_to(base)
    windows = _DRIVE.match(path) is not None
    if steps.is_absolute() or ".." in steps.parts or "\0" in path or windows or steps.parts[:1] == ("~",):
        raise DataError(
            "media path leaves the data folder",
            where=shown(given),
            given="a path of a Windows machine" if windows else f"relative to {root}",
            expected=f"a path below the data folder, or an absolute one in {root}",
            fix="write the paths relative to the data folder, or give the folder that holds the files as data.root",
        )
    return root / steps


def _spellings(root: Path, path: Path) -> Iterator[Path]:
    """The same path with the name's other Unicode forms, and with slashes for backslashes."""
    relative = str(path.relative_to(root))
    for text in dict.fromkeys((relative, relative.replace("\\", "/"))):
        for form in (text, unicodedata.normalize("NFC", text), unicodedata.normalize("NFD", text)):
            steps = PurePosixPath(os.path.normpath(form))
            if form != relative and ".." not in steps.parts and not steps.is_absolute():
                yield root / steps


def _nearly(root: Path, path: Path) -> Iterator[Path]:
    """Paths that differ in what is easily overlooked: white space around it, escapes, letters of the suffix."""
    relative = str(path.relative_to(root))
    stem, dot, suffix = relative.rpartition(".")
    for text in (relative.strip(), unquote(relative), stem + dot + suffix.lower(), stem + dot + suffix.upper()):
        steps = PurePosixPath(os.path.normpath(text))
        if text != relative and "\0" not in text and ".." not in steps.parts and not steps.is_absolute():
            yield root / steps
