"""A number that is not finite stops a run before the update and names stage, step and queries."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from stand_ins.methods_under_test import METHODS, build_method
from stand_ins.packed_toy import ToyData, ToyModel, fit, make_group, make_step, quiet_trainer

from mmrlhf.errors import ModelError
from mmrlhf.tensors import PackedBatch, ResponseOutputs

SCRIPT = Path(__file__).parents[1] / "stand_ins" / "two_rank_nan.py"


class Overflow(ToyModel):
    """One query's value, or only its gradient, is not finite."""

    def __init__(self, key: str, what: str) -> None:
        super().__init__()
        self.key, self.what = key, what

    def forward(self, batch: PackedBatch) -> ResponseOutputs:
        outputs = super().forward(batch)
        if self.key not in batch.keys:
            return outputs
        mine = (batch.group_of_response == batch.keys.index(self.key)).float()
        bad = torch.where(mine > 0, torch.inf if self.what == "inf" else torch.nan, 0.0)
        if self.what == "gradient":
            # sqrt(0) is 0, its derivative is infinite
            bad = (0.0 * outputs.hidden.sum(1)).abs().sqrt() * mine
        return replace(outputs, logprob=outputs.logprob + bad, hidden=outputs.hidden + bad[:, None])


@pytest.mark.parametrize("what", ["nan", "inf", "gradient"])
@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_updated_and_the_query_is_named(method: str, what: str) -> None:
    """Step 1 of two, four micro-batches of one query each; step 0 was taken."""
    model = Overflow("group12", what)
    module = build_method(method, model, total_steps=2)
    module.stage = "mmdpo"
    steps = [make_step(step, [make_group(10 * step + i) for i in range(4)], 4) for step in range(2)]
    after: list[dict[str, torch.Tensor]] = []
    update = module._update

    def remember() -> None:
        update()
        after.append({name: value.clone() for name, value in model.state_dict().items()})

    module._update = remember  # type: ignore[method-assign]
    with pytest.raises(ModelError, match="not finite") as caught:
        fit(quiet_trainer(), module, steps)
    found = str(caught.value)
    assert "stage mmdpo, step 1" in found and "group12" in found
    assert not any(other in found for other in ("group10", "group11", "group13"))
    assert "gradient_norm=" in found or "loss=" in found
    assert len(after) == 1
    for name, value in model.state_dict().items():
        assert torch.equal(value, after[0][name]), name


def test_a_fault_of_weight_0_that_reaches_the_gradient_stops_too() -> None:
    """0 * inf is nan: a query that only fills a step up would spoil it as well."""
    groups = [make_group(1), make_group(2, weight=0.0)]
    with pytest.raises(ModelError, match="group2"):
        fit(quiet_trainer(), build_method("sft", Overflow("group2", "gradient"), 1), [make_step(0, groups, 2)])


@pytest.mark.parametrize("method", METHODS)
def test_a_validation_that_is_not_finite_stops(method: str) -> None:
    """Held out alone is the query at fault; methods that score pairs name it."""
    module = build_method(method, Overflow("group9", "nan"), total_steps=1)
    train, held_out = make_step(0, [make_group(1)], 1), make_step(0, [make_group(8), make_group(9)], 2)
    with pytest.raises(ModelError, match="validation at step 1") as caught:
        quiet_trainer().fit(module, datamodule=ToyData([train], [held_out]))
    assert method == "sft" or ("group9" in str(caught.value) and "group8" not in str(caught.value))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "sharded"])
def test_all_ranks_stop_together(strategy: str) -> None:
    """The fault is in rank 1's share; both ranks raise the same error, and neither waits for the other."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(SCRIPT)]
    paths = os.pathsep.join(map(str, SCRIPT.parents[1:3]))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*command, strategy], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(line for line in done.stdout.splitlines() if line.startswith("rank")) == [
        f"rank {rank}: stopped before the update, group1 named" for rank in range(2)
    ]
