"""The judge that reads responses in turn, as a user types it: warm-up to preference training, and with critiques."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from stand_ins.commands import start

from mmrlhf.inference.reward_model import RewardModel
from mmrlhf.models.promises import CARD_FILE
from mmrlhf.shards.index import Index
from mmrlhf.shards.sidecar import SideCar

pytestmark = pytest.mark.slow
USUAL = ["scale=tiny", "logger=none", "trainer=cpu"]


def built(tmp_path: Path, stage: str) -> Path:
    (folder,) = (path for path in tmp_path.glob(f"artifacts/{stage}/*") if path.is_dir())
    return folder


def metrics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


def test_the_papers_recipe_gives_margins_to_mmdpo(tmp_path: Path) -> None:
    """Its rewards are the margins, of every query; some queries' responses have pictures of their own."""
    start(tmp_path, "ablation=multi_response", "stage=mmdpo", *USUAL, expected=0)
    card = json.loads((built(tmp_path, "reward") / "model" / CARD_FILE).read_text())
    assert (card["reading"], card["critique"], card["head"]) == ("in_turn", "none", "silu2")
    table = SideCar.load(built(tmp_path, "score") / "rewards")
    assert table.fingerprint["reading"] == "in_turn" and table.fingerprint["orders"] == "all"
    index = Index.load(built(tmp_path, "pack"))
    queries = [group for group in index if group.key in table.keys()]
    own = [group for group in queries if group.has_own_media]
    assert own and len(queries) == len(table.keys()) > 30
    judge = RewardModel.from_pretrained(built(tmp_path, "reward") / "model", device="cpu")
    for group in [*queries[:6], own[0]]:
        kept = table.lookup(group.key, [response.hash for response in group.responses])["reward"].tolist()
        assert kept == pytest.approx([v.reward for v in judge.score_groups([group])[0]], abs=1e-4)
    trained = metrics(built(tmp_path, "mmdpo"))
    assert trained["steps"] == 2 and trained["train"]["loss"] > 0


def test_with_critiques_it_is_asked_by_every_stage(tmp_path: Path) -> None:
    """A second round on its own critiques, the page, a benchmark in both orders and in one, best of n, policies."""
    words = ["reading=in_turn", *USUAL]
    start(tmp_path, "stage=report_reward", "inputs.reward_model=stage:reward_self/model", *words, expected=0)
    card = json.loads((built(tmp_path, "reward_self") / "model" / CARD_FILE).read_text())
    assert card["reading"] == "in_turn" and card["critique"] != "none"
    found = metrics(built(tmp_path, "score"))
    assert found["writes_critiques"] and found["critique_tokens_per_second"] > 0
    drawn = ["inputs.benchmark=stage:pack", "stages.rewardbench.critiques.orders=drawn"]
    start(tmp_path, "stage=rewardbench", *drawn, *words, expected=0)
    start(tmp_path, "experiment=best_of_n", "stages.best_answers.num_samples=3", *words, expected=0)
    start(tmp_path, "stage=evaluate", *words, expected=0)
    said = start(tmp_path, "stage=reward", "model.settings.attention=cascade", *words, expected=2)
    assert "cascade computes branches apart" in said
    said = start(tmp_path, "stage=reward", *USUAL, "reading=sideways", expected=2)
    assert "unknown reading of responses" in said and "apart, in_turn" in said
