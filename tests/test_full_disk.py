"""The command on a disk that is full, closed, or not there: one screen, exit code 2, no traceback."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from stand_ins.commands import USUAL, start

FULL = Path("/dev/full")


def refused(tmp_path: Path, *words: str) -> str:
    """The command's one screen."""
    said = start(tmp_path, *USUAL, *words, expected=2)
    assert "Traceback" not in said, said
    return said


def test_a_home_folder_that_is_nobodys(tmp_path: Path) -> None:
    said = refused(tmp_path, "paths.artifacts='~no-such-user-here/store'")
    assert "home folder that does not exist" in said and "~no-such-user-here/store" in said


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to root")
def test_a_store_that_may_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir(mode=0o500)
    said = refused(tmp_path, f"paths.artifacts={tmp_path}/store")
    assert "cannot be used" in said and "Permission denied" in said


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")
def test_a_disk_that_is_full(tmp_path: Path) -> None:
    said = refused(tmp_path, "+stages.fake_fill={_target_: stand_ins.fake_stages.fill}", "stage=fake_fill")
    assert "a disk is full" in said and "MiB free in" in said and "paths.artifacts" in said
