"""People's work in one SQLite file: every change is on the disk before it is acknowledged, and nothing is written over.

Drafts are kept beside submitted forms; of a form that is submitted again the earlier ones stay as its history.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from mmrlhf.annotation.filled_forms import Form, form_of
from mmrlhf.errors import DataError

SUFFIX = ".sqlite"
_WAIT = 30.0  # seconds for another process that is writing
_TABLES = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS drafts (key TEXT, annotator TEXT, form TEXT NOT NULL, at REAL NOT NULL,
                                   PRIMARY KEY (key, annotator));
CREATE TABLE IF NOT EXISTS submitted (id INTEGER PRIMARY KEY, key TEXT NOT NULL, annotator TEXT NOT NULL,
                                      form TEXT NOT NULL, at REAL NOT NULL);
CREATE INDEX IF NOT EXISTS by_annotator ON submitted (annotator, key);
"""


class FormStore:
    """The forms of all annotators of one set of queries.

    Args:
        path: of the database; made if it is not there.
        queries: digest of the shards; a database of others is refused.

    Raises:
        DataError: no database, or one of other queries.
    """

    def __init__(self, path: Path, queries: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self._lock = path, threading.Lock()
        try:
            self._database = sqlite3.connect(path, timeout=_WAIT, check_same_thread=False, isolation_level=None)
            # acknowledged is what is on the disk; no log beside the file, so that the file's time tells of a change
            self._database.execute("PRAGMA journal_mode=DELETE")
            self._database.execute("PRAGMA synchronous=FULL")
            self._database.executescript(_TABLES)
            self._database.execute("INSERT OR IGNORE INTO facts VALUES ('queries', ?)", (queries,))
            (found,) = self._database.execute("SELECT value FROM facts WHERE name = 'queries'").fetchone()
        except sqlite3.DatabaseError as error:
            raise _unreadable(path, error) from error
        if found != queries:
            self.close()
            raise DataError(
                "these annotations are of other queries", where=path, given=f"of the shards {found}", expected=queries,
                fix="give a folder of its own (runtime.annotations), or the shards that were annotated",
            )  # fmt: skip

    def keep_draft(self, form: Form) -> None:
        """Keep an unfinished form in place of its annotator's earlier draft of the query."""
        self._write("INSERT OR REPLACE INTO drafts VALUES (?, ?, ?, ?)", form)

    def submit(self, form: Form) -> None:
        """Keep a finished form; the draft goes."""
        with self._lock, self._database:
            self._database.execute("BEGIN IMMEDIATE")
            self._database.execute("INSERT INTO submitted (key, annotator, form, at) VALUES (?, ?, ?, ?)", _row(form))
            self._database.execute("DELETE FROM drafts WHERE key = ? AND annotator = ?", (form.key, form.annotator))

    def last(self, key: str, annotator: str) -> Form | None:
        """What an annotator said of a query: the draft, else what was submitted last."""
        for table, order in (("drafts", ""), ("submitted", "ORDER BY id DESC LIMIT 1")):
            query = f"SELECT form FROM {table} WHERE key = ? AND annotator = ? {order}"  # noqa: S608 - our own words
            rows = self._read(query, key, annotator)
            if rows:
                return _form(rows[0][0], self.path)
        return None

    def done(self) -> dict[str, set[str]]:
        """Key -> who has submitted a form for it."""
        found: dict[str, set[str]] = {}
        for key, annotator in self._read("SELECT DISTINCT key, annotator FROM submitted"):
            found.setdefault(key, set()).add(annotator)
        return found

    def drafts(self) -> list[tuple[str, str]]:
        """(key, annotator) of every draft, the latest first."""
        return self._read("SELECT key, annotator FROM drafts ORDER BY at DESC")

    def history(self, annotator: str) -> list[str]:
        """Keys that an annotator has submitted, in the order in which each was submitted first."""
        rows = self._read("SELECT key FROM submitted WHERE annotator = ? GROUP BY key ORDER BY MIN(id)", annotator)
        return [key for (key,) in rows]

    def forms(self) -> list[Form]:
        """Every annotator's last submitted form of every query, in the order of submission."""
        rows = self._read(_LAST)
        return [_form(text, self.path) for (text,) in rows]

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()

    def _write(self, statement: str, form: Form) -> None:
        with self._lock:
            self._database.execute(statement, _row(form))

    def _read(self, query: str, *values: str) -> list[Any]:
        with self._lock:
            return self._database.execute(query, values).fetchall()


_LAST = "SELECT form FROM submitted WHERE id IN (SELECT MAX(id) FROM submitted GROUP BY key, annotator) ORDER BY id"


def submitted_forms(path: Path) -> Iterator[Form]:
    """Every annotator's last submitted form of every query in a database, which may be in use.

    Raises:
        DataError: no database of the page.
    """
    if not path.is_file():
        raise DataError("no such database of annotations", where=path)
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=rw", timeout=_WAIT, uri=True)) as database:
            rows = database.execute(_LAST).fetchall()
    except sqlite3.DatabaseError as error:
        raise _unreadable(path, error) from error
    yield from (_form(text, path) for (text,) in rows)


def _row(form: Form) -> tuple[str, str, str, float]:
    return form.key, form.annotator, json.dumps(form.to_json()), form.at or time.time()


def _form(text: str, path: Path) -> Form:
    return form_of(json.loads(text), where=str(path))


def _unreadable(path: Path, error: sqlite3.DatabaseError) -> DataError:
    return DataError("the database of annotations cannot be read", where=path, given=error,
                     expected="a file that the annotation page wrote")  # fmt: skip
