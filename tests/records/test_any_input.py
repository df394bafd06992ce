"""Whatever a file holds: drafts, rejections or a user's error; and no text that the file did not hold."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmrlhf.errors import UserError
from mmrlhf.records.draft import Draft, Drafts, Rejection
from mmrlhf.records.fields import MediaItem
from mmrlhf.records.layouts.read import import_layout
from mmrlhf.records.members import group_from_members, group_to_sample
from mmrlhf.records.mm_rlhf import import_released
from mmrlhf.records.own import import_own
from mmrlhf.records.pair_rows import import_preference_rows
from mmrlhf.types import Media, PreferenceGroup

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)
texts = st.text(max_size=5) | st.sampled_from(["p", "<image>\nq", "r\n<image>", "s <image> t <video>", "a", "b"])
message = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["user", "assistant", "system", "x"]) | anything,
        "content": texts
        | st.lists(st.fixed_dictionaries({"type": st.sampled_from(["text", "image", "x"]), "text": texts}), max_size=2),
    }
) | st.fixed_dictionaries({"from": st.sampled_from(["human", "gpt"]), "value": texts})
conversation = st.lists(message, max_size=3)
response = st.dictionaries(
    st.sampled_from(["text", "rank", "scores", "reasons", "critiques", "model", "image", "x"]), texts | anything
)
# near enough to a record that every branch is reached, and anything in place of each part
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "id": st.integers(0, 2) | texts,
    "prompt": texts | conversation,
    "question": texts,
    "conversations": conversation,
    "conversations_a": conversation,
    "conversations_b": conversation,
    "preference": st.sampled_from(["a", "b", 1, 2, "tie"]),
    "chosen": texts | message | conversation,
    "rejected": texts | message | conversation,
    "responses": st.lists(response, max_size=3),
    "pairs": st.lists(st.lists(st.integers(-1, 3), max_size=3), max_size=2),
    "image": texts | st.fixed_dictionaries({"bytes": st.none() | texts, "path": st.none() | texts}),
    "images": st.lists(texts, max_size=2),
    "video": texts,
    "is_tie": st.booleans(),
    "meta": st.dictionaries(texts, anything, max_size=2),
    "chosen_reason": texts,
    "category": texts,
}
record = st.fixed_dictionaries({}, optional={name: value | anything for name, value in FIELDS.items()})
good_pair = st.fixed_dictionaries({"id": st.integers(0, 2), "prompt": texts, "chosen": texts, "rejected": texts})
rows = st.lists(record | good_pair | anything, max_size=5)
usual = settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])


def strings(value: Any) -> Iterator[str]:
    """Every text inside a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from strings([*value.keys(), *value.values()])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from strings(item)


def said_by(content: Any) -> Callable[[str], bool]:
    """Whether a text comes from this content: as it is, without placeholders, or put together from its parts."""
    parts = set(strings(content))
    whole = "\0".join(sorted(parts, key=len))

    def known(text: str) -> bool:
        return text in parts or text in whole or _made_of(text, parts)

    return known


def _made_of(text: str, parts: set[str]) -> bool:
    """Whether a text is several parts in a row, with placeholders for pictures between them."""
    if not text:
        return True
    pieces = {part.strip("\n") for part in parts} | parts | {"<image>", "<video>"}
    return any(piece and text.startswith(piece) and _made_of(text[len(piece) :], parts) for piece in pieces)


def check(make: Callable[[], Iterable[Draft | Rejection]], content: Any) -> list[Draft | Rejection]:
    """Import; a user's error is fine, any other is not; every draft goes into a sample and comes back the same."""
    try:
        items = list(make())
    except UserError:
        return []
    known = said_by(content)
    for item in items:
        assert isinstance(item, Draft | Rejection)
        if isinstance(item, Draft):
            assert all(map(known, words(item.group)))
            assert all(known(answer.text) for answer in item.group.responses)
            group = with_stand_ins(item)
            sample = group_to_sample(group)
            assert group_from_members(sample.pop("json"), sample, shard="", key=group.key) == group
    keys = [item.group.key for item in items if isinstance(item, Draft)]
    assert len(set(keys)) == len(keys)
    return items


