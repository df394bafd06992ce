"""Answers that were paid for, by what was asked: one file for all runs, of which a crash loses none.

A request that was answered, or refused for good, is never asked again, whichever stage or run asks. What failed for a
reason that may pass is not kept. SQLite, because several runs may ask at once, and a million answers are looked up one
by one.
"""

from __future__ import annotations

import errno
import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from mmrlhf.endpoints.completions import Answer, Use
from mmrlhf.errors import DataError

FILE = "answers.sqlite"
# seconds for which one run waits while another one writes
_PATIENCE = 120.0


def request_digest(request: Mapping[str, Any]) -> str:
    """64 hex digits for what is asked, of whom and how."""
    return hashlib.sha256(json.dumps(request, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


class AnswerStore:
    """Answers by the digests of their requests; a context that closes the file behind it.

    Args:
        folder: where the file is, made where there is none.

    Raises:
        DataError: the file is damaged.
    """

    def __init__(self, folder: Path | str) -> None:
        self.path = Path(folder) / FILE
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = sqlite3.connect(self.path, timeout=_PATIENCE, isolation_level=None)
        try:
            with self._told():
                self._file.execute(
                    "CREATE TABLE IF NOT EXISTS answers (digest TEXT PRIMARY KEY, "
                    "text TEXT NOT NULL, problem TEXT NOT NULL, about TEXT NOT NULL) WITHOUT ROWID"
                )
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def get(self, digest: str) -> Answer | None:
        """The answer to a request; None where it has none."""
        with self._told():
            row = self._file.execute("SELECT text, problem, about FROM answers WHERE digest = ?", (digest,)).fetchone()
            if row is None:
                return None
            about = json.loads(row[2])
            return Answer(row[0], row[1], use=Use(**{**about, "tries": tuple(about["tries"])}))

    def add(self, digest: str, answer: Answer) -> None:
        """Keep an answer that is final; it is on the disk when this returns."""
        if answer.failed:
            raise ValueError(f"an answer that failed is none: {answer.problem}")
        with self._told():
            self._file.execute(
                "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?)",
                (digest, answer.text, answer.problem, json.dumps(asdict(answer.use))),
            )

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Raise what SQLite says as what it is: a full disk, or a file that is none of ours."""
        try:
            yield
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
                raise OSError(errno.ENOSPC, "No space left on device", str(self.path)) from error
            raise DataError(
                "the file of answers cannot be used", where=self.path, given=str(error),
                fix="let one run end, or choose another place: runtime.answers=DIR",
            ) from error  # fmt: skip
        except (sqlite3.DatabaseError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                "the file of answers is damaged", where=self.path, given=str(error),
                fix="bring a copy back, or move it away: its answers are asked for again",
            ) from error  # fmt: skip
