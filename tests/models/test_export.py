"""What is saved loads to the same outputs, in the stock classes, and a head is never re-initialised."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from stand_ins.built_models import build
from stand_ins.head_kinds import build_with_head
from stand_ins.tiny_models import AVAILABLE, lora_on
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmrlhf.errors import ModelError
from mmrlhf.models.export import save_policy
from mmrlhf.models.forward import PackedModel
from mmrlhf.models.heads import build_head
from mmrlhf.models.promises import HEAD_FILE
from mmrlhf.models.reward_folder import load_reward_model, save_reward_model
from mmrlhf.models.settings import PARTS, ModelSettings
from mmrlhf.tokens.packing import pack_groups
from mmrlhf.types import PreferenceGroup


@pytest.mark.parametrize("adapted", [(), ("language",), PARTS], ids=["full", "language", "all"])
@pytest.mark.parametrize("family", AVAILABLE)
def test_policy_folder_is_a_stock_checkpoint(
    family: str, adapted: tuple[str, ...], tiny_folders: dict[str, Path], groups: list[PreferenceGroup], tmp_path: Path
) -> None:
    """`from_pretrained` gives the trained model's logits; adapters are merged, template and processor come along."""
    model, encoder = build(tiny_folders[family], lora_rank=4, **lora_on(family, adapted))
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    model.eval()
    save_policy(model, encoder.processor, tmp_path)
    stock = AutoModelForImageTextToText.from_pretrained(tmp_path)
    again = PackedModel(stock, ModelSettings())
    batch = pack_groups([encoder(group) for group in groups])
    with torch.no_grad():
        torch.testing.assert_close(again(batch).logprob, model(batch).logprob, rtol=1e-5, atol=1e-5)
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert processor.chat_template == encoder.processor.chat_template


@pytest.mark.parametrize("kind", ["untied", "lora"])
def test_a_head_of_its_own_is_saved(
    kind: str, tiny_folders: dict[str, Path], groups: list[PreferenceGroup], tmp_path: Path
) -> None:
    """A head that is not the embedding comes along, with its adapter merged."""
    model, encoder = build_with_head(kind, tiny_folders["internvl"])
    save_policy(model.eval(), encoder.processor, tmp_path)
    again = PackedModel(AutoModelForImageTextToText.from_pretrained(tmp_path), ModelSettings())
    batch = pack_groups([encoder(group) for group in groups])
    with torch.no_grad():
        torch.testing.assert_close(again(batch).logprob, model(batch).logprob, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["linear", "tanh2", "silu2"])
def test_reward_model_loads_to_bit_equal_scores(
    kind: str, tiny_folders: dict[str, Path], groups: list[PreferenceGroup], tmp_path: Path
) -> None:
    """Save and load: same scores to the last bit, card included."""
    base, encoder = build(tiny_folders["llava_onevision"])
    model = PackedModel(base.backbone, ModelSettings(), build_head(kind, 64)).eval()
    torch.nn.init.normal_(model.score_head.out.weight)
    save_reward_model(model, encoder.processor, tmp_path, card={"critique": "full"})
    again, _, card = load_reward_model(tmp_path, ModelSettings())
    again.eval()
    batch = pack_groups([encoder(group) for group in groups])
    with torch.no_grad():
        assert torch.equal(again.score(again(batch)), model.score(model(batch)))
    assert card == {"head": kind, "width": 64, "dimensions": [], "critique": "full"}


def test_missing_head_is_an_error(tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    """A policy folder, or one whose head file is gone, is refused with what to do."""
    with pytest.raises(ModelError, match="stage=reward"):
        load_reward_model(tiny_folders["internvl"], ModelSettings())
    base, encoder = build(tiny_folders["internvl"])
    model = PackedModel(base.backbone, ModelSettings(), build_head("linear", 64))
    save_reward_model(model, encoder.processor, tmp_path, card={})
    (tmp_path / HEAD_FILE).unlink()
    with pytest.raises(ModelError, match="no score_head.safetensors"):
        load_reward_model(tmp_path, ModelSettings())
