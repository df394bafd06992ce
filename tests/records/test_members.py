"""A group survives the way into a sample and back, byte for byte, under a key that tars can hold."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stand_ins.sample_groups import make_group

from mmrlhf.errors import DataError
from mmrlhf.records.fields import MAX_NUMBER, MAX_RESPONSES
from mmrlhf.records.member_names import natural_order
from mmrlhf.records.members import MAX_KEY_LENGTH, group_from_members, group_to_sample, safe_key
from mmrlhf.types import Media, PreferenceGroup, Response

texts = st.text(max_size=20)
responses = st.builds(
    Response,
    texts,
    rank=st.none() | st.integers(1, 5),
    critiques=st.dictionaries(texts, texts, max_size=2),
    scores=st.dictionaries(texts, st.floats(-MAX_NUMBER, MAX_NUMBER), max_size=2),
    reasons=st.dictionaries(texts, texts, max_size=2),
    model=st.none() | texts,
)
media = st.lists(
    st.one_of(
        st.builds(lambda n, d: Media("image", (f"{n}.jpg",), (d,)), st.integers(0, 20), st.binary(max_size=9)),
        st.builds(lambda d: Media("frames", ("f000.jpg", "f001.jpg"), (d, d[::-1])), st.binary(max_size=9)),
        st.builds(lambda d: Media("video", ("mp4",), (d,)), st.binary(max_size=9)),
    ),
    max_size=3,
    unique_by=lambda item: item.names,
)


def _pairs(count: int) -> st.SearchStrategy[tuple[tuple[int, int], ...] | None]:
    """No pairs, or some of two different responses each."""
    different = [(i, j) for i in range(count) for j in range(count) if i != j]
    return st.none() | (st.lists(st.sampled_from(different)).map(tuple) if different else st.just(()))


groups = st.builds(
    PreferenceGroup,
    key=st.text(min_size=1).map(safe_key),
    prompt=texts,
    responses=st.lists(responses, min_size=1, max_size=4).map(tuple),
    media=media.map(tuple),
    category=texts,
    source=texts,
    licence=texts,
    meta=st.dictionaries(texts, st.none() | st.integers() | st.lists(texts, max_size=2), max_size=2),
).flatmap(lambda group: st.builds(dataclasses.replace, st.just(group), pairs=_pairs(len(group.responses))))


def unpack(sample: dict[str, Any], **changes: Any) -> PreferenceGroup:
    members = {name: data for name, data in sample.items() if name not in ("__key__", "json")}
    return group_from_members(sample["json"], {**members, **changes}, shard="s.tar", key=sample["__key__"])


@given(groups)
def test_round_trip(group: PreferenceGroup) -> None:
    sample = group_to_sample(group)
    assert list(sample)[:2] == ["__key__", "json"]
    assert unpack(sample) == dataclasses.replace(group, shard="s.tar")


@given(groups)
def test_equal_groups_give_equal_bytes(group: PreferenceGroup) -> None:
    turned = dataclasses.replace(group, meta=dict(reversed(group.meta.items())))
    assert group_to_sample(group) == group_to_sample(turned)


@given(st.text(), st.text())
def test_keys_are_safe_and_do_not_collide(one: str, other: str) -> None:
    key = safe_key(one)
    assert re.fullmatch(r"[A-Za-z0-9_-]+", key) and len(key) <= MAX_KEY_LENGTH
    assert (key == safe_key(other)) == (one == other)


def test_long_and_harmless_keys() -> None:
    assert safe_key("073712_6205145") == "073712_6205145"
    assert safe_key("a" * 200) != safe_key("a" * 201) and len(safe_key("a" * 200)) <= MAX_KEY_LENGTH
    assert safe_key("a.b") != safe_key("a_b") and safe_key("a\n") != "a"


@given(st.lists(st.integers(0, 10**6), unique=True))
def test_natural_order_is_numeric(numbers: list[int]) -> None:
    names = [f"frame{number}.jpg" for number in numbers]
    assert sorted(names, key=natural_order) == [f"frame{number}.jpg" for number in sorted(numbers)]


def test_a_listed_member_that_is_absent_is_named() -> None:
    sample = group_to_sample(make_group("k", num_images=2))
    del sample["1.jpg"]
    with pytest.raises(DataError, match=r"s\.tar:k:1\.jpg"):
        unpack(sample)


@pytest.mark.parametrize(
    "change", [{"schema": 99}, {"key": "other"}, {"responses": [3]}, {"media": None}, {"extra": 1}]
)
def test_records_of_another_shape_are_refused(change: dict[str, Any]) -> None:
    sample = group_to_sample(make_group("k"))
    sample["json"] = json.dumps({**json.loads(sample["json"]), **change}).encode()
    with pytest.raises(DataError, match=r"s\.tar:k"):
        unpack(sample)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"pairs": [[0, 2]]}, "pairs.0"),
        ({"pairs": [[0, 1], [-1, 0]]}, "pairs.1"),
        ({"pairs": [[1, 1]]}, "pairs.0"),
        ({"pairs": [[0, True]]}, "pairs.0"),
        ({"pairs": {"0": 1}}, "pairs"),
        ({"prompt": ["what", "?"]}, "prompt"),
        ({"meta": [1]}, "meta"),
        ({"media": [{"kind": "image", "names": "0.jpg"}]}, "media.0"),
        ({"media": [{"kind": "image", "names": ["0.jpg"], "path": "/etc/passwd"}]}, "media.0"),
        ({"responses": "yes"}, "responses"),
        ({"responses": None}, "responses"),
    ],
)
def test_a_record_that_claims_our_schema_is_checked_like_any_other(changes: dict[str, Any], field: str) -> None:
    """Anyone may write `schema` into a tar: a pair of a response that does not exist would reach another query's."""
    sample = group_to_sample(make_group("key", num_responses=2))
    sample["json"] = json.dumps({**json.loads(sample["json"]), **changes}).encode()
    with pytest.raises(DataError, match=rf"s\.tar:key:json:{field}"):
        unpack(sample)


