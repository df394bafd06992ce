"""Full records that are not files: what merging, pairs and unknown fields do."""

from __future__ import annotations

from typing import Any

import pytest

from mmrlhf.errors import DataError
from mmrlhf.records.fields import MAX_RESPONSES
from mmrlhf.records.ranked_record import parse_ranked


def parse(*responses: dict[str, Any], **fields: Any) -> Any:
    return parse_ranked({"id": 1, "prompt": "p", "responses": list(responses), **fields}, "f:1")


def test_given_ranks_stay_as_they_are() -> None:
    record = parse({"text": "a", "rank": 5}, {"text": "b", "rank": 2.0}, {"text": "c"})
    assert [response.rank for response in record.responses] == [5, 2, None] and record.pairs is None


def test_merging_joins_what_is_known() -> None:
    record = parse(
        {"text": "a", "rank": 1, "scores": {"x": 1}, "model": None},
        {"text": "b", "rank": 2},
        {"text": "a", "rank": 1, "scores": {"x": 2, "y": 3}, "model": "m"},
    )
    first, _ = record.responses
    assert first.scores == {"x": 1, "y": 3} and first.model == "m" and first.rank == 1
    assert record.notes == {"repeated responses merged": 1} and record.problems == ()


def test_a_text_ranked_above_itself_is_a_contradiction() -> None:
    record = parse({"text": "a", "rank": 1}, {"text": "b", "rank": 2}, {"text": "a", "rank": 3})
    assert set(record.pairs) == {(0, 1), (1, 0)} and len(record.problems) == 2


def test_unranked_responses_get_no_rank_from_a_merge() -> None:
    record = parse({"text": "a"}, {"text": "a"}, {"text": "b"})
    assert [response.rank for response in record.responses] == [None, None] and record.pairs is None


def test_unknown_fields_are_counted_at_both_levels() -> None:
    record = parse({"text": "a", "mood": 1}, {"text": "b", "mood": 2}, colour=1)
    assert record.notes == {"ignored field: colour": 1, "ignored field: responses.mood": 2}


def test_more_responses_than_can_be_compared_are_refused() -> None:
    """100,000 ranks would be five thousand million pairs."""
    responses = [{"text": str(number), "rank": number + 1} for number in range(MAX_RESPONSES + 1)]
    assert len(parse(*responses[1:]).responses) == MAX_RESPONSES
    with pytest.raises(DataError, match="too many responses") as error:
        parse(*responses)
    assert error.value.where == "f:1:responses"


def test_what_stands_under_another_name_of_what_is_read_is_counted() -> None:
    record = parse(
        {"text": "a", "answer": "b", "score": 3, "scores": {"x": 1}, "rank": 1}, {"text": "c", "answer": "c"},
        instruction="In French, please", question="p",
    )  # fmt: skip
    assert record.prompt.plain == "p"
    assert record.notes == {
        "ignored field: instruction": 1, "ignored field: responses.answer": 1, "ignored field: responses.score": 1,
    }  # fmt: skip
