"""One precision policy in every place where numbers are made: tables, `RewardModel`, training."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
import torch
from stand_ins.small_data import draw_group
from stand_ins.small_training import SCHEDULE, TRAINING
from stand_ins.two_rank_modes import say

from mmrlhf.chain.runtime import Runtime
from mmrlhf.errors import DataError
from mmrlhf.inference.policy import Policy
from mmrlhf.inference.reward_model import RewardModel
from mmrlhf.inference.settings import CritiqueSettings, PassSettings
from mmrlhf.losses.dpo import DPO
from mmrlhf.methods.optim import OptimSettings
from mmrlhf.models.load import checkpoint_context
from mmrlhf.models.settings import ModelSettings
from mmrlhf.shards.index import Index
from mmrlhf.shards.sidecar import SideCar
from mmrlhf.shards.writer import write_shards
from mmrlhf.stages import mmdpo, reference, score
from mmrlhf.summaries.curve_file import read_curves

BF16 = PassSettings(ModelSettings(precision="bf16"), token_budget=1)  # a query a forward, as in a call from Python


@pytest.fixture
def bf16_model(tmp_path: Path, critic: Path) -> Path:
    """The critic as if it had been trained in bf16."""
    folder = tmp_path / "bf16"
    folder.mkdir()
    for file in critic.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    card = json.loads((folder / "reward_model.json").read_text())
    (folder / "reward_model.json").write_text(json.dumps({**card, "precision": "bf16"}))
    return folder


@pytest.mark.slow
def test_bf16_rewards_are_distinct_and_those_of_the_python_call(
    tmp_path: Path, bf16_model: Path, runtime: Runtime
) -> None:
    """The backbone computes in bf16, the head in float32; asked from Python, the card says so."""
    groups = [draw_group(number) for number in range(70)]
    write_shards(groups, tmp_path / "shards")
    critiques = CritiqueSettings(max_tokens=4)
    asked = {"shards": tmp_path / "shards", "reward_model": bf16_model, "critiques": critiques, "holdout": 0.1}
    score.run(tmp_path / "score", passes=BF16, **asked, runtime=runtime)
    table = SideCar.load(tmp_path / "score" / "rewards")
    rewards = [
        value
        for group in groups
        for value in table.lookup(group.key, [response.hash for response in group.responses])["reward"].tolist()
    ]
    assert len(rewards) > 195 and len(set(rewards)) >= len(rewards) - 5
    model = RewardModel.from_pretrained(bf16_model, critiques=critiques, device="cpu")
    for group in groups[:8]:
        found = table.lookup(group.key, [response.hash for response in group.responses])["reward"].tolist()
        (alone,) = model.score_groups([group])
        assert [verdict.reward for verdict in alone] == pytest.approx(found, abs=1e-6)


def test_another_precision_than_the_trained_one_is_said(bf16_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        RewardModel.from_pretrained(bf16_model, PassSettings(), device="cpu")
    assert "was trained in bf16 and is asked in float32" in caplog.text


@pytest.fixture
def table(tmp_path: Path, small_shards: Path, small_policy: Path, runtime: Runtime) -> Path:
    asked = {"shards": small_shards, "policy": small_policy, "holdout": SCHEDULE.holdout}
    reference.run(tmp_path / "reference", **asked, runtime=runtime)
    return tmp_path / "reference" / "logprobs"


@pytest.mark.parametrize(("fact", "value"), [("precision", "bf16"), ("max_tokens", 4095)])
def test_a_table_of_another_run_is_refused(
    tmp_path: Path, small_shards: Path, small_policy: Path, table: Path, runtime: Runtime, fact: str, value: object
) -> None:
    facts = SideCar.load(table).fingerprint
    longest = checkpoint_context(small_policy, ModelSettings())
    assert facts[fact] == {"precision": "float32", "max_tokens": longest}[fact] and facts["layout"] == "packed"
    training = replace(TRAINING, model=ModelSettings(**{fact: value}))
    asked = {"shards": small_shards, "policy": small_policy, "objective": DPO(), "reference": table}
    with pytest.raises(DataError, match=f"made with another {fact}"):
        mmdpo.run(tmp_path / "out", **asked, training=training, runtime=runtime)


def test_other_weights_under_the_same_name_stop_at_step_0(
    tmp_path: Path, small_shards: Path, small_policy: Path, other_policy: Path, table: Path, runtime: Runtime
) -> None:
    """A hub's name or a table of one's own says nothing about weights; the numbers do."""
    meta = json.loads((table / "_meta.json").read_text())
    del meta["fingerprint"]["policy"]
    (table / "_meta.json").write_text(json.dumps(meta))
    asked = {"shards": small_shards, "objective": DPO(), "reference": table, "training": TRAINING, "runtime": runtime}
    with pytest.raises(DataError, match="made with another checkpoint") as caught:
        mmdpo.run(tmp_path / "other", policy=other_policy, **asked)
    assert "stage mmdpo, before step 0; worst: key query-" in str(caught.value)
    mmdpo.run(tmp_path / "same", policy=small_policy, **asked)


@pytest.mark.parametrize("reference_from", ["table", pytest.param("adapter", marks=pytest.mark.slow)])
def test_dropout_of_a_checkpoint_is_no_distance_from_the_reference(
    tmp_path: Path, small_shards: Path, small_policy: Path, table: Path, runtime: Runtime, reference_from: str
) -> None:
    """Nothing is learned at this rate, so policy and reference agree at every step; with the dropout they do not."""
    policy = shutil.copytree(small_policy, tmp_path / "policy")
    config = json.loads((policy / "config.json").read_text())
    config["text_config"]["attention_dropout"] = 0.5
    (policy / "config.json").write_text(json.dumps(config))
    asked = {"shards": small_shards, "policy": policy, "holdout": SCHEDULE.holdout}
    reference.run(tmp_path / "own", **asked, runtime=runtime)
    training = replace(
        TRAINING,
        model=ModelSettings(language="lora", projector="frozen", lora_rank=4),
        optim=OptimSettings(lr=1e-30),
        schedule=replace(SCHEDULE, max_steps=2, holdout=SCHEDULE.holdout),
    )
    options = {"objective": DPO(), "reference_from": reference_from, "training": training, "runtime": runtime}
    if reference_from == "table":
        options["reference"] = tmp_path / "own" / "logprobs"
    found = {}
    for kept in (False, True):
        out = tmp_path / f"kept-{kept}"
        mmdpo.run(out, shards=small_shards, policy=policy, base_dropout=kept, **options)
        found[kept] = read_curves(out)["train/kl_estimate"][1]
    assert abs(found[False]).max() < 1e-4 and abs(found[True]).max() > 1e-2
    assert (
        json.loads((tmp_path / "kept-False" / "model" / "config.json").read_text())["text_config"]["attention_dropout"]
        == 0.5
    )


def rms(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Root mean square of the log-ratios of all responses."""
    assert one.keys() == other.keys()
    return float(torch.cat([one[key] - other[key] for key in one]).square().mean().sqrt())


