"""The training stages on drawn queries: train, resume, refuse what does not fit, write what the next stage reads."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from safetensors.torch import load_file
from small_data import wanted_word

from mmrlhf.callbacks.checkpoints import TrainingInterrupted, latest_checkpoint
from mmrlhf.callbacks.curves import read_curves
from mmrlhf.data.index import Index
from mmrlhf.data.mixing import Mixing
from mmrlhf.data.selection import Selection, select
from mmrlhf.data.shards import write_shards
from mmrlhf.errors import ConfigError, DataError
from mmrlhf.losses.dpo import DPO
from mmrlhf.losses.image_conditional import MDPO
from mmrlhf.losses.mmdpo import MMDPO
from mmrlhf.methods.critique_reward import RewardWeights
from mmrlhf.methods.optim import OptimSettings
from mmrlhf.models.export import load_reward_model
from mmrlhf.models.heads import HeadSettings
from mmrlhf.models.load import ModelSettings, load_backbone
from mmrlhf.stages import mmdpo, reference, reward, score, sft
from mmrlhf.stages.heldout_answers import AnswerSettings
from mmrlhf.stages.reward_inputs import CritiqueChoice
from mmrlhf.stages.reward_model import RewardModel
from mmrlhf.stages.runtime import Runtime
from mmrlhf.stages.settings import CritiqueSettings, Schedule, TrainSettings
from mmrlhf.types import PreferenceGroup, Response

SCHEDULE = Schedule(
    epochs=None, max_steps=3, groups_per_step=4, token_budget=600, holdout=0.3, val_every=2, checkpoint_every=1
)
TRAINING = TrainSettings(optim=OptimSettings(lr=1e-3), schedule=SCHEDULE)


@pytest.fixture
def runtime() -> Runtime:
    return Runtime(trainer=partial(L.Trainer, accelerator="cpu", devices=1), loggers=lambda *_: [], progress=False)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def train_sft(out: Path, shards: Path, policy: Path, runtime: Runtime, **changes: Any) -> dict[str, Any]:
    training = replace(TRAINING, schedule=replace(SCHEDULE, **changes))
    return sft.run(out, shards=shards, policy=policy, training=training, runtime=runtime)


def test_sft_trains_and_writes_a_hugging_face_folder(
    tmp_path: Path, small_shards: Path, small_policy: Path, runtime: Runtime
) -> None:
    summary = train_sft(tmp_path, small_shards, small_policy, runtime)
    assert summary["steps"] == 3 and summary["train"]["loss"] > 0 and summary["validation"]["loss"] > 0
    assert json.loads((tmp_path / "metrics.json").read_text()) == summary
    backbone, _ = load_backbone(tmp_path / "model", ModelSettings())
    before, _ = load_backbone(small_policy, ModelSettings())
    changed = {
        name for name, value in backbone.state_dict().items() if not torch.equal(value, before.state_dict()[name])
    }
    assert any("language_model" in name for name in changed)
    assert not any("vision_tower" in name for name in changed)
    steps, losses = read_curves(tmp_path)["train/loss"]
    assert len(steps) == 3 and torch.isfinite(torch.tensor(losses)).all()


def test_filters_and_balance_reach_the_plan_and_the_summary(
    tmp_path: Path, small_shards: Path, small_policy: Path, runtime: Runtime
) -> None:
    options = {
        "selection": Selection(categories=["long"], modalities=["image"]),
        "mixing": Mixing(balance=["modality"]),
    }
    summary = train_sft(tmp_path, small_shards, small_policy, runtime, **options)
    found = summary["data"]
    assert found["excluded"]["categories"] > 0 and found["cells"]["image"]["groups"] == found["groups_per_epoch"]
    assert sum(found["excluded"].values()) + found["groups_per_epoch"] == 14


def test_an_interrupted_stage_ends_where_an_uninterrupted_one_does(
    tmp_path: Path, small_shards: Path, small_policy: Path, runtime: Runtime
) -> None:
    class Crash(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.global_step == 2:
                raise KeyError("crash")

    whole = train_sft(tmp_path / "whole", small_shards, small_policy, runtime)
    with pytest.raises(KeyError, match="crash"):
        train_sft(tmp_path / "cut", small_shards, small_policy, replace(runtime, callbacks=[Crash()]))
    found = latest_checkpoint(tmp_path / "cut" / "checkpoints")
    assert found is not None and found.name == "step-00000002.ckpt"
    resumed = train_sft(tmp_path / "cut", small_shards, small_policy, runtime)
    assert_same(weights(tmp_path / "cut"), weights(tmp_path / "whole"))
    assert resumed["validation"] == whole["validation"]


class Signal(L.Callback):
    """Sends this process a signal in the last step or in the validation behind it."""

    def __init__(self, hook: str) -> None:
        setattr(self, hook, self._send)

    def _send(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == 2 + trainer.validating:
            os.kill(os.getpid(), signal.SIGUSR1)


def test_a_signal_behind_the_last_step_is_not_lost_and_costs_nothing(
    tmp_path: Path, small_shards: Path, small_policy: Path, runtime: Runtime
) -> None:
    """First in the last step, then in the validation of the continuation: each time the stage stops, and says so."""
    whole = train_sft(tmp_path / "whole", small_shards, small_policy, runtime)
    for hook in ("on_train_batch_start", "on_validation_batch_start"):
        with pytest.raises(TrainingInterrupted, match="SIGUSR1"):
            train_sft(tmp_path / "cut", small_shards, small_policy, replace(runtime, callbacks=[Signal(hook)]))
        assert latest_checkpoint(tmp_path / "cut" / "checkpoints").name == "step-00000003.ckpt"  # type: ignore
    resumed = train_sft(tmp_path / "cut", small_shards, small_policy, runtime)
    assert_same(weights(tmp_path / "cut"), weights(tmp_path / "whole"))
    for part in ("steps", "train", "validation", "data"):
        assert resumed[part] == whole[part]


def test_one_group_that_cannot_be_read_is_named_and_a_second_one_ends_the_run_also_behind_a_restart(
    tmp_path: Path, small_shards: Path, small_policy: Path, runtime: Runtime
) -> None:
    """Of so few queries the budget is one."""
    folder = tmp_path / "shards"
    shutil.copytree(small_shards, folder)
    index = Index.load(folder)
    train = select(index, "train", holdout=0.3).rows
    first, second = (int(row) for row in train[-2:])
    _spoil(index, first)
    options = {"max_steps": None, "epochs": 1}
    summary = train_sft(tmp_path / "one", folder, small_policy, runtime, **options)
    assert summary["quarantined"] == [index.entries[first].key]

    class Spoil(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.global_step == 3:  # behind the first epoch of three steps
                shutil.copytree(small_shards, folder, dirs_exist_ok=True)  # the first can be read again, but it counts
                _spoil(index, second)
                raise KeyError("crash")

    with pytest.raises(KeyError, match="crash"):
        train_sft(
            tmp_path / "two", folder, small_policy, replace(runtime, callbacks=[Spoil()]), **options | {"epochs": 2}
        )
    with pytest.raises(DataError, match="2 of"):
        train_sft(tmp_path / "two", folder, small_policy, runtime, **options | {"epochs": 2})


def _spoil(index: Index, row: int) -> None:
    _, shard, members = index.entries.place(row)
    offset, size, _ = members["json"]
    with (Path(index.folder) / shard).open("r+b") as file:
        file.seek(offset)
        file.write(bytes(size))


def test_token_budget_changes_nothing(tmp_path: Path, small_shards: Path, small_policy: Path, runtime: Runtime) -> None:
    losses = {}
    for budget in (1, 100_000):
        out = tmp_path / str(budget)
        losses[budget] = train_sft(out, small_shards, small_policy, runtime, token_budget=budget)["train"]
    torch.testing.assert_close(weights(tmp_path / "1"), weights(tmp_path / "100000"), rtol=1e-3, atol=1e-5)
    assert losses[1] == pytest.approx(losses[100_000], rel=1e-3, abs=1e-5)


def train_reward(out: Path, shards: Path, policy: Path, runtime: Runtime, **options: Any) -> dict[str, Any]:
    choice = {name: options.pop(name) for name in ("kind", "source", "table", "missing") if name in options}
    settings = {"training": TRAINING, "critique": CritiqueChoice(instruction="judge :", **choice), **options}
    settings |= {"num_samples": 2, "max_critique_tokens": 6}
    return reward.run(out, shards=shards, policy=policy, runtime=runtime, **settings)


@pytest.mark.parametrize("critique", ["full", "none"])
def test_reward_model_trains_and_loads(
    critique: str, tmp_path: Path, small_shards: Path, small_policy: Path, runtime: Runtime
) -> None:
    out = tmp_path / "reward"
    options = {"weights": RewardWeights(tie=0.1, centring=0.01), "kind": critique}
    summary = train_reward(out, small_shards, small_policy, runtime, **options)
    assert ("loss_critique" in summary["train"]) == (critique != "none")
    assert 0 <= summary["heldout"]["acc"]["mean"] <= 1 and summary["train"]["loss_score"] > 0
    model, _, card = load_reward_model(out / "model", ModelSettings())
    assert card["critique"] == critique and model.score_head is not None
    assert sum(float(p.detach().abs().sum()) for p in model.score_head.parameters()) > 0
    first, last = sorted((out / "critiques").iterdir())
    assert (first.name, last.name) == ("step-00000002.jsonl", "step-00000003.jsonl")
    shown = [json.loads(line) for line in last.read_text().splitlines()]
    assert len(shown) == 2 and len({r["reward"] for row in shown for r in row["responses"]}) > 1


def test_missing_critiques_stop_the_stage_before_it_trains(
    tmp_path: Path, small_shards: Path, small_policy: Path, runtime: Runtime
) -> None:
    with pytest.raises(DataError, match="have no 'evidence' critique"):
        train_reward(tmp_path, small_shards, small_policy, runtime, kind="evidence")


def test_a_reward_model_learns_from_its_own_critiques_and_dimensions(
    tmp_path: Path, small_groups: list[PreferenceGroup], small_policy: Path, runtime: Runtime
) -> None:
    """Critiques on part of the responses, then the second round behind the first one's own critiques."""
    groups = [
        replace(
            group,
            responses=tuple(
                replace(r, scores={"ethics": float(i)}, critiques=r.critiques if i else {})
                for i, r in enumerate(group.responses)
            ),
        )
        for group in small_groups
    ]
    shards = tmp_path / "shards"
    write_shards(groups, shards)
    with pytest.raises(DataError, match="have no 'full' critique"):
        train_reward(tmp_path / "refused", shards, small_policy, runtime)
    first = train_reward(tmp_path / "first", shards, small_policy, runtime, missing="score")
    assert first["train"]["loss_critique"] > 0 and first["critique_source"] == "oracle"
    critiques = CritiqueSettings(max_tokens=6)
    critic = tmp_path / "first" / "model"
    score.run(tmp_path / "own", shards=shards, reward_model=critic, critiques=critiques, holdout=0.3, runtime=runtime)
    head = HeadSettings("silu2", dimensions=["ethics"])
    options = {"head": head, "weights": RewardWeights(dimensions=1.0), "source": "self"}
    second = train_reward(tmp_path / "second", shards, critic, runtime, table=tmp_path / "own" / "rewards", **options)
    assert second["train"]["loss_dimensions"] > 0 and "accuracy_ethics" in second["validation"]
    judge = RewardModel.from_pretrained(tmp_path / "second" / "model", critiques=critiques, device="cpu")
    assert set(judge.score_groups(groups[:1])[0][0].dimensions) == {"ethics"}
    with pytest.raises(DataError, match="no response has a score for helpfulness"):
        train_reward(
            tmp_path / "refused",
            shards,
            critic,
            runtime,
            missing="score",
            head=HeadSettings(dimensions=["helpfulness"]),
        )
    with pytest.raises(ConfigError, match="the model's own critiques"):
        train_reward(tmp_path / "refused", shards, critic, runtime, source="self")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head": HeadSettings(dimensions=["ethics"])}, "have a weight"),
        ({"weights": RewardWeights(dimensions=1.0)}, "have a weight"),
        ({"critique": CritiqueChoice("none"), "weights": RewardWeights(score=0.0)}, "nothing is left"),
    ],
)
def test_reward_settings_that_cannot_work_are_refused_up_front(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        reward.check_settings(settings)


@pytest.mark.parametrize("choice", [{"kind": "long"}, {"source": "other"}, {"missing": "skip"}])
def test_unknown_choices_of_critiques_are_refused(choice: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"unknown {next(iter(choice))}"):
        CritiqueChoice(**choice)


def train_mmdpo(out: Path, shards: Path, policy: Path, runtime: Runtime, **options: Any) -> dict[str, Any]:
    settings = {"objective": MMDPO(), "training": TRAINING, **options}
    return mmdpo.run(out, shards=shards, policy=policy, runtime=runtime, **settings)


@pytest.fixture
def tables(tmp_path: Path, small_shards: Path, small_policy: Path, scalar_model: Path, runtime: Runtime) -> dict:
    score.run(
        tmp_path / "score",
        shards=small_shards,
        reward_model=scalar_model,
        holdout=SCHEDULE.holdout,
        runtime=runtime,
    )
    reference.run(
        tmp_path / "reference", shards=small_shards, policy=small_policy, holdout=SCHEDULE.holdout, runtime=runtime
    )
    return {"rewards": tmp_path / "score" / "rewards", "reference": tmp_path / "reference" / "logprobs"}


def test_mmdpo_trains_on_margins(
    tmp_path: Path, small_shards: Path, small_policy: Path, tables: dict, runtime: Runtime
) -> None:
    summary = train_mmdpo(tmp_path / "out", small_shards, small_policy, runtime, **tables)
    found = summary["train"]
    assert 0.1 - 1e-6 <= found["beta_min"] <= found["beta"] <= found["beta_max"] <= 0.15 + 1e-6
    assert found["margin_min"] < found["margin_max"]
    assert {"kl_estimate", "length_chosen", "logprob_rejected", "gradient_norm", "lr"} <= found.keys()
    first = read_curves(tmp_path / "out")
    # Before the first update policy and reference agree, so every pair's loss is log 2.
    assert first["train/loss"][1][0] == pytest.approx(0.6931, abs=1e-3)
    assert first["train/kl_estimate"][1][0] == pytest.approx(0.0, abs=1e-3)


def test_all_references_agree(
    tmp_path: Path, small_shards: Path, small_policy: Path, tables: dict, runtime: Runtime
) -> None:
    """A table and a frozen copy train the same policy; adapters switched off are the same reference for LoRA."""
    full = {}
    for source in ("table", "frozen_copy"):
        out = tmp_path / source
        train_mmdpo(out, small_shards, small_policy, runtime, objective=DPO(), reference_from=source, **tables)
        full[source] = weights(out)
    # The first steps of Adam turn rounding in tiny gradients into steps of nearly the learning rate.
    torch.testing.assert_close(full["table"], full["frozen_copy"], rtol=1e-3, atol=2e-4)
    lora = {}
    settings = ModelSettings(language="lora", projector="frozen", lora_rank=4)
    for source in ("table", "adapter"):
        out = tmp_path / f"lora-{source}"
        training = replace(TRAINING, model=settings)
        options = {"objective": DPO(), "training": training, "reference_from": source, **tables}
        train_mmdpo(out, small_shards, small_policy, runtime, **options)
        lora[source] = weights(out)
    torch.testing.assert_close(lora["table"], lora["adapter"], rtol=1e-3, atol=2e-4)


def test_heldout_queries_are_answered_beside_the_reference(
    tmp_path: Path, small_shards: Path, small_policy: Path, scalar_model: Path, tables: dict, runtime: Runtime
) -> None:
    """At every validation; a resumed run finds the reference's answers where they were left."""
    wanted = AnswerSettings(num_queries=2, max_new_tokens=4, reward_model=scalar_model, judge=wanted_word)
    out = tmp_path / "out"
    train_mmdpo(out, small_shards, small_policy, runtime, answers=wanted, **tables)
    files = sorted(path.name for path in (out / "answers").iterdir())
    assert files == ["reference.json", "step-00000002.jsonl", "step-00000003.jsonl"]
    rows = [json.loads(line) for line in (out / "answers" / files[-1]).read_text().splitlines()]
    assert len(rows) == 2 and {"answer", "reference", "reward", "reward_reference", "quality"} <= rows[0].keys()
    curves = read_curves(out)
    steps, gains = curves["heldout/reward_gain"]
    assert steps.tolist() == [2, 3]
    assert gains[-1] == pytest.approx(sum(row["reward"] - row["reward_reference"] for row in rows) / 2)


def test_mdpo_asks_the_reference_about_damaged_pictures(
    tmp_path: Path, small_shards: Path, small_policy: Path, tables: dict, runtime: Runtime
) -> None:
    """A table of both views trains what a frozen copy does; one view alone, or other damage, is refused."""
    objective, found = MDPO(damage="crop"), {}
    asked = {"shards": small_shards, "policy": small_policy, "holdout": SCHEDULE.holdout, "runtime": runtime}
    reference.run(tmp_path / "both", damage="crop", **asked)
    both = {"reference": tmp_path / "both" / "logprobs"}
    for source in ("table", "frozen_copy"):
        out = tmp_path / source
        options = {"objective": objective, "reference_from": source, **both}
        summary = train_mmdpo(out, small_shards, small_policy, runtime, **options)
        assert {"loss_image", "loss_anchor", "image_margin"} <= summary["train"].keys()
        found[source] = weights(out)
    torch.testing.assert_close(found["table"], found["frozen_copy"], rtol=1e-3, atol=1e-5)
    for other, error in ((tables["reference"], "reference_damaged_logprob"), (both["reference"], "another damage")):
        changed = replace(objective, damage_seed=1) if other is both["reference"] else objective
        with pytest.raises(DataError, match=error):
            train_mmdpo(tmp_path / "no", small_shards, small_policy, runtime, objective=changed, reference=other)


def test_a_table_of_another_policy_is_named(
    tmp_path: Path, small_shards: Path, other_policy: Path, tables: dict, runtime: Runtime
) -> None:
    with pytest.raises(DataError, match="reference log-probabilities was made with another policy"):
        train_mmdpo(tmp_path / "out", small_shards, other_policy, runtime, **tables)


def test_rewards_of_another_reward_model_are_named(
    tmp_path: Path, small_shards: Path, small_policy: Path, other_policy: Path, tables: dict, runtime: Runtime
) -> None:
    with pytest.raises(DataError, match="table of rewards was made with another reward_model"):
        train_mmdpo(tmp_path / "out", small_shards, small_policy, runtime, reward_model=other_policy, **tables)


def test_margins_need_rewards(
    tmp_path: Path, small_shards: Path, small_policy: Path, tables: dict, runtime: Runtime
) -> None:
    with pytest.raises(ConfigError, match="MMDPO scales with a margin"):
        train_mmdpo(tmp_path / "out", small_shards, small_policy, runtime, reference=tables["reference"])


def test_adapter_reference_needs_nothing_else_trained(
    tmp_path: Path, small_shards: Path, small_policy: Path, runtime: Runtime
) -> None:
    with pytest.raises(ConfigError, match="only if nothing but adapters trains"):
        train_mmdpo(tmp_path, small_shards, small_policy, runtime, objective=DPO(), reference_from="adapter")


def test_no_pairs_is_an_error_before_training(tmp_path: Path, small_policy: Path, runtime: Runtime) -> None:
    groups = [
        PreferenceGroup(f"g{i}", "left or right ?", (Response("left", rank=1), Response("right", rank=1)))
        for i in range(4)
    ]
    write_shards(groups, tmp_path / "shards")
    with pytest.raises(DataError, match="no query has two responses of different rank"):
        train_mmdpo(
            tmp_path / "out", tmp_path / "shards", small_policy, runtime, objective=DPO(), reference_from="frozen_copy"
        )


@pytest.mark.parametrize("wrong", ["max_steps=0", "groups_per_step=0", "epochs=-1", "holdout=1", "checkpoint_every=0"])
def test_schedules_that_cannot_be_met_are_refused(wrong: str) -> None:
    name, value = wrong.split("=")
    with pytest.raises(ConfigError, match=wrong):
        Schedule(**{name: int(value)})
    with pytest.raises(ConfigError, match="neither epochs nor max_steps"):
        Schedule(epochs=None)


def test_without_any_critique_a_reward_model_learns_scores_only(
    tmp_path: Path, small_groups: list[PreferenceGroup], small_policy: Path, runtime: Runtime,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    bare = [replace(g, responses=tuple(replace(r, critiques={}) for r in g.responses)) for g in small_groups]
    write_shards(bare, tmp_path / "shards")
    settings: dict[str, Any] = {"policy": small_policy, "training": TRAINING, "runtime": runtime}
    summary = reward.run(tmp_path / "out", shards=tmp_path / "shards", critique=CritiqueChoice("short"), **settings)
    assert summary["critique"] == "none" and "holds no critiques" in caplog.text
    _, _, card = load_reward_model(tmp_path / "out" / "model", ModelSettings())
    assert card["critique"] == "none", "who loads it knows"
