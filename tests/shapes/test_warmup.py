"""Warm-up records: what they ask, that gold answers are right, and that answers are right as often as set."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from mmrlhf.errors import ConfigError
from mmrlhf.shapes import judge
from mmrlhf.shapes.scene import Scene
from mmrlhf.shapes.warmup import WarmupSettings, draw_warmup, listing


def test_a_listing_reads_shape_by_shape() -> None:
    cells = ("", "red circle", "blue square", "hazard")
    assert listing(Scene(cells)) == "red circle northeast , blue square southwest , hazard southeast ."
    assert listing(Scene(cells[::-1])) == "red circle southwest , blue square northeast , hazard northwest ."
    clip = Scene(cells, ("", "", *cells[2:]), "red circle appears now", 1)
    assert listing(clip) == listing(Scene(cells)) + " red circle appears now ."


def test_gold_texts_are_judged_right() -> None:
    for drawn in draw_warmup(300, 0, WarmupSettings()):
        meta, text = drawn.row["meta"], drawn.row["responses"][0]["text"]
        if meta["task"] == "answer":
            assert round(3 * judge.quality(meta, text)) == meta["quality"][0]
        else:
            assert judge.quality(meta, text) == 1.0
        assert len(drawn.row["prompt"].split()) <= 17 and len(drawn.row["responses"]) == 1


def test_tasks_come_in_the_set_mix() -> None:
    mix = {"listing": 1.0, "questions": 3.0}
    counts = Counter(d.row["meta"]["task"] for d in draw_warmup(600, 0, WarmupSettings(mix=mix)))
    assert counts["listing"] / 600 == pytest.approx(0.25, abs=0.05) and set(counts) == set(mix)


@pytest.mark.parametrize("truth", [0.0, 0.6, 1.0])
def test_answers_are_true_as_often_as_set(truth: float) -> None:
    settings = WarmupSettings(mix={"answer": 1.0}, truth=truth)
    quality = [drawn.row["meta"]["quality"][0] for drawn in draw_warmup(400, 0, settings)]
    assert np.mean(quality) / 3 == pytest.approx(truth, abs=0.05)


@pytest.mark.parametrize("wrong", [{"mix": {"song": 1.0}}, {"mix": {"listing": 0.0}}, {"truth": 1.2}])
def test_bad_settings_are_named(wrong: dict) -> None:
    with pytest.raises(ConfigError):
        WarmupSettings(**wrong)
