"""Tiny models whose head is also the embedding, is a weight of its own, or is such a weight with adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmrlhf.models.families import positions_for
from mmrlhf.models.forward import PackedModel
from mmrlhf.models.load import load_backbone
from mmrlhf.models.settings import ModelSettings
from mmrlhf.tokens.encode import Encoder
from mmrlhf.tokens.processing import MediaSettings
from mmrlhf.tokens.templates import AnswerTemplate

KINDS = ("tied", "untied", "lora")


def build_with_head(kind: str, folder: Path, **changes: Any) -> tuple[PackedModel, Encoder]:
    """A tiny model (tied when it was saved) and its encoder."""
    lora = {"language": "lora", "lora_rank": 4, "lora_alpha": 4.0, "lora_head": True} if kind == "lora" else {}
    settings = ModelSettings(**lora, **changes)
    backbone, processor = load_backbone(folder, settings)
    if kind != "tied":
        head: Any = backbone.get_output_embeddings()
        head.weight = nn.Parameter(head.weight.detach() + 0.01)
        backbone.config.tie_word_embeddings = backbone.config.get_text_config().tie_word_embeddings = False
    torch.manual_seed(0)  # adapters start at random
    model = PackedModel(backbone, settings)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    encoder = Encoder(
        processor, template=AnswerTemplate(), positions=positions_for(backbone), media=MediaSettings(num_frames=4)
    )
    return model, encoder
