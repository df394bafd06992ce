"""Passes over queries on two processes give what one does, and one process ends what two began."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from stand_ins.two_rank_passes import run

from mmrlhf.chain.runtime import Runtime
from mmrlhf.responders import checkpoint
from mmrlhf.shards.index import Index
from mmrlhf.shards.sidecar import SideCar
from mmrlhf.types import PreferenceGroup

SCRIPT = Path(__file__).parents[1] / "stand_ins" / "two_rank_passes.py"


@pytest.mark.slow
def test_two_ranks_ask_what_one_does(
    tmp_path: Path,
    small_shards: Path,
    small_groups: list[PreferenceGroup],
    small_policy: Path,
    runtime: Runtime,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checkpoint, "BATCHES_PER_WINDOW", checkpoint.BATCHES_PER_WINDOW)  # put back what `run` changes
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(SCRIPT)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, SCRIPT.parents[1:3])), "OMP_NUM_THREADS": "1"}
    arguments = [str(small_shards), str(small_policy), str(tmp_path / "two")]
    done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    table = tmp_path / "two" / "reference" / "logprobs"
    others = list(table.glob("part-r0001-*.parquet"))
    assert len(others) == 1, "the second rank wrote its own"
    asked, answered, responded = run(tmp_path / "one", small_shards, small_policy, runtime)
    two = json.loads((tmp_path / "two" / "reference" / "metrics.json").read_text())
    assert two["queries"] == asked["queries"] == len(small_groups) and two["responses"] == asked["responses"]
    assert json.loads((tmp_path / "two" / "generate" / "metrics.json").read_text()) == answered
    assert json.loads((tmp_path / "two" / "respond" / "metrics.json").read_text()) == responded
    assert responded["responders"]["own"]["answers"] == 3 * len(small_groups)
    for stage in ("generate", "respond"):
        digests = [Index.load(tmp_path / name / stage / "shards").digest for name in ("one", "two")]
        assert digests[0] == digests[1], stage
    compare(tmp_path, small_groups)
    others[0].unlink()
    kept = {path: path.stat().st_mtime_ns for path in table.glob("part-*.parquet")}
    rest, *_ = run(tmp_path / "two", small_shards, small_policy, runtime)
    assert rest["queries"] == len(small_groups), "counts are of the whole table"
    assert kept and kept == {path: path.stat().st_mtime_ns for path in kept}, "what was there is not asked again"
    compare(tmp_path, small_groups)


def compare(folder: Path, groups: list[PreferenceGroup]) -> None:
    """Both tables hold the same numbers, up to how the rows of a batch were put together."""
    tables = [SideCar.load(folder / name / "reference" / "logprobs") for name in ("one", "two")]
    for group in groups:
        one, two = (table.lookup(group.key, [response.hash for response in group.responses]) for table in tables)
        assert one.keys() == two.keys() == {"reference_logprob", "reference_tokens", "reference_cut"}
        assert all(torch.allclose(one[name], two[name], atol=1e-4) for name in one)
