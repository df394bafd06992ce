"""Training with kept features ends where training without them does, and says what it will need before it writes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmrlhf.chain.runtime import Runtime
from mmrlhf.errors import ConfigError
from mmrlhf.methods.optim import OptimSettings
from mmrlhf.models.settings import ModelSettings
from mmrlhf.stages import sft
from mmrlhf.training import preview
from mmrlhf.training.settings import Schedule, TrainSettings

SETTINGS = TrainSettings(
    model=ModelSettings(projector="frozen"),
    optim=OptimSettings(lr=1e-3),
    schedule=Schedule(epochs=2.0, groups_per_step=4, holdout=0.3),
)


def train(out: Path, shards: Path, policy: Path, runtime: Runtime) -> dict[str, torch.Tensor]:
    sft.run(out, shards=shards, policy=policy, training=SETTINGS, runtime=runtime)
    return load_file(out / "model" / "model.safetensors")


def test_a_run_with_kept_features_ends_where_one_without_does(
    tmp_path: Path, small_shards: Path, small_policy: Path, runtime: Runtime
) -> None:
    keeping = replace(runtime, vision_cache_gib=1.0, vision_cache=tmp_path / "features")
    plain = train(tmp_path / "plain", small_shards, small_policy, runtime)
    torch.testing.assert_close(train(tmp_path / "kept", small_shards, small_policy, keeping), plain)
    files = list((tmp_path / "features").rglob("*.safetensors"))
    written = sum(path.stat().st_size for path in files)
    look = preview.preview_stage(
        shards=small_shards,
        checkpoint=small_policy,
        training=SETTINGS,
        template=sft.AnswerTemplate(),
        ranks=preview.Ranks(),
    )
    # held-out pictures are kept, too; a file has a header
    assert files and 0.5 * written < look.vision_features < 1.5 * written
    # another run computes none
    train(tmp_path / "again", small_shards, small_policy, keeping)
    assert sorted((tmp_path / "features").rglob("*.safetensors")) == sorted(files)


def test_too_many_are_refused_before_one_is_written(
    tmp_path: Path, small_shards: Path, small_policy: Path, runtime: Runtime
) -> None:
    small = replace(runtime, vision_cache_gib=1e-6, vision_cache=tmp_path / "features")
    with pytest.raises(ConfigError, match=r"about \d+\.\d+ GiB[\s\S]*runtime\.vision_cache_gib"):
        train(tmp_path / "out", small_shards, small_policy, small)
    assert not (tmp_path / "features").exists()


def test_a_projector_that_trains_is_refused(
    tmp_path: Path, small_shards: Path, small_policy: Path, runtime: Runtime
) -> None:
    keeping = replace(runtime, vision_cache_gib=1.0, vision_cache=tmp_path / "features")
    with pytest.raises(ConfigError, match="projector=full"):
        sft.run(tmp_path / "out", shards=small_shards, policy=small_policy, runtime=keeping)
