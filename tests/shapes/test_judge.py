"""The judge: by hand, on every drawn response, and on any text at all."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrlhf.shapes import judge
from mmrlhf.shapes.prompts import KINDS
from mmrlhf.shapes.ranked_query import PreferenceSettings, draw_preference

META = {
    "kinds": ["count", "cell", "relation"],
    "scene": {"cells": ["red circle", "blue square", "", "green cross"]},
}
TRUE = ["there are 3 objects .", "northwest is a red circle .", "the red circle is left of the blue square ."]
RECORDS = [drawn.row for drawn in draw_preference(60, 0, PreferenceSettings())]


@pytest.mark.parametrize(
    ("text", "checks"),
    [
        (" ".join(TRUE), [True, True, True]),
        (" ".join(reversed(TRUE)), [True, True, True]),
        (" ".join([TRUE[0]] * 3), [True, False, False]),  # repeats gain nothing
        ("there are 4 objects . " + " ".join(TRUE), [False, True, True]),  # nor does a second try
        (TRUE[1] + " what a nice picture .", [False, True, False]),
        ("", [False] * 3),
    ],
)
def test_by_hand(text: str, checks: list[bool]) -> None:
    assert judge.check(META, text) == checks
    assert judge.quality(META, text) == pytest.approx(sum(checks) / 3)


def test_it_agrees_with_the_truth_that_records_carry() -> None:
    for row in RECORDS:
        meta = json.loads(json.dumps(row["meta"]))
        for response, quality, claims in zip(row["responses"], meta["quality"], meta["claims"], strict=True):
            assert judge.quality(meta, response["text"]) == pytest.approx(quality / 3)
            assert judge.check(meta, response["text"]) == claims


WORDS = sorted({word for row in RECORDS for response in row["responses"] for word in response["text"].split()})


@given(st.sampled_from(RECORDS), st.one_of(st.text(), st.lists(st.sampled_from(WORDS), max_size=40).map(" ".join)))
@settings(max_examples=200, deadline=None)
def test_no_text_makes_it_fail(row: dict, text: str) -> None:
    assert 0.0 <= judge.quality(row["meta"], text) <= 1.0
    assert len(judge.check(row["meta"], text)) == len(KINDS[row["category"]])
    assert 0.0 <= judge.listing_accuracy(row["meta"], text) <= 1.0
    assert 0.0 <= judge.answer_accuracy({"answer": "saw 3 ."}, text) <= 1.0


def test_listing_accuracy_by_hand() -> None:
    right = "red circle northwest , blue square northeast , green cross southeast ."
    assert judge.listing_accuracy(META, right) == 1.0
    assert judge.listing_accuracy(META, right.replace("green", "red")) == pytest.approx(2 / 3)
    assert judge.listing_accuracy(META, "red circle northwest , red circle northwest .") == pytest.approx(1 / 3)
    assert judge.listing_accuracy(META, right.removesuffix(".") + ", blue square northwest .") == pytest.approx(3 / 4)
    assert judge.listing_accuracy(META, "") == 0.0
