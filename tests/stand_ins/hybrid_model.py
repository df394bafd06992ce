"""A tiny Qwen3.5: real architecture and processor, whose layers alternate linear attention with plain attention."""

from __future__ import annotations

from pathlib import Path

import torch
from stand_ins.tiny_models import TEXTS
from transformers import AutoModelForImageTextToText, Qwen3_5Config

from mmrlhf.models.recipes import qwen
from mmrlhf.models.recipes.recipe import TinySize, train_tokenizer


def build_hybrid(folder: Path) -> Path:
    """Write the model and its processor to a folder, and return it."""
    recipe, size = qwen.RECIPES["qwen3_vl"], TinySize()
    tokenizer = train_tokenizer(TEXTS, size.vocabulary, recipe)
    like, processor = recipe.build(size, tokenizer)
    vision = like.vision_config.to_dict()
    text = like.text_config.to_dict()
    for config in (vision, text):
        config.pop("model_type")
    linear = {"linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_num_key_heads": 2}
    config = Qwen3_5Config(
        vision_config={name: value for name, value in vision.items() if name != "deepstack_visual_indexes"},
        text_config={
            **text,
            **linear,
            "linear_num_value_heads": 4,
            "partial_rotary_factor": 1.0,
            "layer_types": ["linear_attention", "full_attention"],
        },
        **{name: getattr(like, name) for name in ("image_token_id", "video_token_id", "tie_word_embeddings")},
        vision_start_token_id=like.vision_start_token_id,
        vision_end_token_id=like.vision_end_token_id,
    )
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
