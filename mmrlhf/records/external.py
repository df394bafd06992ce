"""What has to be remembered over all rows of an input, kept on the disk: first places, and items put together by key.

SQLite holds it in a file of its own in the folder for temporary files (`SQLITE_TMPDIR`, `TMPDIR`), which is gone when
the import is over, however it ends. In memory stays SQLite's cache, whatever the number of rows; below its size nothing
is written at all. So an input of any length is read once: each row goes by, and what must wait for later rows waits
here.
"""

from __future__ import annotations

import hashlib
import pickle
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from operator import itemgetter
from typing import Generic, TypeVar

from mmrlhf.errors import UserError

T = TypeVar("T")

CACHE_MIB = 48


class FirstPlaces:
    """Where each key came up first."""

    def __init__(self, cache_mib: int = CACHE_MIB) -> None:
        self._table = _open(cache_mib, "CREATE TABLE first (key BLOB PRIMARY KEY, place TEXT) WITHOUT ROWID")

    def add(self, key: str, place: str) -> str:
        """Note that a key came up at a place, and return where it did first."""
        digest = _digest(key)
        with _room_on_disk():
            if self._table.execute("INSERT OR IGNORE INTO first VALUES (?, ?)", (digest, place)).rowcount:
                return place
            return self._table.execute("SELECT place FROM first WHERE key = ?", (digest,)).fetchone()[0]


class Grouping(Generic[T]):
    """Items put together by key, in the order in which the keys came up first; within a key, as they were added.

    Items go through `pickle` into a file that no one else writes.
    """

    def __init__(self, cache_mib: int = CACHE_MIB) -> None:
        self._table = _open(
            cache_mib,
            "CREATE TABLE first (key BLOB PRIMARY KEY, number INTEGER) WITHOUT ROWID",
            "CREATE TABLE item (number INTEGER, content BLOB)",
        )
        self._num_keys = 0

    def __len__(self) -> int:
        return self._num_keys

    def add(self, key: str, item: T) -> None:
        """Put an item to those of its key."""
        digest, content = _digest(key), pickle.dumps(item, pickle.HIGHEST_PROTOCOL)
        with _room_on_disk():
            if self._table.execute("INSERT OR IGNORE INTO first VALUES (?, ?)", (digest, self._num_keys)).rowcount:
                number = self._num_keys
                self._num_keys += 1
            else:
                number = self._table.execute("SELECT number FROM first WHERE key = ?", (digest,)).fetchone()[0]
            self._table.execute("INSERT INTO item VALUES (?, ?)", (number, content))

    def groups(self) -> Iterator[Iterator[T]]:
        """Yield the items of each key, one by one; nothing may be added any more."""
        with _room_on_disk():
            self._table.execute("CREATE INDEX by_number ON item (number)")
        rows = self._table.execute("SELECT number, content FROM item ORDER BY number, rowid")
        for _, group in groupby(rows, key=itemgetter(0)):
            yield (pickle.loads(content) for _, content in group)


def _open(cache_mib: int, *tables: str) -> sqlite3.Connection:
    # "" is a private file on the disk that SQLite makes and removes; one thread at a time uses it
    connection = sqlite3.connect("", isolation_level=None, check_same_thread=False)
    for statement in (
        f"PRAGMA cache_size = -{cache_mib * 1024}",
        "PRAGMA journal_mode = OFF",
        "PRAGMA synchronous = OFF",
        "PRAGMA temp_store = FILE",
        *tables,
        "BEGIN",
    ):
        connection.execute(statement)
    return connection


@contextmanager
def _room_on_disk() -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        raise UserError(
            "what an import has to remember does not fit into the folder for temporary files",
            given=str(error), expected="room for the texts of all rows",
            fix="name a folder with room in the environment variable SQLITE_TMPDIR",
        ) from error  # fmt: skip


def _digest(key: str) -> bytes:
    return hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=16).digest()
