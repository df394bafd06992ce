"""The models and queries that every benchmark runs on: shapes of a few families with random weights, and one query."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaOnevisionConfig, PreTrainedModel

from mmrlhf.conversation import Conversation
from mmrlhf.models.random_checkpoints import TinySize, build_tiny
from mmrlhf.models.settings import ModelSettings
from mmrlhf.models.storage import store_in_place
from mmrlhf.types import Media, PreferenceGroup, Response

WORDS = "the picture shows a quiet street with two red cars and a tall tree near an old house under grey clouds".split()
RESPONSE_WORDS = 64
# What a query shows, named by about how many visual tokens that makes at 384 pixels and patches of 16.
FRAMES = 4
VISUALS = {0: ("none", 0), 576: ("frames", FRAMES), 1176: ("picture", 1), 7000: ("pictures", 12)}


@dataclass(frozen=True)
class Shape:
    """Sizes of a model, as LLaVA-OneVision's: the language model's, the vision tower's, and the picture's in pixels."""

    hidden: int
    layers: int
    heads: int
    key_heads: int
    intermediate: int
    vocabulary: int
    vision_hidden: int
    vision_layers: int
    vision_heads: int
    vision_intermediate: int
    patch: int
    image: int = 384


SHAPES = {
    # for trying a benchmark out
    "tiny": Shape(64, 2, 4, 4, 128, 2000, 32, 2, 2, 64, patch=48),
    # 9M parameters: what one CPU core can measure many times
    "mini": Shape(256, 4, 4, 4, 512, 8000, 128, 4, 8, 256, patch=16),
    # as small, with one size that outweighs the others: layers, width, words
    "deep": Shape(256, 16, 4, 4, 512, 4000, 128, 4, 8, 256, patch=16),
    "wide": Shape(1024, 2, 8, 2, 2816, 4000, 128, 4, 8, 256, patch=16),
    "wordy": Shape(256, 4, 4, 4, 512, 64000, 128, 4, 8, 256, patch=16),
    # keys and values shared by heads, an MLP three times as wide as the model, as the published models
    "grouped": Shape(512, 6, 8, 2, 1536, 16000, 128, 4, 8, 256, patch=16),
    # 40M parameters: what two CPU cores can measure
    "small": Shape(512, 8, 8, 8, 1024, 32000, 192, 6, 12, 384, patch=16),
    # the published configurations
    "0.5b": Shape(896, 24, 14, 2, 4864, 152000, 1152, 26, 16, 4304, patch=14),
    "7b": Shape(3584, 28, 28, 4, 18944, 152128, 1152, 26, 16, 4304, patch=14),
}


def build_family(family: str, shape: Shape, folder: str | Path) -> PreTrainedModel:
    """Write a random model of a family in a shape's width and depth, and return it (float32, on the CPU).

    LLaVA-OneVision has all of the shape's sizes; of other families heads are all keys' too, an MLP is twice as wide as
    the model, and the vocabulary is the tokenizer's.
    """
    if family == "llava_onevision":
        return build_model(shape, folder)
    size = TinySize(
        hidden=shape.hidden,
        layers=shape.layers,
        heads=shape.heads,
        vision_hidden=shape.vision_hidden,
        vision_layers=shape.vision_layers,
        image=shape.image,
        patch=shape.patch,
        vocabulary=2000,
        max_positions=32768,
    )
    return build_tiny(family, folder, texts=[" ".join(WORDS)] * 20, size=size)


def build_model(shape: Shape, folder: str | Path, *, seed: int = 0) -> PreTrainedModel:
    """Write a random LLaVA-OneVision and its processor to a folder, and return it (float32, on the CPU)."""
    config = write_config(shape, folder)
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(config)
    model.save_pretrained(folder)
    return model


def random_backbone(config: Any, settings: ModelSettings, *, device: str, seed: int = 0) -> PreTrainedModel:
    """Make a random model on a device, stored as `settings.weights` says: no file is written, none read.

    In other formats than float32 it needs twice the bytes of its bfloat16 weights at no time, so that a model of 7B
    fits where its weights do.
    """
    torch.manual_seed(seed)
    whole = torch.float32 if settings.weights == "float32" else torch.bfloat16
    with torch.device(device):
        model: PreTrainedModel = AutoModelForImageTextToText.from_config(
            config, dtype=whole, attn_implementation="sdpa"
        )
    store_in_place(model, settings)
    return model


def write_config(shape: Shape, folder: str | Path) -> LlavaOnevisionConfig:
    """Write the configuration and the processor of a LLaVA-OneVision of a shape to a folder."""
    size = TinySize(image=shape.image, patch=shape.patch, vocabulary=2000, max_positions=32768)
    build_tiny("llava_onevision", folder, texts=[" ".join(WORDS)] * 20, size=size)
    processor = AutoProcessor.from_pretrained(folder)
    settings: dict[str, Any] = LlavaOnevisionConfig.from_pretrained(folder).to_dict()
    # Random weights of this spread give logits of unit size whatever the width.
    text = {
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.key_heads,
        "intermediate_size": shape.intermediate,
        "vocab_size": shape.vocabulary,
        "initializer_range": shape.hidden**-0.5,
        "layer_types": ["full_attention"] * shape.layers,
    }
    vision = {
        "hidden_size": shape.vision_hidden,
        "num_hidden_layers": shape.vision_layers,
        "num_attention_heads": shape.vision_heads,
        "intermediate_size": shape.vision_intermediate,
        "patch_size": shape.patch,
        "image_size": shape.image,
    }
    pinpoints = [[shape.image * rows, shape.image * columns] for rows in range(1, 4) for columns in range(1, 4)]
    settings |= {
        "text_config": settings["text_config"] | text,
        "vision_config": settings["vision_config"] | vision,
        "image_grid_pinpoints": pinpoints,
    }
    config = LlavaOnevisionConfig(**settings)
    config.save_pretrained(folder)
    processor.image_processor.image_grid_pinpoints = pinpoints
    processor.save_pretrained(folder)
    return config


def make_query(num_responses: int, visual_tokens: int, *, shape: Shape, seed: int = 0) -> PreferenceGroup:
    """A query with responses of `RESPONSE_WORDS` words, one token each, ranked in order.

    Args:
        visual_tokens: a key of `VISUALS`, exact for patches of 16.
    """
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS, RESPONSE_WORDS)) for _ in range(num_responses)]
    responses = tuple(Response(text, rank=rank) for rank, text in enumerate(texts, 1))
    kind, count = VISUALS[visual_tokens]
    pictures = [_png(rng, shape.image) for _ in range(count)]
    media = tuple(Media("image", (f"{i}.png",), (data,)) for i, data in enumerate(pictures))
    if kind == "frames":
        media = (Media("frames", tuple(f"f{i:03d}.png" for i in range(count)), tuple(pictures)),)
    asked = Conversation.about("describe what you see", [each.slot for each in media])
    return PreferenceGroup("query", asked, responses, media)


def numbered(query: PreferenceGroup, number: int) -> PreferenceGroup:
    """The same query with a number behind its text."""
    prompt = Conversation.about(f"{query.prompt.question} {number}", query.prompt.slots)
    return replace(query, key=str(number), prompt=prompt)


def single_pairs(query: PreferenceGroup) -> list[PreferenceGroup]:
    """Every pair of differently ranked responses as a query of its own, as pair-by-pair trainers read them."""
    return [replace(query, responses=(query.responses[i], query.responses[j])) for i, j in query.ranked_pairs()]


def open_pictures(query: PreferenceGroup) -> list[Image.Image]:
    """The query's pictures, as other trainers take them."""
    return [Image.open(io.BytesIO(data)) for media in query.media for data in media.data]


def num_pairs(num_responses: int) -> int:
    """All pairs of differently ranked responses."""
    return math.comb(num_responses, 2)


def _png(rng: np.random.Generator, pixels: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (pixels, pixels, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()
