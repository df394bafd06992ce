"""Laws of the chain: inputs come first, circles and typos are refused, references are found wherever they are."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf.chain.order import (
    Node,
    check_signature,
    iterate_references,
    plan_chain,
    replace_references,
    stage_function,
    suggestion,
    with_paths,
)
from mmrlhf.errors import ConfigError

FAKE = "stand_ins.fake_stages"


def _plan(goal: str, nodes: dict) -> list[Node]:
    return plan_chain(goal, nodes.__getitem__, list(nodes))


@given(st.lists(st.sets(st.integers(0, 7)), min_size=1, max_size=8))
def test_every_stage_comes_after_those_it_reads_from(inputs: list[set[int]]) -> None:
    nodes = {
        f"s{i}": {"_target_": "x.run", "tables": [f"stage:s{j}/part" for j in sorted(earlier) if j < i]}
        for i, earlier in enumerate(inputs)
    }
    chain = _plan(f"s{len(inputs) - 1}", nodes)
    place = {node.name: i for i, node in enumerate(chain)}
    assert chain[-1].name == f"s{len(inputs) - 1}"
    assert len(place) == len(chain), "no stage twice"
    for node in chain:
        assert all(place[name] < place[node.name] for name in node.references)


def test_only_needed_stages_are_read() -> None:
    nodes = {"a": {"_target_": "x.run"}}
    chain = plan_chain("a", nodes.__getitem__, ["a", "unreadable"])
    assert [node.name for node in chain] == ["a"]


def test_a_circle_is_named() -> None:
    nodes = {
        "a": {"_target_": "x.run", "shards": "stage:c"},
        "b": {"_target_": "x.run", "shards": "stage:a/part"},
        "c": {"_target_": "x.run", "tables": {"one": ["stage:b"]}},
    }
    with pytest.raises(ConfigError, match="a -> c -> b -> a"):
        _plan("a", nodes)


def test_a_misspelt_stage_is_refused_with_near_names() -> None:
    nodes = {"reward": {"_target_": "x.run"}, "mmdpo": {"_target_": "x.run", "reward_model": "stage:rewrad/model"}}
    with pytest.raises(ConfigError, match="did you mean reward") as error:
        _plan("mmdpo", nodes)
    assert error.value.where == "stages.mmdpo"
    with pytest.raises(ConfigError, match="did you mean mmdpo"):
        _plan("mmpdo", nodes)


def test_a_reference_must_be_well_formed() -> None:
    with pytest.raises(ConfigError, match="not a reference"):
        list(iterate_references({"a": "stage: pack"}))


def test_references_are_replaced_at_any_depth_and_nothing_else() -> None:
    value = {"a": ["stage:x/y", 3, None], "b": {"c": "stage:x", "d": "a stage:x"}}
    assert replace_references(value, lambda name, sub: f"<{name}|{sub}>") == {
        "a": ["<x|y>", 3, None],
        "b": {"c": "<x|>", "d": "a stage:x"},
    }


def test_a_misspelt_setting_is_refused_with_near_names() -> None:
    node = Node("train", f"{FAKE}.train", {"data": "d", "rte": 1.0}, ())
    with pytest.raises(ConfigError, match="did you mean rate"):
        check_signature(node)


def test_a_missing_setting_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected: data"):
        check_signature(Node("train", f"{FAKE}.train", {}, ()))


@pytest.mark.parametrize("target", ["stand_ins.fake_stages.nothing", "mmrlhf.stages.nothing.run", "nothing_at_all.run"])
def test_a_target_must_exist(target: str) -> None:
    with pytest.raises(ConfigError, match="names no"):
        stage_function(target)


def test_texts_become_paths_only_where_text_is_not_allowed() -> None:
    function = stage_function(f"{FAKE}.train")
    arguments = with_paths(function, {"data": "d", "policy": "org/model", "rate": 1.0})
    assert arguments == {"data": Path("d"), "policy": "org/model", "rate": 1.0}


def test_suggestions_are_near_or_absent() -> None:
    assert suggestion("metod", ["method", "model"]) == "did you mean method or model?"
    assert suggestion("zzz", ["method"]) is None
