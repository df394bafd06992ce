"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: pictures at their own resolution, rotary positions on three axes (M-RoPE).

Qwen3-VL also adds features of several vision layers to its first decoder layers (deepstack) and writes the time of
every video frame into the text.
"""

from __future__ import annotations

from typing import Any

from transformers import (
    PreTrainedConfig,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from mmrlhf.models.recipes.recipe import Recipe, TinySize, chat_template, text_settings, token_id

# Pixels of a picture and of a clip in published checkpoints, by patch: Qwen2-VL and Qwen2.5-VL, Qwen3-VL.
_PIXELS = {
    14: ({"shortest_edge": 3136, "longest_edge": 12_845_056}, {"shortest_edge": 3136, "longest_edge": 12_845_056}),
    16: ({"shortest_edge": 65_536, "longest_edge": 16_777_216}, {"shortest_edge": 4096, "longest_edge": 25_165_824}),
}
_IMAGE, _VIDEO, _START, _END = "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"


def _text_config(size: TinySize, tokenizer: Qwen2Tokenizer, **rope: Any) -> dict[str, Any]:
    half = size.hidden // size.heads // 2
    return {
        **text_settings(size, tokenizer),
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [half // 4, half // 4, half - 2 * (half // 4)],
            **rope,
        },
    }


def _tokens(tokenizer: Qwen2Tokenizer) -> dict[str, Any]:
    return {
        "image_token_id": token_id(tokenizer, _IMAGE),
        "video_token_id": token_id(tokenizer, _VIDEO),
        "vision_start_token_id": token_id(tokenizer, _START),
        "vision_end_token_id": token_id(tokenizer, _END),
        "tie_word_embeddings": True,
    }


def _processing(size: TinySize, tokenizer: Qwen2Tokenizer, video: type[Any], **video_settings: Any) -> dict[str, Any]:
    pixels = clip_pixels = {"shortest_edge": (2 * size.patch) ** 2, "longest_edge": 4 * size.image**2}
    if size.published:
        pixels, clip_pixels = _PIXELS[size.patch]
    return {
        "image_processor": Qwen2VLImageProcessor(patch_size=size.patch, size=pixels),
        "video_processor": video(patch_size=size.patch, size=clip_pixels, **video_settings),
        "tokenizer": tokenizer,
        "chat_template": chat_template(_START + _IMAGE + _END, _START + _VIDEO + _END),
    }


def _qwen2_vl(size: TinySize, tokenizer: Qwen2Tokenizer) -> tuple[PreTrainedConfig, ProcessorMixin]:
    config = Qwen2VLConfig(
        vision_config={
            "depth": size.vision_layers,
            "embed_dim": size.vision_hidden,
            "hidden_size": size.hidden,
            "mlp_ratio": 2,
            "num_heads": size.vision_heads,
            "patch_size": size.patch,
        },
        text_config=_text_config(size, tokenizer),
        **_tokens(tokenizer),
    )
    processing = _processing(size, tokenizer, Qwen2VLVideoProcessor, cap_pixels_per_frame=False)
    return config, Qwen2VLProcessor(**processing)


def _qwen2_5_vl(size: TinySize, tokenizer: Qwen2Tokenizer) -> tuple[PreTrainedConfig, ProcessorMixin]:
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": size.vision_layers,
            "hidden_size": size.vision_hidden,
            "intermediate_size": 2 * size.vision_hidden,
            "num_heads": size.vision_heads,
            "patch_size": size.patch,
            "window_size": (8 if size.published else 4) * size.patch,
            "out_hidden_size": size.hidden,
            "fullatt_block_indexes": [size.vision_layers - 1],
        },
        text_config=_text_config(size, tokenizer),
        **_tokens(tokenizer),
    )
    processing = _processing(size, tokenizer, Qwen2VLVideoProcessor, cap_pixels_per_frame=False)
    return config, Qwen2_5_VLProcessor(**processing)


def _qwen3_vl(size: TinySize, tokenizer: Qwen2Tokenizer) -> tuple[PreTrainedConfig, ProcessorMixin]:
    config = Qwen3VLConfig(
        vision_config={
            "depth": size.vision_layers,
            "hidden_size": size.vision_hidden,
            "intermediate_size": 2 * size.vision_hidden,
            "num_heads": size.vision_heads,
            "patch_size": size.patch,
            "out_hidden_size": size.hidden,
            "num_position_embeddings": (2 * size.image // size.patch) ** 2,
            "deepstack_visual_indexes": list(range(min(size.vision_layers, size.layers))),
        },
        text_config={
            **_text_config(size, tokenizer, mrope_interleaved=True),
            "head_dim": size.hidden // size.heads,
        },
        **_tokens(tokenizer),
    )
    return config, Qwen3VLProcessor(**_processing(size, tokenizer, Qwen3VLVideoProcessor, cap_pixels_per_frame=False))


_SPECIAL = {
    "image_token": _IMAGE,
    "video_token": _VIDEO,
    "vision_bos_token": _START,
    "vision_eos_token": _END,
}
RECIPES = {
    "qwen2_vl": Recipe(_qwen2_vl, _SPECIAL, published={"image": 336, "patch": 14}),
    "qwen2_5_vl": Recipe(_qwen2_5_vl, _SPECIAL, published={"image": 336, "patch": 14}),
    "qwen3_vl": Recipe(_qwen3_vl, _SPECIAL, published={"image": 384, "patch": 16}),
}
