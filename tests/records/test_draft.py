"""Media of a draft: found below the root only, decoded once, and never skipped in silence."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from stand_ins.sample_groups import picture, write_pictures

from mmrlhf.conversation import IMAGE, VIDEO
from mmrlhf.errors import DataError
from mmrlhf.records.draft import Draft
from mmrlhf.records.fields import MediaItem
from mmrlhf.records.media_paths import category_of, locate, locate_video
from mmrlhf.types import PreferenceGroup, Response


def draft(root: Path, *images: str, video: str | None = None) -> Draft:
    return Draft("id", PreferenceGroup("id", "p", (Response("a"),)), root, items(*images, video=video))


def items(*images: str, video: str | None = None) -> tuple[MediaItem, ...]:
    return (*(MediaItem(IMAGE, path) for path in images), *([MediaItem(VIDEO, video)] if video else []))


@given(st.text(alphabet="./a~\0 ", max_size=12))
def test_no_path_leaves_the_root(path: str) -> None:
    root = Path("/data/root")
    try:
        found = locate(root, path)
    except DataError:
        return
    assert Path(*found.parts[:3]) == root and ".." not in found.parts


@pytest.mark.parametrize("path", ["../x.jpg", "long/../../x.jpg", "/etc/hostname", "a\0b"])
def test_escaping_paths_are_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(DataError, match="leaves the data folder"):
        draft(tmp_path, path).load()


def test_several_images_keep_their_order_and_bytes(tmp_path: Path) -> None:
    write_pictures(tmp_path, "long/b.JPEG", "long/a.jpg")
    media = draft(tmp_path, "long/b.JPEG", "long/a.jpg").load().media
    assert [item.names for item in media] == [("0.jpg",), ("1.jpg",)]
    assert media[0].data == ((tmp_path / "long/b.JPEG").read_bytes(),)


@pytest.mark.parametrize(
    ("data", "words"), [(b"", "empty"), (b"no picture", "cannot be decoded"), (picture()[:-40], "cannot be decoded")]
)
def test_broken_images_are_refused(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "x.jpg").write_bytes(data)
    with pytest.raises(DataError, match=words):
        draft(tmp_path, "x.jpg").load()


def test_missing_files_and_folders_in_place_of_files(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    for path in ("none.jpg", "folder.jpg", "n." * 200):
        with pytest.raises(DataError, match="missing|not usable|is a folder"):
            draft(tmp_path, path).load()
    with pytest.raises(DataError, match="missing"):
        draft(tmp_path, video="video/none").load()


def test_a_video_may_lack_its_extension_or_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "video" / "frames").mkdir(parents=True)
    (tmp_path / "video" / "clip.mkv").write_bytes(b"x")
    assert locate_video(tmp_path, "video/clip").name == "clip.mkv"
    assert locate_video(tmp_path, "video/frames.mp4").name == "frames"


def test_frames_are_in_natural_order(tmp_path: Path) -> None:
    names = [f"frame{number}.jpg" for number in range(12)]
    write_pictures(tmp_path / "video" / "v", *names)
    (tmp_path / "video" / "v" / "notes.txt").write_text("no frame")
    [media] = draft(tmp_path, video="video/v").load().media
    assert media.kind == "frames" and media.names == tuple(f"f{number:03d}.jpg" for number in range(12))
    assert media.data == tuple((tmp_path / "video" / "v" / name).read_bytes() for name in names)
    [fewer] = draft(tmp_path, video="video/v").load(video="frames", num_frames=3).media
    assert fewer.data == (media.data[0], media.data[5], media.data[11])


def test_frames_of_different_sizes_are_refused(tmp_path: Path) -> None:
    write_pictures(tmp_path / "v", "0.jpg")
    (tmp_path / "v" / "1.jpg").write_bytes(picture(30, 30))
    with pytest.raises(DataError, match="differ in size"):
        draft(tmp_path, video="v").load()


def test_a_real_video_is_kept_or_turned_into_frames(shared_data: Path) -> None:
    clip = draft(shared_data, video="video/video_90")
    [kept] = clip.load(num_frames=2).media
    assert kept.kind == "video" and kept.names == ("mov",)
    group = clip.load(video="frames", num_frames=2)
    [frames] = group.media
    assert frames.kind == "frames" and frames.names == ("f000.jpg", "f001.jpg")
    assert np.asarray(Image.open(io.BytesIO(frames.data[0]))).ndim == 3
    assert group.meta["video"]["duration"] > 0 and len(group.meta["video"]["timestamps"]) == 2


@pytest.mark.parametrize("name", ["clip", "clip.", "._mp4", "a.json", "a.MOV", "a.b_c", ".mp4"])
def test_a_clip_is_a_member_by_what_it_holds_and_not_by_its_name(tmp_path: Path, shared_data: Path, name: str) -> None:
    (tmp_path / name).write_bytes((shared_data / "video" / "video_90.mov").read_bytes())
    [media] = draft(tmp_path, video=name).load(num_frames=1).media
    assert media.names == ("mov" if name == "a.MOV" else "mp4",)


@pytest.mark.parametrize("name", ["7.psd", "frames"])
def test_a_file_that_is_no_frame_is_named(tmp_path: Path, name: str) -> None:
    """A frame that is left out would be a gap that nobody sees."""
    write_pictures(tmp_path / "v", "0.jpg", "1.jpg")
    for beside in (".DS_Store", "times.txt", name):
        (tmp_path / "v" / beside).write_bytes(b"x")
    with pytest.raises(DataError, match=rf"no frame(?s:.)*{name}"):
        draft(tmp_path, video="v").load()


def test_a_corrupt_video_is_refused(shared_data: Path) -> None:
    with pytest.raises(DataError):
        draft(shared_data, video="video/corrupted.mp4").load()


def test_the_category_is_the_first_folder() -> None:
    assert category_of(items("./safety/sub/1.png")) == "safety"
    assert category_of(items(video="video/x")) == "video"
    assert [category_of(items(*paths)) for paths in ((), ("x.png",), ("../x/1.png",), ("/a/b.png",))] == ["unknown"] * 4


def test_media_of_a_response_are_named_by_their_content_and_several_clips_by_number(tmp_path: Path) -> None:
    write_pictures(tmp_path, "a.jpg", "b.jpg", "v/0.jpg", "w/0.jpg")
    (tmp_path / "b.jpg").write_bytes(picture(30, 20))
    responses = tuple(map(Response, "xyz"))
    own = (items("a.jpg"), items("b.jpg", video="v"), items("a.jpg"))
    media = (MediaItem(VIDEO, "v"), MediaItem(VIDEO, "w"))
    group = Draft("id", PreferenceGroup("id", "p", responses), tmp_path, media, own).load()
    assert [item.names for item in group.media] == [("f000.jpg",), ("v2.f000.jpg",)]
    first, second, third = ([item.names[0] for item in response.media] for response in group.responses)
    assert first == third != second[:1] and re.fullmatch(r"r[0-9a-f]{8}\.jpg", first[0])
    assert re.fullmatch(r"r[0-9a-f]{8}\.f000\.jpg", second[1])
    hashes = [replace(response, text="same").hash for response in group.responses]
    assert hashes[0] == hashes[2] != hashes[1] and hashes[0] != Response("same").hash
