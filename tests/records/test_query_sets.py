"""Instruction sets as queries: which question is asked, what the set answers itself, types, and rows that are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from stand_ins.little_work import little_work
from stand_ins.sample_groups import write_pictures, write_records

from mmrlhf.conversation import IMAGE
from mmrlhf.errors import DataError
from mmrlhf.records.draft import Draft, Rejection
from mmrlhf.records.query_sets import import_queries


def talk(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(texts)]


LLAVA = {
    "id": "a1",
    "image": "coco/1.jpg",
    "conversations": talk("<image>\nWhat is red?", "The cup.", "And blue?", "The sky."),
}


def drafts(root: Path, *rows: Any, **options: Any) -> list[Draft | Rejection]:
    return list(import_queries(write_records(root, "set.jsonl", rows), **options))


def test_the_first_question_with_what_the_set_answers(tmp_path: Path) -> None:
    write_pictures(tmp_path, "coco/1.jpg")
    [found] = drafts(tmp_path, LLAVA)
    assert isinstance(found, Draft)
    group = found.load()
    assert group.responses == () and len(group.media) == 1 and group.prompt.slots == (IMAGE,)
    assert "What is red?" in group.prompt.question and "blue" not in group.prompt.transcript
    assert group.meta == {"reference": "The cup.", "turns_left": 1} and group.category == "short"


def test_the_last_question_comes_with_all_before_it(tmp_path: Path) -> None:
    [found] = drafts(tmp_path, LLAVA, turn="last")
    assert isinstance(found, Draft)
    assert [turn.role for turn in found.group.prompt.turns] == ["user", "assistant", "user"]
    assert found.group.prompt.question == "And blue?" and found.group.meta == {"reference": "The sky."}


@pytest.mark.parametrize("talked", ["What is red?", talk("What is red?")[0], talk("What is red?")])
def test_a_conversation_may_be_a_text_or_one_message(tmp_path: Path, talked: Any) -> None:
    [found] = drafts(tmp_path, {"id": "x", "conversations": talked})
    assert isinstance(found, Draft)
    assert found.group.prompt.question == "What is red?" and found.group.meta == {}


@pytest.mark.parametrize(
    ("row", "category"),
    [
        ({"prompt": "Which?\nA. one\nB. two", "image": "1.jpg"}, "mcq"),
        ({"prompt": "Is it a B. or not?", "image": "1.jpg"}, "short"),
        ({"prompt": "What happens?", "video": "1.mp4"}, "video"),
        ({"image": "1.jpg", "conversations": talk("<image>\nTell.", "word " * 30)}, "long"),
        ({"image": "1.jpg", "conversations": talk("<image>\nTell.", "word " * 29)}, "short"),
        ({"prompt": "May I?", "category": "safety"}, "safety"),
    ],
)
def test_types_are_known_by_form(tmp_path: Path, row: dict[str, Any], category: str) -> None:
    [found] = drafts(tmp_path, row)
    assert isinstance(found, Draft) and found.group.category == category


def test_answers_are_kept_where_there_are_any_and_ids_are_made_where_there_are_none(tmp_path: Path) -> None:
    with_answer, without = drafts(
        tmp_path, {"prompt": "a?", "responses": [{"text": "yes"}]}, {"prompt": "b?", "responses": []}
    )
    assert isinstance(with_answer, Draft) and isinstance(without, Draft)
    assert [response.text for response in with_answer.group.responses] == ["yes"] and without.group.responses == ()
    assert with_answer.group.key != without.group.key
    again = drafts(tmp_path / "again", {"prompt": "b?", "responses": []})
    assert isinstance(again[0], Draft) and again[0].group.key == without.group.key


def test_one_array_of_json_is_read_too(tmp_path: Path) -> None:
    (tmp_path / "set.json").write_text(json.dumps([LLAVA, {**LLAVA, "id": "a2"}]), encoding="utf-8")
    assert [found.id for found in import_queries(tmp_path)] == ["a1", "a2"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"id": "x", "conversations": [{"from": "gpt", "value": "hm"}]}, "conversation has no question"),
        ({"id": "x", "image": "1.jpg"}, "record lacks the field 'prompt'"),
        ({"id": "x", "image": "1.jpg", "conversations": talk("<image><image> what?")}, "different numbers of media"),
        ({"id": "x", "conversations": [{"from": "nobody", "value": "hm"}]}, "another structure"),
        ({"id": "x", "conversations": talk("a?"), "meta": 7}, "field 'meta' has another structure"),
    ],
)
def test_a_row_that_is_no_query_is_listed_with_its_line(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    found = drafts(tmp_path, row, LLAVA)
    bad = [each for each in found if isinstance(each, Rejection)]
    assert [each for each in found if isinstance(each, Draft) and each.id == "a1"]
    assert len(bad) == 1 and reason in bad[0].reason and "set.jsonl:1" in bad[0].where


def test_rows_of_another_layout(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no line of the file"):
        drafts(tmp_path, {"a": 1})


def test_many_empty_lines_of_a_question_are_looked_at_once(tmp_path: Path) -> None:
    with little_work():
        rows = [{"id": name, "prompt": "\n" * 20_000 + text} for name, text in (("a", "A. x\n B) y"), ("b", "which?"))]
        assert [item.group.category for item in drafts(tmp_path, *rows) if isinstance(item, Draft)] == ["mcq", "short"]


def test_what_else_says_a_question_is_counted(tmp_path: Path) -> None:
    """The conversation is what is asked; a prompt beside it that says something else is not lost unsaid."""
    same, other = {**LLAVA, "id": "same"}, {**LLAVA, "prompt": "Something else?", "messages": talk("Hm?", "Hm.")}
    first, second = drafts(tmp_path, {**same, "messages": LLAVA["conversations"]}, other)
    assert isinstance(first, Draft) and isinstance(second, Draft)
    assert first.group.prompt == second.group.prompt and not first.notes
    assert second.notes == {"ignored field: messages": 1, "ignored field: prompt, beside conversations": 1}
