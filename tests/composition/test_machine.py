"""What is asked of this machine before training, and of which stages."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mmrlhf.chain.order import Node
from mmrlhf.composition.machine import check_machine, check_split
from mmrlhf.errors import ConfigError
from mmrlhf.training import room

ON_CPU = {"trainer": {"devices": 2, "accelerator": "cpu"}}


def trains(name: str, policy: str, **model: Any) -> Node:
    """A training stage with settings as they are composed."""
    described = {"_target_": "mmrlhf.models.settings.ModelSettings", **model}
    settings = {"_target_": "mmrlhf.training.settings.TrainSettings", "model": described}
    return Node(name, "m.run", {"policy": policy, "training": settings}, ())


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, int]]:
    """Stages whose memory was asked for, with the checkpoint that they start from and the number of ranks."""
    found: list[tuple[str, str, int]] = []
    monkeypatch.setattr(room, "require_room", lambda start, _, ranks, stage: found.append((stage, start, ranks.number)))
    return found


def test_room_is_asked_for_the_checkpoint_that_a_chain_starts_from(asked: list[tuple[str, str, int]]) -> None:
    """Of every training stage, whatever is trained in between; not where a stage makes a model of nothing."""
    chain = [
        Node("tiny", "m.run", {"family": "llava_onevision"}, ()),
        trains("sft", "BASE"),
        Node("score", "m.run", {"policy": "BASE"}, ()),
        trains("mmdpo", "stage:sft/model"),
        trains("other", "stage:tiny/model"),
    ]
    check_machine(chain, ON_CPU, {node.name for node in chain})
    assert asked == [("sft", "BASE", 2), ("mmdpo", "BASE", 2)]


def test_only_stages_that_will_be_built_are_asked_for(asked: list[tuple[str, str, int]]) -> None:
    """What the store holds was trained on a machine that could do it."""
    chain = [trains("sft", "BASE", attention="flex"), trains("mmdpo", "stage:sft/model")]
    check_machine(chain, ON_CPU, {"mmdpo"})
    assert asked == [("mmdpo", "BASE", 2)]
    with pytest.raises(ConfigError, match="FlexAttention cannot train on a CPU"):
        check_machine(chain, ON_CPU, {"sft"})


def test_a_model_that_cannot_be_split_is_refused_where_it_would_be(asked: list[tuple[str, str, int]]) -> None:
    """Not where it was trained whole already, or is."""
    chain, whole = [trains("sft", "BASE", layout="rows"), trains("mmdpo", "stage:sft/model")], {"trainer": {}}
    split = {"trainer": {"strategy": {"_target_": "S"}, "accelerator": "cpu", "devices": 2}}
    check_split(chain, split, {"mmdpo"})
    check_split(chain, whole, {"sft", "mmdpo"})
    with pytest.raises(ConfigError, match="layout=rows with a sharded model"):
        check_split(chain, split, {"sft"})
    assert not asked, "nothing is asked of the machine"


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
@pytest.mark.parametrize("attention", ["auto", "flex"])
def test_a_gpu_that_is_not_there_is_what_is_said(attention: str) -> None:
    with pytest.raises(ConfigError, match=r"finds none on this machine(?s:.)*trainer=cpu"):
        check_machine([trains("sft", "BASE", attention=attention)], {"trainer": {"accelerator": "gpu"}}, {"sft"})
