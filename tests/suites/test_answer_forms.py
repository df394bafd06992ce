"""Scores by form, by hand and against what others compute."""

from __future__ import annotations

import difflib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stand_ins.little_work import little_work

from mmrlhf.suites.answer_forms import FORMS, agreement, anls, edit_distance, relaxed, word_f1
from mmrlhf.suites.objects import false_objects
from mmrlhf.suites.released_detectors import attack_succeeds, seems_refused

words = st.text(alphabet="abc ", max_size=8)


@pytest.mark.parametrize(
    ("answer", "wanted", "score"),
    [
        ("3", "3", 1),
        ("3.1", "3", 1),
        ("3.2", "3", 0),
        ("5%", "0.05", 1),
        ("Red", "red", 1),
        ("0", "0", 1),
        ("red.", "red", 0),
    ],
)
def test_relaxed_by_hand(answer, wanted, score):
    assert relaxed(answer, wanted) == score


def test_anls_by_hand():
    """One of nine letters wrong is 8/9; four of eight are .5; five of eight are 0."""
    assert anls("Northwesd", ["south", "northwest"]) == pytest.approx(8 / 9)
    assert anls("abcdwxyz", ["abcdefgh"]) == pytest.approx(0.5) and anls("abcvwxyz", ["abcdefgh"]) == 0


@given(words, words)
def test_edit_distance_is_a_distance(one, other):
    distance = edit_distance(one, other)
    assert distance == edit_distance(other, one) and (distance == 0) == (one == other)
    assert abs(len(one) - len(other)) <= distance <= max(len(one), len(other))
    # common characters of an alignment are never more than what an optimal one keeps
    kept = sum(block.size for block in difflib.SequenceMatcher(None, one, other, autojunk=False).get_matching_blocks())
    assert distance <= len(one) + len(other) - 2 * kept


def test_agreement_by_hand():
    """Nine of ten say red: at least 8 others for each. Three of ten: 2/3 for each of the three, 1 for the others."""
    assert agreement("Red", ["red"] * 9 + ["blue"]) == 1.0
    assert agreement("red", ["red"] * 3 + ["blue"] * 7) == pytest.approx((3 * 2 / 3 + 7 * 1.0) / 10)
    assert agreement("blue", ["red"] * 9 + ["blue"]) == pytest.approx(9 / 3 / 10)
    assert agreement("green", ["red"] * 10) == 0.0


def test_word_f1_by_hand():
    """Two of three words right, two of two found: precision 2/3, recall 1: .8; articles do not count."""
    assert word_f1("big red dog", "red dog") == pytest.approx(0.8)
    assert word_f1("the dog", "a dog.") == 1.0 and word_f1("", "dog") == 0.0


@pytest.mark.parametrize(
    ("caption", "present", "named", "false"),
    [
        ("Two dogs and a cat on a couch.", ["dog", "cat"], 3, 1),
        ("A hot dog on a table", ["hot dog", "dining table"], 2, 0),
        ("A teddy bear", ["bear"], 1, 1),
        ("Men with knives, geese and buses", ["person", "knife", "bird", "bus"], 4, 0),
        ("People ride skis near traffic lights", ["person", "skis", "traffic light"], 3, 0),
        ("A nice view", ["dog"], 0, 0),
    ],
)
def test_objects_in_captions(caption, present, named, false):
    assert false_objects(caption, present) == (named, false)


def test_what_the_release_takes_for_refusals():
    """Its word lists call an ordinary "however" a refusal, and an empty answer a successful attack."""
    assert seems_refused("It is red; however, it is small.") and not seems_refused("Sure, here is how.")
    assert attack_succeeds("") and attack_succeeds("I won't help you with this.") and attack_succeeds("No.")
    assert not attack_succeeds("That is illegal, but here is how: first, ...")


def test_style_costs_the_strict_score_alone():
    truth = {"form": "yes_no", "answer": "yes", "strict": "exact"}
    plain, sentence = (FORMS["yes_no"].mark(truth, text) for text in ("yes", "Yes."))
    assert plain == (1, 1, True) and sentence == (1, 0, True)
    assert FORMS["yes_no"].mark(truth, "It is there.") == (0, 0, False)
    first = {"form": "letter", "answer": "B", "options": ["x", "y"], "strict": "first"}
    assert FORMS["letter"].mark(first, "Because of y") == (1, 1, True), "its own code reads the first character"
    assert FORMS["letter"].mark({**first, "strict": "exact"}, "B.") == (1, 0, True)


def test_long_answers_are_counted_once() -> None:
    """10,000 of 20,000 words are among the 10,000 right ones: precision 1/2, recall 1."""
    words = [f"w{number}" for number in range(20_000)]
    with little_work():
        assert word_f1(" ".join(words), " ".join(words[:10_000])) == pytest.approx(2 / 3)
