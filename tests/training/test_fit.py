"""A training stage whatever its method: result, interruption, damaged queries, settings of its schedule."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from stand_ins.small_training import SCHEDULE, TRAINING, assert_same, weights

from mmrlhf.callbacks.checkpoints import latest_checkpoint
from mmrlhf.chain.runtime import Runtime
from mmrlhf.errors import ConfigError, DataError
from mmrlhf.feed.selection import Selection, select
from mmrlhf.feed.weights import Mixing
from mmrlhf.models.load import load_backbone
from mmrlhf.models.settings import ModelSettings
from mmrlhf.processes import TrainingInterrupted
from mmrlhf.shards.index import Index
from mmrlhf.stages import sft
from mmrlhf.summaries.curve_file import read_curves
from mmrlhf.training.settings import Schedule


def train_sft(out: Path, shards: Path, policy: Path, runtime: Runtime, **changes: Any) -> dict[str, Any]:
    training = replace(TRAINING, schedule=replace(SCHEDULE, **changes))
    return sft.run(out, shards=shards, policy=policy, training=training, runtime=runtime)


def test_sft_trains_and_writes_a_hugging_face_folder(
    tmp_path: Path, small_shards: Path, small_policy: Path, runtime: Runtime
) -> None:
    summary = train_sft(tmp_path, small_shards, small_policy, runtime)
    assert summary["steps"] == 3 and summary["train"]["loss"] > 0 and summary["validation"]["loss"] > 0
    assert json.loads((tmp_path / "metrics.json").read_text()) == summary
    backbone, _ = load_backbone(tmp_path / "model", ModelSettings())
    before, _ = load_backbone(small_policy, ModelSettings())
    changed = {
        name for name, value in backbone.state_dict().items() if not torch.equal(value, before.state_dict()[name])
    }
    assert any("language_model" in name for name in changed)
    assert not any("vision_tower" in name for name in changed)
    steps, losses = read_curves(tmp_path)["train/loss"]
    assert len(steps) == 3 and torch.isfinite(torch.tensor(losses)).all()


def test_filters_and_balance_reach_the_plan_and_the_summary(
    tmp_path: Path, small_shards: Path, small_policy: Path, runtime: Runtime
) -> None:
    options = {
        "selection": Selection(categories=["long"], modalities=["image"]),
        "mixing": Mixing(balance=["modality"]),
    }
    summary = train_sft(tmp_path, small_shards, small_policy, runtime, **options)
    found = summary["data"]
    assert found["excluded"]["categories"] > 0 and found["cells"]["image"]["groups"] == found["groups_per_epoch"]
    assert sum(found["excluded"].values()) + found["groups_per_epoch"] == 14


def test_an_interrupted_stage_ends_where_an_uninterrupted_one_does(
    tmp_path: Path, small_shards: Path, small_policy: Path, runtime: Runtime
) -> None:
    class Crash(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.global_step == 2:
                raise KeyError("crash")

    whole = train_sft(tmp_path / "whole", small_shards, small_policy, runtime)
    with pytest.raises(KeyError, match="crash"):
        train_sft(tmp_path / "cut", small_shards, small_policy, replace(runtime, callbacks=[Crash()]))
    found = latest_checkpoint(tmp_path / "cut" / "checkpoints")
    assert found is not None and found.name == "step-00000002.ckpt"
    resumed = train_sft(tmp_path / "cut", small_shards, small_policy, runtime)
    assert_same(weights(tmp_path / "cut"), weights(tmp_path / "whole"))
    assert resumed["validation"] == whole["validation"]


class Signal(L.Callback):
    """Sends this process a signal in the last step or in the validation behind it."""

    def __init__(self, hook: str) -> None:
        setattr(self, hook, self._send)

    def _send(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == 2 + trainer.validating:
            os.kill(os.getpid(), signal.SIGUSR1)


def test_a_signal_behind_the_last_step_is_not_lost_and_costs_nothing(
    tmp_path: Path, small_shards: Path, small_policy: Path, runtime: Runtime
) -> None:
    """First in the last step, then in the validation of the continuation: each time the stage stops, and says so."""
    whole = train_sft(tmp_path / "whole", small_shards, small_policy, runtime)
    for hook in ("on_train_batch_start", "on_validation_batch_start"):
        with pytest.raises(TrainingInterrupted, match="SIGUSR1"):
            train_sft(tmp_path / "cut", small_shards, small_policy, replace(runtime, callbacks=[Signal(hook)]))
        assert latest_checkpoint(tmp_path / "cut" / "checkpoints").name == "step-00000003.ckpt"  # type: ignore
    resumed = train_sft(tmp_path / "cut", small_shards, small_policy, runtime)
    assert_same(weights(tmp_path / "cut"), weights(tmp_path / "whole"))
    for part in ("steps", "train", "validation", "data"):
        assert resumed[part] == whole[part]


def test_one_group_that_cannot_be_read_is_named_and_a_second_one_ends_the_run_also_behind_a_restart(
    tmp_path: Path, small_shards: Path, small_policy: Path, runtime: Runtime
) -> None:
    """Of so few queries the budget is one."""
    folder = tmp_path / "shards"
    shutil.copytree(small_shards, folder)
    index = Index.load(folder)
    train = select(index, "train", holdout=0.3).rows
    first, second = (int(row) for row in train[-2:])
    _spoil(index, first)
    options = {"max_steps": None, "epochs": 1}
    summary = train_sft(tmp_path / "one", folder, small_policy, runtime, **options)
    assert [row["keys"] for row in summary["quarantined"]["reasons"]] == [[index.entries[first].key]]

    class Spoil(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.global_step == 3:  # behind the first epoch of three steps
                shutil.copytree(small_shards, folder, dirs_exist_ok=True)  # the first can be read again, but it counts
                _spoil(index, second)
                raise KeyError("crash")

    with pytest.raises(KeyError, match="crash"):
        train_sft(
            tmp_path / "two", folder, small_policy, replace(runtime, callbacks=[Spoil()]), **options | {"epochs": 2}
        )
    with pytest.raises(DataError, match="2 of"):
        train_sft(tmp_path / "two", folder, small_policy, runtime, **options | {"epochs": 2})


def _spoil(index: Index, row: int) -> None:
    _, shard, members = index.entries.place(row)
    offset, size, _ = members["json"]
    with (Path(index.folder) / shard).open("r+b") as file:
        file.seek(offset)
        file.write(bytes(size))


def test_token_budget_changes_nothing(tmp_path: Path, small_shards: Path, small_policy: Path, runtime: Runtime) -> None:
    losses = {}
    for budget in (1, 100_000):
        out = tmp_path / str(budget)
        losses[budget] = train_sft(out, small_shards, small_policy, runtime, token_budget=budget)["train"]
    torch.testing.assert_close(weights(tmp_path / "1"), weights(tmp_path / "100000"), rtol=1e-3, atol=1e-5)
    assert losses[1] == pytest.approx(losses[100_000], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("wrong", ["max_steps=0", "groups_per_step=0", "epochs=-1", "holdout=1", "checkpoint_every=0"])
def test_schedules_that_cannot_be_met_are_refused(wrong: str) -> None:
    name, value = wrong.split("=")
    with pytest.raises(ConfigError) as caught:
        Schedule(**{name: int(value)})
    assert (caught.value.argument, caught.value.given) == (name, int(value))
    with pytest.raises(ConfigError, match="neither epochs nor max_steps"):
        Schedule(epochs=None)


def test_a_training_that_something_ended_early_is_no_result_and_goes_on(
    tmp_path: Path, small_shards: Path, small_policy: Path, runtime: Runtime
) -> None:
    class Stop(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            trainer.should_stop = trainer.global_step == 2

    whole = train_sft(tmp_path / "whole", small_shards, small_policy, runtime)
    with pytest.raises(ConfigError, match="ended before its plan") as error:
        train_sft(tmp_path / "cut", small_shards, small_policy, replace(runtime, callbacks=[Stop()]))
    assert error.value.given == "2 optimizer steps" and not (tmp_path / "cut" / "model").exists()
    resumed = train_sft(tmp_path / "cut", small_shards, small_policy, runtime)
    assert resumed["steps"] == whole["steps"]
    assert_same(weights(tmp_path / "cut"), weights(tmp_path / "whole"))
