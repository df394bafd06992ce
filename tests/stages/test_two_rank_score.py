"""A scoring pass on two processes gives the table that one process gives, and a stopped one can be ended by one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from stand_ins.two_rank_score import SETTINGS

from mmrlhf.chain.runtime import Runtime
from mmrlhf.shards.sidecar import SideCar
from mmrlhf.stages import score
from mmrlhf.types import PreferenceGroup

SCRIPT = Path(__file__).parents[1] / "stand_ins" / "two_rank_score.py"


@pytest.mark.slow
def test_two_ranks_score_what_one_does(
    tmp_path: Path, small_shards: Path, small_groups: list[PreferenceGroup], critic: Path, runtime: Runtime
) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(SCRIPT)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, SCRIPT.parents[1:3])), "OMP_NUM_THREADS": "1"}
    arguments = [str(small_shards), str(critic), str(tmp_path / "two")]
    done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(list((tmp_path / "two" / "rewards").glob("part-r0001-*.parquet"))) == 1, "the second rank wrote its own"
    one = score.run(tmp_path / "one", shards=small_shards, reward_model=critic, **SETTINGS, runtime=runtime)
    two = json.loads((tmp_path / "two" / "metrics.json").read_text())
    assert two["queries_scored"] == one["queries_scored"] == len(small_groups)
    assert two["heldout"]["accuracy"].keys() == one["heldout"]["accuracy"].keys()
    tables = [SideCar.load(tmp_path / name / "rewards") for name in ("one", "two")]
    for group in small_groups:
        hashes = [response.hash for response in group.responses]
        found = [table.lookup(group.key, hashes)["reward"] for table in tables]
        assert torch.allclose(*found, atol=1e-4)
        assert tables[0].texts(group.key, hashes, "critique") == tables[1].texts(group.key, hashes, "critique")
    for path in (tmp_path / "two" / "rewards").glob("part-r0001-*.parquet"):
        path.unlink()
    rest = score.run(tmp_path / "two", shards=small_shards, reward_model=critic, **SETTINGS, runtime=runtime)
    assert rest["queries_scored"] == len(small_groups), "counts are of the whole table"
    mine = max((tmp_path / "two" / "rewards").glob("part-r0000-*.parquet"), key=lambda path: path.stat().st_mtime)
    assert len(set(pq.read_table(mine)["key"].to_pylist())) == len(small_groups) // 2, "only what was missing is asked"
