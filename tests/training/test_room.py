"""What a rank has, and training that is refused because it cannot fit there."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from mmrlhf.errors import ConfigError
from mmrlhf.methods.optim import OptimSettings
from mmrlhf.models.footprint import footprint
from mmrlhf.models.settings import ModelSettings
from mmrlhf.training import ranks, room
from mmrlhf.training.advice import smaller
from mmrlhf.training.ranks import Ranks, device_memory
from mmrlhf.training.room import require_room
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


def give(monkeypatch: pytest.MonkeyPatch, file: Path, size: float) -> None:
    """Let the machine have so many bytes of memory."""
    file.write_text(f"MemTotal: {int(size / 1024)} kB")
    monkeypatch.setattr(ranks, "MEMINFO", file)


FULL = TrainSettings(ModelSettings(lora_rank=4))


@pytest.fixture
def whole(small_policy: Path) -> float:
    """Bytes of the small model's parameters."""
    return footprint(small_policy, ModelSettings()).whole_bytes


@pytest.fixture
def small_machine(whole: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has three times the memory of the model's parameters."""
    give(monkeypatch, tmp_path / "meminfo", 3 * whole)


@pytest.fixture
def adapters(small_policy: Path, tmp_path: Path) -> Path:
    """A folder of adapters, as far as it is looked at here: its own weights are those of the small model."""
    folder = tmp_path / "adapters"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(small_policy)}))
    shutil.copy(small_policy / "config.json", folder)
    return folder


@pytest.mark.usefixtures("small_machine")
def test_what_cannot_fit_is_refused_with_what_takes_less(small_policy: Path) -> None:
    """Training in full needs four times the parameters; adapters fit, and so do eight machines that share one."""
    one, many = Ranks(accelerator="cpu"), Ranks(8, 1, sharing=8, split=True, accelerator="cpu")
    with pytest.raises(ConfigError, match="whatever it reads") as raised:
        require_room(small_policy, FULL, one, stage="sft")
    shown = str(raised.value)
    assert "stages.sft" in shown and "of optimizer" in shown and "model.settings.language=lora" in shown
    for helpless in ("token_budget", "checkpointing", "more devices", "cpu_offload"):
        assert helpless not in shown, "on processors the host is the device, and devices share it"
    adapters = TrainSettings(ModelSettings(language="lora", lora_rank=4, projector="frozen"))
    require_room(small_policy, adapters, one, stage="sft")
    require_room(small_policy, FULL, many, stage="sft")
    with pytest.raises(ConfigError):  # on processors the host is the device
        require_room(small_policy, TrainSettings(), Ranks(split=True, offloaded=True, accelerator="cpu"), stage="sft")


@pytest.mark.usefixtures("small_machine")
def test_adapters_take_what_their_base_takes(adapters: Path) -> None:
    """And are not advised weights that nothing can be added to."""
    with pytest.raises(ConfigError, match="whatever it reads") as raised:
        require_room(adapters, FULL, Ranks(accelerator="cpu"), stage="sft")
    assert "language=lora" in str(raised.value.fix) and "weights=" not in str(raised.value.fix)
    lora = TrainSettings(ModelSettings(language="lora", projector="frozen"))
    bf16 = {"bf16": 0.5}
    assert "weights=bf16" in smaller(lora, Ranks(), lambda found, _: bf16.get(found.model.weights, 2.0))
    said = smaller(lora, Ranks(), lambda found, _: bf16.get(found.model.weights, 2.0), start=adapters)
    assert "weights=" not in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU's own memory is asked, too")
def test_shards_on_the_host_have_to_fit_there(
    small_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the optimizer's state they take four times their parameters; two machines have room for them."""
    offloaded = Ranks(1, 1, sharing=1, split=True, offloaded=True, accelerator="gpu")
    give(monkeypatch, tmp_path / "meminfo", 0.9 * footprint(small_policy, ModelSettings()).host_bytes(num_shards=1))
    with pytest.raises(ConfigError, match=r"of shards on the host \(trainer.cpu_offload\)(?s:.)*more machines"):
        require_room(small_policy, TrainSettings(), offloaded, stage="sft")
    require_room(small_policy, TrainSettings(), replace(offloaded, number=2, sharing=2), stage="sft")


@pytest.mark.usefixtures("small_machine")
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU's own memory is asked, too")
def test_what_every_rank_loads_has_to_fit_on_the_host(small_policy: Path) -> None:
    """Four ranks of one machine load four times the model before it is split; more ranks there would load more."""
    four = Ranks(4, 4, sharing=4, split=True, accelerator="gpu")
    with pytest.raises(ConfigError, match="on the host while it loads") as raised:
        require_room(small_policy, TrainSettings(), four, stage="sft")
    assert str(raised.value.fix).startswith("fewer devices on each machine (trainer.devices) (67%")
    require_room(small_policy, TrainSettings(), replace(four, number=2, on_machine=2, sharing=2), stage="sft")


def test_weights_in_4_bits_are_no_advice_where_ranks_would_each_hold_all_of_them(small_policy: Path) -> None:
    pytest.importorskip("bitsandbytes")
    adapters = TrainSettings(ModelSettings(language="lora", lora_rank=4, projector="frozen", vision="frozen"))

    def share(training: TrainSettings, among: Ranks) -> float:
        needs = footprint(small_policy, training.model)
        return needs.predict(row_tokens=0, label_tokens=0, num_shards=among.sharing)["parameters"]

    assert "nf4" in smaller(adapters, Ranks(), share)
    assert "nf4" not in smaller(adapters, Ranks(64, 8, sharing=64, split=True), share)


@pytest.mark.parametrize("folder", ["small_policy", "adapters"])
def test_a_checkpoint_that_fits_however_it_is_trained_is_not_counted(
    folder: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "footprint", None)
    require_room(request.getfixturevalue(folder), TrainSettings(), Ranks(accelerator="cpu"), stage="sft")


def test_a_model_is_counted_once_whoever_asks(
    small_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For each configuration and settings, not for each path; the kind of device is no reason to count again."""
    settings = ModelSettings(gradient_checkpointing=True)
    first = footprint(small_policy, settings, on_host=True)
    shutil.copy(small_policy / "config.json", tmp_path)
    monkeypatch.setattr(AutoModelForImageTextToText, "from_config", None)
    assert footprint(tmp_path, settings, on_host=True) == first and first.masked
    assert footprint(tmp_path, settings, on_host=False) == replace(first, masked=False)
    with pytest.raises(TypeError):
        footprint(tmp_path, replace(settings, lora_rank=3), on_host=True)


def test_what_split_models_cannot_do_is_refused_before_one_is_built() -> None:
    require_splittable(TrainSettings())
    with pytest.raises(ConfigError, match="layout=rows"):
        require_splittable(TrainSettings(ModelSettings(layout="rows")))
    pytest.importorskip("bitsandbytes")
    with pytest.raises(ConfigError, match="adamw_8bit"):
        require_splittable(TrainSettings(optim=OptimSettings(name="adamw_8bit")))


def test_this_machine_is_asked_only_where_the_settings_leave_it_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan for a machine with GPUs is made on a laptop, and the other way round."""
    for there in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert Ranks(accelerator="cpu").on_host and not Ranks(accelerator="gpu").on_host
        assert not Ranks(accelerator="cuda").on_host and Ranks().on_host is not there
    assert device_memory(Ranks(accelerator="gpu")) is None, "unknown, and not the laptop's"
