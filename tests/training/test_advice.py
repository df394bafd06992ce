"""What is advised where memory is short: what helps, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf.models.settings import ModelSettings
from mmrlhf.training.advice import smaller
from mmrlhf.training.ranks import Ranks
from mmrlhf.training.settings import TrainSettings

FULL = TrainSettings()
ADAPTERS = TrainSettings(ModelSettings(language="lora", projector="frozen", gradient_checkpointing=True))
SPLIT = Ranks(2, 2, sharing=2, split=True)


def tried(training: TrainSettings, ranks: Ranks) -> str:
    """All ways, as if each were enough."""
    return smaller(training, ranks, lambda t, r: 2.0 if (t, r) == (training, ranks) else 0.5)


def test_only_what_lowers_the_share_is_said_and_what_saves_most_comes_first() -> None:
    def share(training: TrainSettings, ranks: Ranks) -> float:
        return {"float32": 3.0, "bf16": 2.0, "nf4": 1.5}[training.model.weights] * (0.999 if ranks.split else 1)

    pytest.importorskip("bitsandbytes")
    said = smaller(ADAPTERS, Ranks(), share, ("a", 2.5), ("b", 3.0))
    ways = [
        "model.settings.weights=nf4 (150%",
        "model.settings.weights=bf16 model.settings.precision=bf16 (200%",
        "a (250%",
    ]
    assert [part.removesuffix(" of the memory there is)") for part in said.split("; or ")] == ways
    assert smaller(ADAPTERS, Ranks(), share, ("c", 0.2)) == "c (20% of the memory there is)", "and is enough"


def test_where_nothing_helps_that_is_said() -> None:
    assert smaller(FULL, Ranks(), lambda *_: 2.0) == "a smaller model, or a machine with more memory"


def test_ranks_are_advised_by_what_each_then_has() -> None:
    """Devices of one machine share its memory, machines do not."""
    of_machine = smaller(FULL, SPLIT, lambda _, ranks: ranks.on_machine / 1.5)
    assert of_machine == "fewer devices on each machine (trainer.devices) (67% of the memory there is)"
    of_all = smaller(FULL, SPLIT, lambda _, ranks: 2.2 * ranks.on_machine / ranks.sharing)
    assert "more machines that share a model" in of_all and "devices" not in of_all


def test_advice_leaves_out_what_is_done_and_what_cannot_be() -> None:
    pytest.importorskip("bitsandbytes")
    assert "nf4" in tried(ADAPTERS, Ranks()) and "language=lora" not in tried(ADAPTERS, Ranks())
    assert "checkpointing" not in tried(ADAPTERS, Ranks())
    one = smaller(ADAPTERS, Ranks(), lambda training, _: 2.0 if training.optim.name == "adamw" else 0.5)
    assert one.startswith("optim.name=adamw_8bit")
    split = smaller(ADAPTERS, SPLIT, lambda training, _: 2.0 if training.optim.name == "adamw" else 0.5)
    assert "adamw_8bit" not in split, "it works on whole parameters"
    offloaded = replace(SPLIT, offloaded=True)
    assert "cpu_offload" in smaller(FULL, SPLIT, lambda _, ranks: 2.0 - ranks.offloaded)
    assert "cpu_offload" not in smaller(FULL, offloaded, lambda _, ranks: 2.0 - ranks.offloaded)
    full = smaller(FULL, Ranks(), lambda training, _: {"nf4": 0.5}.get(training.model.weights, 2.0))
    assert full.startswith("model.settings.language=lora model.settings.projector=frozen model.settings.weights=nf4")


@given(machines=st.integers(1, 4), on_machine=st.integers(1, 9), shard_size=st.integers(1, 9))
def test_ranks_that_are_advised_are_those_of_whole_machines(machines: int, on_machine: int, shard_size: int) -> None:
    """And their groups that share a model come out even, as `trainer.shard_size` wants them."""
    number = machines * on_machine
    sharing = shard_size if number % shard_size == 0 else number
    known: list[Ranks] = []
    for ranks in (Ranks(number, on_machine), Ranks(number, on_machine, sharing=sharing, split=True)):
        smaller(ADAPTERS, ranks, lambda _, other: known.append(other) or 1.0)
    assert all(other.number % other.on_machine == other.number % other.sharing == 0 for other in known)
