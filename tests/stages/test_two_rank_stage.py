"""A whole training stage on two processes, plain and sharded, ends where one process does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
from safetensors.torch import load_file
from stand_ins.two_rank_stage import train
from torch.distributed.checkpoint import FileSystemReader

from mmrlhf.callbacks.checkpoints import latest_checkpoint
from mmrlhf.chain.runtime import Runtime
from mmrlhf.stages import reference, score

SCRIPT = Path(__file__).parents[1] / "stand_ins" / "two_rank_stage.py"


@pytest.fixture(scope="module")
def inputs(
    tmp_path_factory: pytest.TempPathFactory, small_shards: Path, small_policy: Path, scalar_model: Path
) -> list[str]:
    """Shards, policy, rewards, reference as the script takes them."""
    root = tmp_path_factory.mktemp("tables")
    runtime = Runtime(trainer=partial(L.Trainer, accelerator="cpu"), progress=False)
    score.run(root / "score", shards=small_shards, reward_model=scalar_model, holdout=0.3, runtime=runtime)
    reference.run(root / "reference", shards=small_shards, policy=small_policy, holdout=0.3, runtime=runtime)
    paths = [small_shards, small_policy, root / "score" / "rewards", root / "reference" / "logprobs"]
    return [str(path) for path in paths]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "language"),
    [("sharded", "full"), ("sharded", "lora"), ("ddp", "full"), ("split", "full"), ("resumed", "lora")],
)
def test_two_ranks_train_what_one_does(strategy: str, language: str, inputs: list[str], tmp_path: Path) -> None:
    whole = train(tmp_path / "one", partial(L.Trainer, accelerator="cpu", devices=1), language, *inputs)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(SCRIPT)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, SCRIPT.parents[1:3])), "OMP_NUM_THREADS": "1"}
    arguments = [strategy, language, *inputs, str(tmp_path / "two")]
    done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two"))
    torch.testing.assert_close(two, one, rtol=1e-3, atol=1e-5)
    answers = [(tmp_path / name / "answers" / "reference.json").read_text() for name in ("one", "two")]
    assert answers[0] == answers[1]
    found = json.loads((tmp_path / "two" / "metrics.json").read_text())
    assert found["train"] == pytest.approx(whole["train"], rel=1e-3, abs=1e-5)
    assert found["validation"] == pytest.approx(whole["validation"], rel=1e-3, abs=1e-4)
    if strategy in ("sharded", "resumed"):
        assert _names_in_checkpoint(tmp_path / "two") == _names_in_checkpoint(tmp_path / "one")


def _names_in_checkpoint(out: Path) -> set[str]:
    """The model's tensors in the newest checkpoint: a file, or a folder of shards."""
    path = latest_checkpoint(out / "checkpoints")
    assert path is not None
    if path.is_file():
        return set(torch.load(path, weights_only=False)["state_dict"])
    stored = FileSystemReader(path).read_metadata().state_dict_metadata
    return {name.removeprefix("state_dict.") for name in stored if name.startswith("state_dict.")}
