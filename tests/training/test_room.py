"""What a rank has, and training that is refused because it cannot fit there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmrlhf.errors import ConfigError
from mmrlhf.methods.optim import OptimSettings
from mmrlhf.models.footprint import footprint
from mmrlhf.models.settings import ModelSettings
from mmrlhf.training import room
from mmrlhf.training.room import Ranks, device_memory, require_room, smaller
from mmrlhf.training.settings import TrainSettings, require_splittable

FSDP = {"strategy": {"_target_": "S"}, "accelerator": "cpu", "devices": 4, "num_nodes": 2}


def test_ranks_are_those_of_the_trainer() -> None:
    assert Ranks.of({}) == Ranks()
    ddp = Ranks.of({**FSDP, "strategy": "ddp", "cpu_offload": True})
    assert (ddp.number, ddp.on_machine, ddp.sharing, ddp.split, ddp.offloaded) == (8, 4, 1, False, False)
    whole = Ranks.of(FSDP)
    assert (whole.sharing, whole.split, whole.offloaded) == (8, True, False)
    assert Ranks.of({**FSDP, "shard_size": 2}).sharing == 2 and Ranks.of({**FSDP, "cpu_offload": True}).offloaded


def test_ranks_on_processors_share_the_machine() -> None:
    whole, half = device_memory(Ranks(accelerator="cpu")), device_memory(Ranks(2, 2, accelerator="cpu"))
    assert whole is not None and half == whole // 2


@pytest.fixture
def small_machine(monkeypatch: pytest.MonkeyPatch, small_policy: Path) -> int:
    """One whose ranks have three times the memory of the model's parameters."""
    size = int(3 * footprint(small_policy, ModelSettings()).whole_bytes)
    monkeypatch.setattr(room, "host_memory", lambda ranks: size)
    return size


def test_what_cannot_fit_is_refused_with_what_takes_less(small_machine: int, small_policy: Path) -> None:
    """Training in full needs four times the parameters; adapters fit, and so do 64 ranks that share."""
    one, many = Ranks(accelerator="cpu"), Ranks(64, 8, sharing=64, split=True, accelerator="cpu")
    with pytest.raises(ConfigError, match="whatever it reads") as raised:
        require_room(small_policy, TrainSettings(), one, stage="sft")
    shown = str(raised.value)
    assert "stages.sft" in shown and "of optimizer" in shown and "model.settings.language=lora" in shown
    adapters = TrainSettings(ModelSettings(language="lora", lora_rank=4, projector="frozen"))
    require_room(small_policy, adapters, one, stage="sft")
    require_room(small_policy, TrainSettings(), many, stage="sft")
    with pytest.raises(ConfigError):  # on processors the host is the device
        require_room(small_policy, TrainSettings(), Ranks(split=True, offloaded=True, accelerator="cpu"), stage="sft")


def test_a_checkpoint_that_fits_however_it_is_trained_is_not_counted(
    small_policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "footprint", None)
    require_room(small_policy, TrainSettings(), Ranks(accelerator="cpu"), stage="sft")


def test_advice_leaves_out_what_is_done() -> None:
    adapters = TrainSettings(ModelSettings(language="lora", projector="frozen", gradient_checkpointing=True))
    assert "nf4" in smaller(adapters, Ranks()) and "language=lora" not in smaller(adapters, Ranks())
    assert "checkpointing" not in smaller(adapters, Ranks()) and "adamw_8bit" in smaller(adapters, Ranks())
    split = Ranks(split=True)
    assert "adamw_8bit" not in smaller(adapters, split) and "cpu_offload" in smaller(adapters, split)
    assert "cpu_offload" not in smaller(adapters, replace(split, offloaded=True))


def test_what_split_models_cannot_do_is_refused_before_one_is_built() -> None:
    require_splittable(TrainSettings())
    with pytest.raises(ConfigError, match="layout=rows"):
        require_splittable(TrainSettings(ModelSettings(layout="rows")))
    pytest.importorskip("bitsandbytes")
    with pytest.raises(ConfigError, match="adamw_8bit"):
        require_splittable(TrainSettings(optim=OptimSettings(name="adamw_8bit")))


def test_a_gpu_is_its_own_room() -> None:
    assert Ranks(accelerator="cpu").on_host and Ranks().on_host is not torch.cuda.is_available()
