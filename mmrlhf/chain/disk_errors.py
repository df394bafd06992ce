"""What a disk refuses, told as a mistake of the user's: it is full, read-only, closed to this user, or taken."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmrlhf.errors import Lines, UserError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_REFUSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.EIO, errno.ESTALE})
# something else stands there already, or above
_TAKEN = frozenset({errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENOTEMPTY})
# what libraries that write without Python's own files say (Arrow, safetensors, torch.save)
_FULL_WORDS = ("No space left on device", "Disk quota exceeded", "os error 28", "os error 122",
               "PytorchStreamWriter failed", "basic_ios::clear: iostream error")  # fmt: skip


@contextmanager
def disk_errors(*folders: Path) -> Iterator[None]:
    """Raise what a disk refuses in the block as a UserError; every other exception passes as it is.

    Args:
        folders: written to in the block; a full disk is told with what is free there and in the temporary folder.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        told = _told(error, folders)
        if told is None:
            raise
        raise told from error


def _told(error: BaseException, folders: tuple[Path, ...]) -> UserError | None:
    for cause in _causes(error):
        place = getattr(cause, "filename", None)
        number = cause.errno if isinstance(cause, OSError) else None
        if number in _FULL or any(words in str(cause) for words in _FULL_WORDS):
            places = ([Path(str(place)).parent] if place is not None else []) + [*folders, Path(tempfile.gettempdir())]
            return UserError(
                "a disk is full",
                where=place if place is not None else (folders[0] if folders else None),
                given=Lines(_free(folder) for folder in dict.fromkeys(map(_existing, places))),
                fix="free some (`artifacts prune` lists what no run uses), or choose another disk: "
                "paths.artifacts=DIR, paths.outputs=DIR, TMPDIR=DIR; the same command goes on from what is finished",
            )
        if number in _REFUSED and place is not None:
            return UserError(
                "a file or folder cannot be used",
                where=place,
                given=cause.strerror,  # type: ignore[union-attr]
                expected="what is read can be read, and what is written can be written, by the user who runs this",
                fix="change its permissions, or choose another place: paths.artifacts=DIR, paths.outputs=DIR",
            )
        if number in _TAKEN and place is not None:
            return UserError(
                "a file or folder cannot be made here",
                where=place,
                given=cause.strerror,  # type: ignore[union-attr]
                expected="a file where a file belongs, a folder where a folder does, and folders above",
                fix="move away what is there, or choose another place: paths.artifacts=DIR, paths.outputs=DIR",
            )
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception, and what it was raised from or beside."""
    seen: set[int] = set()  # libraries make circles of them
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _existing(folder: Path) -> Path:
    return next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())


def _free(folder: Path) -> str:
    return f"{shutil.disk_usage(folder).free / 2**20:,.0f} MiB free in {folder}"
