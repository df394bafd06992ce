"""First places and grouping on the disk: the same as in memory, whatever the keys; and memory that does not grow."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stand_ins.sample_groups import write_records

from mmrlhf.errors import UserError
from mmrlhf.records import external
from mmrlhf.records.draft import Draft, Drafts
from mmrlhf.records.external import FirstPlaces, Grouping
from mmrlhf.records.pair_rows import import_pairs
from mmrlhf.records.ranked_rows import import_ranked
from mmrlhf.records.sources import RowSource, file_source

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


@pytest.mark.parametrize("kind", ["ranked", pytest.param("pairs", marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_the_rows(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the objects that live while the last record is read, less than 40 bytes a record more: an id takes 50."""
    monkeypatch.setattr(external, "CACHE_MIB", 1)
    read = import_ranked if kind == "ranked" else import_pairs
    live = {}
    for number in (100, 400, 1600):  # the first fills what is filled once
        file, records = write_rows(tmp_path / str(number), kind, number), number if kind == "ranked" else number // 2
        live[records] = live_at_the_end(read, file, records)
    (_, (few, before), (many, after)) = live.items()
    assert after - before < 40 * (many - few), live


def write_rows(folder: Path, kind: str, number: int) -> Path:
    """A file that gives `number` ranked records, or half as many of two pairs each."""
    answers = {"responses": [{"text": text, "rank": rank} for rank, text in enumerate("abc", start=1)]}
    said = answers if kind == "ranked" else {"chosen": "a", "rejected": "b"}
    rows = ({"id": n % (number // 2) if kind == "pairs" else n, "prompt": "q" * 50, **said} for n in range(number))
    return write_records(folder, "rows.jsonl", rows) / "rows.jsonl"


def live_at_the_end(read: Callable[[RowSource], Drafts], file: Path, drafts: int) -> int:
    """Bytes of Python's objects when the last record has been read; garbage does not count."""
    tracemalloc.start()
    try:
        items = read(file_source(file))
        assert all(isinstance(next(items), Draft) for _ in range(drafts))
        gc.collect()
        live = tracemalloc.get_traced_memory()[0]
        assert next(items, None) is None
        return live
    finally:
        tracemalloc.stop()
