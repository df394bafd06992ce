"""Pair rows become groups that hold exactly the file's pairs, whatever the file says."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stand_ins.sample_groups import write_records

from mmrlhf.errors import DataError
from mmrlhf.records.draft import Draft, Rejection
from mmrlhf.records.fields import MAX_RESPONSES
from mmrlhf.records.pair_rows import import_pairs
from mmrlhf.records.sources import file_source


def with_its_picture(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose prompt names a picture has one."""
    return {**row, "image": row.get("image") or "long/2.jpg"} if "<image>" in row["prompt"] else row


texts = st.sampled_from(["a", "b", "c", " a", "", "ä\u2028"])
rows = st.fixed_dictionaries(
    {
        "id": st.sampled_from([1, "1", "x y", "x/y", "long.id"]),
        "prompt": st.sampled_from(["p", "<image>\nq"]),
        "chosen": texts,
        "rejected": texts,
    },
    optional={
        "image": st.sampled_from(["long/1.jpg", None]),
        "is_tie": st.sampled_from([True, False, None]),
        "chosen_reason": st.sampled_from(["good", "", None]),
    },
).map(with_its_picture)


def read(path: Path, name: str = "p.jsonl", **options: Any) -> tuple[list[Draft], list[Rejection]]:
    items = list(import_pairs(file_source(path / name), **options))
    return [i for i in items if isinstance(i, Draft)], [i for i in items if isinstance(i, Rejection)]


@given(st.lists(rows, min_size=1, max_size=12))
def test_group_pairs_are_the_pairs_of_the_file(written: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        drafts, rejections = read(write_records(Path(folder), "p.jsonl", written))
    expected = defaultdict(set)
    for row in written:
        if row["chosen"] != row["rejected"]:
            query = str(row["id"]), row["prompt"].removeprefix("<image>\n"), row.get("image")
            expected[query] |= set() if row.get("is_tie") else {(row["chosen"], row["rejected"])}
    found = {}
    for draft in drafts:
        texts = [response.text for response in draft.group.responses]
        assert len(set(texts)) == len(texts)
        image = draft.media[0].ref if draft.media else None
        pairs = {(texts[i], texts[j]) for i, j in draft.group.ranked_pairs()}
        assert len(pairs) == len(draft.group.ranked_pairs())
        found[draft.id, draft.group.prompt.plain, image] = pairs
    assert found == expected
    assert len({draft.group.key for draft in drafts}) == len(drafts)
    assert len(rejections) == sum(row["chosen"] == row["rejected"] for row in written)


def test_reasons_become_short_critiques(tmp_path: Path) -> None:
    row = {"id": 1, "prompt": "p", "image": "safety/1.png", "chosen": "a", "rejected": "b", "chosen_reason": "well"}
    again = {**row, "rejected": "c", "chosen_reason": "fine", "rejected_reason": float("nan")}
    [draft], _ = read(write_records(tmp_path, "p.jsonl", [row, again]))
    best, *others = draft.group.responses
    assert best.critiques == {"short": "well\nfine"} and best.reasons == {"overall": "well\nfine"}
    assert [other.critiques for other in others] == [{}, {}]
    assert draft.group.category == "safety" and [r.rank for r in draft.group.responses] == [1, 2, 2]


def test_one_id_with_two_prompts_gives_two_keys(tmp_path: Path) -> None:
    """The first keeps its id, so that rows that are added to a file change no key of those before."""
    rows = [{"id": "q", "prompt": prompt, "chosen": "a", "rejected": "b"} for prompt in ("p1", "p2")]
    drafts, _ = read(write_records(tmp_path, "p.jsonl", rows))
    first, second = (draft.group.key for draft in drafts)
    assert first == "q" and second.startswith("q-")


def test_ties_beside_explicit_pairs_are_kept(tmp_path: Path) -> None:
    rows = [
        {"id": 1, "prompt": "p", "chosen": a, "rejected": b, "is_tie": tie}
        for a, b, tie in (("a", "b", False), ("b", "c", True))
    ]
    [draft], _ = read(write_records(tmp_path, "p.jsonl", rows))
    assert draft.group.pairs == ((0, 1),) and draft.group.meta == {"ties": [[1, 2]]}


def test_equal_texts_are_a_rejected_pair_with_its_line(tmp_path: Path) -> None:
    rows = [{"id": 7, "prompt": "p", "chosen": "a", "rejected": text} for text in ("a", "b")]
    [draft], [rejection] = read(write_records(tmp_path, "p.jsonl", rows))
    assert rejection == Rejection("7", "chosen and rejected are the same text", "p.jsonl:1")
    assert draft.group.ranked_pairs() == ((0, 1),)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "not JSON"),
        ("[1]", "not a JSON object"),
        ('{"id": 1, "prompt": "p", "chosen": "a"}', "'rejected'"),
        ('{"prompt": "p", "chosen": "a", "rejected": "b"}', "'id'"),
        ('{"id": 1, "prompt": ["p"], "chosen": "a", "rejected": "b"}', "'prompt'"),
        ('{"id": 1, "prompt": "p", "chosen": "a", "rejected": "b", "is_tie": "maybe"}', "'is_tie'"),
        ('{"id": 1, "prompt": "p", "chosen": "\\ud800", "rejected": "b"}', "surrogate"),
        ("\udcff", "not JSON"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_bad_line_stops_or_is_listed(tmp_path: Path, line: str, words: str) -> None:
    good = b'{"id": 1, "prompt": "p", "chosen": "a", "rejected": "b"}\n\n'
    (tmp_path / "p.jsonl").write_bytes(good + line.encode(errors="surrogateescape") + b"\n")
    with pytest.raises(DataError, match=r"p\.jsonl:3") as error:
        list(import_pairs(file_source(tmp_path / "p.jsonl")))
    assert words in str(error.value)
    drafts, [rejection] = read(tmp_path, on_bad_line="reject")
    assert len(drafts) == 1 and rejection.where.startswith("p.jsonl:3") and words in rejection.reason


def test_unknown_fields_are_counted(tmp_path: Path) -> None:
    row = {"id": 1, "prompt": "<image>p", "chosen": "a", "rejected": "<image>", "colour": "red", "image": "x.png"}
    [draft], _ = read(write_records(tmp_path, "p.jsonl", [row]))
    assert draft.notes == {"ignored field: colour": 1, "placeholders in answers, read as text": 1}


def test_a_file_without_rows_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no records"):
        list(import_pairs(file_source(write_records(tmp_path, "p.jsonl", [""]) / "p.jsonl")))


def test_pairs_of_one_query_beyond_what_can_be_compared_are_rejected_one_by_one(tmp_path: Path) -> None:
    """A file of a million pairs with the same prompt would be a million million pairs."""
    rows = [{"id": 1, "prompt": "p", "chosen": str(number), "rejected": "worst"} for number in range(MAX_RESPONSES + 2)]
    write_records(tmp_path, "p.jsonl", [*rows, {**rows[0], "rejected": "7"}])
    [draft], rejections = read(tmp_path, on_bad_line="reject")
    assert len(draft.group.responses) == MAX_RESPONSES and len(draft.group.ranked_pairs()) == MAX_RESPONSES
    assert [item.reason for item in rejections] == ["a query has too many responses"] * 3
    with pytest.raises(DataError, match="too many responses"):
        read(tmp_path)
