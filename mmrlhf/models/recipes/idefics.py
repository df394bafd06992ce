"""Idefics3 and SmolVLM: pictures split into rows and columns of crops with a global view, pixel-shuffled features."""

from __future__ import annotations

from typing import Any

from transformers import (
    Idefics3Config,
    Idefics3ImageProcessor,
    Idefics3Processor,
    LlamaConfig,
    PreTrainedConfig,
    ProcessorMixin,
    Qwen2Tokenizer,
    SmolVLMConfig,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

from mmrlhf.models.recipes.recipe import Recipe, TinySize, text_settings, token_id

_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% elif line['type'] == 'video' %}{{ '<video>' }}"
    "{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def _config(kind: type[Any], size: TinySize, tokenizer: Qwen2Tokenizer) -> PreTrainedConfig:
    return kind(
        vision_config={
            "hidden_size": size.vision_hidden,
            "intermediate_size": 2 * size.vision_hidden,
            "num_hidden_layers": size.vision_layers,
            "num_attention_heads": size.vision_heads,
            "image_size": size.image,
            "patch_size": size.patch,
        },
        text_config=LlamaConfig(**text_settings(size, tokenizer)),
        image_token_id=token_id(tokenizer, "<image>"),
        scale_factor=_shuffle(size, kind),
        tie_word_embeddings=True,
    )


def _pictures(size: TinySize) -> dict[str, Any]:
    side = {"longest_edge": size.image}
    steps = 4 if size.published else 2 if size.crops else 1
    return {"size": {"longest_edge": steps * size.image}, "max_image_size": side, "do_image_splitting": steps > 1}


def _shuffle(size: TinySize, config: type[Any]) -> int:
    """Patches on a side that become one token: 4 in published SmolVLM and SmolVLM2 checkpoints (256M, 500M)."""
    return 4 if size.published and config is SmolVLMConfig else 2


def _text(size: TinySize, tokenizer: Qwen2Tokenizer, shuffle: int = 2) -> dict[str, Any]:
    num_tokens = (size.image // size.patch // shuffle) ** 2
    return {"tokenizer": tokenizer, "image_seq_len": num_tokens, "chat_template": _TEMPLATE}


def _idefics3(size: TinySize, tokenizer: Qwen2Tokenizer) -> tuple[PreTrainedConfig, ProcessorMixin]:
    pictures = Idefics3ImageProcessor(**_pictures(size))
    return _config(Idefics3Config, size, tokenizer), Idefics3Processor(pictures, **_text(size, tokenizer))


def _smolvlm(size: TinySize, tokenizer: Qwen2Tokenizer) -> tuple[PreTrainedConfig, ProcessorMixin]:
    side = {"longest_edge": size.image}
    clips = SmolVLMVideoProcessor(size=side, max_image_size=side)
    pictures = SmolVLMImageProcessor(**_pictures(size))
    processor = SmolVLMProcessor(
        pictures, video_processor=clips, **_text(size, tokenizer, _shuffle(size, SmolVLMConfig))
    )
    return _config(SmolVLMConfig, size, tokenizer), processor


_SPECIAL = {
    "image_token": "<image>",
    "fake_image_token": "<fake_token_around_image>",
    "global_image_token": "<global-img>",
    "end_of_utterance_token": "<end_of_utterance>",
    **{f"row_{row}_col_{column}": f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)},
}
_TURNS = ("<|im_start|>", "<end_of_utterance>")
RECIPES = {
    "idefics3": Recipe(
        _idefics3, _SPECIAL, turns=_TURNS, end="<end_of_utterance>", published={"image": 364, "patch": 14}
    ),
    "smolvlm": Recipe(
        _smolvlm,
        {**_SPECIAL, "video_token": "<video>"},
        turns=_TURNS,
        end="<end_of_utterance>",
        needs="num2words",
        published={"image": 512, "patch": 16},
    ),
}
