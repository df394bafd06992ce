"""Members of another program's samples: the record's own list decides, or all media count; none is dropped unsaid."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from mmrlhf.errors import DataError
from mmrlhf.records.members import group_from_members
from mmrlhf.types import PreferenceGroup

RANKED = {"prompt": "p", "responses": [{"text": "a", "rank": 1}, {"text": "b", "rank": 2}], "category": "mcq"}
PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}


def read(record: dict[str, Any], **members: bytes | None) -> PreferenceGroup:
    return group_from_members(json.dumps(record).encode(), members, shard="s.tar", key="k")


def names(group: PreferenceGroup) -> list[str]:
    return [name for media in group.media for name in media.names]


def test_without_names_all_media_count_pictures_by_number() -> None:
    group = read(RANKED, **{"10.png": b"c", "2.png": b"b", "png": b"a", "txt": b"?", "cls": b"1"})
    assert names(group) == ["2.png", "10.png", "png"]
    assert group.key == "k" and group.category == "mcq" and group.ranked_pairs() == ((0, 1),)
    [clip] = read(RANKED, **{"f1.jpg": b"b", "f0.jpg": b"a"}).media
    assert (clip.kind, clip.names) == ("frames", ("f0.jpg", "f1.jpg"))
    with pytest.raises(DataError, match="more than one video"):
        read(RANKED, mp4=b"a", mkv=b"b")


@pytest.mark.parametrize("head", ["", "data:image/png;base64,"])
def test_media_inside_a_record_are_named_as_what_they_are(head: str) -> None:
    inside = {**PAIR, "image": head + base64.b64encode(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(90)).decode()}
    with pytest.raises(DataError, match=r"inside the record(?s:.)*k:json(?s:.)*base64 of 1 of 1(?s:.)*stage=pack"):
        read(inside)
    assert names(read(inside, png=b"a")) == ["png"], "the member is there, too"


@pytest.mark.parametrize("suffix", ["avif", "jp2", "ppm", "jfif", "jpe", "img", "image", "1.avif"])
def test_pictures_of_every_format_that_is_read(suffix: str) -> None:
    assert read(PAIR, **{suffix: b"x"}).media[0].kind == "image"


@pytest.mark.parametrize("suffix", ["m4v", "flv", "wmv", "3gp", "ts", "mpg", "mpeg", "ogv"])
def test_clips_of_every_container_that_is_read(suffix: str) -> None:
    assert read(PAIR, **{suffix: b"x"}).media[0].kind == "video"


@pytest.mark.parametrize(
    "spelled", [["right.png", "left.png"], ["k.right.png", "k.left.png"], ["a/K.RIGHT.PNG", "left.png"]]
)
def test_the_records_list_decides_order_and_choice(spelled: list[str]) -> None:
    """Whole names or suffixes; what is not named (masks, thumbnails, unknown members) is no medium of it."""
    beside: dict[str, bytes | None] = {"left.png": b"l", "right.png": b"r", "seg.png": b"m", "heic": b"?"}
    group = read({**PAIR, "images": spelled}, **beside)
    assert names(group) == ["right.png", "left.png"] and [m.data for m in group.media] == [(b"r",), (b"l",)]
    assert names(read({**PAIR, "images": spelled}, **dict.fromkeys(beside))) == names(group), "also without the bytes"


def test_a_record_that_names_other_files_has_as_many_members() -> None:
    before = {**PAIR, "images": ["coco/1.jpg", "coco/2.jpg"]}
    assert names(read(before, **{"1.jpg": b"b", "0.jpg": b"a"})) == ["0.jpg", "1.jpg"]
    for members in ({}, {"0.jpg": b"a"}):
        with pytest.raises(DataError, match="lacks a member"):
            read(before, **members)
    with pytest.raises(DataError, match=r"lacks a member(?s:.)*0\.png, 1\.png"):
        read({**PAIR, "images": ["0.png", "1.png"]}, **{"0.png": b"a"})
    with pytest.raises(DataError, match="other media than its record names"):
        read({**PAIR, "image": "coco/1.jpg"}, jpg=b"a", **{"thumb.jpg": b"b"})


@pytest.mark.parametrize("suffix", ["heic", "png_left", "psd"])
def test_a_member_that_nothing_knows_is_named(suffix: str) -> None:
    with pytest.raises(DataError, match=rf"nothing knows(?s:.)*s\.tar:k:{suffix}"):
        read(PAIR, **{suffix: b"x"})


def test_media_of_one_response_have_no_place_in_a_tar_of_others() -> None:
    own = {"prompt": "<image>p", "responses": [{"text": "a", "image": "0.png"}, {"text": "b", "image": "1.png"}]}
    with pytest.raises(DataError, match="media of its own"):
        read(own, **{"0.png": b"a", "1.png": b"b"})


def test_a_member_may_be_shown_twice() -> None:
    group = read({**PAIR, "images": ["1.png", "1.png"]}, **{"0.png": b"a", "1.png": b"b"})
    assert names(group) == ["1.png", "1.png"] and [media.data for media in group.media] == [(b"b",), (b"b",)]
    other = read({**PAIR, "images": ["left/1.png", "right/1.png"]}, **{"0.png": b"a", "1.png": b"b"})
    assert names(other) == ["0.png", "1.png"], "other files, which are called by their numbers here"
