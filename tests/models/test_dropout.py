"""A checkpoint's own dropout can be turned off, in every family, without touching adapters or its configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from stand_ins.built_models import build
from stand_ins.tiny_models import AVAILABLE, image, responses
from torch import nn

from mmrlhf.models.dropout import silence_dropout
from mmrlhf.tokens.packing import pack_groups
from mmrlhf.types import PreferenceGroup

GROUP = PreferenceGroup("one", "what ?", responses("a red circle", "a blue square"), (image(60, 50),))


def _with_dropout(backbone: nn.Module) -> int:
    """Give every module that knows a dropout rate one of 0.5, as a checkpoint's configuration would."""
    count = 0
    for name, module in backbone.named_modules():
        for attribute, value in list(vars(module).items()):
            known = "dropout" in attribute or (isinstance(module, nn.Dropout) and attribute == "p")
            if "lora_" not in name and known and isinstance(value, float):
                setattr(module, attribute, 0.5)
                count += 1
    return count


@pytest.mark.parametrize("family", AVAILABLE)
def test_training_mode_then_says_what_evaluation_does(family: str, tiny_folders: dict[str, Path]) -> None:
    model, encoder = build(tiny_folders[family], vision="full")
    batch: Any = pack_groups([encoder(GROUP)])
    assert _with_dropout(model.backbone) > 0
    model.train()
    with torch.no_grad():
        assert not torch.equal(model(batch).logprob, model(batch).logprob)
        assert silence_dropout(model.backbone) > 0
        noisy = model(batch).logprob
        model.eval()
        torch.testing.assert_close(noisy, model(batch).logprob, rtol=0, atol=0)
    assert silence_dropout(model.backbone) == 0


def test_dropout_of_adapters_stays(tiny_folders: dict[str, Path]) -> None:
    model, _ = build(tiny_folders["qwen2_5_vl"], language="lora", lora_dropout=0.25, projector="frozen")
    silence_dropout(model.backbone)
    rates = {module.p for module in model.modules() if isinstance(module, nn.Dropout) and module.p > 0}
    assert rates == {0.25}
