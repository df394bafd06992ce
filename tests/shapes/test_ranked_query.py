"""Ranked groups: twins are exact complements, text alone stays at chance, length says nothing unless asked to."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from mmrlhf.shapes.annotators import TOP_QUALITY, AnnotatorSettings
from mmrlhf.shapes.claims import listed_items, seen_at
from mmrlhf.shapes.prompts import SHARES
from mmrlhf.shapes.ranked_query import FILLER, PreferenceSettings, draw_preference
from mmrlhf.shapes.scene import Scene

NUM_GROUPS = 1200
Row = dict[str, Any]


def rows(num_groups: int = NUM_GROUPS, seed: int = 0, **settings: Any) -> list[Row]:
    return [drawn.row for drawn in draw_preference(num_groups, seed, PreferenceSettings(**settings))]


@pytest.fixture(scope="module")
def world() -> list[Row]:
    return rows()


def twins(world: list[Row]) -> list[tuple[Row, Row]]:
    return list(zip(world[::2], world[1::2], strict=True))


def test_twins_share_prompt_and_responses_and_have_complementary_quality(world: list[Row]) -> None:
    for one, other in twins(world):
        assert one["meta"]["twin"] == other["meta"]["twin"] and one["prompt"] == other["prompt"]
        assert [r["text"] for r in one["responses"]] == [r["text"] for r in other["responses"]]
        assert [a + b for a, b in zip(one["meta"]["quality"], other["meta"]["quality"], strict=True)] == [
            TOP_QUALITY
        ] * len(one["responses"])


def test_every_group_has_three_to_five_different_responses_of_two_qualities(world: list[Row]) -> None:
    for row in world:
        texts = [response["text"] for response in row["responses"]]
        assert 3 <= len(texts) <= 5 and len(set(texts)) == len(texts)
        assert len(set(row["meta"]["quality"])) >= 2
        assert row["meta"]["quality"] == [sum(checks) for checks in row["meta"]["claims"]]


def test_length_is_the_same_for_all_responses_of_a_category(world: list[Row]) -> None:
    lengths = defaultdict(set)
    for row in world:
        lengths[row["category"]] |= {len(response["text"].split()) for response in row["responses"]}
    assert {category: sorted(found) for category, found in lengths.items()} == {
        "long": [25],
        "short": [21],
        "mcq": [20],
        "safety": [11],
        "video": [22],
    }


def test_categories_come_in_the_released_shares(world: list[Row]) -> None:
    counts = Counter(row["category"] for row in world)
    for category, share in SHARES.items():
        assert counts[category] / len(world) == pytest.approx(share / sum(SHARES.values()), abs=0.01)


def test_a_group_does_not_depend_on_how_many_are_drawn(world: list[Row]) -> None:
    assert rows(31) == world[:31]
    assert rows(2, seed=1) != world[:2]


def text_only_accuracy(train: list[Row], held_out: list[Row]) -> float:
    """Held-out accuracy of a linear Bradley-Terry model on words, word pairs and prompt-word pairs."""
    vocabulary: dict[str, int] = {}

    def features(row: Row, text: str, grow: bool) -> set[int]:
        words = text.split()
        names = [*words, *map(" ".join, zip(words, words[1:], strict=False)), f"length {len(words)}"]
        names += [f"{a} | {b}" for a in row["prompt"].split() for b in words]
        if grow:
            for name in names:
                vocabulary.setdefault(name, len(vocabulary))
        return {vocabulary[name] for name in names if name in vocabulary}

    def pairs(world: list[Row], grow: bool) -> list[tuple[list[int], list[int]]]:
        found = []
        for row in world:
            sets = [features(row, response["text"], grow) for response in row["responses"]]
            quality = row["meta"]["quality"]
            for i, j in combinations(range(len(sets)), 2):
                if quality[i] != quality[j]:
                    good, bad = (i, j) if quality[i] > quality[j] else (j, i)
                    found.append((sorted(sets[good] - sets[bad]), sorted(sets[bad] - sets[good])))
        return found

    train_pairs, test_pairs = pairs(train, True), pairs(held_out, False)
    weights = np.zeros(len(vocabulary))
    order = np.random.default_rng(0)
    for _ in range(3):
        for n in order.permutation(len(train_pairs)):
            good, bad = train_pairs[n]
            step = 0.1 / (1 + np.exp(weights[good].sum() - weights[bad].sum()))
            weights[good] += step
            weights[bad] -= step
    right = [np.sign(weights[good].sum() - weights[bad].sum()) / 2 + 0.5 for good, bad in test_pairs]
    return float(np.mean(right))


def test_a_text_only_model_stays_at_chance(world: list[Row]) -> None:
    """With both twins held out it is right exactly half of the time: what wins in one loses in the other."""
    assert text_only_accuracy(world[:800], world[800:]) == pytest.approx(0.5, abs=1e-9)
    assert text_only_accuracy(world[:800], world[800::2]) <= 0.54  # one twin each: chance within its noise


def test_the_length_biased_split_rewards_length() -> None:
    biased = rows(600, length_bias=0.8)
    assert text_only_accuracy(biased[:400], biased[400:]) > 0.6
    wins = total = 0
    for row in biased:
        for (a, q), (b, p) in combinations(zip(row["responses"], row["meta"]["quality"], strict=True), 2):
            longer, better = len(a["text"]) - len(b["text"]), q - p
            long_pair = (FILLER in a["text"]) != (FILLER in b["text"])
            if better and long_pair:
                wins, total = wins + (longer * better > 0), total + 1
    assert total > 100 and wins / total > 0.7


def test_the_mean_rank_follows_quality_without_noise() -> None:
    for row in rows(60, annotators=AnnotatorSettings(sigma=0.0)):
        order = sorted(set(row["meta"]["quality"]), reverse=True)
        assert [r["rank"] for r in row["responses"]] == [1 + order.index(q) for q in row["meta"]["quality"]]


def test_critiques_open_with_what_is_there_whatever_the_response_says(world: list[Row]) -> None:
    for row in world:
        scene = Scene.from_meta(row["meta"]["scene"])
        there = " , ".join(listed_items(scene)) if "asked" not in row["meta"] else None
        openings = {r["critiques"][name].split(" . ")[0] for r in row["responses"] for name in ("full", "evidence")}
        assert openings == {there or seen_at(scene, row["meta"]["asked"])}


def test_texts_stay_short_and_evidence_has_no_verdict(world: list[Row]) -> None:
    for row in world:
        assert len(row["prompt"].split()) <= 14
        for response in row["responses"]:
            # 16 words of listing, 13 for each of three claims at most, 3 for the score
            assert len(response["critiques"]["full"].split()) <= 16 + 3 * 13 + 3
            assert not {"true", "false", "score", "empty"} & set(response["critiques"]["evidence"].split())


def test_the_sub_checks_are_the_truth_of_each_claim() -> None:
    """What extra outputs of a reward model can learn instead of writing it."""
    for row in (drawn.row for drawn in draw_preference(60, 1, PreferenceSettings())):
        for response, truth in zip(row["responses"], row["meta"]["claims"], strict=True):
            assert [response["scores"][f"check_{number}"] for number in (1, 2, 3)] == [float(check) for check in truth]
