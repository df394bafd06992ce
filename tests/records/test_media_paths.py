"""Paths of media as people write them: read where they mean a file below the root, named as what they are elsewhere."""

from __future__ import annotations

import base64
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stand_ins.little_work import little_work
from stand_ins.sample_groups import picture, write_pictures

from mmrlhf.errors import DataError
from mmrlhf.records.media_files import read_image
from mmrlhf.records.media_paths import LONGEST_SHOWN, locate

NAME = "café über.jpg"
NFC, NFD = (unicodedata.normalize(form, NAME) for form in ("NFC", "NFD"))


@pytest.mark.parametrize(("on_disk", "written"), [(NFC, NFD), (NFD, NFC)])
def test_a_name_may_come_in_another_unicode_form(tmp_path: Path, on_disk: str, written: str) -> None:
    write_pictures(tmp_path, f"long/{on_disk}")
    assert locate(tmp_path, f"long/{written}").is_file()
    (tmp_path / "long" / written).write_bytes(picture(shade=9))
    assert locate(tmp_path, f"long/{written}").read_bytes() == picture(shade=9), "the very name comes first"


def test_backslashes_absolute_paths_and_file_addresses(tmp_path: Path) -> None:
    write_pictures(tmp_path, "long/a b.jpg")
    root = tmp_path.as_posix()
    for written in (
        "long\\a b.jpg",
        f"{root}/long/a b.jpg",
        f"file://{root}/long/a%20b.jpg",
        f"file:{root}/long/a b.jpg",
    ):
        assert locate(tmp_path, written) == tmp_path / "long" / "a b.jpg", written
    (tmp_path / "long\\a b.jpg").write_bytes(b"x")
    assert locate(tmp_path, "long\\a b.jpg").read_bytes() == b"x", "a backslash is a letter where a file has it"


def test_an_absolute_path_may_go_through_a_link_to_the_root(tmp_path: Path) -> None:
    write_pictures(tmp_path, "set/a.jpg")
    (tmp_path / "link").symlink_to(tmp_path / "set")
    assert locate(tmp_path / "link", f"{tmp_path}/set/a.jpg").is_file()
    assert locate(tmp_path / "link", f"{tmp_path}/link/a.jpg").is_file()


@pytest.mark.parametrize(
    "written",
    [
        "..\\x.jpg",
        "a\\..\\..\\x.jpg",
        "C:\\data\\x.jpg",
        "file:///etc/hostname",
        "file:../x.jpg",
        "~/x.jpg",
        "//x/y.jpg",
    ],
)
def test_no_spelling_leaves_the_root(tmp_path: Path, written: str) -> None:
    """Backslashes are letters, unless they lead to a file below the root."""
    root = tmp_path / "root"
    root.mkdir()
    write_pictures(tmp_path, "x.jpg")
    with pytest.raises(DataError, match="leaves the data folder|media file is missing"):
        read_image(root, written, 0, "data.jsonl:1")


@given(st.text(alphabet="./a~\\:%2e\0 ", max_size=14) | st.text(alphabet="./a%2e", max_size=9).map("file:".__add__))
def test_whatever_is_written_lies_below_the_root(written: str) -> None:
    root = Path("/data/root")
    try:
        found = locate(root, written)
    except DataError:
        return
    assert Path(*found.parts[:3]) == root and ".." not in found.parts


@pytest.mark.parametrize(
    ("written", "near"),
    [("long/a.JPG", "long/a.jpg"), (" long/a.jpg\n", "long/a.jpg"), ("long/b%20c.jpg", "long/b c.jpg")],
)
def test_what_is_easily_overlooked_is_named(tmp_path: Path, written: str, near: str) -> None:
    write_pictures(tmp_path, "long/a.jpg", "long/b c.jpg")
    with pytest.raises(DataError, match="media file is missing") as caught:
        read_image(tmp_path, written, 0, "data.jsonl:1")
    assert f"there is {near}" in str(caught.value.given)


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ("https://example.com/cat.png", "at an address"),
        ("s3://bucket/cat.png", "at an address"),
        ("long", "is a folder"),
    ],
)
def test_what_is_no_file_is_named_as_what_it_is(tmp_path: Path, written: str, problem: str) -> None:
    (tmp_path / "long").mkdir()
    with pytest.raises(DataError, match=problem):
        read_image(tmp_path, written, 0, "data.jsonl:1")


@pytest.mark.parametrize("length", [150, 3000])
def test_base64_that_is_no_picture_is_not_shown_in_full(tmp_path: Path, length: int) -> None:
    text = base64.b64encode(bytes(range(256)) * 12).decode()[:length]
    with pytest.raises(DataError, match="holds base64") as caught:
        read_image(tmp_path, text, 0, "data.jsonl:1")
    assert f"{length:,} characters" in str(caught.value.given)
    assert max(len(line) for line in str(caught.value).splitlines()) < LONGEST_SHOWN + 60


def test_a_name_that_no_file_system_takes_is_cut(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not usable") as caught:
        read_image(tmp_path, "x.y" * 400, 0, "data.jsonl:1")
    assert max(len(line) for line in str(caught.value).splitlines()) < LONGEST_SHOWN + 60


def test_much_white_space_behind_base64_is_looked_at_once(tmp_path: Path) -> None:
    with little_work():
        with pytest.raises(DataError, match="not usable"):
            read_image(tmp_path, "A" * 100 + " " * 60_000 + "!", 0, "data.jsonl:1")
        with pytest.raises(DataError, match="holds base64"):
            read_image(tmp_path, "A" * 98 + "==" + " " * 60_000, 0, "data.jsonl:1")