@pytest.mark.slow
def test_every_bf16_mode_has_the_reference_of_every_other(
    tmp_path: Path, small_shards: Path, small_groups: list, small_policy: Path, runtime: Runtime
) -> None:
    """Whole on one device, under DDP and under FSDP2 (two ranks, gloo), and a table of the stage: log-ratios are 0
    within what another micro-batching changes in one mode, which is measured here, and exactly 0 for equal rows."""
    folder = Path(__file__).parents[1]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (folder, folder.parent)))}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [*launch, str(folder / "stand_ins" / "two_rank_modes.py")]
    arguments = [str(small_shards), str(small_policy), str(tmp_path)]
    done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    said = {}
    for mode in ("ddp", "fsdp"):
        said[mode] = {k: v for rank in range(2) for k, v in torch.load(tmp_path / f"{mode}-{rank}.pt").items()}
    index = Index.load(small_shards)
    policy, rows = Policy.from_pretrained(small_policy, BF16, device=torch.device("cpu")), list(range(len(index)))
    half = len(rows) // 2
    said["one device"] = say(policy, policy.model, index, rows[:half]) | say(policy, policy.model, index, rows[half:])
    alone = say(policy, policy.model, index, rows, size=1)
    noise = max(rms(said["one device"], say(policy, policy.model, index, rows, size=size)) for size in (1, 3, 5))
    assert noise > 0
    assert rms(said["one device"], said["ddp"]) == rms(said["one device"], said["fsdp"]) == 0.0
    for name, precision, budget in (("bf16 table", "bf16", 4096), ("float32 table", "float32", 4096)):
        passes = PassSettings(ModelSettings(precision=precision), token_budget=budget)
        asked = {"shards": small_shards, "policy": small_policy, "passes": passes, "holdout": 0.3}
        reference.run(tmp_path / name, **asked, runtime=runtime)
        table = SideCar.load(tmp_path / name / "logprobs")
        said[name] = {
            group.key: table.lookup(group.key, [r.hash for r in group.responses])["reference_logprob"]
            for group in small_groups
        }
    tables_apart = rms(said["float32 table"], alone)
    del said["float32 table"]
    for one, other in combinations(said, 2):
        assert rms(said[one], said[other]) <= 2 * noise, (one, other)
    assert tables_apart > noise / 2, "the two precisions are not one"
    exact = Policy.from_pretrained(small_policy, device=torch.device("cpu"))
    ways = [say(exact, exact.model, index, rows, size=size) for size in (1, 2, 3, 5)]
    rounding = max(rms(ways[0], way) for way in ways)
    assert rounding < 1e-4
    # the numbers of docs/precision.md
    print(f"rms in nats: bf16 {noise:.2g}, float32 {rounding:.2g}, float32 table against bf16 {tables_apart:.2g}")
