"""Settings that nothing reads are refused, with what was meant; what someone may add, they may."""

from __future__ import annotations

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from mmrlhf.composition.config import CONF
from mmrlhf.composition.unread import check_read, references_in
from mmrlhf.errors import ConfigError


def _compose(*overrides: str) -> DictConfig:
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("config", list(overrides))


REFUSED = [
    ("+model.setting.language=lora", "model.setting", "model.settings"),
    ("+model.settings.langauge=lora", "model.settings.langauge", "model.settings.language"),
    ("+model.size.hiden=3", "model.size.hiden", "model.size.hidden"),
    ("+optim.mmdpo.weight_decy=1", "optim.mmdpo.weight_decy", "optim.mmdpo.weight_decay"),
    ("+optim.mmpdo.lr=1", "optim.mmpdo", "optim.mmdpo"),
    ("+optim.epochs.mmdpoo=1", "optim.epochs.mmdpoo", "optim.epochs.mmdpo"),
    ("+data.hold_out=0.1", "data.hold_out", "data.holdout"),
    ("+data.importer.fil=x", "data.importer.fil", "data.importer.file"),
    ("+data.media.frames=3", "data.media.frames", "data.media.num_frames"),
    ("+trainer.max_epoch=1", "trainer.max_epoch", "trainer.max_epochs"),
    ("+runtime.num_worker=2", "runtime.num_worker", "runtime.num_workers"),
    ("+inputs.shard=x", "inputs.shard", "inputs.shards"),
    ("+paths.artifact=x", "paths.artifact", "paths.artifacts"),
    ("+rounds.numbers=2", "rounds.numbers", "rounds.number"),
    ("+scale.max_step=3", "scale.max_step", "scale.max_steps"),
    ("+logger.csvs=true", "logger.csvs", "logger.csv"),
    ("+method.sft_wieght=1", "method.sft_wieght", "method.sft_weight"),
    ("+stages.sft.training.shedule.epochs=3", "stages.sft.training.shedule", "stages.sft.training.schedule"),
    ("+stages.verify.medai=true", "stages.verify.medai", "stages.verify.media"),
    ("+callbacks.throughput.window=3", "callbacks.throughput.window", None),
    ("+callbacks.thruoghput.x=3", "callbacks.thruoghput", "callbacks.throughput"),
    ("+stages.mmdp.training.schedule.seed=3", "stages.mmdp", "stages.mmdpo"),
    ("+publish.nmae=x", "publish.nmae", None),
    ("+seeds=3", "seeds", "seed"),
    ("+inputz.shards=x", "inputz", "inputs"),
]


@pytest.mark.parametrize(("word", "key", "meant"), REFUSED)
def test_what_nothing_reads_is_refused_with_what_was_meant(word: str, key: str, meant: str | None) -> None:
    with pytest.raises(ConfigError) as caught:
        check_read(_compose(word))
    assert caught.value.where == key
    assert meant is None or meant in str(caught.value.fix).replace("?", " ").split()


@pytest.mark.parametrize(
    "words",
    [
        ["+callbacks.mine={_target_: lightning.pytorch.callbacks.Timer, interval: step}"],
        ["+data.mine=3", "data.root=${data.mine}/records"],
        ["+sweep_metrics.mine={path: a/b, better: high}"],
        ["+trainer.log_every_n_steps=3", "trainer=fsdp"],
        ["+stages.mine={_target_: json.dumps, obj: 1, indent: 2}"],
        ["+inputs.mixture.other=DIR", "data.mixing.weights={main: 1, other: 2}"],
        ["stages.reward.head.kind=linear", "stages.reward.head.dropout=0.1"],
        ["experiment=self_improve", "logger=[wandb,csv]"],
        ["model=qwen3_vl", "data=rlaif_v", "scale=tiny", "margin=truth", "callbacks=none"],
    ],
)
def test_what_may_be_added_may_be_added(words: list[str]) -> None:
    check_read(_compose(*words))


def test_what_a_file_of_ones_own_says_is_read_too() -> None:
    config = _compose()
    config._set_flag("struct", False)
    config.model.settings.lora_rnak = 4
    with pytest.raises(ConfigError, match="lora_rank"):
        check_read(config)


def test_references() -> None:
    text = (
        "${data.root} ${if_needed:needs_margin,${inputs.rewards}} ${oc.select:model.tower,null} ${each_round:evaluate}"
    )
    assert references_in(text) == {"data.root", "inputs.rewards", "model.tower"}
