"""A whole training stage on two processes, plain and sharded, ends where one process does."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
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


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, inputs: list[str]) -> Callable[[str], Path]:
    """What one process makes, by how the language model trains."""
    root = tmp_path_factory.mktemp("alone")

    @cache
    def made(language: str) -> Path:
        train(root / language, partial(L.Trainer, accelerator="cpu", devices=1), language, *inputs)
        return root / language

    return made


def start(*arguments: str, machine: Sequence[str] = ("--standalone",), ranks: int = 2) -> subprocess.Popen[str]:
    """Start ranks of the script."""
    command = [sys.executable, "-m", "torch.distributed.run", *machine, f"--nproc-per-node={ranks}", str(SCRIPT)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, SCRIPT.parents[1:3])), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*command, *arguments], env=environment, stderr=subprocess.PIPE, text=True)


def finish(*started: subprocess.Popen[str]) -> None:
    """Wait for all; what waits for ranks that have failed, or for ever, is ended."""
    try:
        for process in started:
            _, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors[-3000:]
    finally:
        for process in started:
            process.terminate()
            process.communicate()


def two_machines(*arguments: str) -> None:
    """Two ranks on each of two machines, which here are two agents that meet at one address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = ["--nnodes=2", "--master-addr=127.0.0.1", f"--master-port={free.getsockname()[1]}"]
    finish(*[start(*arguments, machine=[*address, f"--node-rank={number}"]) for number in (0, 1)])


def assert_same_training(found: Path, expected: Path) -> None:
    """Weights, numbers of training and validation, answers of the reference."""
    two, one = (load_file(folder / "model" / "model.safetensors") for folder in (found, expected))
    torch.testing.assert_close(two, one, rtol=1e-3, atol=1e-5)
    answers = [(folder / "answers" / "reference.json").read_text() for folder in (found, expected)]
    assert answers[0] == answers[1]
    numbers, whole = (json.loads((folder / "metrics.json").read_text()) for folder in (found, expected))
    assert numbers["train"] == pytest.approx(whole["train"], rel=1e-3, abs=1e-5)
    assert numbers["validation"] == pytest.approx(whole["validation"], rel=1e-3, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "language"),
    [
        ("sharded", "full"), ("sharded", "lora"), ("sharded", "qlora"), ("ddp", "full"), ("split", "full"),
        ("offloaded", "full"), ("resumed", "lora"),
    ],
)  # fmt: skip
def test_two_ranks_train_what_one_does(
    strategy: str, language: str, inputs: list[str], alone: Callable[[str], Path], tmp_path: Path
) -> None:
    finish(start(strategy, language, *inputs, str(tmp_path / "two")))
    assert_same_training(tmp_path / "two", alone(language))
    if strategy not in ("ddp", "split"):
        assert _names_in_checkpoint(tmp_path / "two") == _names_in_checkpoint(alone(language))


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "language"), [("hybrid", "full"), ("sharded", "full")])
def test_two_machines_train_what_one_process_does(
    strategy: str, language: str, inputs: list[str], alone: Callable[[str], Path], tmp_path: Path
) -> None:
    """A model on all four ranks; or one on each machine (HSDP), its frozen tower split as well."""
    two_machines(strategy, language, *inputs, str(tmp_path / "four"))
    assert_same_training(tmp_path / "four", alone(language))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_shards_of_four_ranks_go_on_on_two_and_on_one(
    inputs: list[str], alone: Callable[[str], Path], tmp_path: Path
) -> None:
    """Cut off behind the second step on two machines; continued on two ranks, and from a copy on one."""
    two_machines("cut", "full", *inputs, str(tmp_path / "two"))
    stopped = latest_checkpoint(tmp_path / "two" / "checkpoints")
    assert stopped is not None and stopped.name == "step-00000002.ckpt" and len(list(stopped.glob("*.distcp"))) == 4
    shutil.copytree(tmp_path / "two", tmp_path / "one")
    finish(start("sharded", "full", *inputs, str(tmp_path / "two")))
    assert_same_training(tmp_path / "two", alone("full"))
    finish(start("sharded", "full", *inputs, str(tmp_path / "one"), ranks=1))
    assert_same_training(tmp_path / "one", alone("full"))


def _names_in_checkpoint(out: Path) -> set[str]:
    """The model's tensors in the newest checkpoint: a file, or a folder of shards."""
    path = latest_checkpoint(out / "checkpoints")
    assert path is not None
    if path.is_file():
        return set(torch.load(path, weights_only=False)["state_dict"])
    stored = FileSystemReader(path).read_metadata().state_dict_metadata
    return {name.removeprefix("state_dict.") for name in stored if name.startswith("state_dict.")}
