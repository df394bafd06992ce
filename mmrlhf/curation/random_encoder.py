"""A random CLIP of a few thousand weights in the real format, for chains that must run where nothing can be fetched.

It knows nothing: its features spread pictures out a little, and say nothing of what is in them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPVisionConfig,
    PreTrainedTokenizerFast,
)

SIDE, DIMENSIONS, LONGEST_TEXT = 32, 16, 16
_SPECIAL = ("[PAD]", "[UNK]", "[BOS]", "[EOS]")
_SIZES: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def write_random_clip(folder: Path, texts: Iterable[str], *, seed: int = 0) -> CLIPModel:
    """Write model and processor as `save_pretrained` does, with the words of the texts as vocabulary; the model."""
    words = dict.fromkeys(word for text in texts for word in text.split())
    vocabulary = {word: number for number, word in enumerate((*_SPECIAL, *words))}
    text = CLIPTextConfig(
        **_SIZES, vocab_size=len(vocabulary), max_position_embeddings=LONGEST_TEXT, bos_token_id=2, eos_token_id=3,
        pad_token_id=0,
    )  # fmt: skip
    config = CLIPConfig(
        text_config=text.to_dict(),
        vision_config=CLIPVisionConfig(**_SIZES, image_size=SIDE, patch_size=8).to_dict(),
        projection_dim=DIMENSIONS,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIPModel(config)
    model.save_pretrained(folder)
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 2), ("[EOS]", 3)])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="[BOS]", eos_token="[EOS]", pad_token="[PAD]", unk_token="[UNK]"
    )
    image = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    CLIPProcessor(image_processor=image, tokenizer=wrapped).save_pretrained(folder)
    return model
