"""Rewards from annotations: weighted means of scores, the truth, and what is missing by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mmrlhf.chain.runtime import Runtime
from mmrlhf.errors import ConfigError, DataError
from mmrlhf.shards.sidecar import SideCar
from mmrlhf.shards.writer import write_shards
from mmrlhf.stages import annotations
from mmrlhf.types import PreferenceGroup


def scored(groups: list[PreferenceGroup], folder: Path) -> Path:
    """Shards in which response i scores i on `overall` and 10 i on `ethics`."""
    write_shards(
        [
            replace(
                group,
                responses=tuple(
                    replace(response, scores={"overall": float(i), "ethics": 10.0 * i})
                    for i, response in enumerate(group.responses)
                ),
            )
            for group in groups
        ],
        folder,
    )
    return folder


def rewards(folder: Path, group: PreferenceGroup) -> list[float]:
    table = SideCar.load(folder / "rewards")
    return table.lookup(group.key, [response.hash for response in group.responses])["reward"].tolist()


def test_a_reward_is_the_weighted_mean(tmp_path: Path, small_groups: list[PreferenceGroup], runtime: Runtime) -> None:
    shards = scored(small_groups, tmp_path / "shards")
    weights = {"overall": 3.0, "ethics": 1.0, "helpfulness": 0.0}
    summary = annotations.run(tmp_path / "out", shards=shards, weights=weights, holdout=0.3, runtime=runtime)
    for group in small_groups:
        assert rewards(tmp_path / "out", group) == [pytest.approx(13 * i / 4) for i in range(len(group.responses))]
    assert summary["heldout"]["queries"] + summary["train"]["queries"] == len(small_groups)


def test_the_truth_can_give_rewards(tmp_path: Path, small_groups: list[PreferenceGroup], runtime: Runtime) -> None:
    write_shards(small_groups, tmp_path / "shards")
    length = {"judge": lambda meta, text: float(len(text))}
    annotations.run(tmp_path / "out", shards=tmp_path / "shards", holdout=0.3, runtime=runtime, **length)
    group = small_groups[0]
    assert rewards(tmp_path / "out", group) == [len(response.text) for response in group.responses]


def test_a_missing_score_is_named(tmp_path: Path, small_groups: list[PreferenceGroup], runtime: Runtime) -> None:
    shards = scored(small_groups, tmp_path / "shards")
    with pytest.raises(DataError, match="no score for faithfulness"):
        annotations.run(tmp_path / "out", shards=shards, weights={"overall": 1.0, "faithfulness": 1.0}, runtime=runtime)


@pytest.mark.parametrize("settings", [{}, {"weights": {"overall": 0.0}}, {"weights": {"a": 1.0}, "judge": len}])
def test_scores_or_the_truth_and_not_both(settings: dict) -> None:
    with pytest.raises(ConfigError, match="annotated scores or from the truth"):
        annotations.check_settings(settings)
