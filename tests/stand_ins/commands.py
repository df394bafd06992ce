"""The command as a user types it, with stages of the tests' own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from mmrlhf.__main__ import main
from mmrlhf.app import CONF

PROJECT = CONF.parent


WORLD = "+stages.fake_world={_target_: stand_ins.fake_world.run, size: 3}"


TRAIN = "+stages.fake_train={_target_: stand_ins.fake_stages.train, data: 'stage:fake_world', rate: ${method.w}}"


USUAL = ["logger=none", "callbacks=none", "trainer=cpu", "stage=fake_train", WORLD, TRAIN]


def environment(**changes: str) -> dict[str, str]:
    """The environment of a command that finds this checkout and the tests' own stages."""
    paths = os.pathsep.join(map(str, (PROJECT, PROJECT / "tests")))
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **changes}


def start(tmp_path: Path, *arguments: str, expected: int, limit: float = 240, **variables: str) -> str:
    """Run the command a user would type, in an empty folder; returns what it printed."""
    env = environment(**variables)
    command = [sys.executable, str(PROJECT / "run.py"), *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=limit, check=False)
    assert done.returncode == expected, done.stdout + done.stderr
    return done.stdout + done.stderr


def give(*words: str) -> int:
    """Give the command in this process, from the current folder; returns its exit code."""
    GlobalHydra.instance().clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["run.py", *words])
        patch.setenv("HYDRA_FULL_ERROR", "0")  # which the command sets, and a user for a traceback
        try:
            main()
        except SystemExit as ended:
            return int(ended.code or 0)
    return 0
