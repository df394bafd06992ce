"""One precision policy in every place where numbers are made: tables, `RewardModel`, training."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from stand_ins.small_data import draw_group

from mmrlhf.chain.runtime import Runtime
from mmrlhf.inference.reward_model import RewardModel
from mmrlhf.inference.settings import CritiqueSettings, PassSettings
from mmrlhf.models.load import ModelSettings
from mmrlhf.shards.sidecar import SideCar
from mmrlhf.shards.writer import write_shards
from mmrlhf.stages import score

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
