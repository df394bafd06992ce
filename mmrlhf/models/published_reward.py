"""The published reward model, MM-RLHF-Reward-7B-llava-ov-qwen, as one of our folders.

Its checkpoint has the original LLaVA layout, which stock transformers models do not load: `model.layers...`,
`model.vision_tower...`, `model.mm_projector...`, `model.image_newline`, `lm_head`, and the score head in
`rm_head.dense` and `rm_head.out_proj`. Every key is renamed or named in an error. What a checkpoint does not say, its
way of being asked (arXiv 2502.10391 and its released evaluation script), is in the constants below.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

from mmrlhf.errors import ModelError
from mmrlhf.models.forward import PackedModel
from mmrlhf.models.heads import build_head
from mmrlhf.models.load import check_family, load_config, load_tensors
from mmrlhf.models.processors import check_vocabulary, load_processor
from mmrlhf.models.reward_folder import save_reward_model
from mmrlhf.models.settings import ModelSettings
from mmrlhf.models.weight_files import read_header, some

# The prompt that the published weights were trained with: one user turn, blank lines included.
INSTRUCTION = (
    "You are an unbiased and fair evaluator tasked with assessing the quality of answers provided by a Large "
    "Multimodal Model (LMM). Given the following question and the LMM's response, please evaluate the correctness, "
    "clarity, and completeness of the answer. Provide a detailed explanation of your assessment, including specific "
    "points of strength and areas for improvement.\n"
)
REQUEST = "[Question]: {question}\n[LMM Response]: {response}\n\n[Evaluation]:"
# Its conversation is Qwen's with a system turn; the score is read at the line break behind the critique's end token.
CHAT_TEMPLATE = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% for message in messages %}<|im_start|>{{ message['role'] + '\n' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'video' %}{{ '<video>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CLOSING = "\n"
NUM_FRAMES = 32
CARD = {
    "critique": "full",
    "instruction": INSTRUCTION,
    "request": REQUEST,
    "closing": CLOSING,
    "media": {"num_frames": NUM_FRAMES},
}

# the names of the stock checkpoints on the hub, which every version of transformers reads
_RENAMED = (
    (r"model\.vision_tower\.vision_tower\.vision_model\.(.+)", r"vision_tower.vision_model.\1"),
    (r"model\.mm_projector\.0\.(weight|bias)", r"multi_modal_projector.linear_1.\1"),
    (r"model\.mm_projector\.2\.(weight|bias)", r"multi_modal_projector.linear_2.\1"),
    (r"model\.image_newline", r"image_newline"),
    (r"model\.(layers\..+|embed_tokens\.weight|norm\.weight)", r"language_model.model.\1"),
    (r"lm_head\.weight", r"language_model.lm_head.weight"),
    (r"rm_head\.dense\.(weight|bias)", r"score_head.hidden.\1"),
    (r"rm_head\.out_proj\.(weight|bias)", r"score_head.out.\1"),
)
_HEAD, _EMBEDDING = "score_head.", "language_model.model.embed_tokens.weight"


def rename_released(state: Mapping[str, Tensor], *, where: str) -> dict[str, Tensor]:
    """Give a released checkpoint's tensors our names; the head's begin with `score_head.`.

    Raises:
        ModelError: keys that no rule covers.
    """
    renamed, unknown = {}, []
    for name, tensor in state.items():
        target = next((re.sub(old, new, name) for old, new in _RENAMED if re.fullmatch(old, name)), None)
        if target is None:
            unknown.append(name)
        else:
            renamed[target] = tensor
    if unknown:
        raise _unfitting(where, [], unknown)
    return renamed


def import_released(checkpoint: Path, base: str | Path, folder: Path) -> dict[str, Any]:
    """Write the reward model in a released checkpoint folder as one of ours, and return its card.

    Args:
        checkpoint: folder with `*.safetensors` in the original LLaVA layout.
        base: the stock checkpoint of the same architecture; only its config and processor are read.
        folder: what is written: weights in the checkpoint's own precision, head, processor, card.

    Raises:
        ModelError: no weights there, keys that are missing or that nobody knows, tensors of another shape.
    """
    check_family(base, ModelSettings(family="llava_onevision"))
    state = rename_released(_read_tensors(checkpoint), where=str(checkpoint))
    config, processor = load_config(base), load_processor(base)
    embedding = state.get(_EMBEDDING)
    if embedding is not None:
        # The stock checkpoint pads its vocabulary further; rows that were never trained are not made up.
        config.get_text_config().vocab_size = embedding.shape[0]
        check_vocabulary(config, processor, embedding.shape[0], where=checkpoint)
    head = _fill_head(state, config.get_text_config().hidden_size, where=str(checkpoint))
    backbone = load_tensors({k: v for k, v in state.items() if not k.startswith(_HEAD)}, config, where=checkpoint)
    processor.chat_template = CHAT_TEMPLATE
    save_reward_model(PackedModel(backbone, ModelSettings(), head), processor, folder, card=CARD, dtype=backbone.dtype)
    return CARD


def _fill_head(state: Mapping[str, Tensor], width: int, *, where: str) -> nn.Module:
    """The score head with the released weights; ModelError where they are not those of one for this width."""
    head = build_head("tanh2", width)
    found = {name.removeprefix(_HEAD): value for name, value in state.items() if name.startswith(_HEAD)}
    missing = sorted(head.state_dict().keys() - found.keys())
    shapes = {name: value.shape for name, value in head.state_dict().items()}
    wrong = [
        f"{name} of shape {tuple(v.shape)} instead of {tuple(shapes[name])}"
        for name, v in found.items()
        if v.shape != shapes[name]
    ]
    if missing or wrong:
        raise _unfitting(where, [_HEAD + name for name in missing], wrong)
    head.load_state_dict(found)
    return head


def _read_tensors(checkpoint: Path) -> dict[str, Tensor]:
    files = sorted(checkpoint.glob("*.safetensors"))
    if not files:
        raise ModelError(
            "this folder holds no weights",
            where=str(checkpoint),
            given="no *.safetensors" if checkpoint.is_dir() else "no such folder",
            expected="*.safetensors of MM-RLHF-Reward-7B-llava-ov-qwen",
        )
    state: dict[str, Tensor] = {}
    for file in files:
        read_header(file)
        state |= load_file(file)
    return state


def _unfitting(where: str, missing: list[str], unexpected: list[str]) -> ModelError:
    return ModelError(
        "this is not the released reward model's layout, or not of this architecture",
        where=where,
        given=f"missing: {some(missing) or 'none'}; unexpected: {some(unexpected) or 'none'}",
        expected="model.layers, model.vision_tower, model.mm_projector, model.image_newline, lm_head and rm_head, all "
        "of the architecture that `base` names",
        fix="give the unchanged checkpoint, and as base the stock model that it was trained from",
    )
