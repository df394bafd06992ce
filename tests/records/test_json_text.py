"""JSON of strangers: what is read can be written, from however deep in a program."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from stand_ins.little_work import little_work

from mmrlhf.errors import DataError
from mmrlhf.records.json_arrays import read_items
from mmrlhf.records.json_text import DEEPEST, parse_row, plain_row


def nested(levels: int) -> bytes:
    """An object within lists and objects, so many in all."""
    half, odd = divmod(levels - 1, 2)
    return b'{"a":' + b'[{"b":' * half + b"[" * odd + b"]" * odd + (b"" if odd else b"1") + b"}]" * half + b"}"


def item(raw: bytes, where: str) -> object:
    """The only item of an array in a file."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"[" + raw + b"]")
        file.flush()
        [found] = read_items(Path(file.name), where)
    if isinstance(found.value, DataError):
        raise found.value
    return found.value


@pytest.mark.parametrize(
    "read", [parse_row, item, lambda raw, where: plain_row(json.loads(raw), where)], ids=["line", "array", "table"]
)
def test_a_record_is_nested_as_deeply_as_it_can_be_written(read: Callable[[bytes, str], object]) -> None:
    """At 975 levels Python reads a record here, and cannot write it thirty calls further down."""
    assert json.dumps(read(nested(DEEPEST), "f:1"))
    for levels in (DEEPEST + 1, DEEPEST + 2):
        with pytest.raises(DataError, match="nested too deeply"):
            read(nested(levels), "f:1")
    with pytest.raises(DataError):
        read(nested(900), "f:1")
    with pytest.raises(DataError):
        item(nested(100_000), "f:1")
    with pytest.raises(DataError):
        parse_row(nested(100_000), "f:1")


def test_many_brackets_are_no_depth() -> None:
    assert len(parse_row(b'{"a": [' + b"[[]]," * 400 + b'[]], "b": "' + b"[" * 400 + b'"}', "f:1")["a"]) == 401


def test_a_field_that_is_there_twice_among_many_is_found_at_once() -> None:
    names = [f"k{number}" for number in range(20_000)]
    raw = "{" + ", ".join(f'"{name}": 1' for name in [*names, names[-1]]) + "}"
    with little_work():
        with pytest.raises(DataError, match="'k19999' is there twice"):
            parse_row(raw.encode(), "f:1")
