"""Fields of raw records: lenient names, strict types, places in every error."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf.errors import DataError
from mmrlhf.records.fields import id_field, media_fields, number_map, rank_field, strip_placeholders, text_map
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


@given(
    st.text(alphabet="ab <>\n"), st.lists(st.sampled_from(["<image>", "<video>", "<image>\n", " <image> "]), min_size=1)
)
def test_leading_placeholders_go_and_the_rest_stays(prompt: str, tokens: list[str]) -> None:
    stripped, count = strip_placeholders("".join(tokens) + prompt)
    assert count == len(tokens) and stripped == prompt.lstrip()


def test_placeholders_inside_a_prompt_stay() -> None:
    assert strip_placeholders("compare <image> and <image>") == ("compare <image> and <image>", 0)


def test_media_may_be_one_path_or_several_or_none() -> None:
    assert media_fields({"image": "a"}, "f") == (("a",), None)
    assert media_fields({"image": ["a", "b"]}, "f") == (("a", "b"), None)
    assert media_fields({"images": ["a"], "video": "v"}, "f") == (("a",), "v")
    assert media_fields({"image": None, "video": ""}, "f") == ((), None)
