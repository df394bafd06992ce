"""An error about an argument names the key that the user types, however many interpolations are between."""

from __future__ import annotations

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from mmrlhf.composition.config import CONF, plain_settings, read_stage
from mmrlhf.composition.instantiate import make
from mmrlhf.composition.typed_key import name_key, placed_arguments, typed_key
from mmrlhf.errors import ConfigError


def _compose(*overrides: str) -> DictConfig:
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("config", list(overrides))


def test_a_path_is_followed_to_the_key_that_is_set() -> None:
    config = _compose("rounds=self_improve")
    for path, key in {
        "stages.mmdpo.training.optim.lr": "optim.mmdpo.lr",
        "stages.sft.training.schedule.epochs": "optim.epochs.sft",
        "stages.mmdpo.training.schedule.selection.pairs": "data.selection.pairs",
        "stages.pack.fps": "data.media.fps",
        "stages.score.passes.model.lora_rank": "model.settings.lora_rank",
        "stages.reward.head.kind": "model.head",
        "stages.tiny.tower.steps": "model.tower.steps",
        "stages.mmdpo.rewards": "inputs.rewards",
        "stages.mmdpo.reference": "inputs.reference",
        "stages.rewardbench.other_rewards": "inputs.other_rewards",
        "stages.mean_rewards.tables.other": "inputs.reward_tables.other",
        "stages.mmdpo_2.training.optim.lr": "optim.mmdpo.lr",
        "runtime.trainer.devices": "trainer.devices",
        "stages.world.sigma": "stages.world.sigma",
        "stages.nowhere.x": "stages.nowhere.x",
    }.items():
        assert typed_key(config, path) == key


@pytest.mark.parametrize(
    ("word", "stage", "key"),
    [
        ("optim.mmdpo.lr=-1", "mmdpo", "optim.mmdpo.lr"),
        ("optim.sft.betas=[0.9,1.0]", "sft", "optim.sft.betas"),
        ("optim.mmdpo.max_grad_norm=-1", "mmdpo", "optim.mmdpo.max_grad_norm"),
        ("optim.reward.lr=nan", "reward", "optim.reward.lr"),
        ("model.settings.lora_rank=0", "reward", "model.settings.lora_rank"),
        ("model.settings.precision=fp16", "sft", "model.settings.precision"),
        ("scale.max_steps=0", "sft", "scale.max_steps"),
        ("data.media.num_frames=0", "sft", "data.media.num_frames"),
        ("model.token_budget=0", "sft", "model.token_budget"),
        ("method.k=0", "mmdpo", "method.k"),
        ("pairs.scheme=any", "mmdpo", "pairs.scheme"),
        ("stages.score.critiques.num_samples=4", "score", "stages.score.critiques.temperature"),
    ],
)
def test_an_error_names_the_key_that_was_typed(word: str, stage: str, key: str) -> None:
    config = _compose(word)
    with pytest.raises(ConfigError) as caught:
        make(read_stage(config, stage) if stage != "mmdpo" else _without_resolvers(config), f"stages.{stage}")
    assert name_key(caught.value, config).where == key


def _without_resolvers(config: DictConfig) -> dict:
    """What preference training is made of, without asking the (impossible) objective what it needs."""
    node = {name: config.stages.mmdpo._get_node(name) for name in ("objective", "pairs", "training")}
    kept = config.stages.mmdpo.copy()
    kept._set_parent(config.stages)
    for name in [name for name in kept if name not in node]:
        kept._set_flag("struct", False)
        del kept[name]
    return plain_settings(kept, "stages.mmdpo")


@pytest.mark.parametrize(
    ("argument", "key"),
    [("lr", "stages.sft.optim.lr"), ("seed", "stages.sft.seed"), ("rank", "rank"), ("stages.sft.x", "stages.sft.x")],
)
def test_a_refused_argument_is_placed_and_its_cause_is_kept(argument: str, key: str) -> None:
    """The stage's own, or that of the one object that has it; of several, no one's."""
    settings = {"seed": 1, "optim": {"lr": 1.0, "seed": 2}, "a": {"rank": 1}, "b": {"rank": 2}}
    cause = OSError("why")
    with pytest.raises(ConfigError) as caught, placed_arguments(settings, "stages.sft"):
        raise ConfigError("no", argument=argument) from cause
    assert caught.value.argument == key and caught.value.__cause__ is cause
