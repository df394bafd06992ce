"""The damage matrix: every way a tar can be broken is an error that names shard, key and member."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stand_ins.archives import END, HOSTILE, cut_sparse_table, member
from stand_ins.sample_groups import make_group, picture

from mmrlhf.errors import DataError
from mmrlhf.records.members import group_to_sample
from mmrlhf.shards.scan import scan_shard, split_hash
from mmrlhf.shards.writer import write_shards

RECORD = json.dumps({"prompt": "p", "responses": [{"text": "a", "rank": 1}, {"text": "b", "rank": 2}]}).encode()


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    """Write files into a tar in this order."""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """A sound shard of three groups."""
    write_shards([make_group(key) for key in "abc"], tmp_path)
    return tmp_path / "shard-00000.tar"


def test_a_sound_shard(shard: Path) -> None:
    rows = scan_shard(shard).rows.to_pylist()
    assert [row["key"] for row in rows] == ["a", "b", "c"]
    assert rows[0]["member_names"] == ["json", "0.jpg"] and rows[0]["image_sizes"] == [8, 6]
    assert rows[0]["num_responses"] == 3 and rows[0]["num_pairs"] == 3 and rows[0]["split_hash"] == split_hash("a")
    assert rows[0]["text_chars"] == len("question a") + 3 * len("answer 0 of a")
    data = shard.read_bytes()
    for row in rows:
        sample = group_to_sample(make_group(row["key"]))
        for name, start, size in zip(row["member_names"], row["member_offsets"], row["member_sizes"], strict=True):
            assert data[start : start + size] == sample[name]


def test_every_cut_is_noticed(shard: Path, tmp_path: Path) -> None:
    data = shard.read_bytes()
    end = scan_shard(shard).rows.to_pylist()[-1]
    last_byte = -(-(end["member_offsets"][-1] + end["member_sizes"][-1]) // 512) * 512
    for length in [*range(0, last_byte, 256), last_byte - 1, last_byte]:
        cut = tmp_path / "cut.tar"
        cut.write_bytes(data[:length])
        with pytest.raises(DataError, match=r"cut\.tar"):
            scan_shard(cut)


def test_every_garbled_header_is_noticed(shard: Path, tmp_path: Path) -> None:
    with tarfile.open(shard) as tar:
        headers = [info.offset for info in tar]
    for offset in headers:
        data = bytearray(shard.read_bytes())
        data[offset : offset + 20] = b"\xff" * 20
        (tmp_path / "bad.tar").write_bytes(data)
        with pytest.raises(DataError, match=r"bad\.tar"):
            scan_shard(tmp_path / "bad.tar")


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([("a.json", RECORD), ("a.jpg", b"")], "x.tar:a:jpg"),
        ([("a.jpg", picture())], "x.tar:a:json"),
        ([("a.json", RECORD), ("a.json", RECORD)], "twice in a sample"),
        ([("a.json", RECORD), ("b.json", RECORD), ("a.jpg", picture())], "x.tar:a:jpg"),
        ([("a.json", RECORD), ("b.json", RECORD), ("a.json", RECORD)], "twice in a shard"),
        ([("a.v1.json", RECORD), ("a.v1.jpg", picture())], "key contains a dot"),
        ([("a.json", RECORD), ("a.v1.json", RECORD)], "key contains a dot"),
        ([("a.json", b"{")], "not JSON"),
        ([("a.json", b'{"prompt": "p", "responses": "r"}')], "x.tar:a:json:responses"),
    ],
)
def test_damaged_samples(tmp_path: Path, members: list[tuple[str, bytes]], words: str) -> None:
    with pytest.raises(DataError, match=words) as error:
        scan_shard(write_tar(tmp_path / "x.tar", members))
    assert "x.tar:a" in str(error.value)


def test_a_missing_member_of_ours_is_named(tmp_path: Path) -> None:
    sample = group_to_sample(make_group("a", num_images=2))
    with pytest.raises(DataError, match=r"x\.tar:a:1\.jpg"):
        scan_shard(write_tar(tmp_path / "x.tar", [("a.json", sample["json"]), ("a.0.jpg", sample["0.jpg"])]))


def test_folders_upper_case_and_strays_are_read_as_webdataset_does(tmp_path: Path) -> None:
    members = [("__info__", b"x"), ("d/1.JSON", RECORD), ("d/1.JPG", picture(9, 5)), ("LICENSE", b"text")]
    [row] = scan_shard(write_tar(tmp_path / "x.tar", members)).rows.to_pylist()
    assert row["key"] == "d/1" and row["member_names"] == ["json", "jpg"] and row["image_sizes"] == [9, 5]


def test_unreadable_media_are_indexed_with_size_zero(tmp_path: Path) -> None:
    members = [("1.json", RECORD), ("1.jpg", b"junk"), ("2.json", RECORD), ("2.mp4", b"junk")]
    first, second = scan_shard(write_tar(tmp_path / "x.tar", members)).rows.to_pylist()
    assert first["image_sizes"] == [0, 0] and second["video_size"] == [0, 0]


def test_video_facts(tmp_path: Path, shared_data: Path) -> None:
    clip = (shared_data / "video" / "video_0.mov").read_bytes()
    [row] = scan_shard(write_tar(tmp_path / "x.tar", [("1.json", RECORD), ("1.mov", clip)])).rows.to_pylist()
    assert row["num_frames"] > 1 and row["duration"] > 0 and min(row["video_size"]) > 0 and row["num_images"] == 0


@given(st.text())
def test_the_split_hash_is_spread_evenly(prefix: str) -> None:
    places = [split_hash(f"{prefix}{number}") for number in range(400)]
    assert all(0 <= place < 1 for place in places)
    assert 120 < sum(place < 0.5 for place in places) < 280


def test_twins_share_their_place(tmp_path: Path) -> None:
    write_shards([make_group(key, meta={"twin": "pair-1"}) for key in "ab"], tmp_path)
    places = scan_shard(tmp_path / "shard-00000.tar").rows.column("split_hash").to_pylist()
    assert places == [split_hash("pair-1")] * 2


def test_a_sparse_member_is_refused(tmp_path: Path) -> None:
    """Its bytes are not where its place in the tar says, and it may claim any size."""
    info = tarfile.TarInfo("a.json")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 512
    with (tmp_path / "s.tar").open("wb") as file:
        header = bytearray(info.tobuf(tarfile.GNU_FORMAT)[:512])
        header[386:482] = b"".join(b"%011o\0" % number for number in (0, 512, 0, 0, 0, 0, 0, 0))
        header[482:483], header[483:495] = b"\0", b"%011o\0" % (1 << 30)
        header[148:156] = b"        "
        header[148:156] = b"%06o\0 " % sum(header)
        file.write(header + bytes(512) + bytes(1024))
    with pytest.raises(DataError, match=r"s\.tar:a\.json"):
        scan_shard(tmp_path / "s.tar")


@pytest.mark.timeout(20)
def test_a_pipe_is_no_shard(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "s.tar")
    with pytest.raises(DataError):
        scan_shard(tmp_path / "s.tar")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_header_that_no_program_writes_is_damage(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "s.tar"
    path.write_bytes(member("a.json", RECORD) + HOSTILE[kind]("b.json", RECORD) + END)
    with pytest.raises(DataError, match=r"s\.tar"):
        scan_shard(path)


def test_a_sparse_table_that_is_cut_off(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(member("a.json", RECORD) + cut_sparse_table("b.json"))
    with pytest.raises(DataError, match="cut off"):
        scan_shard(tmp_path / "s.tar")


def test_a_key_that_is_not_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    path.write_bytes(member("\udcff.json", RECORD) + END)
    with pytest.raises(DataError, match="not UTF-8"):
        scan_shard(path)


@pytest.mark.parametrize("number", [10**400, -1, True, "5"], ids=lambda value: str(value)[:8])
@pytest.mark.parametrize("name", ["duration", "total_frames", "timestamps"])
def test_what_a_stranger_says_of_packed_frames_is_not_believed(tmp_path: Path, name: str, number: object) -> None:
    """A folder of frames counts as one a second; a record that says otherwise must say it in numbers of a clip."""
    said = {"timestamps": [0.0, 7.5], "total_frames": 90, "duration": 8.0}
    for duration, video in ((8.0, said), (2.0, {**said, name: [0.0, number] if name == "timestamps" else number})):
        record = {"prompt": "p", "responses": [{"text": "a"}], "meta": {"video": video}}
        members = [("1.json", json.dumps(record).encode()), ("1.f0.jpg", picture()), ("1.f1.jpg", picture())]
        [row] = scan_shard(write_tar(tmp_path / "x.tar", members)).rows.to_pylist()
        assert row["duration"] == duration


def test_a_record_without_responses_is_a_query_still_to_be_answered(tmp_path: Path) -> None:
    for place, record in enumerate((b'{"prompt": "p"}', b'{"prompt": "p", "responses": []}')):
        path = write_tar(tmp_path / f"{place}.tar", [("a.json", record)])
        assert scan_shard(path).rows.column("num_responses").to_pylist() == [0]
