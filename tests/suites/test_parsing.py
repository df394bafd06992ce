"""Short answers out of sentences: what is read, and what is left unread."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stand_ins.little_work import little_work

from mmrlhf.suites.parsing import letter, phrase, yes_or_no

OPTIONS = ("red circle", "blue square", "green cross", "a cat")


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("yes", "yes"), ("Yes.", "yes"), ("No, there is not.", "no"), ("**Yes**", "yes"), ("The answer is no", "no"),
        ("Answer: Yes", "yes"), ("I would say yes.", "yes"), ("There is a dog.", None), ("", None),
        ("It could be yes or no.", None), ("Not sure", None), ("nothing", None), ("yesterday", None),
    ],
)  # fmt: skip
def test_yes_or_no(answer, found):
    assert yes_or_no(answer) == found


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("B", "B"), ("B.", "B"), ("(B)", "B"), ("B. blue square", "B"), ("B: blue square", "B"), ("**B**", "B"),
        ("The answer is B", "B"), ("The correct answer is (B).", "B"), ("Answer: B", "B"), ("Option B", "B"),
        ("It is the blue square.", "B"), ("blue square", "B"), ("B blue square", "B"),
        ("A cat", "D"), ("A red thing", None), ("A dog sits there", None), ("E", None), ("b", None), ("", None),
        ("either A or B", None), ("It is a blue square or a red circle", None), ("Because", None),
        ("The answer is A. The answer is B.", "A"),
    ],
)  # fmt: skip
def test_letters(answer, found):
    """A letter that is a word ("A dog") is none, nor is one of two; the first stated answer counts."""
    assert letter(answer, OPTIONS) == found


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("northwest", "northwest"), ("Northwest.", "Northwest"), ("The answer is 12", "12"), ('"red"', "red"),
        ("**3.5**", "3.5"), ("one\ntwo", None), ("", None), ("a b c d e f g h i", None),
    ],
)  # fmt: skip
def test_phrases(answer, found):
    assert phrase(answer) == found


@given(st.text(max_size=60))
def test_any_text_is_read_or_not(text):
    """No text raises, and what is read is one of what may be."""
    assert yes_or_no(text) in ("yes", "no", None)
    assert letter(text, OPTIONS) in ("A", "B", "C", "D", None)
    found = phrase(text)
    assert found is None or (found and "\n" not in found)


def test_a_long_run_of_spaces_is_read_once() -> None:
    with little_work():
        assert letter("answer" + " " * 20_000 + "x", OPTIONS) is None
        assert letter("the answer" + " " * 20_000 + ":" + " " * 20_000 + "B", OPTIONS) == "B"


@pytest.mark.parametrize("options", [("", "", ""), ("+", "-", "*")])
def test_a_word_is_no_letter_because_an_option_has_no_words(options) -> None:
    assert letter("A dog is here", options) is None and letter("A", options) == letter("A.", options) == "A"
