"""LLaVA-OneVision and LLaVA-NeXT: a vision tower, a two-layer projector, pictures cut into crops of any resolution."""

from __future__ import annotations

from transformers import (
    CLIPVisionConfig,
    LlavaNextConfig,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    MistralConfig,
    PreTrainedConfig,
    ProcessorMixin,
    Qwen2Config,
    Qwen2Tokenizer,
    SiglipVisionConfig,
)

from mmrlhf.models.recipes.recipe import Recipe, TinySize, text_settings, token_id

# ChatML with the media of a turn in front of its texts.
_ONEVISION_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'video' %}{{ '<video>' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}"
    "{{ ('\n' if message['role'] == 'user' else '') + part['text'] }}{% endfor %}"
    "{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Of llava-v1.6-mistral: instruction brackets, no begin token (the tokenizer writes it), no generation prompt; pictures
# of a question in front of its texts, none elsewhere.
_MISTRAL_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ '<<SYS>>\n' + message['content'][0]['text'] + '\n<</SYS>>\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ '[INST] ' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{{ ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ ' ' + part['text'] }}{% endfor %}{{ '</s>' }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)


# Of llava-v1.6: rows and columns of crops.
_NEXT_GRIDS = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))


def _pinpoints(size: TinySize) -> list[list[int]]:
    # published: 384 x 384 up to 2,304 x 2,304 pixels; `anyres_max_9`, the processor's default, scales features down
    steps = range(1, 7) if size.published else (1, 2) if size.crops else (1,)
    return [[size.image * rows, size.image * columns] for rows in steps for columns in steps]


def _onevision(size: TinySize, tokenizer: Qwen2Tokenizer) -> tuple[PreTrainedConfig, ProcessorMixin]:
    pixels = {"height": size.image, "width": size.image}
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=size.vision_hidden,
            intermediate_size=2 * size.vision_hidden,
            num_hidden_layers=size.vision_layers,
            num_attention_heads=size.vision_heads,
            image_size=size.image,
            patch_size=size.patch,
            vision_use_head=False,
        ),
        text_config=Qwen2Config(**text_settings(size, tokenizer)),
        image_token_index=token_id(tokenizer, "<image>"),
        video_token_index=token_id(tokenizer, "<video>"),
        image_grid_pinpoints=_pinpoints(size),
        tie_word_embeddings=True,
    )
    processor = LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(size=pixels, image_grid_pinpoints=_pinpoints(size)),
        video_processor=LlavaOnevisionVideoProcessor(size=pixels),
        tokenizer=tokenizer,
        num_image_tokens=(size.image // size.patch) ** 2,
        vision_feature_select_strategy="full",
        chat_template=_ONEVISION_TEMPLATE,
    )
    return config, processor


def _next(size: TinySize, tokenizer: Qwen2Tokenizer) -> tuple[PreTrainedConfig, ProcessorMixin]:
    pixels = {"height": size.image, "width": size.image}
    pinpoints = _pinpoints(size)
    if size.published:
        pinpoints = [[size.image * rows, size.image * columns] for rows, columns in _NEXT_GRIDS]
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=size.vision_hidden,
            intermediate_size=2 * size.vision_hidden,
            # The features are those before the last layer.
            num_hidden_layers=size.vision_layers + 1,
            num_attention_heads=size.vision_heads,
            image_size=size.image,
            patch_size=size.patch,
        ),
        text_config=MistralConfig(**text_settings(size, tokenizer), sliding_window=None),
        image_token_index=token_id(tokenizer, "<image>"),
        image_grid_pinpoints=pinpoints,
        image_seq_length=(size.image // size.patch) ** 2,
        tie_word_embeddings=True,
    )
    processor = LlavaNextProcessor(
        image_processor=LlavaNextImageProcessor(
            size={"shortest_edge": size.image}, crop_size=pixels, image_grid_pinpoints=pinpoints
        ),
        tokenizer=tokenizer,
        patch_size=size.patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_MISTRAL_TEMPLATE,
    )
    return config, processor


RECIPES = {
    "llava_onevision": Recipe(
        _onevision,
        {"image_token": "<image>", "video_token": "<video>"},
        published={"image": 384, "patch": 14},
        tower="vision_model",
    ),
    "llava_next": Recipe(
        _next,
        {"image_token": "<image>"},
        turns=(),
        begin="<s>",
        end="</s>",
        published={"image": 336, "patch": 14},
        tower="vision_model",
    ),
}
