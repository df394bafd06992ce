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


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose artefacts the commands with critiques share."""
    return tmp_path_factory.mktemp("in-turn")


def run(store: Path, *words: str, expected: int = 0) -> str:
    return start(store, "reading=in_turn", *words, *USUAL, expected=expected, MMRLHF_ARTIFACTS=f"{store}/artifacts")


def test_a_second_round_learns_from_its_own_critiques(store: Path) -> None:
    run(store, "stage=score", "inputs.reward_model=stage:reward_self/model")
    card = json.loads((built(store, "reward_self") / "model" / CARD_FILE).read_text())
    assert card["reading"] == "in_turn" and card["critique"] != "none"
    found = metrics(built(store, "score"))
    assert found["writes_critiques"] and found["critique_tokens_per_second"] > 0


def test_a_benchmark_is_judged_in_one_order_with_and_without_pictures(store: Path) -> None:
    run(store, "stage=rewardbench", "inputs.benchmark=stage:pack", "stages.rewardbench.critiques.orders=drawn")
    folder = built(store, "rewardbench")
    assert SideCar.load(folder / "rewards").fingerprint["orders"] == "drawn"
    assert "reward model, no picture" in metrics(folder)["accuracy"]["annotators"]


def test_it_chooses_the_best_of_n_and_measures_policies(store: Path) -> None:
    run(store, "experiment=best_of_n", "stages.best_answers.num_samples=3")
    assert metrics(built(store, "best_of_n"))["queries"] > 30
    run(store, "stage=evaluate")
    assert metrics(built(store, "evaluate"))["reward"]["mean"] is not None
