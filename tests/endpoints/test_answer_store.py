"""Paid answers: kept when they come, found by any run, whatever is killed or damaged."""

from __future__ import annotations

import errno
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf.endpoints.answer_store import FILE, AnswerStore, request_digest
from mmrlhf.endpoints.completions import Answer, Use
from mmrlhf.errors import DataError

WRITER = """
import os, signal, sys
from mmrlhf.endpoints.answer_store import AnswerStore
from mmrlhf.endpoints.completions import Answer
store = AnswerStore(sys.argv[1])
for number in range(50):
    store.add(str(number), Answer(f"answer {number}"))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_an_answer_comes_back_with_all_that_is_known_about_it(tmp_path: Path) -> None:
    answer = Answer("half \U0001f600", "cut off", use=Use("big-2026", "length", 3, 9, ("HTTP 429", "HTTP 503")))
    with AnswerStore(tmp_path / "new" / "folder") as store:
        assert store.get("a") is None
        store.add("a", answer)
    with AnswerStore(tmp_path / "new" / "folder") as again:
        found = again.get("a")
    assert found == answer and found is not None and found.use == answer.use


def test_what_failed_is_not_kept(tmp_path: Path) -> None:
    with AnswerStore(tmp_path) as store, pytest.raises(ValueError, match="HTTP 503"):
        store.add("a", Answer("", "HTTP 503", failed=True))


def test_a_killed_run_has_kept_every_answer(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", WRITER, str(tmp_path)], env=dict(os.environ), check=False)
    assert ended.returncode == -signal.SIGKILL
    with AnswerStore(tmp_path) as store:
        assert [store.get(str(number)) for number in range(50)] == [Answer(f"answer {n}") for n in range(50)]


def test_two_runs_write_at_once(tmp_path: Path) -> None:
    with AnswerStore(tmp_path) as one, AnswerStore(tmp_path) as two:
        for number in range(20):
            (one if number % 2 else two).add(str(number), Answer(str(number)))
        assert all(store.get(str(number)) == Answer(str(number)) for store in (one, two) for number in range(20))


@pytest.mark.parametrize(
    "content", [b"no database at all, but long enough to be one" * 99, b"SQLite format 3\0" + b"\xff" * 5000]
)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(DataError, match=rf"answers[\s\S]*{FILE}"):
        AnswerStore(tmp_path)


def test_a_row_that_is_no_answer_is_named(tmp_path: Path) -> None:
    with AnswerStore(tmp_path) as store:
        store._file.execute("INSERT INTO answers VALUES ('a', 'text', '', '{\"model\": 1, \"colour\": 2}')")
        with pytest.raises(DataError, match="damaged"):
            store.get("a")


def test_a_full_disk_is_said_to_be_one(tmp_path: Path) -> None:
    with AnswerStore(tmp_path) as store:
        store._file.execute("PRAGMA max_page_count = 3")
        with pytest.raises(OSError) as error:
            for number in range(9):
                store.add(str(number), Answer("x" * 4000))
        assert error.value.errno == errno.ENOSPC


parts = st.fixed_dictionaries({"role": st.sampled_from(["user", "system"]), "content": st.text(max_size=4)})


@given(st.lists(parts, max_size=3), st.lists(parts, max_size=3))
def test_other_requests_have_other_digests(one: list, two: list) -> None:
    digests = [request_digest({"messages": each, "seed": 0}) for each in (one, two)]
    assert (digests[0] == digests[1]) == (one == two)
    assert request_digest({"seed": 0, "messages": one}) == digests[0], "the order of fields says nothing"


def test_it_is_an_ordinary_file(tmp_path: Path) -> None:
    with AnswerStore(tmp_path) as store:
        store.add("a", Answer("said"))
    file = sqlite3.connect(tmp_path / FILE)
    assert file.execute("SELECT text FROM answers").fetchall() == [("said",)]
    file.close()