def words(group: PreferenceGroup) -> list[str]:
    """The texts of a group's conversation."""
    return [part for turn in group.prompt.turns for part in turn.parts if isinstance(part, str)]


def with_stand_ins(draft: Draft) -> PreferenceGroup:
    """The draft's group with a byte for each medium."""

    def read(items: Iterable[MediaItem], prefix: str) -> tuple[Media, ...]:
        return tuple(Media(item.slot.kind, (f"{prefix}{n}",), (b"x",)) for n, item in enumerate(items))

    own = draft.own_media or ((),) * len(draft.group.responses)
    responses = zip(draft.group.responses, own, range(len(own)), strict=True)
    said = tuple(replace(response, media=read(items, f"r{n}.")) for response, items, n in responses)
    return replace(draft.group, media=read(draft.media, ""), responses=said)


READERS: dict[str, Callable[..., Drafts]] = {
    "released": import_released,
    "preference rows": import_preference_rows,
    "any layout": partial(import_layout, layout="auto"),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("on_bad_line", ["error", "reject"])
@usual
@given(content=rows)
def test_any_json_lines(reader: str, on_bad_line: str, content: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "data.jsonl").write_text("".join(json.dumps(item) + "\n" for item in content))
        check(lambda: READERS[reader](folder, on_bad_line=on_bad_line), content)


@usual
@given(content=rows | anything)
def test_any_json_array(content: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "data.json").write_text(json.dumps(content))
        check(lambda: import_preference_rows(folder, preferred="a", on_bad_line="reject"), content)


@pytest.mark.parametrize("name", ["data.jsonl", "data.json", "data.parquet"])
@settings(max_examples=40)
@given(
    content=st.binary(max_size=60) | st.just(b"[" * 5000) | st.just(b'{"id": 1e999, "prompt": ' + b"9" * 5000 + b"}")
)
def test_any_bytes(name: str, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / name).write_bytes(content)
        for read in (import_preference_rows, import_released):
            check(lambda read=read: read(folder, file=name, on_bad_line="reject"), content.decode(errors="replace"))


@usual
@given(content=st.lists(record | good_pair, min_size=1, max_size=4))
def test_any_table(content: list[dict[str, Any]]) -> None:
    """Whatever Arrow makes of the records is a table."""
    try:
        table = pa.Table.from_pylist(content, schema=None)
    except (pa.ArrowException, OverflowError, UnicodeEncodeError, ValueError, TypeError):
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            pq.write_table(table, Path(folder) / "t.parquet")
        except (pa.ArrowException, OSError):
            return
        check(lambda: import_preference_rows(folder, on_bad_line="reject"), table.to_pylist())


@usual
@given(content=rows, on_bad_line=st.sampled_from(["error", "reject"]))
def test_any_function(content: list[Any], on_bad_line: str) -> None:
    global yielded
    yielded = content
    check(lambda: import_own("root", function=f"{__name__}.yield_all", on_bad_line=on_bad_line), content)


yielded: list[Any] = []


def yield_all(root: Path) -> Iterator[Any]:
    """A function of a user's that yields whatever the test wants."""
    yield from yielded


@usual
@given(content=record | good_pair | anything)
def test_any_record_in_a_tar_of_others(content: Any) -> None:
    try:
        group = group_from_members(json.dumps(content).encode(), {"jpg": b"x"}, shard="s.tar", key="k")
    except UserError as error:
        assert "s.tar:k" in str(error)
        return
    known = said_by(content)
    assert all(map(known, words(group))) and all(known(answer.text) for answer in group.responses)


def test_the_strategies_reach_what_they_should() -> None:
    """Drafts, rejections and errors all occur, or the laws above would hold for nothing."""
    seen = set()

    @settings(max_examples=120, database=None, derandomize=True)
    @given(content=rows)
    def collect(content: list[Any]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "data.jsonl").write_text("".join(json.dumps(item) + "\n" for item in content))
            for reader in READERS.values():
                items = check(lambda reader=reader: reader(folder, on_bad_line="reject"), content)
                seen.update(type(item).__name__ for item in items)
                seen.update({"error"} if not items else ())

    collect()
    assert seen == {"Draft", "Rejection", "error"}
