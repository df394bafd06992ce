"""Verification finds every damaged byte and names it; adopting finds every sample of another schema."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stand_ins.sample_groups import make_group, picture

from mmrlhf.errors import DataError
from mmrlhf.shards.adopt import adopt_tars
from mmrlhf.shards.checking import Problem, shard_rows, verify_shard
from mmrlhf.shards.index import Index
from mmrlhf.shards.manifest import read_index
from mmrlhf.shards.union import write_mixture
from mmrlhf.shards.writer import write_shards
from mmrlhf.types import Media


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four groups in two shards, the last one with media that no decoder reads."""
    folder = tmp_path_factory.mktemp("packed")
    groups = [make_group(key) for key in "abc"] + [make_group("d", media=(Media("image", ("0.jpg",), (b"junk",)),))]
    write_shards(groups, folder, max_groups_per_shard=2)
    return folder


def problems(folder: Path, *, media: bool = False) -> list[Problem]:
    shards, _, table = read_index(folder)
    return [
        item for shard in shards for item in verify_shard(folder, shard, shard_rows(table, shard.name), media=media)
    ]


def test_a_sound_set_has_no_problems(packed: Path) -> None:
    assert problems(packed) == []
    [broken] = problems(packed, media=True)
    assert broken.where == "shard-00001.tar:d:0.jpg" and "cannot be decoded" in broken.problem


@settings(max_examples=40)
@given(data=st.data())
def test_one_flipped_bit_anywhere_is_found(packed: Path, tmp_path_factory: pytest.TempPathFactory, data) -> None:
    """In a member it is named with its key; and whatever reads that member refuses it."""
    folder = tmp_path_factory.mktemp("flipped")
    for path in packed.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    shard = folder / "shard-00000.tar"
    content = bytearray(shard.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1), label="byte")
    content[at] ^= 1 << data.draw(st.integers(0, 7), label="bit")
    shard.write_bytes(content)
    found = problems(folder)
    assert found[0].where == "shard-00000.tar" and "other bytes" in found[0].problem
    index = Index.load(folder)
    hit = [
        (row, f"shard-00000.tar:{entry.key}:{name}")
        for row, entry in enumerate(index.entries[:2])
        for name, (offset, size, _) in entry.members.items()
        if offset <= at < offset + size
    ]
    assert [item.where for item in found[1:]] == [place for _, place in hit]
    for row, place in hit:
        with pytest.raises(DataError, match=place.partition(":")[2]):
            index.read(row)


def test_a_missing_shard_and_a_wrong_index_are_found(packed: Path, tmp_path: Path) -> None:
    shards, _, table = read_index(packed)
    assert verify_shard(tmp_path, shards[0], table) == [Problem("shard is missing", "shard-00000.tar")]
    rows = shard_rows(table, shards[0].name)
    wrong = rows.set_column(rows.schema.get_field_index("num_pairs"), "num_pairs", [[9, 9]])
    assert [item.problem for item in verify_shard(packed, shards[0], wrong)] == ["index does not describe the shard"]


def tar(path: Path, *samples: tuple[str, object]) -> None:
    with tarfile.open(path, "w") as file:
        for key, record in samples:
            for name, data in ((f"{key}.json", json.dumps(record).encode()), (f"{key}.jpg", picture())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))


RANKED = {"prompt": "q", "responses": [{"text": "a", "rank": 1}, {"text": "b", "rank": 2}]}
PAIR = {"conversations": [{"from": "human", "value": "<image>\nq"}], "chosen": "a", "rejected": "b"}


def test_tars_of_others_are_adopted_without_a_copy(tmp_path: Path) -> None:
    """Ranked records and pairs alike; the tars stay where they are."""
    (tmp_path / "theirs").mkdir()
    tar(tmp_path / "theirs" / "x.tar", ("1", RANKED), ("2", PAIR))
    index = adopt_tars(tmp_path / "theirs", tmp_path / "ours")
    one, two = index.read(0), index.read(1)
    assert (one.prompt.plain, one.responses, one.media[0].data) == ("q", two.responses, (picture(),))
    assert two.prompt.plain == "q" and (tmp_path / "ours" / "x.tar").is_symlink()
    assert problems(tmp_path / "ours", media=True) == [] and not (tmp_path / "theirs" / "manifest.json").exists()
    assert adopt_tars(tmp_path / "theirs", tmp_path / "ours").digest == index.digest


def test_the_folder_of_the_tars_by_another_name_keeps_them(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    tar(tmp_path / "theirs" / "x.tar", ("1", RANKED))
    (tmp_path / "link").symlink_to("theirs")
    for name in ("link", "theirs/../theirs"):
        assert len(adopt_tars(tmp_path / "theirs", tmp_path / name)) == 1
        assert not (tmp_path / "theirs" / "x.tar").is_symlink()


def test_samples_of_another_schema_are_named(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", ("1", RANKED))
    tar(tmp_path / "b.tar", ("2", RANKED), ("3", {"caption": "a dog"}))
    tar(tmp_path / "c.tar", ("4", {**PAIR, "chosen": 4}))
    with pytest.raises(DataError, match=r"b\.tar:3:json:prompt(?s:.)*1 more of 3 tars"):
        adopt_tars(tmp_path)


def test_a_mixture_is_checked_like_its_sets(packed: Path, tmp_path: Path) -> None:
    write_shards([make_group("x")], tmp_path / "other")
    write_mixture({"one": str(packed), "two": str(tmp_path / "other")}, tmp_path / "mixed")
    assert problems(tmp_path / "mixed") == []
    shard = tmp_path / "other" / "shard-00000.tar"
    shard.write_bytes(shard.read_bytes().replace(b"question", b"QUESTION"))
    assert [item.where for item in problems(tmp_path / "mixed")] == ["two/shard-00000.tar", "shard-00000.tar:x:json"]
