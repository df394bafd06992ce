"""Several processes on one pass: what each gets, what they know together, and one stage after another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmrlhf.chain.runtime import Runtime
from mmrlhf.inference.sharing import share_pass

SCRIPT = Path(__file__).parents[1] / "stand_ins" / "two_rank_sharing.py"


def test_one_process_is_a_group_of_one(runtime: Runtime) -> None:
    with share_pass(runtime) as ranks:
        assert ranks.leads and ranks.gather(3) == [3] and ranks.total({"queries": 2}) == {"queries": 2}


@pytest.mark.slow
def test_passes_and_trainings_follow_one_another_in_the_same_processes(tmp_path: Path) -> None:
    """Whichever rank is first at the next stage; it once looked for the other at the address of the stage before."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(SCRIPT)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, SCRIPT.parents[1:3])), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, str(tmp_path)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for rank, share in enumerate(([0, 2, 4], [1, 3])):
        passes = [[[[[n, 0], [n, 1]], share], {"queries": 3}] for n in range(3)]
        said = json.loads((tmp_path / f"{rank}.json").read_text())
        assert said == [*passes[0], *passes[1], [0, 1], *passes[2]]
