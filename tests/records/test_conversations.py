"""Every way to write a pair as conversations says the same pair; what a group cannot hold is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from mmrlhf.errors import DataError
from mmrlhf.records.conversations import as_pair, is_pair

PAIR = {"id": 1, "prompt": "q?", "chosen": "yes", "rejected": "no"}


def human(text: str) -> dict[str, str]:
    return {"from": "human", "value": text}


def gpt(text: str) -> dict[str, str]:
    return {"from": "gpt", "value": text}


def message(role: str, *parts: Any) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": part} for part in parts]}


FORMS = {
    "texts": PAIR,
    "LLaVA conversations, texts": {"id": 1, "conversations": [human("q?")], "chosen": "yes", "rejected": "no"},
    "ShareGPT messages": {"id": 1, "conversations": [human("q?")], "chosen": gpt("yes"), "rejected": gpt("no")},
    "two conversations, a": {
        "id": 1,
        "conversations_a": [human("q?"), gpt("yes")],
        "conversations_b": [human("q?"), gpt("no")],
        "preference": "a",
    },
    "two conversations, 2": {
        "id": 1,
        "conversations_a": [human("q?"), gpt("no")],
        "conversations_b": [human("q?"), gpt("yes")],
        "preference": 2,
    },
    "TRL, explicit prompt": {
        "id": 1,
        "prompt": [message("user", "q?")],
        "chosen": [message("assistant", "yes")],
        "rejected": [message("assistant", "no")],
    },
    "TRL, implicit prompt": {
        "id": 1,
        "chosen": [{"role": "user", "content": "q?"}, {"role": "assistant", "content": "yes"}],
        "rejected": [{"role": "user", "content": "q?"}, {"role": "assistant", "content": "no"}],
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_all_forms_say_the_same(form: str) -> None:
    assert is_pair(FORMS[form])
    assert as_pair(dict(FORMS[form]), "f:1") == PAIR


def test_what_is_more_than_a_text_stays_as_messages() -> None:
    prompt = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "q?"}]},
    ]
    assert as_pair({**PAIR, "prompt": prompt}, "f:1")["prompt"] == prompt
    long = as_pair({"id": 1, "conversations": LONG, "chosen": gpt("yes"), "rejected": gpt("no")}, "f:1")
    assert long == {**PAIR, "prompt": LONG}
    whole = {"id": 1, "chosen": [*LONG, gpt("yes")], "rejected": [*LONG, gpt("no")]}
    assert as_pair(whole, "f:1") == long


def test_who_wins_may_be_set_and_ties_are_ties() -> None:
    two = {key: value for key, value in FORMS["two conversations, a"].items() if key != "preference"}
    assert as_pair(two, "f:1", "b")["chosen"] == "no"
    assert as_pair({**two, "preference": "tie"}, "f:1")["is_tie"] is True
    with pytest.raises(DataError, match=r"f:1:preference(?s:.)*importer\.preferred"):
        as_pair(two, "f:1")


LONG = [human("one"), gpt("two"), human("three")]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "q", "chosen": [{"role": "assistant", "content": [{"type": "image"}]}]}, "media inside"),
        ({"prompt": [{"role": "tool", "content": "x"}], "chosen": "a", "rejected": "b"}, r"f:1:prompt\[0\]:role"),
        ({"prompt": [{"role": "user", "content": 3}], "chosen": "a", "rejected": "b"}, r"f:1:prompt\[0\]:content"),
        ({"prompt": [message("user", "q")], "chosen": 3, "rejected": "b"}, "f:1:chosen"),
        ({"prompt": "q", "chosen": [human("a")], "rejected": "b"}, "does not end with an answer"),
        ({"chosen": [gpt("a")], "rejected": [gpt("b")]}, "lacks a question"),
        ({"prompt": "q", "chosen": [human("other"), gpt("a")], "rejected": "b"}, "different prompts"),
        ({"conversations_a": [human("q"), gpt("a")], "preference": "a"}, "f:1:conversations_b"),
        ({"prompt": [{"role": "user", "content": [{"type": "audio"}]}], "chosen": "a", "rejected": "b"}, "text, image"),
    ],
)
def test_what_a_group_cannot_hold_is_refused(row: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        as_pair(row, "f:1")
