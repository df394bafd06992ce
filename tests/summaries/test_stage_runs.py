"""What every stage leaves as metrics.json is read back as its kind, and as the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from stand_ins.small_data import wanted_word

from mmrlhf.inference.settings import CritiqueSettings, PassSettings
from mmrlhf.losses.mmdpo import MMDPO
from mmrlhf.stages import annotations, evaluate, generate, mmdpo, publish, reference, reward, rewardbench, score, sft
from mmrlhf.stages.report import run as report
from mmrlhf.summaries.kinds import KINDS
from mmrlhf.summaries.summary import METRICS_FILE
from mmrlhf.tokens.processing import MediaSettings
from mmrlhf.training.settings import Schedule, TrainSettings

TRAINING = TrainSettings(
    media=MediaSettings(num_frames=2), schedule=Schedule(max_steps=1, groups_per_step=2, holdout=0.3)
)
PASSES, CRITIQUES = PassSettings(groups_per_batch=8), CritiqueSettings(max_tokens=3)


def check(stage: str, folder: Path, returned: Mapping[str, Any]) -> None:
    content = json.loads((folder / METRICS_FILE).read_text())
    assert KINDS[stage].from_json(content, where=folder).to_json() == content == json.loads(json.dumps(returned))


@pytest.mark.slow
def test_of_asked_models(tmp_path, small_shards, small_policy, critic, runtime):
    asked = {"shards": small_shards, "passes": PASSES, "runtime": runtime}
    short = {"max_new_tokens": 3, "holdout": 0.4}
    runs: dict[str, Callable[..., dict[str, Any]]] = {
        "reference": partial(reference.run, policy=small_policy, **asked),
        "score": partial(score.run, reward_model=critic, critiques=CRITIQUES, compare_given=True, **asked),
        "rewardbench": partial(rewardbench.run, reward_model=critic, critiques=CRITIQUES, **asked),
        "generate": partial(generate.run, policy=small_policy, judge=wanted_word, **short, **asked),
        "evaluate": partial(
            evaluate.run, policy=small_policy, reference=small_policy, reward_model=critic, critiques=CRITIQUES,
            judge=wanted_word, **short, **asked,
        ),
        "annotations": partial(annotations.run, shards=small_shards, judge=wanted_word, holdout=0.4, runtime=runtime),
        "publish": partial(publish.run, folder=small_policy, repo="someone/something", runtime=runtime),
    }  # fmt: skip
    for stage, run in runs.items():
        (tmp_path / stage).mkdir()
        check(stage, tmp_path / stage, run(tmp_path / stage))
    found = report(
        tmp_path / "report", shards=small_shards, score=tmp_path / "score", before=tmp_path / "evaluate",
        after=tmp_path / "evaluate", rounds=[tmp_path / "evaluate"], objective=MMDPO(), num_samples=1, runtime=runtime,
    )  # fmt: skip
    check("report", tmp_path / "report", found)
    assert found["quality_gain"] == 0 and found["rounds"][1]["reward"]["mean"] == found["reward_after"]


@pytest.mark.parametrize("stage", ["sft", "reward", "mmdpo"])
def test_of_trainings(tmp_path, small_shards, small_policy, runtime, stage):
    more = {
        "sft": partial(sft.run),
        "reward": partial(reward.run, num_samples=1, max_critique_tokens=2),
        "mmdpo": partial(mmdpo.run, objective=MMDPO(), margin_from="implicit", reference_from="frozen_copy"),
    }
    found = more[stage](tmp_path, shards=small_shards, policy=small_policy, training=TRAINING, runtime=runtime)
    check(stage, tmp_path, found)
    assert (
        found["steps"] == 1
        and ("objective" in found) == (stage == "mmdpo")
        and ("critique" in found) == (stage == "reward")
    )
