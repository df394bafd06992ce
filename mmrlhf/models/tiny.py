"""Tiny random models in the real format: real architecture, processor classes and chat template, random weights.

They stand in for a checkpoint wherever nothing can be downloaded: tests, `scale=tiny`, and the embedded world (whose
model is trained from scratch). Everything is saved with `save_pretrained`, so they are loaded by the same code as a
real one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForImageTextToText,
    GenerationConfig,
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLProcessor,
    InternVLVideoProcessor,
    InternVLVisionConfig,
    LlavaOnevisionConfig,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLProcessor,
    Qwen2Config,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    SiglipVisionConfig,
)

from mmrlhf.errors import ConfigError


@dataclass(frozen=True)
class TinySize:
    """Sizes of a tiny model; the language model is hidden x layers, the vision tower vision_hidden x vision_layers.

    `image` and `patch` are in pixels; `crops` lets LLaVA-OneVision cut images of other shapes into up to 2 x 2 crops.
    """

    hidden: int = 64
    layers: int = 2
    heads: int = 4
    vision_hidden: int = 32
    vision_layers: int = 2
    image: int = 56
    patch: int = 14
    vocabulary: int = 600
    max_positions: int = 4096
    crops: bool = True


def build_tiny(
    family: str, folder: str | Path, *, texts: Iterable[str], size: TinySize | None = None, seed: int = 0
) -> PreTrainedModel:
    """Write a random model of a stock family with its processor to a folder, and return the model.

    Args:
        family: a key of `FAMILIES` (the checkpoint's `model_type`).
        texts: what the byte-level BPE tokenizer is trained on.

    Raises:
        ConfigError: for a family without a tiny recipe.
    """
    if family not in FAMILIES:
        raise ConfigError(
            "no tiny model of this family", where="model.family", given=family, expected=f"one of {', '.join(FAMILIES)}"
        )
    size = size or TinySize()
    special, build = FAMILIES[family]
    tokenizer = _train_tokenizer(texts, size.vocabulary, special)
    config, processor = build(size, tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model


def _train_tokenizer(texts: Iterable[str], vocabulary: int, special: dict[str, str]) -> Qwen2Tokenizer:
    """A byte-level BPE of Qwen's class; `special` maps attribute names (image_token, ...) to tokens."""
    trained = Qwen2Tokenizer().train_new_from_iterator(
        texts,
        vocab_size=vocabulary,
        new_special_tokens=["<|im_start|>", "<|im_end|>", *special.values()],
        show_progress=False,
    )
    tokenizer = Qwen2Tokenizer(tokenizer_object=trained.backend_tokenizer, extra_special_tokens=special)
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.pad_token = "<|endoftext|>"
    return tokenizer


# The layout every stock template here shares: one line per turn, media first, then text, closed by <|im_end|>.
def _chat_template(image: str, video: str, *, before_text: str = "", turn_end: str = "\n") -> str:
    return (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
        "{% for part in message['content'] if part['type'] == 'image' %}{{ '" + image + "' }}{% endfor %}"
        "{% for part in message['content'] if part['type'] == 'video' %}{{ '" + video + "' }}{% endfor %}"
        "{% for part in message['content'] if part['type'] == 'text' %}"
        "{{ ('" + before_text + "' if message['role'] == 'user' else '') + part['text'] }}{% endfor %}"
        "{{ '<|im_end|>" + turn_end + "' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )


def _token_id(tokenizer: Qwen2Tokenizer, token: str) -> int:
    found = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(found, int)
    return found


def _text_settings(size: TinySize, tokenizer: Qwen2Tokenizer) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": size.hidden,
        "intermediate_size": 2 * size.hidden,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.heads,
        "max_position_embeddings": size.max_positions,
        "tie_word_embeddings": True,
        # The usual 0.02 suits widths of thousands; a narrow model starts learning sooner with unit-variance outputs.
        "initializer_range": size.hidden**-0.5,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _llava_onevision(size: TinySize, tokenizer: Qwen2Tokenizer) -> tuple[PreTrainedConfig, ProcessorMixin]:
    steps = (1, 2) if size.crops else (1,)
    pinpoints = [[size.image * rows, size.image * columns] for rows in steps for columns in steps]
    pixels = {"height": size.image, "width": size.image}
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=size.vision_hidden,
            intermediate_size=2 * size.vision_hidden,
            num_hidden_layers=size.vision_layers,
            num_attention_heads=max(1, size.vision_hidden // 16),
            image_size=size.image,
            patch_size=size.patch,
            vision_use_head=False,
        ),
        text_config=Qwen2Config(**_text_settings(size, tokenizer)),
        image_token_index=_token_id(tokenizer, "<image>"),
        video_token_index=_token_id(tokenizer, "<video>"),
        image_grid_pinpoints=pinpoints,
        tie_word_embeddings=True,
    )
    processor = LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(size=pixels, image_grid_pinpoints=pinpoints),
        video_processor=LlavaOnevisionVideoProcessor(size=pixels),
        tokenizer=tokenizer,
        num_image_tokens=(size.image // size.patch) ** 2,
        vision_feature_select_strategy="full",
        chat_template=_chat_template("<image>", "<video>", before_text="\\n", turn_end=""),
    )
    return config, processor


def _qwen2_5_vl(size: TinySize, tokenizer: Qwen2Tokenizer) -> tuple[PreTrainedConfig, ProcessorMixin]:
    pixels = {"shortest_edge": (2 * size.patch) ** 2, "longest_edge": 4 * size.image**2}
    head = size.hidden // size.heads
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": size.vision_layers,
            "hidden_size": size.vision_hidden,
            "intermediate_size": 2 * size.vision_hidden,
            "num_heads": max(1, size.vision_hidden // 16),
            "patch_size": size.patch,
            "window_size": 4 * size.patch,
            "out_hidden_size": size.hidden,
            "fullatt_block_indexes": [size.vision_layers - 1],
        },
        text_config={
            **_text_settings(size, tokenizer),
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [head // 8, head // 8, head // 2 - 2 * (head // 8)],
            },
        },
        image_token_id=_token_id(tokenizer, "<|image_pad|>"),
        video_token_id=_token_id(tokenizer, "<|video_pad|>"),
        vision_start_token_id=_token_id(tokenizer, "<|vision_start|>"),
        vision_end_token_id=_token_id(tokenizer, "<|vision_end|>"),
        tie_word_embeddings=True,
    )
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(patch_size=size.patch, size=pixels),
        video_processor=Qwen2VLVideoProcessor(patch_size=size.patch, size=pixels, cap_pixels_per_frame=False),
        tokenizer=tokenizer,
        chat_template=_chat_template(
            "<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|vision_end|>"
        ),
    )
    return config, processor


