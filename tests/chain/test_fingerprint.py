"""Laws of fingerprints: what determines a result changes them, nothing else does."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf.chain.fingerprint import artifact_token, digest, path_token, replace_texts, source_tokens
from mmrlhf.errors import ConfigError

scalars = st.none() | st.booleans() | st.integers(-1000, 1000) | st.floats(-10, 10) | st.text(max_size=5)
settings = st.dictionaries(st.text(min_size=1, max_size=5), scalars | st.lists(scalars, max_size=3), max_size=4)


@given(settings)
def test_order_of_keys_changes_nothing(values: dict) -> None:
    assert digest(dict(reversed(list(values.items())))) == digest(values)


@given(settings, st.text(min_size=1, max_size=5), scalars)
def test_another_value_changes_it(values: dict, key: str, value: object) -> None:
    same = key in values and json.dumps(values[key]) == json.dumps(value)
    both_numbers = isinstance(value, int | float) and values.get(key) == value
    if not (same or both_numbers):
        assert digest({**values, key: value}) != digest(values)


def test_whole_floats_equal_integers_but_flags_do_not() -> None:
    assert digest({"w": 1.0}) == digest({"w": 1})
    assert digest({"w": True}) != digest({"w": 1})


def test_objects_are_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be fingerprinted"):
        digest({"a": object()})


def test_a_folder_counts_by_content_not_by_name(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "long").mkdir(parents=True)
        (tmp_path / name / "long" / "1.jpg").write_bytes(b"123")
        os.utime(tmp_path / name / "long" / "1.jpg", (1, 1))
    first = path_token(tmp_path / "a")
    assert path_token(tmp_path / "b") == first
    (tmp_path / "b" / "long" / "1.jpg").write_bytes(b"1234")
    assert path_token(tmp_path / "b") != first


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_numbers_that_are_not_finite_are_refused(value: float) -> None:
    """JSON has none, and NaN is unlike itself."""
    with pytest.raises(ConfigError, match="no finite number") as caught:
        digest({"a": [{"b": value}]})
    assert str(value) in str(caught.value)


def test_what_lies_behind_links_counts(tmp_path: Path) -> None:
    """Pictures are often links to another disk: a link to a file, to a folder, to a folder of links, in a circle."""
    disk, data = tmp_path / "disk", tmp_path / "data"
    (disk / "long" / "deep").mkdir(parents=True)
    data.mkdir()
    (disk / "long" / "deep" / "1.jpg").write_bytes(b"123")
    (disk / "2.jpg").write_bytes(b"123")
    (data / "long").symlink_to(disk / "long")
    (data / "2.jpg").symlink_to(disk / "2.jpg")
    (data / "gone").symlink_to(disk / "nothing")
    (data / "circle").symlink_to(data)
    tokens = [path_token(data)]
    for number, file in enumerate((disk / "long" / "deep" / "1.jpg", disk / "2.jpg", disk / "long" / "new.jpg")):
        file.write_bytes(b"1234" + b"5" * number)
        tokens.append(path_token(data))
    (data / "twice").symlink_to(disk / "long")
    tokens.append(path_token(data))
    assert len(set(tokens)) == len(tokens) and path_token(data) == tokens[-1]
    (tmp_path / "copy").mkdir()
    assert path_token(tmp_path / "copy") != path_token(data)


def test_shards_count_by_their_manifest(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"digest": "1"}')
    before = path_token(tmp_path)
    (tmp_path / "note.txt").touch()
    assert path_token(tmp_path) == before
    (tmp_path / "manifest.json").write_text('{"digest": "2"}')
    assert path_token(tmp_path) != before


def test_an_artefact_given_as_a_path_counts_as_the_artefact(tmp_path: Path) -> None:
    folder, fingerprint = tmp_path / "0123456789ab", "0123456789ab" + "c" * 52
    (folder / "model").mkdir(parents=True)
    (folder / "artifact.json").write_text(json.dumps({"fingerprint": fingerprint}))
    assert path_token(folder / "model") == artifact_token(fingerprint, "model")
    assert path_token(folder) == artifact_token(fingerprint)


@pytest.mark.parametrize("record", [{"fingerprint": "f" * 64}, {"fingerprint": 3}, {}, []])
def test_a_record_in_a_folder_of_the_users_hides_nothing(tmp_path: Path, record: object) -> None:
    """Only a folder of a store is read-only: below any other, data may change beside such a file."""
    (tmp_path / "data").mkdir()
    (tmp_path / "artifact.json").write_text(json.dumps(record))
    (tmp_path / "data" / "a.txt").write_text("1")
    before = path_token(tmp_path / "data")
    (tmp_path / "data" / "a.txt").write_text("12")
    assert path_token(tmp_path / "data") != before


def test_only_inputs_are_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "all").touch()
    monkeypatch.chdir(tmp_path)
    values = {"scheme": "all", "policy": "org/model"}
    assert source_tokens(values, {"org/model"}) == {}
    (found,) = source_tokens(values, {"all"}).items()
    assert found[0] == "all" and found[1].startswith("listing:")
    assert replace_texts(values, dict([found])) == {"scheme": found[1], "policy": "org/model"}
    assert source_tokens({"a": [str(tmp_path / "all")]}, ()) == {str(tmp_path / "all"): found[1]}


def test_a_missing_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        path_token(tmp_path / "nothing")
