"""The index: start-up checks, byte-range reads, splits by key, and tars that other people wrote."""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stand_ins.sample_groups import make_group, picture

from mmrlhf.conversation import IMAGE, VIDEO, Conversation, Turn
from mmrlhf.errors import ConfigError, DataError
from mmrlhf.records.members import group_to_sample
from mmrlhf.shards.adopt import adopt_tars
from mmrlhf.shards.checking import shard_rows, verify_shard
from mmrlhf.shards.index import Index
from mmrlhf.shards.manifest import read_index
from mmrlhf.shards.writer import write_shards
from mmrlhf.types import Media, Response

GROUPS = [make_group(f"key-{number}", num_images=number % 3, num_responses=2 + number % 3) for number in range(40)]


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty groups in four shards."""
    folder = tmp_path_factory.mktemp("packed")
    write_shards(GROUPS, folder, max_groups_per_shard=10)
    return folder


@pytest.fixture
def copy(packed: Path, tmp_path: Path) -> Path:
    """The same, to damage."""
    return shutil.copytree(packed, tmp_path / "copy")


def test_every_group_reads_back(packed: Path) -> None:
    index = Index.load(packed)
    assert len(index) == 40
    for i in np.random.default_rng(0).permutation(40):
        assert index.read(i) == dataclasses.replace(GROUPS[i], shard=f"shard-{i // 10:05d}.tar")


def test_entries_describe_without_reading(packed: Path) -> None:
    index = Index.load(packed)
    for entry, group in zip(index.entries, GROUPS, strict=True):
        assert (entry.key, entry.category, entry.num_responses) == (group.key, "long", len(group.responses))
        assert entry.num_pairs == len(group.ranked_pairs()) and entry.num_images == len(group.media)
        assert entry.image_sizes == tuple((8 + n, 6) for n in range(entry.num_images)) and entry.video_size is None
        assert entry.members["json"][2] > 0 and entry.num_frames == 0
    assert index.entries[-1] == index.entries[39] and len(index.entries[2:5]) == 3
    assert index.column("num_images").tolist() == [number % 3 for number in range(40)]
    assert index.column("key").tolist() == [group.key for group in GROUPS]


def test_it_pickles_as_its_folder(packed: Path, copy: Path) -> None:
    index = Index.load(copy)
    data = pickle.dumps(index)
    assert len(data) < 1000 and pickle.loads(data).read(7) == index.read(7)
    shutil.rmtree(copy)
    write_shards(GROUPS[:5], copy)
    with pytest.raises(DataError, match="changed while"):
        pickle.loads(data)


def test_many_shards_need_few_open_files(tmp_path: Path) -> None:
    groups = [make_group(f"k{number}", num_images=0) for number in range(70)]
    write_shards(groups, tmp_path, max_groups_per_shard=1)
    index = Index.load(tmp_path)
    assert [index.read(i).key for i in (*range(70), 0)] == [f"k{number}" for number in (*range(70), 0)]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(b""), "has 0 bytes"),
        (lambda path: path.write_bytes(path.read_bytes()[:-512]), "bytes instead of"),
    ],
)
def test_missing_empty_and_cut_shards_stop_the_start(copy: Path, damage: object, words: str) -> None:
    damage(copy / "shard-00002.tar")  # type: ignore[operator]
    with pytest.raises(DataError, match=words) as error:
        Index.load(copy)
    assert "shard-00002.tar" in str(error.value) and "1 of 4" in str(error.value)


def test_damage_inside_is_named_when_it_is_read(copy: Path) -> None:
    index = Index.load(copy)
    offset = index.entries[13].members["0.jpg"][0]
    with (copy / "shard-00001.tar").open("r+b") as stream:
        stream.seek(offset + 3)
        stream.write(b"\0\0")
    damaged = Index.load(copy)
    with pytest.raises(DataError, match=r"shard-00001\.tar:key-13:0\.jpg"):
        damaged.read(13)
    assert damaged.read(12) == index.read(12)


def test_a_shard_that_vanishes_later_is_named(copy: Path) -> None:
    index = Index.load(copy)
    (copy / "shard-00003.tar").unlink()
    with pytest.raises(DataError, match=r"shard-00003\.tar"):
        index.read(39)


@given(st.floats(0, 1), st.integers(0, 40))
def test_a_split_is_a_partition_that_limits_only_thin_out(packed: Path, holdout: float, limit: int) -> None:
    index = Index.load(packed)
    train, heldout = index.split("train", holdout), index.split("heldout", holdout)
    assert sorted([*train, *heldout]) == list(range(40)) == index.split("all", holdout).tolist()
    some = index.split("all", holdout, limit)
    assert len(some) == limit and (np.diff(some) > 0).all()
    assert set(some) <= set(index.split("all", holdout, limit + 1))
    assert set(heldout) <= set(index.split("heldout", min(1.0, holdout + 0.1)))


def test_a_limit_spreads_over_the_data(packed: Path) -> None:
    index = Index.load(packed)
    some = index.split("all", 0.0, 10)
    assert set(some // 10) == {0, 1, 2, 3} and index.column("split_hash")[some].max() < 0.5


def test_a_group_stays_on_its_side_when_data_grow(packed: Path, tmp_path: Path) -> None:
    write_shards(GROUPS[20:], tmp_path)
    few, many = Index.load(tmp_path), Index.load(packed)
    held = {many.entries[i].key for i in many.split("heldout", 0.3)}
    assert {few.entries[i].key for i in few.split("heldout", 0.3)} == held & {group.key for group in GROUPS[20:]}


@pytest.mark.parametrize(("holdout", "sides"), [(1e-9, (2, 1)), (1 - 1e-9, (1, 2)), (0.0, (3, 0)), (1.0, (0, 3))])
def test_no_side_stays_empty_in_silence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, holdout: float, sides: tuple[int, int]
) -> None:
    """With a handful of groups a share can fall between two keys; all or nothing is kept as asked for."""
    write_shards(GROUPS[:3], tmp_path)
    index = Index.load(tmp_path)
    for _ in range(2):
        train, heldout = index.split("train", holdout), index.split("heldout", holdout)
        assert (len(train), len(heldout)) == sides and not set(train) & set(heldout)
    assert len(caplog.records) == (holdout not in (0.0, 1.0)), "said once"


def test_a_single_group_cannot_be_split(tmp_path: Path) -> None:
    write_shards(GROUPS[:1], tmp_path)
    index = Index.load(tmp_path)
    assert (len(index.split("train", 0.5)) == 0) != (len(index.split("heldout", 0.5)) == 0)


def test_unknown_splits_are_refused(packed: Path) -> None:
    index = Index.load(packed)
    with pytest.raises(ConfigError):
        index.split("validation", 0.1)  # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        index.split("train", 10)


def test_tars_of_others_get_the_same_index(packed: Path, copy: Path) -> None:
    (copy / "index.parquet").unlink()
    (copy / "manifest.json").unlink()
    with pytest.raises(DataError, match="stage=index"):
        Index.load(copy)
    built, own = adopt_tars(copy), Index.load(packed)
    assert built.digest == own.digest and list(built.entries) == list(own.entries)


def test_one_key_in_two_shards_is_named(copy: Path) -> None:
    shutil.copy(copy / "shard-00001.tar", copy / "shard-00009.tar")
    with pytest.raises(DataError, match=r"shard-00001\.tar, shard-00009\.tar"):
        adopt_tars(copy)


def test_folders_without_tars_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.tar.gz").write_bytes(b"x")
    with pytest.raises(DataError, match="not compressed"):
        adopt_tars(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        adopt_tars(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no such folder"):
        Index.load(tmp_path / "nowhere")


def own(shade: int) -> tuple[Media, ...]:
    return (Media("image", (f"r{shade:08x}.jpg",), (picture(9, shade, shade=shade),)),)


def test_a_conversation_and_media_of_responses_keep_their_form(tmp_path: Path) -> None:
    turns = Turn("system", ("be kind",)), Turn("user", ("see", IMAGE, "and", VIDEO)), Turn("assistant", ("<image>",))
    clip = Media("frames", ("f000.jpg", "f001.jpg"), (picture(10, 8), picture(10, 8)))
    more = dataclasses.replace(clip, names=("v2.f000.jpg", "v2.f001.jpg"))
    prompt = Conversation((*turns, Turn("user", (VIDEO, "?"))))
    talk = dataclasses.replace(make_group("talk"), prompt=prompt, media=(make_group("x").media[0], clip, more))
    said = tuple(Response("same", rank=n + 1, media=own(n + 1) if n else ()) for n in range(3))
    pictures = dataclasses.replace(make_group("own"), responses=said)
    write_shards([talk, pictures], tmp_path)
    index = Index.load(tmp_path)
    assert [dataclasses.replace(group, shard="") for group in index] == [talk, pictures]
    unread = index.read(1, media=False)
    assert [each.data for each in unread.media] == [()] and [r.hash for r in unread.responses] == [r.hash for r in said]
    entries = index.entries[0], index.entries[1]
    assert [entry.form for entry in entries] == ["system:t user:titv assistant:t user:vt", ""]
    assert (entries[0].num_turns, entries[0].more_clips) == (4, ((2, 2, 10, 8),))
    assert entries[1].own_media == ((0, 0), (1, 0), (1, 0)) and entries[1].num_images == 3
    rows = shard_rows(read_index(tmp_path)[2], index.shards[0].name)
    assert verify_shard(tmp_path, index.shards[0], rows, media=True) == []


def test_a_set_of_plain_queries_is_written_as_before_there_were_others(packed: Path) -> None:
    """Without columns that would say nothing; so an index of an earlier version reads as it did."""
    stored = pq.read_table(packed / "index.parquet").schema.names
    assert "rank_range" in stored and not {"form", "more_clips", "own_media"} & set(stored)
    record = json.loads(group_to_sample(GROUPS[1])["json"])
    assert record["prompt"] == "question key-1" and all("media" not in each for each in record["responses"])
