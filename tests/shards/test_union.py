"""Several shard sets as one: every record of every set, under its set's name, on its own side of the split."""

from __future__ import annotations

import hashlib
import json
import pickle
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from stand_ins.sample_groups import make_group

from mmrlhf.errors import ConfigError, DataError
from mmrlhf.shards.index import Index
from mmrlhf.shards.manifest import INDEX_FILE, MANIFEST_FILE, Shard, content_digest
from mmrlhf.shards.union import write_mixture
from mmrlhf.shards.writer import write_shards

FIRST = [make_group(f"key-{number}") for number in range(12)]
# key-10 and key-11 are in both sets, with other answers
SECOND = [make_group(f"key-{number}", num_responses=2, num_images=0) for number in range(10, 30)]


@pytest.fixture
def sets(tmp_path: Path) -> dict[str, Path]:
    for name, groups in (("first", FIRST), ("second", SECOND)):
        write_shards(groups, tmp_path / name, max_groups_per_shard=5)
    return {"a": tmp_path / "first", "b": tmp_path / "second"}


def test_every_record_of_every_set_reads_back(sets: dict[str, Path], tmp_path: Path):
    index = pickle.loads(pickle.dumps(write_mixture(sets, tmp_path / "mixed")))
    assert index.set_names().tolist() == ["a"] * 12 + ["b"] * 20
    for row, group in enumerate(FIRST + SECOND):
        found, name = index.read(row), "a" if row < 12 else "b"
        assert found == replace(group, key=f"{name}/{group.key}", shard=found.shard)
        assert index.entries[row].key == found.key and found.shard.startswith(f"{name}/shard-")
    index.verify()


def test_a_set_at_an_address_is_refused(sets: dict[str, Path], tmp_path: Path):
    with pytest.raises(ConfigError, match=r"sets on this machine(?s:.)*far: https://somewhere/shards"):
        write_mixture({**sets, "far": "https://somewhere/shards"}, tmp_path / "mixed")
    assert not (tmp_path / "mixed").exists()


def test_a_query_keeps_its_side_of_the_split(sets: dict[str, Path], tmp_path: Path):
    index = write_mixture(sets, tmp_path / "mixed")
    heldout = {index.entries[row].key for row in index.split("heldout", 0.4)}
    alone = {f"{name}/{Index.load(f).entries[row].key}" for name, f in sets.items() for row in _heldout(f, 0.4)}
    assert heldout == alone
    assert ("a/key-10" in heldout) == ("b/key-10" in heldout)


def _heldout(folder: Path, share: float) -> list[int]:
    return Index.load(folder).split("heldout", share).tolist()


def test_the_digest_follows_the_sets_and_their_names(sets: dict[str, Path], tmp_path: Path):
    one = write_mixture(sets, tmp_path / "one").digest
    assert one == write_mixture(sets, tmp_path / "again").digest
    assert one != write_mixture({"a": sets["b"], "b": sets["a"]}, tmp_path / "other").digest


def test_a_mixture_of_mixtures(sets: dict[str, Path], tmp_path: Path):
    write_mixture(sets, tmp_path / "inner")
    index = write_mixture({"outer": tmp_path / "inner", "b": sets["b"]}, tmp_path / "mixed")
    assert len(index) == 52 and index.read(0).key == "outer/a/key-0"
    assert sorted(set(index.set_names())) == ["b", "outer/a", "outer/b"]


def test_damage_in_a_set_stops_the_start(sets: dict[str, Path], tmp_path: Path):
    write_mixture(sets, tmp_path / "mixed")
    (sets["b"] / "shard-00001.tar").unlink()
    with pytest.raises(DataError, match=r"b/shard-00001\.tar is missing"):
        Index.load(tmp_path / "mixed")


@pytest.mark.parametrize("names", [[], ["a/b"], [""]])
def test_sets_need_names(names: list[str], tmp_path: Path):
    with pytest.raises(ConfigError, match="need names"):
        write_mixture({name: tmp_path for name in names}, tmp_path / "mixed")


def test_a_set_whose_manifest_counts_too_few_loses_none_in_silence(sets: dict[str, Path], tmp_path: Path):
    """A whole index and manifest that do not agree on a shard's samples, as another program may write them."""
    folder = sets["a"]
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    manifest["shards"][-1]["count"] -= 1
    manifest["digest"] = content_digest([Shard.from_record(shard) for shard in manifest["shards"]])
    table = pq.read_table(folder / INDEX_FILE).replace_schema_metadata({"digest": manifest["digest"]})
    pq.write_table(table, folder / INDEX_FILE)
    manifest["index_sha256"] = hashlib.sha256((folder / INDEX_FILE).read_bytes()).hexdigest()
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="2 index rows instead of 1"):
        write_mixture(sets, tmp_path / "mixed")
