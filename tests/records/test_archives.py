"""Archives of strangers: what they hold arrives in full or not at all, and nothing outside of the data folder."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest
from stand_ins.archives import tar_of, zip_of

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
    data = bytearray(gzip.compress(tar_of({"long/a.jpg": b"A" * 5000})))
    data[-8] ^= 1
    path = tmp_path / "long.tar.gz"
    path.write_bytes(data)
    with pytest.raises(DataError, match="damaged"):
        unpack(path, tmp_path, watch=watch)
    assert not (tmp_path / "long").exists()


@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_a_cut_archive_is_refused(tmp_path: Path, kept: float) -> None:
    whole = gzip.compress(tar_of({f"long/{n}.jpg": bytes(range(256)) * 40 for n in range(9)}))
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
