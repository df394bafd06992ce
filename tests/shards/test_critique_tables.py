"""Critiques that are not the annotated ones: dealt out at random, taken from a table, or missing."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf.errors import DataError
from mmrlhf.shards.critique_tables import ShuffledCritiques, TableCritiques, check_critiques
from mmrlhf.shards.index import Index
from mmrlhf.shards.sidecar import SideCar, SideCarWriter
from mmrlhf.shards.writer import write_shards
from mmrlhf.types import PreferenceGroup, Response


def query(number: int, written: list[bool]) -> PreferenceGroup:
    responses = tuple(
        Response(f"answer {i}", rank=i + 1, critiques={"full": f"critique {i}", "short": "s"} if has else {})
        for i, has in enumerate(written)
    )
    return PreferenceGroup(f"q{number}", "what ?", responses)


def texts(group: PreferenceGroup) -> list[str | None]:
    return [response.critiques.get("full") for response in group.responses]


@given(number=st.integers(0, 10_000), written=st.lists(st.booleans(), min_size=1, max_size=6), seed=st.integers(0, 9))
def test_shuffling_deals_out_the_same_critiques(number: int, written: list[bool], seed: int) -> None:
    """The query keeps its critiques, a response without one stays without, and the draw can be repeated."""
    group = query(number, written)
    shuffled = ShuffledCritiques("full", seed)(group)
    assert Counter(texts(shuffled)) == Counter(texts(group))
    assert [text is None for text in texts(shuffled)] == [text is None for text in texts(group)]
    assert shuffled == ShuffledCritiques("full", seed)(group)
    bare = [replace(response, critiques={}) for response in shuffled.responses]
    assert bare == [replace(response, critiques={}) for response in group.responses]


def test_a_shuffled_critique_tells_nothing_about_its_response() -> None:
    """Over many queries every response gets each of the three critiques about equally often (600 / 3 = 200 each)."""
    found = Counter(
        (place, text)
        for number in range(600)
        for place, text in enumerate(texts(ShuffledCritiques("full")(query(number, [True] * 3))))
    )
    assert len(found) == 9 and all(150 < count < 250 for count in found.values())


def test_a_tables_critiques_replace_the_annotated_ones(tmp_path) -> None:
    group = query(1, [True, False])
    with SideCarWriter(tmp_path, columns=["reward", "critique"], fingerprint={}) as writer:
        for response in group.responses:
            writer.add(group.key, response.hash, {"reward": 0.0, "critique": f"own words on {response.text}"})
    prepare = TableCritiques(SideCar.load(tmp_path, columns=["critique"]), "full")
    assert texts(prepare(group)) == ["own words on answer 0", "own words on answer 1"]
    assert prepare(group).responses[0].critiques["short"] == "s"
    with pytest.raises(DataError, match="no values for group q2"):
        prepare(query(2, [True]))


def test_missing_critiques_are_counted_and_named(tmp_path, caplog) -> None:
    groups = [query(0, [True, True]), query(1, [True, False, False]), query(2, [False])]
    write_shards(groups, tmp_path)
    index = Index.load(tmp_path)
    rows = list(range(3))
    with pytest.raises(DataError, match=r"3 of 6 responses have no 'full' critique[\s\S]*q1 \(2\), q2 \(1\)"):
        check_critiques(index, rows, "full")
    check_critiques(index, [row for row in rows if index.entries[row].key == "q0"], "full")
    check_critiques(index, rows, "full", only_count=True)
    assert "3 of 6 responses have no 'full' critique" in caplog.text
    with pytest.raises(DataError, match="6 of 6"):
        check_critiques(index, rows, "evidence", only_count=True)


def test_a_damaged_record_does_not_end_a_run_before_it_starts(tmp_path) -> None:
    """Training leaves it out and counts it; what it says of its critiques nobody can know."""
    write_shards([query(0, [True]), query(1, [True])], tmp_path)
    index = Index.load(tmp_path)
    offset, size, _ = index.entries[1].members["json"]
    with (tmp_path / index.entries[1].shard).open("r+b") as shard:
        shard.seek(offset + size // 2)
        shard.write(b"\0")
    check_critiques(index, [0, 1], "full")
    with pytest.raises(DataError, match="1 of 1 responses have no 'evidence' critique"):
        check_critiques(index, [0, 1], "evidence")
