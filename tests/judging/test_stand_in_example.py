"""The judge that stands in for an endpoint: it answers every ballot in its form, and likes the longer answer."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from mmrlhf.judging.ballots import BALLOTS
from mmrlhf.judging.verdict_words import NoVerdict

EXAMPLE = Path(__file__).parents[2] / "examples" / "stand_in_judge.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("stand_in_judge", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", BALLOTS)
def test_it_answers_in_the_form_that_is_asked_for(example, name):
    ballot, chosen, unread = BALLOTS[name], [], 0
    for number in range(60):
        answers = ["short", "a longer answer\n\nin two paragraphs", "of medium length"][
            : 3 if ballot.form == "best" else 2
        ]
        try:
            said = ballot.read(example.verdict(ballot.request(f"question {number}?", answers)), len(answers))
            chosen.append(said)
        except NoVerdict:
            unread += 1
    assert 0 < unread < 12, "one in twenty"
    assert set(chosen) == {1}, "the longer one, or the lowest rating of a short one"


def test_it_takes_the_first_of_equals(example):
    ballot = BALLOTS["pair"]
    said = {ballot.read(example.verdict(ballot.request(question, ["of one", "length"])), 2) for question in "abc"}
    assert said == {0}
