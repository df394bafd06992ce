"""Shards are plain WebDataset tars, the same bytes for the same groups, and survive an interruption."""

from __future__ import annotations

import gc
import hashlib
import json
from pathlib import Path

import pytest
import webdataset as wds
from stand_ins.sample_groups import make_group

from mmrlhf.errors import ConfigError, DataError
from mmrlhf.records.members import group_to_sample
from mmrlhf.shards.index import Index
from mmrlhf.shards.writer import ShardSink, write_shards

GROUPS = [make_group(f"key-{number}", num_images=number % 3) for number in range(7)]


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


# webdataset leaves the shards it has read to the garbage collector
@pytest.mark.filterwarnings("ignore:Exception ignored:pytest.PytestUnraisableExceptionWarning")
def test_plain_webdataset_reads_them(tmp_path: Path) -> None:
    write_shards(GROUPS, tmp_path, max_groups_per_shard=3)
    tars = sorted(str(path) for path in tmp_path.glob("*.tar"))
    samples = list(wds.WebDataset(tars, shardshuffle=False, empty_check=False))
    assert [sample["__key__"] for sample in samples] == [group.key for group in GROUPS]
    for sample, group in zip(samples, GROUPS, strict=True):
        written = group_to_sample(group)
        assert {name: sample[name] for name in written} == written
        assert json.loads(sample["json"])["prompt"] == group.prompt.plain
    gc.collect()


def test_the_record_comes_first(tmp_path: Path) -> None:
    write_shards([make_group("k", num_images=11)], tmp_path)
    assert list(Index.load(tmp_path).entries[0].members)[:3] == ["json", "0.jpg", "1.jpg"]


def test_equal_groups_give_equal_files(tmp_path: Path) -> None:
    write_shards(GROUPS, tmp_path / "one", max_groups_per_shard=3)
    write_shards(iter(GROUPS), tmp_path / "two", max_groups_per_shard=3)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    write_shards(GROUPS[:-1], tmp_path / "other", max_groups_per_shard=3)
    assert Index.load(tmp_path / "other").digest != Index.load(tmp_path / "one").digest


def test_limits_cut_shards(tmp_path: Path) -> None:
    write_shards(GROUPS, tmp_path / "count", max_groups_per_shard=3)
    assert [shard.count for shard in Index.load(tmp_path / "count").shards] == [3, 3, 1]
    write_shards(GROUPS, tmp_path / "size", max_megabytes=1e-6)
    assert [shard.count for shard in Index.load(tmp_path / "size").shards] == [1] * 7
    with pytest.raises(ConfigError):
        write_shards(GROUPS, tmp_path / "none", max_groups_per_shard=0)


def test_an_interrupted_sink_goes_on(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    write_shards(GROUPS, whole, max_groups_per_shard=3)
    first = ShardSink(broken, max_groups_per_shard=3)
    for group in GROUPS[:5]:
        first.add(group)
        if first.full:
            first.close_shard({"consumed": 3})
    first.close()
    second = ShardSink(broken, max_groups_per_shard=3)
    assert second.notes == [{"consumed": 3}]
    with pytest.raises(DataError, match="key-1"):
        second.add(GROUPS[1])
    for group in GROUPS[3:]:
        second.add(group)
        if second.full:
            second.close_shard()
    second.finish()
    second.clear_records()
    assert {name: data for name, data in contents(whole).items() if "done" not in name} == contents(broken)


def test_nothing_is_left_of_shards_of_another_input(tmp_path: Path) -> None:
    """The second shard has its name and no record yet, as a kill leaves it; whoever reads all tars would read it."""
    sink = ShardSink(tmp_path, max_groups_per_shard=1)
    for group in GROUPS[:2]:
        sink.add(group)
        sink.close_shard()
    (tmp_path / "shard-00001.tar.done.parquet").unlink()
    again = ShardSink(tmp_path, max_groups_per_shard=1)
    again.start_over()
    again.add(GROUPS[2])
    again.finish()
    assert [path.name for path in tmp_path.glob("*.tar")] == ["shard-00000.tar"]


def test_a_finished_shard_that_was_damaged_is_written_again(tmp_path: Path) -> None:
    sink = ShardSink(tmp_path, max_groups_per_shard=1)
    sink.add(GROUPS[0])
    sink.close_shard()
    (tmp_path / "shard-00000.tar").write_bytes(b"cut")
    assert ShardSink(tmp_path).notes == []


def test_a_key_may_not_occur_twice(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="key-1"):
        write_shards([GROUPS[1], GROUPS[1]], tmp_path)


def test_nothing_to_write_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no groups"):
        write_shards([], tmp_path)
