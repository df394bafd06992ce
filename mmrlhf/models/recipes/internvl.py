"""InternVL: pictures cut into tiles of one size, pixel-shuffled features, videos as numbered frames."""

from __future__ import annotations

from transformers import (
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLProcessor,
    InternVLVideoProcessor,
    InternVLVisionConfig,
    PreTrainedConfig,
    ProcessorMixin,
    Qwen2Config,
    Qwen2Tokenizer,
)

from mmrlhf.models.recipes.recipe import Recipe, TinySize, chat_template, text_settings, token_id


def _internvl(size: TinySize, tokenizer: Qwen2Tokenizer) -> tuple[PreTrainedConfig, ProcessorMixin]:
    pixels = {"height": size.image, "width": size.image}
    num_tokens = (size.image // size.patch // 2) ** 2
    config = InternVLConfig(
        vision_config=InternVLVisionConfig(
            hidden_size=size.vision_hidden,
            intermediate_size=2 * size.vision_hidden,
            num_hidden_layers=size.vision_layers,
            num_attention_heads=size.vision_heads,
            image_size=size.image,
            patch_size=size.patch,
        ),
        text_config=Qwen2Config(**text_settings(size, tokenizer)),
        image_token_id=token_id(tokenizer, "<IMG_CONTEXT>"),
        image_seq_length=num_tokens,
        tie_word_embeddings=True,
    )
    processor = InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(
            size=pixels, crop_to_patches=True, max_patches=12 if size.published else 2
        ),
        video_processor=InternVLVideoProcessor(size=pixels),
        tokenizer=tokenizer,
        image_seq_length=num_tokens,
        chat_template=chat_template("<IMG_CONTEXT>\\n", "<video>\\n"),
    )
    return config, processor


RECIPES = {
    "internvl": Recipe(
        _internvl,
        {
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        published={"image": 448, "patch": 14},
    ),
}
