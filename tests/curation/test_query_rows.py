"""Rows of query sets: read back as they were, in order, under keys of their own, wherever their media lie."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from stand_ins.sample_groups import make_group, write_pictures, write_records
from stand_ins.small_encoder import drawing

from mmrlhf.curation.query_rows import LINES, Queries, QuerySet, write_queries
from mmrlhf.errors import ConfigError, DataError
from mmrlhf.parts import ARTIFACT_FILE
from mmrlhf.records.draft import Draft, Rejection
from mmrlhf.records.query_sets import import_queries
from mmrlhf.records.ranked_rows import import_ranked
from mmrlhf.records.sources import items_source
from mmrlhf.shards.index import Index
from mmrlhf.shards.writer import write_shards


def a_set(root: Path, name: str, count: int) -> QuerySet:
    write_pictures(root, *(f"{name}{number}.jpg" for number in range(count)))
    rows = [{"id": number, "image": f"{name}{number}.jpg", "prompt": f"{name} {number}?"} for number in range(count)]
    write_records(root, "set.jsonl", rows)
    return QuerySet(root, import_queries)


def test_sets_follow_each_other_and_every_key_is_one_query(tmp_path: Path) -> None:
    sets = {"one": a_set(tmp_path / "1", "a", 3), "two": a_set(tmp_path / "2", "b", 2)}
    write_queries(tmp_path / "q", sets)
    queries = Queries(tmp_path / "q")
    assert [queries.text(row) for row in range(5)] == ["a 0?", "a 1?", "a 2?", "b 0?", "b 1?"]
    assert queries.sets.tolist() == ["one"] * 3 + ["two"] * 2 and set(queries.types) == {"short"}
    assert len({queries.key(row) for row in range(5)}) == 5
    group = queries.read(3)
    assert group.media[0].data[0] == (tmp_path / "2" / "b0.jpg").read_bytes() and group.key == queries.key(3)
    assert group.responses == ()


def test_any_draft_is_read_back_as_the_importer_gave_it(tmp_path: Path) -> None:
    """Media as paths, in the file, and in memory; messages; responses with all they have, and media of their own."""
    write_pictures(tmp_path, "0.jpg")
    url = "data:image/jpeg;base64," + base64.b64encode(drawing(1)).decode()
    answer = {"text": "yes", "rank": 1, "scores": {"overall": 2}, "critiques": {"full": "so"}, "model": "m"}
    asked = [{"type": "text", "text": "What is"}, {"type": "image"}, {"type": "text", "text": "this?"}]
    rows = [
        {"id": "path", "image": "0.jpg", "prompt": "a?", "responses": [answer, {"text": "no", "rank": 2}]},
        {"id": "inside", "image": url, "prompt": "b?"},
        {"id": "talk", "image": "0.jpg", "prompt": [{"role": "user", "content": asked}], "meta": {"x": [1]}},
        {"id": "own", "prompt": "<image> c?", "responses": [{**answer, "image": "0.jpg"}]},
        {"id": "text", "prompt": "d?", "category": "safety"},
    ]
    write_records(tmp_path, "set.jsonl", rows)
    memory = items_source(lambda: [{"id": "memory", "image": drawing(2), "prompt": "e?"}], tmp_path, "mine")
    sets = {
        "file": QuerySet(tmp_path, import_queries),
        "mine": QuerySet(tmp_path, lambda root: import_ranked(memory, answered=False)),
    }
    wanted = [item for each in sets.values() for item in each.items()]
    write_queries(tmp_path / "q", sets)
    queries = Queries(tmp_path / "q")
    assert len(queries) == len(wanted) == 6
    for row, draft in enumerate(wanted):
        assert isinstance(draft, Draft)
        group, found = draft.load(), queries.read(row)
        assert {**vars(found), "key": ""} == {**vars(group), "key": ""}
    assert queries.types.tolist()[4] == "safety"


def test_a_packed_set_is_read_where_it_is(tmp_path: Path) -> None:
    write_shards([make_group(key, num_responses=count) for count, key in enumerate("abc")], tmp_path / "packed")
    write_queries(tmp_path / "q", {"tars": QuerySet(tmp_path / "packed", import_queries)})
    queries, index = Queries(tmp_path / "q"), Index.load(tmp_path / "packed")
    assert [queries.read(row).responses for row in range(3)] == [group.responses for group in index]
    assert queries.read(0).responses == () and queries.read(2).media == index.read(2).media


def test_what_is_no_query_is_counted_and_the_limit_is_of_each_set(tmp_path: Path) -> None:
    def importer(root: Path) -> Iterator[Draft | Rejection]:
        yield Rejection("r", "too odd", "line 1")
        yield from import_queries(root)

    sets = {"one": QuerySet(a_set(tmp_path / "1", "a", 3).root, importer), "two": a_set(tmp_path / "2", "b", 3)}
    write_queries(tmp_path / "q", sets, limit=2)
    queries = Queries(tmp_path / "q")
    assert len(queries) == 4 and queries.facts["rejected_by_reason"] == {"too odd": 1}
    assert queries.facts["rejected"][0]["where"] == "one: line 1"


def test_the_digest_is_of_the_rows(tmp_path: Path) -> None:
    first = a_set(tmp_path / "1", "a", 3)
    digests = []
    for name, limit in (("x", None), ("y", None), ("z", 2)):
        write_queries(tmp_path / name, {"one": first}, limit=limit)
        digests.append(Queries(tmp_path / name).digest)
    assert digests[0] == digests[1] != digests[2]


def test_an_empty_set_and_benchmarks_alone_are_refused(tmp_path: Path) -> None:
    empty = QuerySet(tmp_path, lambda root: iter([Rejection("r", "too odd", "line 1")]))
    with pytest.raises(DataError, match="no usable query") as caught:
        write_queries(tmp_path / "q", {"one": a_set(tmp_path / "1", "a", 1), "two": empty})
    assert "1 x too odd" in str(caught.value) and "two" in str(caught.value)
    assert not (tmp_path / "q" / LINES).exists()
    with pytest.raises(ConfigError, match="no set of queries to choose from"):
        write_queries(tmp_path / "q", {"one": QuerySet(tmp_path, import_queries, against=True)})


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


@pytest.mark.parametrize("name", ["queries.jsonl", "queries.parquet", "queries.json"])
@pytest.mark.parametrize("damage", [cut, Path.unlink, partial(Path.write_bytes, data=b"")])
def test_a_damaged_folder_is_named(tmp_path: Path, name: str, damage) -> None:
    write_queries(tmp_path / "q", {"one": a_set(tmp_path / "1", "a", 2)})
    damage(tmp_path / "q" / name)
    with pytest.raises(DataError) as caught:
        Queries(tmp_path / "q")
    absent = not (tmp_path / "q" / "queries.json").exists()
    anew = "give its folder, or run that stage" if absent else f"delete {tmp_path / 'q'} and run the stage again"
    assert caught.value.fix == anew
    (tmp_path / ARTIFACT_FILE).touch()
    with pytest.raises(DataError) as caught:
        Queries(tmp_path / "q")
    if absent:
        assert caught.value.fix == anew, "another stage's folder may have been given, with which nothing is wrong"
    else:
        assert f"delete {tmp_path}, " in str(caught.value.fix), "a finished stage is reused, damage and all"
