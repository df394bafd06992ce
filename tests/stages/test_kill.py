"""A chain that is killed goes on with the same command, and ends where one that was never killed does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmrlhf.shards.index import Index
from mmrlhf.shards.sidecar import SideCar

PROJECT = Path(__file__).parents[2]
# every batch of scores is written at once, so that there is something to go on from
CODE = """
import sys
import mmrlhf.inference.tables as tables
tables.SECONDS_BETWEEN_WRITES = 0.0
from mmrlhf.app import main
main()
"""
SETTINGS = [
    "experiment=reward_llava", "scale=tiny", "logger=none", "trainer=cpu", "stage=score", "data.critique=full",
    "scale.max_steps=30", "optim.epochs.reward=30", "optim.checkpoint_every=3", "data.max_critique_tokens=48",
    "model.groups_per_batch=1", "hydra.run.dir=run",
]  # fmt: skip


def _start(folder: Path, shards: Path, policy: Path) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-c", CODE, *SETTINGS, f"inputs.shards={shards}", f"model.path={policy}"]
    environment = {
        **os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1", "COLUMNS": "200",
        "MMRLHF_ARTIFACTS": str(folder / "artifacts"),
    }  # fmt: skip
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip


def _finish(process: subprocess.Popen[str]) -> str:
    screen, _ = process.communicate(timeout=200)
    assert process.returncode == 0, screen
    return screen


def _kill_when(process: subprocess.Popen[str], folder: Path, mark: str) -> str:
    """Kill the whole group, without a chance to clean up, once a file is there."""
    while process.poll() is None and not list(folder.glob(mark)):
        time.sleep(0.01)
    assert process.poll() is None, f"ended before {mark} was seen: {process.communicate()[0]}"
    os.killpg(process.pid, signal.SIGKILL)
    return process.communicate()[0]


@pytest.mark.slow
def test_a_killed_training_and_a_killed_scoring_go_on(tmp_path: Path, small_shards: Path, small_policy: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    given = (small_shards, small_policy)
    _kill_when(_start(killed, *given), killed, "artifacts/reward/*.building/checkpoints/step-*12.ckpt")
    second = _kill_when(_start(killed, *given), killed, "artifacts/score/*.building/rewards/*.parquet")
    assert "reward goes on from" in second and "step-" in second
    assert "queries were done before" in _finish(_start(killed, *given))
    _finish(_start(whole, *given))
    one, other = (load_file(next(root.glob("artifacts/reward/*/model/model.safetensors"))) for root in (killed, whole))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    tables = [SideCar.load(next(root.glob("artifacts/score/*/rewards"))) for root in (killed, whole)]
    index = Index.load(small_shards)
    for row in range(len(index)):
        group = index.read(row)
        hashes = [response.hash for response in group.responses]
        first, again = (table.lookup(group.key, hashes)["reward"] for table in tables)
        assert torch.equal(first, again)
