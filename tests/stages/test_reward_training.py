"""The stage `reward`: critiques, dimensions, settings that cannot work."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from stand_ins.small_training import SCHEDULE, TRAINING

from mmrlhf.chain.runtime import Runtime
from mmrlhf.errors import ConfigError, DataError
from mmrlhf.inference.reward_model import RewardModel
from mmrlhf.inference.settings import CritiqueSettings
from mmrlhf.methods.critique_reward import RewardWeights
from mmrlhf.methods.optim import OptimSettings
from mmrlhf.models.heads import HeadSettings
from mmrlhf.models.promises import HEAD_FILE
from mmrlhf.models.reward_folder import load_reward_model
from mmrlhf.models.settings import ModelSettings
from mmrlhf.shards.writer import write_shards
from mmrlhf.stages import reward, score
from mmrlhf.training.reward_inputs import CritiqueChoice
from mmrlhf.types import PreferenceGroup


def train_reward(out: Path, shards: Path, policy: Path, runtime: Runtime, **options: Any) -> dict[str, Any]:
    choice = {name: options.pop(name) for name in ("kind", "source", "table", "missing") if name in options}
    settings = {
        "training": options.pop("training", TRAINING),
        "critique": CritiqueChoice(instruction="judge :", **choice),
        **options,
    }
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


def test_a_reward_model_s_adapters_are_a_folder_with_its_head(
    tmp_path: Path, small_shards: Path, small_policy: Path, runtime: Runtime
) -> None:
    """The merged folder and the adapter folder score alike; the one is a model, the other its difference."""
    lora = ModelSettings(projector="frozen", language="lora", lora_rank=2)
    training = replace(TRAINING, model=lora, save="both")
    train_reward(tmp_path, small_shards, small_policy, runtime, kind="none", training=training)
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    asked = ["a red circle", "no"]
    merged, adapted = (RewardModel.from_pretrained(tmp_path / name, device="cpu") for name in ("model", "adapter"))
    scores = [[reward for reward, _ in judge.score(None, "what ?", asked)] for judge in (merged, adapted)]
    assert scores[0][0] != scores[0][1]
    torch.testing.assert_close(torch.tensor(scores[1]), torch.tensor(scores[0]), atol=1e-4, rtol=1e-4)


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
    head = HeadSettings("silu2", dimensions=["ethics"], fresh=True)
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


def test_a_second_round_goes_on_with_the_head_of_the_first(
    tmp_path: Path, small_shards: Path, small_policy: Path, runtime: Runtime
) -> None:
    """With almost no learning rate the head that comes out is the one that went in."""
    train_reward(tmp_path / "first", small_shards, small_policy, runtime)
    critic = tmp_path / "first" / "model"
    still = replace(TRAINING, optim=OptimSettings(lr=1e-12), schedule=replace(SCHEDULE, max_steps=1))
    train_reward(tmp_path / "second", small_shards, critic, runtime, training=still)
    before, after = (load_file(tmp_path / name / "model" / HEAD_FILE) for name in ("first", "second"))
    assert float(before["out.weight"].norm()) > 1e-4
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head": HeadSettings(dimensions=["ethics"])}, "have a weight"),
        ({"weights": RewardWeights(dimensions=1.0)}, "have a weight"),
        ({"critique": CritiqueChoice("none"), "weights": RewardWeights(score=0.0)}, "nothing is left"),
        (
            {"reading": "in_turn", "training": replace(TRAINING, model=ModelSettings(attention="cascade"))},
            "cascade computes branches apart",
        ),
    ],
)
def test_reward_settings_that_cannot_work_are_refused_up_front(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        reward.check_settings(settings)


@pytest.mark.parametrize("choice", [{"kind": "long"}, {"source": "other"}, {"missing": "skip"}])
def test_unknown_choices_of_critiques_are_refused(choice: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(choice))} cannot be this(?s:.)*one of") as raised:
        CritiqueChoice(**choice)
    assert raised.value.argument == next(iter(choice)), "whoever made it knows which key that is"


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


@pytest.mark.parametrize("critique", ["none", pytest.param("full", marks=pytest.mark.slow)])
def test_responses_read_in_turn_are_trained_and_remembered(
    critique: str, tmp_path: Path, small_shards: Path, small_groups: list[PreferenceGroup], small_policy: Path,
    runtime: Runtime, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Its folder says how it is asked; training it further in another way is said, in the same way is not."""
    weights_ = RewardWeights(score_over="best", centring=0.0)
    summary = train_reward(
        tmp_path / "one", small_shards, small_policy, runtime, kind=critique, reading="in_turn", weights=weights_
    )
    assert 0 <= summary["heldout"]["acc"]["mean"] <= 1 and summary["train"]["loss_score"] > 0
    judge = RewardModel.from_pretrained(
        tmp_path / "one" / "model", critiques=CritiqueSettings(max_tokens=6), device="cpu"
    )
    assert judge.in_turn and "reading: in_turn" in (tmp_path / "one" / "model" / "README.md").read_text()
    group = small_groups[1]
    together, alone = judge.score_groups([group])[0], judge.score_alone([group])[0]
    assert [v.reward for v in together] != pytest.approx([v.reward for v in alone], abs=1e-6)
    shown = [json.loads(line) for line in max((tmp_path / "one" / "critiques").iterdir()).read_text().splitlines()]
    by_key = {group.key: group for group in small_groups}
    for row in shown:
        found = judge.score_groups([by_key[row["key"]]])[0]
        assert [each["reward"] for each in row["responses"]] == pytest.approx([v.reward for v in found], abs=1e-4)
    if critique == "none":
        short = replace(TRAINING, schedule=replace(SCHEDULE, max_steps=1))
        for reading, said in (("in_turn", False), ("apart", True)):
            caplog.clear()
            start = tmp_path / "one" / "model"
            train_reward(
                tmp_path / reading, small_shards, start, runtime, kind=critique, reading=reading, training=short
            )
            assert ("reads responses in_turn, and is trained further with reading=apart" in caplog.text) == said
