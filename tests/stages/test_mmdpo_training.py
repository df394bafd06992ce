"""The stage `mmdpo`: margins, references, tables that do not fit, answers while training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from stand_ins.small_data import wanted_word
from stand_ins.small_training import SCHEDULE, TRAINING, weights

from mmrlhf.chain.runtime import Runtime
from mmrlhf.errors import ConfigError, DataError
from mmrlhf.losses.dpo import DPO
from mmrlhf.losses.image_conditional import MDPO
from mmrlhf.losses.length_desensitised import LDDPO
from mmrlhf.losses.mmdpo import MMDPO
from mmrlhf.models.settings import ModelSettings
from mmrlhf.shards.writer import write_shards
from mmrlhf.stages import mmdpo, reference, score
from mmrlhf.summaries.curve_file import read_curves
from mmrlhf.training.heldout_answers import AnswerSettings
from mmrlhf.types import PreferenceGroup, Response


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


@pytest.mark.slow
def test_ld_dpo_asks_the_reference_about_shared_lengths(
    tmp_path: Path, small_shards: Path, small_policy: Path, tables: dict, runtime: Runtime
) -> None:
    """A table of them trains what a frozen copy does; a table without them is refused."""
    objective, found = LDDPO(alpha=0.25), {}
    asked = {"shards": small_shards, "policy": small_policy, "holdout": SCHEDULE.holdout, "runtime": runtime}
    reference.run(tmp_path / "shared", shared_lengths=True, **asked)
    for source in ("table", "frozen_copy"):
        out = tmp_path / source
        options = {"objective": objective, "reference_from": source, "reference": tmp_path / "shared" / "logprobs"}
        summary = train_mmdpo(out, small_shards, small_policy, runtime, **options)
        # Before the first update policy and reference agree on every token.
        assert read_curves(out)["train/loss"][1][0] == pytest.approx(0.693147, abs=1e-4)
        found[source] = weights(out)
    assert summary["train"]["length_chosen"] > 0
    torch.testing.assert_close(found["table"], found["frozen_copy"], rtol=1e-3, atol=2e-4)
    with pytest.raises(DataError, match="reference_shared_0"):
        train_mmdpo(tmp_path / "no", small_shards, small_policy, runtime, objective=objective, **tables)


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
