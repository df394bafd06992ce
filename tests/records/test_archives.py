"""Archives of strangers: what they hold arrives in full or not at all, and nothing outside of the data folder."""

from __future__ import annotations

import gzip
import io
import shutil
import tarfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from stand_ins.archives import END, HOSTILE, member, tar_of, zip_of

from mmrlhf.errors import DataError
from mmrlhf.records.archives import unpack


def watch(items: Iterable, _description: str, _total: int) -> Iterable:
    return items


def test_a_tar_that_ends_in_a_zip_is_read_as_the_tar(tmp_path: Path) -> None:
    """zipfile looks at the end of a file, and would unpack the rider alone."""
    path = tmp_path / "long.tar"
    path.write_bytes(tar_of({"long/a.jpg": b"A", "long/b.jpg": b"B"}) + zip_of({"long/evil.jpg": b"E"}))
    assert unpack(path, tmp_path, watch=watch) == 2
    assert sorted(item.name for item in (tmp_path / "long").iterdir()) == ["a.jpg", "b.jpg"]


def test_a_gzip_file_whose_checksum_is_wrong_is_refused_before_anything_is_unpacked(tmp_path: Path) -> None:
    data = bytearray(gzip.compress(tar_of({"long/a.jpg": b"A" * 5000}), mtime=0))
    data[-8] ^= 1
    path = tmp_path / "long.tar.gz"
    path.write_bytes(data)
    with pytest.raises(DataError, match="damaged"):
        unpack(path, tmp_path, watch=watch)
    assert not (tmp_path / "long").exists()


@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_a_cut_archive_is_refused(tmp_path: Path, kept: float) -> None:
    whole = gzip.compress(tar_of({f"long/{n}.jpg": bytes(range(256)) * 40 for n in range(9)}), mtime=0)
    path = tmp_path / "long.tgz"
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(DataError, match="damaged"):
        unpack(path, tmp_path, watch=watch)


def test_an_encrypted_zip_is_refused(tmp_path: Path) -> None:
    data = bytearray(zip_of({"long/a.jpg": b"A"}))
    data[6] |= 1  # the local header's flag, and the directory's
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path = tmp_path / "long.zip"
    path.write_bytes(data)
    with pytest.raises(DataError, match="damaged"):
        unpack(path, tmp_path, watch=watch)


@pytest.mark.parametrize("name", ["../out.jpg", "/tmp/out.jpg", "long/../../out.jpg"])
def test_no_member_leaves_the_folder(tmp_path: Path, name: str) -> None:
    root = tmp_path / "data"
    root.mkdir()
    for kind, data in (("zip", zip_of({name: b"x"})), ("tar", tar_of({name: b"x"}))):
        path = root / f"long.{kind}"
        path.write_bytes(data)
        try:
            unpack(path, root, watch=watch)
        except DataError:
            pass  # tar refuses, zip keeps it below the folder
    assert {item.name for item in tmp_path.iterdir()} == {"data"}


def test_an_archive_larger_than_the_disk_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "long.zip"
    path.write_bytes(zip_of({"long/a.jpg": b"A" * 1000}))
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10, 1, 9))  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="does not fit"):
        unpack(path, tmp_path, watch=watch)
    assert not (tmp_path / "long").exists()


@pytest.mark.timeout(20)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_header_that_no_program_writes_is_damage(tmp_path: Path, kind: str, packed: bool) -> None:
    data = tar_of({"long/a.jpg": b"A"})[:1024] + HOSTILE[kind]("long/b.jpg", b"B" * 700) + END
    path = tmp_path / ("long.tar.gz" if packed else "long.tar")
    path.write_bytes(gzip.compress(data, mtime=0) if packed else data)
    with pytest.raises(DataError, match="damaged"):
        unpack(path, tmp_path, watch=watch)


@pytest.mark.parametrize("archive_of", [tar_of, zip_of])
@pytest.mark.parametrize("names", [("a", "a/b"), ("a/b", "a"), ("n" * 300,)], ids=str)
def test_names_that_no_folder_can_hold(tmp_path: Path, archive_of, names: tuple[str, ...]) -> None:
    path = tmp_path / f"long.{archive_of.__name__[:3]}"
    path.write_bytes(archive_of(dict.fromkeys(names, b"x")))
    with pytest.raises(DataError, match="names that no folder can hold"):
        unpack(path, tmp_path, watch=watch)


def test_a_name_with_a_zero_in_it(tmp_path: Path) -> None:
    path = tmp_path / "long.tar"
    path.write_bytes(member("x", b"x", pax={"path": "long/a\0.jpg"}) + END)
    with pytest.raises(DataError, match="damaged"):
        unpack(path, tmp_path, watch=watch)


def test_a_second_name_of_a_file_is_unpacked_and_what_is_no_file_is_counted(tmp_path: Path, caplog) -> None:
    """tar writes a file of two names once; the archive is deleted once it is unpacked."""
    path = tmp_path / "long.tar"
    path.write_bytes(
        member("long/a.jpg", b"A")
        + member("long/b.jpg", type=tarfile.LNKTYPE, linkname="long/a.jpg")
        + member("long/c.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        + member("long/d.jpg", type=tarfile.LNKTYPE, linkname="/etc/passwd")
        + member("long/e.jpg", b"E", pax={"mtime": "nan"})
        + END
    )
    assert unpack(path, tmp_path, watch=watch) == 3
    assert {item.name: item.read_bytes() for item in (tmp_path / "long").iterdir()} == {
        "a.jpg": b"A", "b.jpg": b"A", "e.jpg": b"E",
    }  # fmt: skip
    assert "2 of 5 members are links" in caplog.text


def test_a_packed_tar_is_written_out_from_front_to_back(tmp_path: Path) -> None:
    """Files with a second name, which come last, would each have the archive read from its beginning again."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name in "ab":
            info = tarfile.TarInfo(f"long/{name}.jpg")
            info.size = 3
            tar.addfile(info, io.BytesIO(name.encode() * 3))
        for name in "ba":
            info = tarfile.TarInfo(f"long/{name}2.jpg")
            info.type, info.linkname = tarfile.LNKTYPE, f"long/{name}.jpg"
            tar.addfile(info)
    (tmp_path / "long.tar.gz").write_bytes(gzip.compress(data.getvalue()))
    seen: list[tuple[str, tarfile.TarInfo]] = []

    def noted(items: Iterable, _description: str, _total: int) -> Iterable:
        seen.extend(items)
        return seen

    assert unpack(tmp_path / "long.tar.gz", tmp_path, watch=noted) == 4
    assert [name for name, _ in seen] == ["long/a.jpg", "long/a2.jpg", "long/b.jpg", "long/b2.jpg"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "long").iterdir()} == {
        "a.jpg": b"aaa", "a2.jpg": b"aaa", "b.jpg": b"bbb", "b2.jpg": b"bbb",
    }  # fmt: skip
