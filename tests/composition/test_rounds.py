"""Rounds: names there and back, references of a round, and the first round's start."""

from __future__ import annotations

import pytest

from mmrlhf.chain.order import plan_chain
from mmrlhf.composition.rounds import in_round, round_names, split_name
from mmrlhf.errors import ConfigError

STAGES = {
    "generate": {"_target_": "a.run", "policy": "last:train/model", "seed": 0},
    "train": {"_target_": "b.run", "policy": "last:train/model", "data": {"shards": ["this:generate/shards"]}},
}


def read(name: str) -> dict:
    found = split_name(name, STAGES)
    assert found is not None
    return in_round(STAGES[found[0]], found[1], first="stage:start/model", stages=list(STAGES))


def test_names_there_and_back() -> None:
    names = round_names(list(STAGES), 2)
    assert names == ["generate_1", "train_1", "generate_2", "train_2"]
    assert [split_name(name, STAGES) for name in names] == [
        ("generate", 1),
        ("train", 1),
        ("generate", 2),
        ("train", 2),
    ]
    assert split_name("evaluate_before", STAGES) is split_name("train", STAGES) is split_name("train_0", STAGES) is None
    assert round_names(list(STAGES), 0) == []


def test_references_of_a_round() -> None:
    assert read("generate_1") == {"_target_": "a.run", "policy": "stage:start/model", "seed": 0}
    assert read("train_3")["policy"] == "stage:train_2/model"
    assert read("train_3")["data"] == {"shards": ["stage:generate_3/shards"]}


def test_rounds_follow_one_another() -> None:
    def everything(name: str) -> dict:
        return {"_target_": "start.run"} if name == "start" else read(name)

    chain = plan_chain("train_2", everything, ["start", *round_names(list(STAGES), 2)])
    assert [node.name for node in chain] == ["start", "generate_1", "train_1", "generate_2", "train_2"]


def test_a_stage_that_rounds_lack_is_named() -> None:
    with pytest.raises(ConfigError, match="this:sort/shards"):
        in_round({"shards": "this:sort/shards"}, 1, first="x", stages=["generate"])
