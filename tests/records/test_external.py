"""First places and grouping on the disk: the same as in memory, whatever the keys; and memory that does not grow."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stand_ins.sample_groups import write_records

from mmrlhf.errors import UserError
from mmrlhf.records import external
from mmrlhf.records.draft import Draft
from mmrlhf.records.external import FirstPlaces, Grouping
from mmrlhf.records.pair_rows import import_pairs
from mmrlhf.records.ranked_rows import import_ranked
from mmrlhf.records.sources import file_source

keys = st.lists(st.text(max_size=2), max_size=30)


@given(keys)
def test_grouping_is_that_of_a_dictionary(given_keys: list[str]) -> None:
    grouping: Grouping[int] = Grouping()
    expected: dict[str, list[int]] = {}
    for number, key in enumerate(given_keys):
        grouping.add(key, number)
        expected.setdefault(key, []).append(number)
    assert [list(group) for group in grouping.groups()] == list(expected.values()) and len(grouping) == len(expected)


@given(keys)
def test_first_places_are_those_of_a_dictionary(given_keys: list[str]) -> None:
    places, expected = FirstPlaces(), {}
    for number, key in enumerate(given_keys):
        assert places.add(key, f"f:{number}") == expected.setdefault(key, f"f:{number}")


def test_a_group_may_be_left_before_its_end() -> None:
    grouping: Grouping[int] = Grouping()
    for number in range(9):
        grouping.add(str(number // 3), number)
    assert [next(group) for group in grouping.groups()] == [0, 3, 6]


def test_no_room_on_the_disk_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    grouping: Grouping[bytes] = Grouping(cache_mib=1)
    grouping._table.execute("PRAGMA max_page_count = 300")
    with pytest.raises(UserError, match="SQLITE_TMPDIR"):
        for number in range(400):
            grouping.add(str(number), bytes(4096))


@pytest.mark.parametrize("kind", ["ranked", "pairs"])
def test_memory_does_not_grow_with_the_rows(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of Python's objects, less than 100 bytes a row more: garbage that waits; an id alone takes more."""
    monkeypatch.setattr(external, "CACHE_MIB", 1)
    answers = {"responses": [{"text": text, "rank": rank} for rank, text in enumerate("abc", start=1)]}
    said = answers if kind == "ranked" else {"chosen": "a", "rejected": "b"}
    read = import_ranked if kind == "ranked" else import_pairs
    peaks = []
    for number in (200, 800):
        rows = ({"id": n % (number // 2) if kind == "pairs" else n, "prompt": "q" * 50, **said} for n in range(number))
        root = write_records(tmp_path / str(number), "rows.jsonl", rows)
        tracemalloc.start()
        drafts = sum(isinstance(item, Draft) for item in read(file_source(root / "rows.jsonl")))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert drafts == (number if kind == "ranked" else number // 2)
    assert peaks[1] - peaks[0] < 100 * 600, peaks
