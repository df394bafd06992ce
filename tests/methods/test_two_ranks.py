"""Two processes on a CPU (gloo), plain and sharded, train what one process trains."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from stand_ins.methods_under_test import METHODS, build_method
from stand_ins.packed_toy import ToyData, ToyModel, make_steps, quiet_trainer

SCRIPT = Path(__file__).parents[1] / "stand_ins" / "two_ranks.py"


@pytest.fixture(scope="module", params=["ddp", "sharded"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What two ranks stored under a strategy, method by method."""
    path = tmp_path_factory.mktemp("ranks") / "two.pt"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(SCRIPT)]
    paths = os.pathsep.join(map(str, SCRIPT.parents[1:3]))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*command, request.param, str(path)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(path)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_two_ranks_train_what_one_does(method: str, trained: dict) -> None:
    found = trained[method]
    model = ToyModel()
    module = build_method(method, model, total_steps=3)
    trainer = quiet_trainer()
    steps = make_steps(3, num_micro=1)
    trainer.fit(module, datamodule=ToyData(steps, steps[:1]))
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    trainer.validate(module, datamodule=ToyData(steps, steps[1:2]), verbose=False)
    torch.testing.assert_close(found["state"], dict(model.state_dict()), rtol=1e-4, atol=1e-6)
    assert found["metrics"] == pytest.approx(metrics, rel=1e-3, abs=1e-5)
    if module.heldout_scores is not None:
        assert found["scores"]["keys"] == module.heldout_scores.keys
        # of each side's own scores: a tie in one of them is one rounding away from a pair that is right
        one = {**vars(module.heldout_scores), "accuracy": module.validation_metrics["accuracy"]}
        for side in (one, found["scores"]):
            right = [chosen > rejected for chosen, rejected in zip(side["chosen"], side["rejected"], strict=True)]
            assert side["accuracy"] == pytest.approx(sum(right) / len(right), abs=1e-6)
        assert found["scores"]["chosen"] == pytest.approx(module.heldout_scores.chosen, rel=1e-3, abs=1e-5)
