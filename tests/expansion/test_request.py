"""What an expansion may say: everything that the reason says, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stand_ins.little_work import little_work

from mmrlhf.expansion.request import Request, changes_verdict, make_request, new_words, refusals
from mmrlhf.shapes.claims import NAMES
from mmrlhf.shapes.critique import expand, short
from mmrlhf.types import PreferenceGroup, Response

KINDS = ("count", "relation", "motion")
CHECKS = st.lists(st.booleans(), min_size=3, max_size=3)


def ask(reason: str, question: str = "What animal is it?", answer: str = "A dog sleeps on the red sofa.") -> Request:
    return make_request(PreferenceGroup("k", question, ()), Response(answer), reason)


def spelled_out(reason: str) -> str:
    """The embedded world's own expansion, which adds nothing; without the count of true claims at its end."""
    return expand(reason, KINDS).split(" score ")[0]


@given(checks=CHECKS)
def test_an_expansion_that_only_spells_out_is_used(checks: list[bool]) -> None:
    request = ask(short(KINDS, checks), f"Say {', '.join(NAMES[kind] for kind in KINDS)}.")
    assert refusals(request, spelled_out(request.reason)) == []


@given(checks=CHECKS, others=CHECKS)
def test_the_expansion_of_another_verdict_is_refused(checks: list[bool], others: list[bool]) -> None:
    """Where all, none or some are right instead, or something named as wrong is right; "rest" names nothing."""
    reason, other = short(KINDS, checks), short(KINDS, others)
    named = any(not check and now for check, now in zip(checks, others, strict=True))
    whole = {True in checks, False in checks} != {True in others, False in others} or set(checks) != set(others)
    assert changes_verdict(reason, spelled_out(other)) == (named or whole)


@pytest.mark.parametrize(
    ("reason", "expansion", "expected"),
    [
        ("wrong animal", "The answer names the wrong animal.", []),
        ("correct", "The answer is correct, and nothing in it is wrong.", []),
        ("correct", "The answer is correct, but it is incomplete.", ["changed verdict"]),
        ("wrong animal", "The animal is correctly named.", ["changed verdict"]),
        ("animal wrong, colour good", "The colour is wrong. The animal is good.", ["changed verdict"]),
        ("not wrong", "The answer is right.", []),
        ("the dog is awake", "The annotator says that the dog is awake.", []),
        ("wrong animal", "The animal is wrong: the picture shows a grey elephant near a waterfall.", ["added facts"]),
        ("wrong count", "The count is wrong, there are 7.", ["added facts"]),
        ("wrong count, 7", "1. The count is wrong. 2. It should be 7.", []),
        ("good", "", ["empty"]),
        ("good", "   \n ", ["empty"]),
        ("good", "good " * 500, ["too long"]),
    ],
)
def test_worked_examples(reason: str, expansion: str, expected: list[str]) -> None:
    assert refusals(ask(reason), expansion) == expected


def test_a_reason_in_another_language_is_checked_by_its_characters() -> None:
    request = ask("\u56de\u7b54\u6b63\u786e")
    assert refusals(request, "\u56de\u7b54\u6b63\u786e\u3002") == []
    assert refusals(request, "The elephant stands beside two waterfalls.") == ["added facts"]


def test_a_words_forms_count_as_one() -> None:
    assert new_words(["sleeping", "sofas", "elephant"], ["A dog sleeps on sofas."]) == ["elephant"]


@given(text=st.text(max_size=200), reason=st.text(min_size=1, max_size=50))
def test_any_text_is_judged_and_none_breaks_the_checks(text: str, reason: str) -> None:
    found = refusals(ask(reason), text)
    assert set(found) <= {"empty", "too long", "added facts", "changed verdict"}
    assert refusals(ask(reason), text) == found


def test_a_request_shows_question_answer_and_reason_and_no_picture() -> None:
    request = ask("wrong animal")
    for part in ("What animal is it?", "A dog sleeps on the red sofa.", "wrong animal", "add no observation"):
        assert part in request.prompt
    assert request.digest == ask("wrong animal").digest != ask("right animal").digest


def test_many_empty_lines_are_looked_at_once() -> None:
    with little_work():
        assert refusals(ask("wrong animal"), "It is wrong.\n 1. the animal" + "\n" * 20_000 + "1) wrong") == []
