"""A training checkpoint holds what trains and a pointer to what does not; resuming from it is exact."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from safetensors.torch import load_file
from stand_ins.small_training import SCHEDULE, TRAINING, assert_same, weights

from mmrlhf.callbacks.checkpoints import latest_checkpoint
from mmrlhf.chain.runtime import Runtime
from mmrlhf.errors import ModelError
from mmrlhf.models.load import load_backbone
from mmrlhf.models.settings import ModelSettings
from mmrlhf.models.trained_state import FROZEN, frozen_fingerprint, with_frozen, without_frozen
from mmrlhf.stages import sft

LORA = ModelSettings(vision="frozen", projector="frozen", language="lora", lora_rank=2, lora_dropout=0.1)


class Crash(L.Callback):
    """A power cut in the third step."""

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == 2:
            raise KeyError("crash")


def train(
    out: Path, shards: Path, policy: Path, runtime: Runtime, crash: bool = False, model: ModelSettings = LORA
) -> None:
    training = replace(TRAINING, model=model, schedule=SCHEDULE)
    runtime = replace(runtime, callbacks=[Crash()]) if crash else runtime
    sft.run(out, shards=shards, policy=policy, training=training, runtime=runtime)


def test_adapters_resume_exactly_from_a_checkpoint_without_the_base(
    tmp_path: Path, small_shards: Path, small_policy: Path, other_policy: Path, runtime: Runtime
) -> None:
    """The file holds adapters only; on another base it is refused."""
    train(tmp_path / "whole", small_shards, small_policy, runtime)
    with pytest.raises(KeyError, match="crash"):
        train(tmp_path / "cut", small_shards, small_policy, runtime, crash=True)
    path = latest_checkpoint(tmp_path / "cut" / "checkpoints")
    assert path is not None and path.name == "step-00000002.ckpt"
    saved = torch.load(path, weights_only=False)
    assert saved["state_dict"] and all(".lora_" in name for name in saved["state_dict"])
    base = sum(file.stat().st_size for file in small_policy.glob("*.safetensors"))
    assert path.stat().st_size < base / 2
    with pytest.raises(ModelError, match="trained on another base"):
        train(tmp_path / "cut", small_shards, other_policy, runtime)
    train(tmp_path / "cut", small_shards, small_policy, runtime)
    assert_same(weights(tmp_path / "cut"), weights(tmp_path / "whole"))


def test_what_was_left_out_comes_back(small_policy: Path, other_policy: Path) -> None:
    """Under every name that a parameter has; a changed value, a changed shape and another choice of parts are seen."""
    module, _ = load_backbone(small_policy, ModelSettings())
    for name, parameter in module.named_parameters():
        parameter.requires_grad_("layers.1." in name)
    state, fingerprint = module.state_dict(), frozen_fingerprint(module)
    kept = without_frozen(module, state)
    assert kept.keys() == {name for name, value in module.named_parameters() if value.requires_grad}
    whole = with_frozen(module, kept, fingerprint)
    assert whole.keys() == state.keys() and all(torch.equal(whole[name], state[name]) for name in state)
    next(module.parameters()).requires_grad_(True)
    assert frozen_fingerprint(module) != fingerprint
    next(module.parameters()).requires_grad_(False)
    assert frozen_fingerprint(module) == fingerprint
    next(module.parameters()).data += 1e-3
    with pytest.raises(ModelError, match=fingerprint):
        with_frozen(module, kept, fingerprint)
    assert FROZEN not in state


def test_four_bits_resume_exactly_and_are_exported_from_the_base(
    tmp_path: Path, small_shards: Path, small_policy: Path, runtime: Runtime
) -> None:
    """QLoRA through a stage: a checkpoint of adapters only, the same end after a crash, a folder in the base's type
    whose untouched weights are the base's; a checkpoint of other weights is refused."""
    pytest.importorskip("bitsandbytes")
    quantized = replace(LORA, weights="nf4")
    train(tmp_path / "whole", small_shards, small_policy, runtime, model=quantized)
    with pytest.raises(KeyError, match="crash"):
        train(tmp_path / "cut", small_shards, small_policy, runtime, crash=True, model=quantized)
    path = latest_checkpoint(tmp_path / "cut" / "checkpoints")
    assert path is not None
    saved = torch.load(path, weights_only=False)
    assert saved["state_dict"] and all(".lora_" in name for name in saved["state_dict"])
    with pytest.raises(ModelError, match=r"stored in another way[\s\S]*expected: .*uint8"):
        train(tmp_path / "cut", small_shards, small_policy, runtime)
    train(tmp_path / "cut", small_shards, small_policy, runtime, model=quantized)
    assert_same(weights(tmp_path / "cut"), weights(tmp_path / "whole"))
    base, found = load_file(small_policy / "model.safetensors"), weights(tmp_path / "whole")
    assert base.keys() == found.keys()
    moved = {name for name in base if not torch.equal(base[name], found[name])}
    assert moved and all("language" in name and "_proj.weight" in name for name in moved)
