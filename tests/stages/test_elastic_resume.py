"""A run that goes on with other numbers of processes, 1, then 2, then 1, has the global steps of one that never did."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from stand_ins.elastic_stage import EPOCHS, GROUPS_PER_STEP, train

from mmrlhf.callbacks.checkpoints import latest_checkpoint
from mmrlhf.processes import TrainingInterrupted

SCRIPT = Path(__file__).parents[1] / "stand_ins" / "elastic_stage.py"


def steps(notes: Path) -> dict[int, tuple[int, list[Any]]]:
    """Epoch, and the keys with their weights, of every global step, over the ranks that shared it."""
    found: dict[int, tuple[int, list[Any]]] = defaultdict(lambda: (-1, []))
    for path in sorted(notes.glob("rank*.jsonl")):
        for line in path.read_text().splitlines():
            note = json.loads(line)
            found[note["step"]] = note["epoch"], sorted(found[note["step"]][1] + note["weights"])
    return dict(found)


def ranks_of_steps(notes: Path) -> list[int]:
    """The number of ranks that trained each step, as rank 0 saw it."""
    return [json.loads(line)["ranks"] for line in (notes / "rank0.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_one_two_one_processes_train_the_same_global_steps(
    tmp_path: Path, small_shards: Path, small_policy: Path
) -> None:
    """A signal stops it in the second step, and on two processes in the sixth, which is in the second epoch."""
    given: dict[str, Any] = {"shards": small_shards, "policy": small_policy}
    whole = train(tmp_path / "whole", **given, notes=tmp_path / "whole-notes", stop=None)
    out, notes = tmp_path / "elastic", tmp_path / "notes"
    with pytest.raises(TrainingInterrupted, match="after step 2"):
        train(out, **given, notes=notes, stop=1)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(SCRIPT)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, SCRIPT.parents[1:3])), "OMP_NUM_THREADS": "1"}
    arguments = [str(small_shards), str(small_policy), str(out), str(notes), "5"]
    done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("interrupted: stopped by") == 2, done.stderr[-3000:]
    newest = latest_checkpoint(out / "checkpoints")
    assert newest is not None and newest.name == "step-00000006.ckpt"
    summary = train(out, **given, notes=notes, stop=None)
    assert ranks_of_steps(notes) == [1, 1, 2, 2, 2, 2] + [1] * (summary["steps"] - 6), "each step once"
    assert steps(notes) == steps(tmp_path / "whole-notes")
    ledger = summary["data"]["epochs"]
    assert ledger == whole["data"]["epochs"] and len(ledger) == EPOCHS
    for row in ledger:
        assert row["delivered"] == summary["data"]["groups_per_epoch"] and row["quarantined"] == 0
        assert row["delivered"] + row["padded"] == summary["data"]["steps_per_epoch"] * GROUPS_PER_STEP
    one, other = (load_file(folder / "model" / "model.safetensors") for folder in (tmp_path / "whole", out))
    torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6)
    assert summary["validation"] == pytest.approx(whole["validation"], rel=1e-4, abs=1e-6)
