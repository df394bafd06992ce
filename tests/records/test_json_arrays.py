"""A JSON array read item by item is what the JSON library reads whole, wherever the blocks of the file end."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf.errors import DataError
from mmrlhf.records import json_arrays
from mmrlhf.records.json_arrays import is_array, read_items, read_row_at

texts = st.text(alphabet='aé\u2028😀"\\\n[]{},: ', max_size=8)
items = st.lists(
    st.dictionaries(texts, texts | st.integers() | st.none() | st.lists(texts, max_size=2), max_size=3), max_size=6
)


@given(
    content=items,
    indent=st.sampled_from([None, 1]),
    ascii_only=st.booleans(),
    bom=st.booleans(),
    block=st.integers(1, 40),
)
def test_items_are_those_of_the_whole(
    content: list[Any], indent: int | None, ascii_only: bool, bom: bool, block: int
) -> None:
    text = json.dumps(content, indent=indent, ensure_ascii=ascii_only)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_arrays, "BLOCK", block)
        path = Path(folder) / "a.json"
        path.write_text(text, encoding="utf-8-sig" if bom else "utf-8")
        found = list(read_items(path, "a.json"))
        assert is_array(path) and [item.value for item in found] == content
        assert [read_row_at(path, item.at) for item in found] == content
        assert [json.loads(item.raw) for item in found] == content


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ('[{"a":1},', 2),
        ('[{"a":1}', 2),
        ("[1 2]", 2),
        ("[1,]", 2),
        ("[1]x", 2),
        ("{}", 1),
        ("", 1),
        ('[{"a":tru}, 1]', 1),
    ],
)
def test_what_is_no_array_is_named_by_item(text: str, number: int, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=f"a.json: item {number}"):
        list(read_items(tmp_path / "a.json", "a.json"))


@pytest.mark.parametrize(
    ("text", "words"), [('[{"a":1,"a":2},{"b":1}]', "'a' is there twice"), ('["\\ud83d",{"b":1}]', "ud83d")]
)
def test_an_item_that_is_not_clear_does_not_end_the_file(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    bad, good = read_items(tmp_path / "a.json", "a.json")
    assert isinstance(bad.value, DataError) and words in str(bad.value) and good.value == {"b": 1}