@pytest.mark.parametrize(
    "change",
    [{"rank": 0}, {"rank": 1.5}, {"rank": True}, {"rank": 2**40}, {"rank": 10**30},
     {"scores": {"overall": 10**400}}, {"text": None}, {"scores": {"overall": "5"}},
     {"critiques": {"full": 3}}, {"reasons": None}, {"model": 7}, {"extra": 1}],
    ids=str,
)  # fmt: skip
def test_a_response_that_claims_our_schema_is_checked(change: dict[str, Any]) -> None:
    sample = group_to_sample(make_group("key", num_responses=2))
    record = json.loads(sample["json"])
    record["responses"][1].update(change)
    sample["json"] = json.dumps(record).encode()
    with pytest.raises(DataError, match=r"responses\.1"):
        unpack(sample)


def test_a_record_that_claims_our_schema_has_no_more_responses_than_can_be_compared() -> None:
    sample = group_to_sample(make_group("key", num_responses=MAX_RESPONSES))
    assert len(unpack(sample).responses) == MAX_RESPONSES
    record = json.loads(sample["json"])
    record["responses"].append({**record["responses"][0], "text": "one more"})
    sample["json"] = json.dumps(record).encode()
    with pytest.raises(DataError, match="too many responses"):
        unpack(sample)


def test_numbers_of_any_length_have_an_order_and_equal_ones_too() -> None:
    """Python makes no integer of more than 4,300 digits; which of `1` and `01` came first must not matter."""
    names = ["01.jpg", "1.jpg", "2.jpg", "3.jpg", f"{'9' * 5000}.jpg", f"1{'0' * 5000}.jpg"]
    assert sorted(names, key=natural_order) == sorted(reversed(names), key=natural_order) == names
