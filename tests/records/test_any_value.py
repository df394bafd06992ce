"""Each value of a record in a tar replaced by what it should not be: a group that can be written, or a user's error."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from stand_ins.sample_groups import make_group

from mmrlhf.errors import UserError
from mmrlhf.records.members import group_from_members, group_to_sample

Path = tuple[Any, ...]
ODD: list[Any] = [
    -1, None, "x", [], {}, 10**400, 1.5, True, [[]], {"a": None}, "\ud800x", {"type": "image"},
    [{"type": "text", "text": 5}],
]  # fmt: skip
TURNS = [
    {"role": "system", "content": ["s"]},
    {"role": "user", "content": [{"type": "image"}, "q", {"type": "image"}]},
    {"role": "assistant", "content": "a"},
    {"role": "user", "content": [{"type": "text", "text": "z"}]},
]
SAID = {"role": "assistant", "content": "a"}
FOREIGN: dict[str, dict[str, Any]] = {
    "ranked": {
        "prompt": "p", "images": ["0.jpg"], "pairs": [[0, 1]], "category": "c", "source": "s", "licence": "l",
        "responses": [{"text": "a", "rank": 1, "scores": {"o": 1}, "critiques": {"full": "c"}, "reasons": {"o": "r"}},
                      {"text": "b", "rank": 2, "model": "m"}],
        "meta": {"video": {"timestamps": [0], "total_frames": 1, "duration": 1}, "twin": "t"},
    },
    "turns": {"prompt": TURNS, "responses": [{"text": "a"}, {"text": "b"}]},
    "chosen": {"chosen": [TURNS[3], SAID], "rejected": [TURNS[3], {**SAID, "content": "b"}]},
    "from": {"conversations": [{"from": "human", "value": "<image>q"}], "images": ["0.jpg"],
             "chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}},
}  # fmt: skip


def paths(value: Any, path: Path = ()) -> Iterator[Path]:
    """The way to every value within."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*path, key)
        yield from paths(inner, (*path, key))


def changed(record: dict[str, Any], path: Path, value: Any) -> dict[str, Any]:
    whole = inner = copy.deepcopy(record)
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return whole


def own_record() -> dict[str, Any]:
    """One of our own schema, with everything that one can have."""
    group = make_group("k", num_images=2, meta={"twin": "t", "video": FOREIGN["ranked"]["meta"]["video"]})
    said = {"critiques": {"full": "x"}, "scores": {"o": 1.0}, "reasons": {"o": "y"}, "model": "m"}
    group = replace(group, pairs=((0, 1), (1, 2)), responses=tuple(replace(r, **said) for r in group.responses))
    record = json.loads(group_to_sample(group)["json"])
    record["responses"][0]["media"] = record["media"]
    turns = [{**turn, "content": [_part(part) for part in turn["content"]]} for turn in TURNS]
    return {**record, "prompt": turns}


def _part(part: Any) -> Any:
    return {"type": "text", "text": part} if isinstance(part, str) else part


@pytest.mark.parametrize("form", ["own", *FOREIGN])
def test_any_value_in_any_place(form: str) -> None:
    record = own_record() if form == "own" else FOREIGN[form]
    members = {f"{number}.jpg": b"x" for number in range({"ranked": 1, "from": 1, "chosen": 0}.get(form, 2))}
    assert group_from_members(json.dumps(record).encode(), members, shard="s.tar", key="k").responses
    read = 0
    for path in paths(record):
        for odd in ODD:
            raw = json.dumps(changed(record, path, odd)).encode()
            try:
                group = group_from_members(raw, members, shard="s.tar", key="k")
            except UserError as error:
                assert "s.tar" in str(error), (path, odd)
                continue
            read += 1
            sample = group_to_sample(group)
            again = group_from_members(sample["json"], members, shard="s.tar", key="k")
            assert again == group, (path, odd)
    assert read, "some of it is right"
