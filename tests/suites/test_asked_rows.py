"""Rows as they are published, asked: what their odd forms become."""

from __future__ import annotations

import pytest
from stand_ins.little_work import little_work

from mmrlhf.suites.answer_forms import FORMS
from mmrlhf.suites.columns import COLUMNS


@pytest.mark.parametrize(
    ("question", "options"),
    [
        ("What is it?\nOptions: A: a dog, B: a cat, C: two, D: 3", ["a dog", "a cat", "two", "3"]),
        (
            "Hint: choose.\nQuestion: How many?\nChoices:\n(A) 1\n(B) 2\n(C) 3 (or so)\n(D) 4",
            ["1", "2", "3 (or so)", "4"],
        ),
        ("Which?\n(A) AB: both\n(B) C: neither", ["AB: both", "C: neither"]),
        ("Which Options: there are?\nOptions: A: vitamin B:6, B: none, C: x", ["vitamin B:6", "none", "x"]),
        ("Options: A: yes, B: no", ["yes", "no"]),
        ("What does it say?", [""] * 4),
    ],
)
def test_mmstars_options_stand_in_the_question(question, options):
    row = {"question": question, "answer": " b ", "image": {"bytes": b"x", "path": None}}
    asked = COLUMNS["mmstar"].read(row, "here")
    assert asked.truth == {"form": "letter", "answer": "B", "options": options}
    assert asked.prompt.startswith(question), "the prompt is the harness's"


def test_an_option_that_nothing_marks_can_be_the_answer():
    row = {"question": "What is it?\nOptions: A: dog; B: cat; C: cow", "answer": "C", "image": b"x"}
    truth = COLUMNS["mmstar"].read(row, "here").truth
    assert [FORMS["letter"].mark(truth, said).score for said in ("C", "A", "D")] == [1.0, 0.0, 0.0]


def test_many_empty_lines_before_options_are_looked_at_once():
    with little_work():
        row = {
            "question": "What?\nOptions:" + "\n" * 20_000 + "A: dog,\n \n B: cat" + "\n" * 20_000 + "Look.",
            "answer": "B",
            "image": b"x",
        }
        assert COLUMNS["mmstar"].read(row, "here").truth["options"] == ["dog", "cat" + "\n" * 20_000 + "Look."]
