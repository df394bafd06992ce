"""LoRA on each part of a model, and the reference that is the same model with its adapters off."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from stand_ins.built_models import build
from stand_ins.tiny_models import AVAILABLE, lora_on

from mmrlhf.errors import ConfigError, ModelError
from mmrlhf.models.families import parts
from mmrlhf.models.settings import PARTS
from mmrlhf.tokens.packing import pack_groups
from mmrlhf.types import PreferenceGroup


@pytest.mark.parametrize("adapted", [("language",), PARTS], ids=["language", "all"])
@pytest.mark.parametrize("family", AVAILABLE)
def test_adapters_off_is_the_base_model(
    family: str, adapted: tuple[str, ...], tiny_folders: dict[str, Path], groups: list[PreferenceGroup]
) -> None:
    """With trained adapters the policy moves; off, it is the reference; only adapters and what is `full` train."""
    base, encoder = build(tiny_folders[family])
    policy, _ = build(tiny_folders[family], lora_rank=4, **lora_on(family, adapted))
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    batch = pack_groups([encoder(group) for group in groups])
    reference = base(batch).logprob
    assert (policy(batch).logprob - reference).abs().max() > 1e-2
    with policy.adapters_off():
        torch.testing.assert_close(policy(batch).logprob, reference)
    trained = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    projector = {n for n in trained if "project" in n or "merger" in n or "newline" in n}
    assert all("lora_" in n for n in (trained if "projector" in adapted else trained - projector)) and trained


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("family", AVAILABLE)
def test_each_part_can_have_adapters(
    family: str, part: str, tiny_folders: dict[str, Path], groups: list[PreferenceGroup]
) -> None:
    """Adapters of one part alone: every one of them gets a gradient, and nothing else does."""
    frozen = dict.fromkeys(PARTS, "frozen")
    if (family, part) == ("gemma3", "projector"):  # a bare matrix
        with pytest.raises(ConfigError, match="no linear map"):
            build(tiny_folders[family], **{**frozen, part: "lora"})
        return
    model, encoder = build(tiny_folders[family], **{**frozen, part: "lora"}, lora_rank=4)
    model.train()
    outputs = model(pack_groups([encoder(group) for group in groups]))
    (outputs.logprob.sum() + outputs.hidden.sum()).backward()
    found = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    own = {id(parameter) for parameter in parts(model.backbone)[part]}
    assert found and all("lora_" in name for name in found)
    assert all(id(dict(model.named_parameters())[name]) in own for name in found)
    ups = {name for name, _ in model.named_parameters() if "lora_B" in name}
    # LLaVA-NeXT takes the tower's features before its last layer
    unreached = {name for name in ups if (family, part) == ("llava_next", "vision") and "layers.2." in name}
    assert ups - found == unreached


def test_adapters_off_needs_adapters(tiny_folders: dict[str, Path]) -> None:
    """Asking a model without adapters for its reference says what to set."""
    model, _ = build(tiny_folders["internvl"])
    with pytest.raises(ModelError, match="language=lora"), model.adapters_off():
        pass
