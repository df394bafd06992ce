"""Trees of settings: every leaf is met once, in order, under the name that the command line has for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from mmrlhf.trees import described_objects, flat, leaves, map_leaves, named_leaves, plain

KEYS = st.text("abc", min_size=1, max_size=3)
LEAVES = st.none() | st.booleans() | st.integers() | st.text("xyz", max_size=3)
TREES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3))


@given(TREES)
def test_mapping_changes_leaves_alone(tree: Any) -> None:
    assert map_leaves(tree, lambda leaf: leaf) == tree
    assert list(leaves(map_leaves(tree, lambda leaf: (leaf,)[0] and 7))) == [leaf and 7 for leaf in leaves(tree)]


@given(st.dictionaries(KEYS, TREES, max_size=3))
def test_names_are_those_of_omegaconf(tree: dict[str, Any]) -> None:
    config = OmegaConf.create(tree)
    for name, leaf in named_leaves(tree):
        assert OmegaConf.select(config, name) == leaf


def test_tuples_and_keys_become_what_json_has() -> None:
    assert map_leaves({1: (2, 3)}, str) == {"1": ["2", "3"]}
    assert list(named_leaves({"a": {"b": [5]}}, "/")) == [("a/b/0", 5)]


def test_summaries_become_plain() -> None:
    summary = {"a": torch.tensor(2), "b": np.float32(0.5), "c": np.arange(2), "d": (True, None), "e": Path("x")}
    assert plain(summary) == {"a": 2, "b": 0.5, "c": [0, 1], "d": [True, None], "e": "x"}


@given(st.dictionaries(KEYS, st.recursive(LEAVES, lambda inner: st.dictionaries(KEYS, inner, max_size=3)), max_size=3))
def test_flat_settings_are_those_that_can_be_set_one_by_one(tree: dict[str, Any]) -> None:
    config = OmegaConf.create(tree)
    for name, value in flat(tree).items():
        assert OmegaConf.select(config, name) == value
    assert [value for value in flat(tree).values() if value != {}] == list(leaves(tree))
    assert flat({"a": {"b": [1, {"c": 2}], "d": {}}}) == {"a.b": [1, {"c": 2}], "a.d": {}}


def test_objects_are_found_at_every_depth() -> None:
    tree = {"_target_": "a", "x": {"_target_": "b"}, "y": [{"z": {"_target_": "c"}}]}
    assert [(path, node["_target_"]) for path, node in described_objects(tree)] == [
        ("", "a"),
        ("x", "b"),
        ("y.0.z", "c"),
    ]
