"""Margins that are differences of two models' mean rewards, as a user types it: two runs, one preference training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from stand_ins.commands import start

from mmrlhf.shards.index import Index
from mmrlhf.shards.sidecar import SideCar

pytestmark = pytest.mark.slow
USUAL = ["scale=tiny", "logger=none", "trainer=cpu"]


def folders(tmp_path: Path, stage: str) -> list[Path]:
    return [path for path in tmp_path.glob(f"artifacts/{stage}/*") if path.is_dir()]


def test_mmdpo_trains_on_the_mean_of_two_reward_models(tmp_path: Path) -> None:
    start(tmp_path, "stage=score", "ablation=base_reward", *USUAL, expected=0)
    (other,) = folders(tmp_path, "score")
    said = start(tmp_path, "stage=mmdpo", "margin=mean", f"inputs.reward_tables.other={other}", *USUAL, expected=2)
    assert "inputs.reward_tables.other" in said and f"{other.name}/rewards" in "".join(said.split("│")).replace(" ", "")
    assert len(folders(tmp_path, "reward")) == 1, "said before a second reward model is trained"
    words = ["stage=mmdpo", "margin=mean", f"inputs.reward_tables.other={other}/rewards", *USUAL]
    start(tmp_path, *words, expected=0)
    (own,) = (path for path in folders(tmp_path, "score") if path != other)
    (mean,), (trained,) = folders(tmp_path, "mean_rewards"), folders(tmp_path, "mmdpo")
    tables = [SideCar.load(each / "rewards", columns=["reward"]) for each in (own, other, mean)]
    queries = list(Index.load(folders(tmp_path, "pack")[0]))
    differ = 0
    for group in queries:
        hashes = [response.hash for response in group.responses]
        a, b, both = (table.lookup(group.key, hashes)["reward"] for table in tables)
        assert both.tolist() == pytest.approx(((a + b) / 2).tolist(), abs=1e-6)
        differ += int((both != a).any())
    assert differ > len(queries) / 2
    start(tmp_path, *words, "stages.mean_rewards.scaling=standardise", expected=0)
    (again,) = (path for path in folders(tmp_path, "mmdpo") if path != trained)
    raw, standardised = (json.loads((path / "metrics.json").read_text())["train"] for path in (trained, again))
    # scores of untrained heads lie close together; brought to a standard deviation of 1, they do not
    assert 0 < 20 * raw["margin_std"] < standardised["margin_std"]
