"""Work that goes on after a stop: finished parts in a folder, each with what made it.

`Parts` keeps JSON by name. A folder whose parts have a form of their own (a table's Parquet files) says once what makes
them: `begin`. Both refuse what something else has made, and name the difference.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from mmrlhf.errors import DataError
from mmrlhf.files import is_remote, read_regular, write_json
from mmrlhf.trees import flat

# in the folder of a stage that is finished, says what made it: from then on the folder is reused as it is
ARTIFACT_FILE = "artifact.json"
MADE_BY, CHECKSUM = "made_by", "crc32"
_ABSENT = "nothing"
# folders between a file of an artefact and its own, and one more: `rewards/parts/FILE`
_DEEPEST = 3


class Parts:
    """Finished parts of a piece of work, `NAME.json` in a folder, each with what made it and a checksum.

    A part appears by rename, so it is there in full or not at all; several processes may write at once, also the same
    part: the last one stays.

    Args:
        folder: where they are; made with the first.
        made_by: what determines their content; JSON-able.
        what: what the work is called in an error.
    """

    def __init__(self, folder: Path, made_by: Mapping[str, Any], *, what: str) -> None:
        self.folder, self.what = folder, what
        self.made_by: dict[str, Any] = _as_stored(made_by)

    def read(self, name: str) -> dict[str, Any] | None:
        """The content of a part; None where it is still to be made.

        Raises:
            DataError: it is damaged, or something else has made it; the message says what differs.
        """
        path = self._path(name)
        if not path.exists():
            return None
        try:
            stored = json.loads(read_regular(path, what=f"part of {self.what}"))
            made_by, checksum = (stored.pop(field, None) for field in (MADE_BY, CHECKSUM))
            if not isinstance(made_by, dict) or checksum != _checksum(stored):
                raise ValueError("its content does not fit its checksum")
        except (ValueError, RecursionError, AttributeError, TypeError) as error:
            raise DataError(
                f"part of {self.what} is damaged",
                where=path, given=str(error),
                fix=remedy(path, "delete this file and run again: only this part is made anew"),
            ) from error  # fmt: skip
        require_same(made_by, self.made_by, where=path, what=f"part of {self.what}")
        return stored

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Keep a finished part."""
        if {MADE_BY, CHECKSUM} & set(content):
            raise ValueError(f"{MADE_BY} and {CHECKSUM} are a part's own: {sorted(content)}")
        self.folder.mkdir(parents=True, exist_ok=True)
        stored = _as_stored(content)
        write_json(self._path(name), {MADE_BY: self.made_by, CHECKSUM: _checksum(stored), **stored})

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"


def begin(record: Path, made_by: Mapping[str, Any], *, what: str, read: Callable[[], Mapping[str, Any]]) -> None:
    """Write down what makes the parts of a folder, or compare it with what is there; several processes may do so.

    Args:
        record: the file in that folder.
        what: what the parts are called in an error.
        read: reads the record; raises DataError where it is damaged.

    Raises:
        DataError: something else has begun them; the message says what differs.
    """
    record.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(record.with_name(f".{record.name}.lock")):
        if not record.exists():
            write_json(record, made_by)
            return
        stored = read()
    require_same(stored, _as_stored(made_by), where=record.parent, what=what)


def require_same(stored: Mapping[str, Any], now: Mapping[str, Any], *, where: Path, what: str) -> None:
    """Refuse, with DataError, to go on with what something else has made; names every difference."""
    old, new = flat(stored), flat(now)
    differs = [name for name in sorted({*old, *new}) if old.get(name, _ABSENT) != new.get(name, _ABSENT)]
    if differs:
        raise DataError(
            f"{what} was made by something else",
            where=where,
            given="; ".join(
                f"{name}: before {old.get(name, _ABSENT)!r}, now {new.get(name, _ABSENT)!r}" for name in differs
            ),
            expected="the same as when it was begun",
            fix="write to another folder, or delete this one",
        )


def remedy(path: Path | str, unfinished: str) -> str:
    """What to do about a damaged file or folder: `unfinished`, or, as nothing goes on with an artefact, without that.

    Args:
        unfinished: what helps where the folder is still under work, or is no artefact.
    """
    artifact = artifact_of(path)
    if artifact is None:
        return unfinished
    whole = artifact.resolve()  # a run's folder links to it
    return f"delete {whole}, which is reused as long as it is there, and run again: its stage makes it anew"


def artifact_of(path: Path | str) -> Path | None:
    """The finished artefact that a path is, or points into (its `model`, a part of its table); None for none."""
    if is_remote(path):
        return None
    above = (Path(path), *list(Path(path).resolve().parents)[:_DEEPEST])
    return next((folder for folder in above if (folder / ARTIFACT_FILE).is_file()), None)


def _as_stored(value: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(value))


def _checksum(content: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(content).encode()):08x}"