def _internvl(size: TinySize, tokenizer: Qwen2Tokenizer) -> tuple[PreTrainedConfig, ProcessorMixin]:
    pixels = {"height": size.image, "width": size.image}
    num_tokens = (size.image // size.patch // 2) ** 2
    config = InternVLConfig(
        vision_config=InternVLVisionConfig(
            hidden_size=size.vision_hidden,
            intermediate_size=2 * size.vision_hidden,
            num_hidden_layers=size.vision_layers,
            num_attention_heads=max(1, size.vision_hidden // 16),
            image_size=size.image,
            patch_size=size.patch,
        ),
        text_config=Qwen2Config(**_text_settings(size, tokenizer)),
        image_token_id=_token_id(tokenizer, "<IMG_CONTEXT>"),
        image_seq_length=num_tokens,
        tie_word_embeddings=True,
    )
    processor = InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size=pixels, crop_to_patches=True, max_patches=2),
        video_processor=InternVLVideoProcessor(size=pixels),
        tokenizer=tokenizer,
        image_seq_length=num_tokens,
        chat_template=_chat_template("<IMG_CONTEXT>\\n", "<video>\\n"),
    )
    return config, processor


_Builder = Callable[[TinySize, Qwen2Tokenizer], tuple[PreTrainedConfig, ProcessorMixin]]

FAMILIES: dict[str, tuple[dict[str, str], _Builder]] = {
    "llava_onevision": ({"image_token": "<image>", "video_token": "<video>"}, _llava_onevision),
    "qwen2_5_vl": (
        {
            "image_token": "<|image_pad|>",
            "video_token": "<|video_pad|>",
            "vision_bos_token": "<|vision_start|>",
            "vision_eos_token": "<|vision_end|>",
        },
        _qwen2_5_vl,
    ),
    "internvl": (
        {
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        _internvl,
    ),
}
