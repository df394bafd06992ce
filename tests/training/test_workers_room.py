"""Training and passes ask for the room of their workers before they start any."""

from __future__ import annotations

import multiprocessing
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest

from mmrlhf.errors import ConfigError
from mmrlhf.feed import shared_memory
from mmrlhf.inference.settings import PassSettings
from mmrlhf.stages import reference, sft
from mmrlhf.training.settings import Schedule, TrainSettings


@pytest.mark.parametrize("stage", ["sft", "reference"])
def test_a_stage_that_would_stand_still_says_so_first(
    stage, monkeypatch, tmp_path, small_shards, small_policy, runtime
) -> None:
    monkeypatch.setattr(shared_memory, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=4096))
    asked = {"shards": small_shards, "policy": small_policy, "runtime": replace(runtime, num_workers=2)}
    with pytest.raises(ConfigError, match="shared memory") as caught:
        if stage == "sft":
            schedule = Schedule(max_steps=1, groups_per_step=2, holdout=0.3)
            sft.run(tmp_path / "out", training=TrainSettings(schedule=schedule), **asked)
        else:
            reference.run(tmp_path / "out", passes=PassSettings(groups_per_batch=2), holdout=0.3, **asked)
    assert "2 workers x 4 queries" in str(caught.value)
    assert not multiprocessing.active_children()
