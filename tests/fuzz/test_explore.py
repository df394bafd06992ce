"""The search for inputs: it finds a broken law, says how to see it again, and ends when its time is up."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from fuzz.explore import failures, files_with_laws, rounds
from hypothesis import settings

EXPLORE = Path(__file__).with_name("explore.py")
LAW = """
from hypothesis import given, strategies as st

@given(st.integers())
def test_law(number):
    assert {law}
"""


def explore(folder: Path, minutes: float) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXPLORE), "--folder", str(folder), "--minutes", str(minutes), "--seed", "1"]
    return subprocess.run(command, capture_output=True, encoding="utf-8", check=False, timeout=250)


def test_a_broken_law_is_found_with_the_way_to_see_it_again(tmp_path: Path) -> None:
    (tmp_path / "test_wrong.py").write_text(LAW.format(law="number < 100"), encoding="utf-8")
    done = explore(tmp_path, 3)
    assert done.returncode == 1 and "FOUND" in done.stdout and "test_wrong.py::test_law" in done.stdout
    assert "number=100," in done.stdout and "--hypothesis-seed=" in done.stdout


@pytest.mark.slow
def test_a_law_that_holds_is_tried_until_the_time_is_up(tmp_path: Path) -> None:
    (tmp_path / "test_right.py").write_text(LAW.format(law="number == number"), encoding="utf-8")
    started = time.monotonic()
    done = explore(tmp_path, 0.2)
    assert done.returncode == 0 and time.monotonic() - started >= 12 and "0 laws broken" in done.stdout


def test_every_file_has_its_turn_in_every_round(project: Path) -> None:
    import random

    files = files_with_laws(project / "tests")
    assert len(files) > 50
    turns, seen = rounds(files, random.Random(0)), []
    while len(seen) < 2 * len(files):
        seen += next(turns)
    assert sorted(seen[: len(files)]) == sorted(seen[len(files) :]) == files and seen[: len(files)] != files


def test_failures_are_read_from_the_summary() -> None:
    assert failures("x\nFAILED tests/a.py::test_b[c d] - assert 1\nERROR tests/e.py\n1 failed") == [
        "tests/a.py::test_b[c d]", "tests/e.py",
    ]  # fmt: skip


def test_the_default_run_is_the_same_everywhere() -> None:
    profile = settings.get_profile("default")
    assert profile.derandomize and profile.deadline is None and profile.database is None and profile.print_blob
    assert not settings.get_profile("fuzz").derandomize
