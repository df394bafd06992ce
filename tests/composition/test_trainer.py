"""What the trainer may be told: nothing that changes a result without being in its fingerprint, nothing in vain."""

from __future__ import annotations

import inspect
import re
from functools import reduce
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import yaml

from mmrlhf.composition.compose import compose
from mmrlhf.composition.config import CONF
from mmrlhf.composition.trainer import ALLOWED, INSTEAD, REFUSED, check_trainer, decisive_callbacks, new_trainer
from mmrlhf.errors import ConfigError
from mmrlhf.models.settings import ModelSettings

KNOWN = {name for name in inspect.signature(L.Trainer.__init__).parameters if name != "self"}


@pytest.mark.parametrize(
    ("key", "value", "use"),
    [
        ("fast_dev_run", True, "scale.max_steps"), ("max_steps", 1, "scale.max_steps"),
        ("max_time", "00:00:01:00", "the same command continues"), ("limit_train_batches", 1, "scale.max_steps"),
        ("limit_val_batches", 1, "scale.validate"), ("overfit_batches", 1, "data.selection"),
        ("accumulate_grad_batches", 4, "model.token_budget"), ("gradient_clip_val", 0.1, "max_grad_norm"),
        ("max_epochs", 3, "optim.epochs"), ("precision", "16-mixed", "model.settings.precision"),
        ("val_check_interval", 5, "optim.val_every"), ("acelerator", "cpu", "did you mean accelerator"),
    ],
)  # fmt: skip
def test_what_changes_results_is_refused_with_what_to_use(key: str, value: Any, use: str) -> None:
    with pytest.raises(ConfigError, match=f"trainer.{key}") as error:
        check_trainer({"trainer": {"accelerator": "cpu", key: value}})
    assert use in str(error.value.fix)


def test_every_argument_of_lightnings_trainer_is_decided() -> None:
    """A new one in Lightning is refused until somebody has thought about it; the lists hold no name that is not one."""
    own = {name for name in ALLOWED if not name.startswith("_")}
    assert own <= KNOWN and set(INSTEAD) <= KNOWN and not own & set(INSTEAD)
    for name in KNOWN - own:
        with pytest.raises(ConfigError):
            check_trainer({"trainer": {name: 1}})


def test_what_is_to_be_used_instead_can_be_typed() -> None:
    """Each `KEY=VALUE` that is advised composes, and its value is one that the model's settings take."""
    places = {"STAGE": "sft", "=N": "=3", "=X": "=0.5", "DIR": "somewhere", "NAME={_target_:": "mine={_target_: a.b}"}
    words = []
    for text in [*INSTEAD.values(), *REFUSED.values()]:
        for word in re.findall(r"\+?[a-z_]+(?:\.\w+)*=[^\s,;]+", text):
            words.append(reduce(lambda found, place: found.replace(*place), places.items(), word))
    assert {"optim.sft.max_grad_norm=0.5", "+callbacks.mine={_target_: a.b}"} <= set(words)
    config = compose(sorted({word.partition("=")[0]: word for word in words}.values()))
    assert config.optim.sft.max_grad_norm == 0.5 and ModelSettings(precision=config.model.settings.precision)


@pytest.mark.parametrize("file", sorted((CONF / "trainer").glob("*.yaml")), ids=lambda file: file.stem)
def test_our_own_choices_are_allowed(file: Path) -> None:
    check_trainer({"trainer": yaml.safe_load(file.read_text())})


def test_another_trainer_and_callbacks_that_stop_are_refused() -> None:
    with pytest.raises(ConfigError, match="trainer._target_"):
        check_trainer({"trainer": {"_target_": "own.Trainer"}})
    for name in ("EarlyStopping", "Timer", "GradientAccumulationScheduler"):
        for library in ("lightning.pytorch.callbacks", "pytorch_lightning.callbacks"):
            with pytest.raises(ConfigError, match=name):
                check_trainer({"callbacks": [{"_target_": f"{library}.{name}"}]})
    check_trainer({"callbacks": [{"_target_": "lightning.pytorch.callbacks.LearningRateMonitor"}]})


def test_callbacks_count_unless_they_are_known_to_look_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_looking.py").write_text("class Looks:\n    changes_result = False\nclass Acts: pass\n")
    names = [
        "mmrlhf.callbacks.throughput.Throughput", "lightning.pytorch.callbacks.DeviceStatsMonitor",
        "own_looking.Looks", "own_looking.Acts", "lightning.pytorch.callbacks.StochasticWeightAveraging",
        "own_looking.Missing",
    ]  # fmt: skip
    found = decisive_callbacks({"callbacks": [{"_target_": name} for name in names]})
    assert [item["_target_"] for item in found] == names[3:]


def test_groups_of_devices_that_share_a_model_come_out_even() -> None:
    """Before anything is loaded; and only where a model is split at all."""
    fsdp = {**yaml.safe_load((CONF / "trainer" / "fsdp.yaml").read_text()), "devices": 8, "num_nodes": 2}
    for size in (None, 1, 8, 16):
        check_trainer({"trainer": {**fsdp, "shard_size": size}})
    for size in (0, 3, 32):
        with pytest.raises(ConfigError, match="trainer.shard_size") as caught:
            check_trainer({"trainer": {**fsdp, "shard_size": size}})
        assert "1, 2, 4, 8, 16, or null" in str(caught.value)
    for key, value in (("shard_size", 2), ("cpu_offload", True)):
        with pytest.raises(ConfigError, match=f"trainer.{key}") as caught:
            check_trainer({"trainer": {"devices": 2, "strategy": "ddp", key: value}})
        assert "trainer=fsdp" in str(caught.value)


def test_lightning_gets_what_it_knows() -> None:
    trainer = new_trainer(accelerator="cpu", devices=1, shard_size=4, cpu_offload=True, logger=False)
    assert isinstance(trainer, L.Trainer)
