"""Fields of raw records: lenient names, strict types, places in every error."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf.errors import DataError
from mmrlhf.records.embedded import embed_media
from mmrlhf.records.fields import id_field, media_fields, number_map, rank_field, text_map
from mmrlhf.records.json_text import parse_row

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
json_values = scalars | st.lists(scalars, max_size=2) | st.dictionaries(st.text(max_size=3), scalars, max_size=2)


@given(json_values)
def test_any_json_is_a_row_or_a_named_error(value: object) -> None:
    raw = json.dumps(value).encode()
    if isinstance(value, dict):
        assert parse_row(raw, "f:1").keys() == value.keys()
    else:
        with pytest.raises(DataError, match="f:1"):
            parse_row(raw, "f:1")


@given(st.binary(max_size=20))
def test_any_bytes_are_a_row_or_a_named_error(raw: bytes) -> None:
    try:
        parse_row(raw, "f:1")
    except DataError as error:
        assert error.where == "f:1"


@given(st.dictionaries(st.sampled_from(["id", "image", "images", "video", "rank", "scores", "reasons"]), json_values))
def test_any_field_is_read_or_a_named_error(row: dict[str, object]) -> None:
    for read in (id_field, media_fields, rank_field):
        try:
            read(row, "f:1")
        except DataError as error:
            assert str(error.where).startswith("f:1:")
    for read_map, name in ((text_map, "reasons"), (number_map, "scores")):
        try:
            read_map(row, (name,), "overall", "f:1")
        except DataError as error:
            assert str(error.where).startswith(f"f:1:{name}")


def test_nan_and_byte_order_marks_are_forgiven() -> None:
    assert parse_row(b'\xef\xbb\xbf{"a": NaN}', "f:1") == {"a": None}


def test_a_pair_of_surrogates_is_fine_and_half_of_one_is_not() -> None:
    assert parse_row(rb'{"a": "\ud83d\ude00"}', "f:1") == {"a": "\U0001f600"}
    with pytest.raises(DataError, match="surrogate"):
        parse_row(rb'{"a": {"b": ["\uD83D"]}}', "f:1")


def test_media_may_be_one_path_or_several_or_none() -> None:
    def found(row: dict[str, object]) -> list[tuple[str, object]]:
        return [(item.slot.kind, item.ref) for item in media_fields(row, "f")]

    assert found({"image": "a"}) == [("image", "a")]
    assert found({"image": ["a", "b"]}) == [("image", "a"), ("image", "b")]
    assert found({"images": ["a"], "video": "v"}) == [("image", "a"), ("video", "v")]
    assert found({"image": None, "video": ""}) == []


@pytest.mark.parametrize("empty", [None, [], ""])
def test_an_empty_field_hides_no_filled_one(empty: object) -> None:
    for filled in ("image", "image_path", "image_url", "img"):
        assert media_fields({"images": empty, filled: "a.png"}, "f")[0].ref == "a.png"
    for filled in ("video", "video_path"):
        assert media_fields({"videos": empty, filled: ["a.mp4"]}, "f")[0].slot.kind == "video"


def test_sound_is_refused_by_name() -> None:
    with pytest.raises(DataError, match=r"f:1:audios(?s:.)*no sound"):
        media_fields({"audios": "a.wav"}, "f:1")


def test_two_fields_that_name_different_media_are_refused() -> None:
    """Neither goes away in silence; a path beside bytes is where they came from, as in RLAIF-V."""
    assert len(media_fields({"images": ["a.png", "b.png"], "image": "a.png"}, "f:1")) == 2
    inside = embed_media({"image": b"x", "image_path": "a.png"})
    assert [item.ref for item in media_fields(inside, "f:1")] == [inside["image"]]
    for row in ({"images": ["a.png"], "image": "b.png"}, {"videos": ["a.mp4"], "video": ["a.mp4", "b.mp4"]}):
        with pytest.raises(DataError, match=r"two fields name different(?s:.)*b\."):
            media_fields(row, "f:1")
