"""The baselines on the real MM-RLHF-RewardBench, and their laws on small ones."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmrlhf.metrics.baselines import (
    RankedTexts,
    critique_word_scores,
    length_scores,
    random_scores,
)
from mmrlhf.metrics.ranking import accuracy_report
from mmrlhf.types import PreferenceGroup, Response


def row(query: str, chosen: str, rejected: str, good: str = "", bad: str = "", image: str = "long/a.jpg") -> dict:
    sides = {"chosen": chosen, "rejected": rejected, "chosen_reason": good, "rejected_reason": bad}
    return {"id": query, "image": image, **sides}


def ranked_texts(rows: Iterable[Mapping[str, Any]]) -> RankedTexts:
    """Rows of the released layout as queries; responses are told apart by their text, pairs are kept as given."""
    queries: dict[str, tuple[str, dict[str, Response], list[tuple[str, str]]]] = {}
    for found in rows:
        category = str(found.get("image") or found.get("video")).split("/")[0]
        _, responses, pairs = queries.setdefault(str(found["id"]), (category, {}, []))
        for side in ("chosen", "rejected"):
            critiques = {"short": found[f"{side}_reason"] or ""}
            responses.setdefault(found[side], Response(found[side], critiques=critiques))
        pairs.append((found["chosen"], found["rejected"]))
    groups = []
    for key, (category, responses, pairs) in queries.items():
        place = {text: number for number, text in enumerate(responses)}
        indices = tuple((place[chosen], place[rejected]) for chosen, rejected in pairs)
        groups.append(PreferenceGroup(key, "?", tuple(responses.values()), category=category, pairs=indices))
    return RankedTexts.from_groups(groups)


def accuracy(ranked: RankedTexts, scores: np.ndarray) -> dict[str, Any]:
    """The accuracy report of one score per response."""
    chosen, rejected = (np.array([pair[side] for pair in ranked.pairs]) for side in (0, 1))
    keys, categories = ([names[i] for i in chosen] for names in (ranked.keys, ranked.categories))
    return accuracy_report(keys, scores[chosen], scores[rejected], categories)


@pytest.fixture(scope="module")
def rewardbench(shared_data: Path) -> RankedTexts:
    path = shared_data / "rewardbench" / "mm_reward_bench.jsonl"
    return ranked_texts(json.loads(line) for line in path.read_text().splitlines())


def test_rewardbench_is_what_the_paper_says(rewardbench: RankedTexts) -> None:
    report = accuracy(rewardbench, length_scores(rewardbench))
    assert (report["num_pairs"], report["num_queries"], len(rewardbench.keys)) == (170, 46, 170)
    pairs = {name: found["num_pairs"] for name, found in report["categories"].items()}
    assert pairs == {"mcq": 42, "long": 37, "short": 34, "safety": 32, "video": 25}
    queries = {name: found["num_queries"] for name, found in report["categories"].items()}
    assert queries == {"mcq": 10, "long": 10, "short": 10, "safety": 6, "video": 10}


def test_longer_wins_on_rewardbench(rewardbench: RankedTexts) -> None:
    report = accuracy(rewardbench, length_scores(rewardbench))
    assert report["acc"]["mean"] == pytest.approx(122 / 170)  # .718
    assert report["acc_plus"]["mean"] == pytest.approx(22 / 46)  # .478
    assert report["acc"]["low"] < 0.65 and report["acc"]["high"] > 0.78


def test_critique_words_on_rewardbench(rewardbench: RankedTexts) -> None:
    """Leave one query out, l2 = 1: .859 / .674; no gap but one exact tie is below 0.04."""
    report = accuracy(rewardbench, critique_word_scores(rewardbench))
    assert report["acc"]["mean"] == pytest.approx(146 / 170)
    assert report["acc_plus"]["mean"] == pytest.approx(31 / 46)


def test_critique_words_carry_over_to_unseen_queries_in_any_script() -> None:
    rows = [row(f"q{i}", f"c{i}", f"r{i}", "answer correct 正确", "answer wrong 错误") for i in range(4)]
    rows += [row("cjk", "c", "r", "正确", "错误"), row("unknown", "c", "r", "new", "words")]
    ranked = ranked_texts(rows)
    scores = critique_word_scores(ranked)
    gaps = [scores[chosen] - scores[rejected] for chosen, rejected in ranked.pairs]
    assert all(gap > 0 for gap in gaps[:5]) and gaps[5] == 0


def test_a_query_never_scores_itself() -> None:
    """Turning one query's labels round changes the others' scores, not its own."""
    rows = [row(f"q{i}", f"c{i}", f"r{i}", "good", "bad") for i in range(5)]
    turned = [*rows[:4], row("q4", "r4", "c4", "bad", "good")]
    before, after = (ranked_texts(r) for r in (rows, turned))
    old, new = critique_word_scores(before), critique_word_scores(after)
    assert old[before.texts.index("c4")] == pytest.approx(new[after.texts.index("c4")])
    assert old[before.texts.index("c0")] > new[after.texts.index("c0")]


def test_one_query_alone_scores_nothing() -> None:
    assert critique_word_scores(ranked_texts([row("a", "x", "y", "good", "bad")])).tolist() == [0, 0]


def test_random_scores_do_not_depend_on_order() -> None:
    rows = [row(f"q{i}", f"c{i}", f"r{i}") for i in range(400)]
    forward, backward = ranked_texts(rows), ranked_texts(rows[::-1])
    scores = dict(zip(forward.texts, random_scores(forward), strict=True))
    assert scores == dict(zip(backward.texts, random_scores(backward), strict=True))
    assert accuracy(forward, random_scores(forward))["acc"]["mean"] == pytest.approx(0.5, abs=0.08)
    assert not np.array_equal(random_scores(forward), random_scores(forward, seed=1))


def test_groups_are_laid_out_one_behind_the_other() -> None:
    responses = (Response("x", rank=1, critiques={"short": "good"}), Response("y", rank=2, critiques={"short": "bad"}))
    groups = [PreferenceGroup(key, "?", responses, category="long") for key in "ab"]
    ranked = RankedTexts.from_groups(groups)
    assert ranked.keys == ("a", "a", "b", "b") and ranked.pairs == ((0, 1), (2, 3))
    assert ranked.critiques == ("good", "bad") * 2 and ranked.categories == ("long",) * 4
    assert RankedTexts.from_groups(groups, critique="full").critiques == ("",) * 4
