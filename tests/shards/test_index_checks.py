"""An index of a stranger: whatever no scan would write is found, by its column, before anything is planned from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from stand_ins.sample_groups import make_group

from mmrlhf.errors import DataError
from mmrlhf.shards.index_checks import check_rows
from mmrlhf.shards.manifest import read_index
from mmrlhf.shards.writer import write_shards

Row = dict[str, Any]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, int], pa.Table]:
    """Bytes of the shards, and the index, of two groups with a picture each."""
    folder = tmp_path_factory.mktemp("sound")
    write_shards([make_group("a"), make_group("b")], folder)
    shards, _, table = read_index(folder)
    return {shard.name: shard.bytes for shard in shards}, table


def set_to(name: str, value: Any) -> Callable[[Row, int], None]:
    return lambda row, end: row.__setitem__(name, value)


def first(name: str, value: Callable[[Row, int], int]) -> Callable[[Row, int], None]:
    return lambda row, end: row[name].__setitem__(0, value(row, end))


CHANGES: dict[str, tuple[Callable[[Row, int], None], str]] = {
    "before the shard": (first("member_offsets", lambda row, end: -512), "1 members that lie outside"),
    "behind it": (first("member_offsets", lambda row, end: end - row["member_sizes"][0] + 1), "lie outside"),
    "far behind it": (first("member_offsets", lambda row, end: 2**63 - 1), "lie outside"),
    "negative size": (first("member_sizes", lambda row, end: -1), "lie outside"),
    "another shard": (set_to("shard", "other.tar"), "lie outside"),
    "one place less": (lambda row, end: row["member_offsets"].pop(), "different numbers"),
    "one name more": (lambda row, end: row["member_names"].append("x"), "different numbers"),
    "no record": (first("member_names", lambda row, end: "txt"), "without a record"),
    "two records": (lambda row, end: row["member_names"].__setitem__(1, "json"), "without a record"),
    "no members": (
        lambda row, end: row.update({f"member_{name}": [] for name in ("names", "offsets", "sizes", "crc32")}),
        "without a record",
    ),
    "no category": (set_to("category", None), "missing values in category"),
    "no list": (set_to("member_names", None), "missing values in member_names"),
    "no sizes": (set_to("image_sizes", None), "missing values in image_sizes"),
    "no name": (first("member_names", lambda row, end: None), "missing values in member_names"),
    "no place": (first("member_offsets", lambda row, end: None), "missing values in member_offsets"),
    "no width": (first("image_sizes", lambda row, end: None), "missing values in image_sizes"),
    "half a clip": (set_to("more_clips", [1.0, 2.0]), "no sample has in more_clips"),
    "a clip of no length": (set_to("more_clips", [1.0, float("nan"), 8.0, 6.0]), "no sample has in more_clips"),
    "own media of one more": (set_to("own_media", [1, 0] * 9), "no sample has in own_media"),
    "own media below none": (set_to("own_media", [-1, 0] * 3), "no sample has in own_media"),
    "no form": (set_to("form", None), "missing values in form"),
    "three sides": (lambda row, end: row["image_sizes"].append(5), "no sample has in image_sizes"),
    "sides of a second picture": (lambda row, end: row["image_sizes"].extend((5, 5)), "no sample has in image_sizes"),
    "negative side": (first("image_sizes", lambda row, end: -8), "no sample has in image_sizes"),
    "size of no video": (set_to("video_size", [8, 8]), "no sample has in video_size"),
    "one side of a video": (lambda row, end: row.update(num_frames=4, video_size=[8]), "no sample has in video_size"),
    "place that is no number": (set_to("split_hash", float("nan")), "no sample has in split_hash"),
    "place of 1": (set_to("split_hash", 1.0), "no sample has in split_hash"),
    "negative place": (set_to("split_hash", -0.1), "no sample has in split_hash"),
    "endless video": (set_to("duration", float("inf")), "no sample has in duration"),
    "fewer than no response": (set_to("num_responses", -1), "no sample has in num_responses"),
    "key of the other": (set_to("key", "a"), "keys that come twice"),
    **{
        f"negative {name}": (set_to(name, -1), f"no sample has in {name}")
        for name in ("num_pairs", "num_images", "num_frames", "text_chars", "critique_chars", "rank_range")
    },
    "endless text": (set_to("text_chars", 2**62), "no sample has in text_chars"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_what_no_scan_would_write(kind: str, sound: tuple[dict[str, int], pa.Table]) -> None:
    (ends, table), (change, words) = sound, CHANGES[kind]
    rows = table.to_pylist()
    change(rows[1], next(iter(ends.values())))
    with pytest.raises(DataError, match=words):
        check_rows(Path("index.parquet"), ends, pa.Table.from_pylist(rows, schema=table.schema).combine_chunks())
    check_rows(Path("index.parquet"), ends, table)


def test_no_samples_at_all(sound: tuple[dict[str, int], pa.Table]) -> None:
    check_rows(Path("index.parquet"), {}, sound[1].slice(0, 0).combine_chunks())
