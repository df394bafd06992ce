"""The released layout: data.jsonl before dpo_pairs.jsonl, checked in full before anything is handed out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stand_ins.sample_groups import write_records

from mmrlhf.errors import DataError
from mmrlhf.records.draft import Draft, Rejection
from mmrlhf.records.mm_rlhf import UNREAD_LINES, import_released


def record(record_id: str = "q1", **fields: Any) -> dict[str, Any]:
    return {"id": record_id, "prompt": "p", "responses": [{"text": "a", "rank": 1}, {"text": "b", "rank": 2}], **fields}


PAIR = {"id": "q1", "prompt": "p", "chosen": "a", "rejected": "b"}


def drafts(root: Path, **options: Any) -> list[Draft]:
    return [item for item in import_released(root, **options) if isinstance(item, Draft)]


def test_real_pairs_load(shared_data: Path) -> None:
    groups = [draft.load() for draft in drafts(shared_data / "real_pairs")]
    assert [group.key for group in groups] == ["ovchat_tree", "ovchat_dog", "receipt_0"]
    assert [group.media[0].names for group in groups] == [("0.png",), ("0.jpg",), ("0.png",)]
    assert all(group.category == "long" and group.ranked_pairs() == ((0, 1),) for group in groups)


def test_both_files_say_the_same(tmp_path: Path) -> None:
    write_records(tmp_path, "data.jsonl", [record()])
    write_records(tmp_path, "dpo_pairs.jsonl", [PAIR])
    [full], [rebuilt] = drafts(tmp_path), drafts(tmp_path, file="dpo_pairs.jsonl")
    assert full.group == rebuilt.group and full.where == "data.jsonl:1" and rebuilt.where == "dpo_pairs.jsonl:1"


def test_full_records_keep_everything(tmp_path: Path) -> None:
    answer = {
        "text": "a", "rank": 1, "scores": {"helpfulness": 4, "ethics": None}, "reasons": {"overall": "r"},
        "critiques": {"full": "f", "short": "s"}, "model": "m",
    }  # fmt: skip
    write_records(tmp_path, "data.jsonl", [record(responses=[answer], meta={"twin": "t"}, images=["mcq/1.png"])])
    [draft] = drafts(tmp_path, source="here", licence="CC0")
    [response] = draft.group.responses
    assert (response.scores, response.reasons) == ({"helpfulness": 4}, {"overall": "r"})
    assert response.critiques == {"full": "f", "short": "s"} and response.model == "m"
    assert draft.group.meta == {"twin": "t"} and draft.media[0].ref == "mcq/1.png" and draft.group.category == "mcq"
    assert (draft.group.source, draft.group.licence) == ("here", "CC0")


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([1, 2, 3, None])), min_size=1, max_size=5))
def test_repeated_texts_merge_and_no_pair_is_lost(tmp_path_factory: Any, answers: list[tuple[str, int | None]]) -> None:
    root = tmp_path_factory.mktemp("records")
    write_records(root, "data.jsonl", [record(responses=[{"text": text, "rank": rank} for text, rank in answers])])
    [draft] = drafts(root)
    texts = [response.text for response in draft.group.responses]
    assert sorted(texts) == sorted({text for text, _ in answers})
    expected = {(a, b) for a, x in answers for b, y in answers if x is not None and y is not None and x < y and a != b}
    assert {(texts[i], texts[j]) for i, j in draft.group.ranked_pairs()} == expected
    itself = any(a == b and x and y and x != y for a, x in answers for b, y in answers)
    mutual = any((b, a) in expected for a, b in expected)
    assert bool(draft.problems) >= (itself or mutual)


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"responses": []}, "data.jsonl:2:responses"),
        ({"responses": {"a": 1}}, "data.jsonl:2:responses"),
        ({"responses": ["a"]}, r"data.jsonl:2:responses\[0\]"),
        ({"responses": [{"text": "a", "rank": 0}]}, r"data.jsonl:2:responses\[0\]:rank"),
        ({"responses": [{"text": "a", "rank": True}]}, r"responses\[0\]:rank"),
        ({"responses": [{"text": "a", "scores": {"x": "4"}}]}, r"responses\[0\]:scores.x"),
        ({"responses": [{"rank": 1}]}, r"responses\[0\]:text"),
        ({"pairs": [[0, 0]]}, "data.jsonl:2:pairs"),
        ({"pairs": [[0, 2]]}, "data.jsonl:2:pairs"),
        ({"images": [3]}, "data.jsonl:2:images"),
        ({"meta": "m"}, "data.jsonl:2:meta"),
        ({"prompt": None}, "data.jsonl:2:prompt"),
    ],
)
def test_unknown_structure_names_file_line_and_field(tmp_path: Path, fields: dict[str, Any], place: str) -> None:
    write_records(tmp_path, "data.jsonl", [record(), record("q2", **fields)])
    with pytest.raises(DataError, match=place):
        list(import_released(tmp_path))
    items = list(import_released(tmp_path, on_bad_line="reject"))
    assert isinstance(items[0], Draft) and isinstance(items[1], Rejection) and items[1].id == "q2"


def test_a_file_of_another_layout_is_an_error_even_if_bad_lines_are_rejected(tmp_path: Path) -> None:
    write_records(tmp_path, "data.jsonl", [{"id": 1, "conversations": []}] * 2)
    with pytest.raises(DataError, match=r"data=auto") as error:
        list(import_released(tmp_path, on_bad_line="reject"))
    assert "'prompt'" in str(error.value)


def test_explicit_pairs_and_ranks_that_say_the_same(tmp_path: Path) -> None:
    three = [{"text": text} for text in "abc"]
    rows = [record("q1", responses=three, pairs=[[0, 1], [0, 2]]), record("q2", responses=three, pairs=[[0, 1]])]
    weak, partial = drafts(write_records(tmp_path, "data.jsonl", rows))
    assert [response.rank for response in weak.group.responses] == [1, 2, 2] and weak.group.pairs is None
    assert partial.group.pairs == ((0, 1),)


def test_a_query_that_occurs_twice_is_rejected_once(tmp_path: Path) -> None:
    items = list(import_released(write_records(tmp_path, "data.jsonl", [record(), record(), record(prompt="other")])))
    assert [type(item) for item in items] == [Draft, Rejection, Draft]
    assert isinstance(items[1], Rejection) and "data.jsonl:1" in items[1].where
    assert items[0].group.key != items[2].group.key  # type: ignore[union-attr]


def test_aliases_are_read(tmp_path: Path) -> None:
    row = {
        "question_id": 5,
        "question": "p",
        "responses": [{"response": "a", "critique": "c", "score": 2, "reason": "r"}],
    }
    [draft] = drafts(write_records(tmp_path, "data.jsonl", [row]))
    [response] = draft.group.responses
    assert (draft.id, draft.group.prompt.plain, response.text) == ("5", "p", "a")
    assert (response.critiques, response.scores, response.reasons) == ({"full": "c"}, {"overall": 2}, {"overall": "r"})


def test_a_folder_of_something_else_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"train\.parquet"):
        import_released(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        import_released(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"other\.jsonl"):
        import_released(tmp_path, file="other.jsonl")


def test_pairs_are_read_where_no_line_of_data_jsonl_fits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One warning, and a note on the first draft for the report, whether bad lines are errors or not."""
    write_records(tmp_path, "data.jsonl", [{"id": 1, "conversations": []}, "{not json", {"id": 2}])
    write_records(tmp_path, "dpo_pairs.jsonl", [PAIR, {**PAIR, "id": "q2"}])
    for on_bad_line in ("error", "reject"):
        caplog.clear()
        first, second = drafts(tmp_path, on_bad_line=on_bad_line)
        assert [record.levelname for record in caplog.records] == ["WARNING"] and "dpo_pairs.jsonl" in caplog.text
        assert first.where == "dpo_pairs.jsonl:1"
        assert first.notes[UNREAD_LINES] == 3 and UNREAD_LINES not in second.notes
    with pytest.raises(DataError):
        list(import_released(tmp_path, file="data.jsonl"))


def test_one_line_that_fits_is_enough_to_stay_with_data_jsonl(tmp_path: Path) -> None:
    write_records(tmp_path, "data.jsonl", [{"id": 1}, record()])
    write_records(tmp_path, "dpo_pairs.jsonl", [PAIR])
    assert [draft.where for draft in drafts(tmp_path, on_bad_line="reject")] == ["data.jsonl:2"]
    with pytest.raises(DataError, match="data.jsonl:1"):
        list(import_released(tmp_path))
