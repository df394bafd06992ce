"""Crashes and hangs in a child are errors here, and the next call works."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from stand_ins import calls_that_fail as calls

from mmrlhf.errors import DataError
from mmrlhf.media.isolation import Isolated, ProcessDied, guarded, map_isolated


@pytest.fixture
def child() -> Iterator[Isolated]:
    """A child process whose calls may take two seconds."""
    with closing(Isolated(2.0)) as child:
        yield child


def test_results_come_back_from_one_process(child: Isolated) -> None:
    assert child(divmod, 7, 2) == (3, 1)
    assert child(os.getpid) == child(os.getpid) != os.getpid()


def test_errors_come_back_with_all_they_say(child: Isolated) -> None:
    with pytest.raises(ZeroDivisionError) as error:
        child(divmod, 1, 0)
    assert "in a process of its own" in error.value.__notes__[0]
    with pytest.raises(DataError) as mistake:
        child(calls.size_of, b"junk")
    assert (mistake.value.problem, mistake.value.where) == ("image cannot be decoded", "here")


def test_a_function_that_the_child_cannot_find_is_no_crash(child: Isolated, monkeypatch: pytest.MonkeyPatch) -> None:
    child(divmod, 1, 1)
    monkeypatch.setattr(calls.hang, "__qualname__", "nowhere")
    monkeypatch.setattr(calls, "nowhere", calls.hang, raising=False)
    with pytest.raises(AttributeError, match="nowhere"):
        child(calls.hang)


def test_a_crash_is_named_and_survived(child: Isolated) -> None:
    with pytest.raises(ProcessDied, match="crashed .signal 11"):
        child(calls.crash)
    assert child(divmod, 7, 2) == (3, 1)


def test_a_hang_is_named_and_survived(child: Isolated) -> None:
    with pytest.raises(ProcessDied, match="longer than 2 s"):
        child(calls.hang)
    assert child(divmod, 7, 2) == (3, 1)


def test_one_crash_alone_is_forgiven(child: Isolated, tmp_path: Path) -> None:
    assert child(calls.crash_once, tmp_path / "flag") == "fine"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_process_leaves_its_parents_child_alone(child: Isolated) -> None:
    before = child(os.getpid)
    pid = os.fork()
    if pid == 0:
        code = 0 if child(os.getpid) not in (before, os.getpid()) else 1
        child.close()
        os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    assert child(os.getpid) == before


@pytest.mark.parametrize("num_processes", [1, 3])
def test_several_processes_keep_the_order_and_lose_nothing(num_processes: int) -> None:
    outcomes = list(map_isolated(calls.behave, range(8), num_processes=num_processes, timeout=2.0))
    assert [item for item, _ in outcomes] == list(range(8))
    for item, outcome in outcomes:
        assert isinstance(outcome, ProcessDied) if item in (3, 5) else outcome == 2 * item


def test_a_programming_error_is_raised() -> None:
    with pytest.raises(TypeError):
        list(map_isolated(calls.size_of, [None], num_processes=1, timeout=5))  # type: ignore[list-item]


def test_a_machine_that_starts_nothing_is_no_fault_of_the_file(
    child: Isolated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmrlhf.media.isolation._IMPORT_SECONDS", 0)
    with pytest.raises(TimeoutError, match="did not start"):
        child(divmod, 7, 2)


def test_two_threads_do_not_share_a_child() -> None:
    """One connection for both would mix up their answers."""

    def ask(turn: int) -> list[int]:
        return [guarded(calls.slow_double, turn * 100 + n, timeout=20.0) for n in range(5)]

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(ask, range(2)))
    assert found == [[2 * (turn * 100 + n) for n in range(5)] for turn in range(2)]
