"""Every way to write a pair as conversations says the same pair; what a group cannot hold is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from mmrlhf.errors import DataError
from mmrlhf.records.pair_forms import is_pair, ranked_pair

PAIR = {"id": 1, "prompt": "q?", "chosen": "yes", "rejected": "no"}
RANKED = {"id": 1, "prompt": "q?", "responses": [{"text": "yes", "rank": 1}, {"text": "no", "rank": 2}]}


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
    "the hub's binarized feedback: the prompt twice, and the better answer": {
        "id": 1,
        "prompt": "q?",
        "chosen": [{"role": "user", "content": "q?"}, {"role": "assistant", "content": "yes"}],
        "rejected": [{"role": "user", "content": "q?"}, {"role": "assistant", "content": "no"}],
        "messages": [{"role": "user", "content": "q?"}, {"role": "assistant", "content": "yes"}],
    },
    "ms-swift, the answer at the end of the messages": {
        "id": 1,
        "messages": [{"role": "user", "content": "q?"}, {"role": "assistant", "content": "yes"}],
        "rejected_response": "no",
    },
    "ms-swift, a message": {
        "id": 1,
        "messages": [{"role": "user", "content": "q?"}, {"role": "assistant", "content": "yes"}],
        "rejected_response": [{"role": "assistant", "content": "no"}],
    },
    "ms-swift, whole conversations": {
        "id": 1,
        "messages": [{"role": "user", "content": "q?"}, {"role": "assistant", "content": "yes"}],
        "rejected_messages": [{"role": "user", "content": "q?"}, {"role": "assistant", "content": "no"}],
    },
    "POVID": {
        "id": 1,
        "conversations": [human("q?"), gpt("yes")],
        "rejected_conversations": [human("q?"), gpt("no")],
    },
    "Alpaca, in one field": {"id": 1, "instruction": "q?", "input": "", "chosen": "yes", "rejected": "no"},
}


@pytest.mark.parametrize("form", FORMS)
def test_all_forms_say_the_same(form: str) -> None:
    assert is_pair(FORMS[form])
    assert ranked_pair(dict(FORMS[form]), "f:1") == RANKED


def test_what_is_more_than_a_text_stays_as_messages() -> None:
    prompt = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "q?"}]},
    ]
    assert ranked_pair({**PAIR, "prompt": prompt}, "f:1")["prompt"] == prompt
    long = ranked_pair({"id": 1, "conversations": LONG, "chosen": gpt("yes"), "rejected": gpt("no")}, "f:1")
    assert long == {**RANKED, "prompt": LONG}
    whole = {"id": 1, "chosen": [*LONG, gpt("yes")], "rejected": [*LONG, gpt("no")]}
    assert ranked_pair(whole, "f:1") == long


def test_system_history_and_input_are_part_of_the_question() -> None:
    row = {"system": "be kind", "history": [["one", "two"]], "instruction": "add", "input": "3", "chosen": "a"}
    assert ranked_pair({**row, "rejected": "b"}, "f:1")["prompt"] == [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "add\n3"},
    ]
    again = {"system": "be kind", "prompt": [{"role": "system", "content": "be kind"}, human("q?")], "chosen": "a"}
    assert len(ranked_pair({**again, "rejected": "b"}, "f:1")["prompt"]) == 2, "said twice, kept once"


def test_media_of_one_answer_stand_beside_it() -> None:
    """ms-swift's rejected_images: the record's own are the better answer's; equal ones are the record's."""
    row = {"messages": [human("<image>q?"), gpt("yes")], "images": ["a.png"]}
    own = ranked_pair({**row, "rejected_images": ["b.png"]}, "f:1")
    assert "images" not in own and own["prompt"] == "<image>q?"
    assert [(r["text"], r["images"]) for r in own["responses"]] == [("yes", ["a.png"]), ("yes", ["b.png"])]
    same = ranked_pair({**row, "rejected_response": "no", "rejected_images": ["a.png"]}, "f:1")
    assert same["images"] == ["a.png"] and not any("images" in answer for answer in same["responses"])


def test_several_worse_answers_and_what_is_said_of_each() -> None:
    row = {"messages": [human("q?"), gpt("yes")], "rejected_response": ["no", "never"]}
    assert [(r["text"], r["rank"]) for r in ranked_pair(row, "f:1")["responses"]] == [
        ("yes", 1),
        ("no", 2),
        ("never", 2),
    ]
    row = {**PAIR, "chosen_reason": "right", "chosen_score": 5, "score_rejected": 2.5, "rejected_model": "m", "x": 1}
    better, worse = ranked_pair(row, "f:1")["responses"]
    said = {"reasons": {"overall": "right"}, "critiques": {"short": "right"}, "scores": {"overall": 5}}
    assert better == {"text": "yes", "rank": 1, **said}
    assert worse == {"text": "no", "rank": 2, "scores": {"overall": 2.5}, "model": "m"}
    assert ranked_pair(row, "f:1").keys() == {"id", "prompt", "responses", "x"}


def test_who_wins_may_be_set_and_ties_are_ties() -> None:
    two = {key: value for key, value in FORMS["two conversations, a"].items() if key != "preference"}
    assert ranked_pair(two, "f:1", "b")["responses"][0]["text"] == "no"
    tie = ranked_pair({**two, "preference": "tie"}, "f:1")
    assert [response["rank"] for response in tie["responses"]] == [1, 1]
    with pytest.raises(DataError, match=r"f:1:preference(?s:.)*importer\.preferred"):
        ranked_pair(two, "f:1")


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
        ({**PAIR, "tools": "[{}]"}, "f:1:tools"),
        ({**PAIR, "input": "more"}, "f:1:input"),
        ({**PAIR, "messages": [human("another")]}, "several prompts"),
        ({**PAIR, "messages": [human("q?"), gpt("hm"), human("and?")]}, "several prompts"),
        ({**PAIR, "conversations": [human("q?"), human("and?")]}, "several prompts"),
        ({**PAIR, "system": "a", "prompt": [{"role": "system", "content": "b"}, human("q?")]}, "two system texts"),
        ({**PAIR, "history": [["only a question"]]}, "f:1:history"),
        ({"messages": [human("q?")], "rejected_response": "no"}, "lacks the field 'chosen'"),
        ({"messages": [human("q?"), gpt("yes")]}, "lacks the field 'rejected'"),
        ({**PAIR, "is_tie": "yes"}, "f:1:is_tie"),
    ],
)
def test_what_a_group_cannot_hold_is_refused(row: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        ranked_pair(row, "f:1")
