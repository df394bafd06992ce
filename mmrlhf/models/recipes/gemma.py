"""Gemma 3: a fixed number of tokens per picture that see each other both ways, and sliding-window layers."""

from __future__ import annotations

from transformers import (
    Gemma3Config,
    Gemma3ImageProcessor,
    Gemma3Processor,
    Gemma3TextConfig,
    PreTrainedConfig,
    ProcessorMixin,
    Qwen2Tokenizer,
    SiglipVisionConfig,
)

from mmrlhf.models.recipes.recipe import Recipe, TinySize, text_settings, token_id

# Gemma calls the assistant "model", trims every text, puts a system turn in front of the first question, and refuses
# turns that do not alternate.
_TEMPLATE = (
    "{{ '<bos>' }}{% set first = '' %}{% if messages[0]['role'] == 'system' %}"
    "{% set first = messages[0]['content'][0]['text'] + '\n\n' %}{% set messages = messages[1:] %}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' }}"
    "{{ first if loop.first else '' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<start_of_image>' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] | trim }}{% endif %}{% endfor %}"
    "{{ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


def _gemma3(size: TinySize, tokenizer: Qwen2Tokenizer) -> tuple[PreTrainedConfig, ProcessorMixin]:
    # published: 4 x 4 of 64 x 64 patches become one token
    per_image = (size.image // size.patch // (4 if size.published else 2)) ** 2
    # Every second layer looks back over a window shorter than a prompt with its picture.
    kinds = ["sliding_attention" if layer % 2 == 0 else "full_attention" for layer in range(size.layers)]
    config = Gemma3Config(
        vision_config=SiglipVisionConfig(
            hidden_size=size.vision_hidden,
            intermediate_size=2 * size.vision_hidden,
            num_hidden_layers=size.vision_layers,
            num_attention_heads=size.vision_heads,
            image_size=size.image,
            patch_size=size.patch,
            vision_use_head=False,
        ),
        text_config=Gemma3TextConfig(
            **text_settings(size, tokenizer),
            head_dim=size.hidden // size.heads,
            query_pre_attn_scalar=size.hidden // size.heads,
            sliding_window=12,
            layer_types=kinds,
        ),
        mm_tokens_per_image=per_image,
        boi_token_index=token_id(tokenizer, "<start_of_image>"),
        eoi_token_index=token_id(tokenizer, "<end_of_image>"),
        image_token_index=token_id(tokenizer, "<image_soft_token>"),
        tie_word_embeddings=True,
    )
    processor = Gemma3Processor(
        image_processor=Gemma3ImageProcessor(size={"height": size.image, "width": size.image}),
        tokenizer=tokenizer,
        image_seq_length=per_image,
        chat_template=_TEMPLATE,
    )
    return config, processor


RECIPES = {
    "gemma3": Recipe(
        _gemma3,
        {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"},
        turns=("<start_of_turn>", "<end_of_turn>"),
        begin="<bos>",
        end="<eos>",
        end_of_turn="<end_of_turn>",
        published={"image": 896, "patch": 14},
        tower="vision_model",
    ),
}
