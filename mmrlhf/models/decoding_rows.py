"""Continue contexts one by one with the stock `generate`: slow, and right for models that cannot read packed rows.

Layers that carry a state along cannot start several branches from one prefix, so every branch runs from its beginning.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from mmrlhf.models.families import base_model, media_arguments, media_kinds
from mmrlhf.models.forward import PackedModel
from mmrlhf.tensors import EncodedGroup


@dataclass(frozen=True)
class Continuation:
    """What was written behind one branch: token ids without the end token, and that token; None: cut at the limit."""

    ids: list[int]
    end: int | None

    @property
    def cut(self) -> bool:
        """Whether it reached its longest length before it ended."""
        return self.end is None


@dataclass(frozen=True)
class Writing:
    """How continuations are written: at most max_new_tokens each, until one of end_tokens, none of `never`.

    temperature 0 takes the most likely token; seed: of what is drawn otherwise.
    """

    max_new_tokens: int
    end_tokens: list[int]
    never: list[int]
    temperature: float = 0.0
    seed: int = 0


# What a checkpoint's generation_config may ask for and is not done (see `decoding`), said to the stock `generate`.
_PLAIN: dict[str, Any] = {
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "sequence_bias": None,
    "begin_suppress_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "exponential_decay_length_penalty": None,
    "min_length": 0,
    "min_new_tokens": None,
    "num_beams": 1,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "guidance_scale": None,
}


def generate_rows(
    model: PackedModel, groups: Sequence[EncodedGroup], how: Writing, num_samples: int
) -> Iterator[Continuation]:
    """Continue each branch of each group `num_samples` times, one after another."""
    settings: dict[str, Any] = {"max_new_tokens": how.max_new_tokens, "eos_token_id": how.end_tokens, **_PLAIN}
    settings |= {"pad_token_id": how.end_tokens[0] if how.end_tokens else 0, "suppress_tokens": how.never or None}
    sampled = how.temperature > 0
    settings |= {"do_sample": sampled, "temperature": how.temperature if sampled else 1.0}
    ends, backbone = set(how.end_tokens), cast(Any, model.backbone)
    for group in groups:
        for number, branch in enumerate(group.branches):
            before = group.branches[:number] if group.in_turn else ()
            ids = torch.cat([group.prefix_ids, *(each.ids for each in before), branch.ids])[None].to(model.device)
            for sample in range(num_samples):
                with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
                    torch.manual_seed(draw_seed(how.seed, group.key, branch.response_hash, sample))
                    row = backbone.generate(**_inputs(model, ids, group), **settings)[0, ids.shape[1] :]
                yield _until(row.tolist(), ends)


def draw_seed(seed: int, key: str, response_hash: str, sample: int) -> int:
    """What fixes the random choices of one sample of one branch, whatever runs beside it."""
    name = f"{seed}\0{key}\0{response_hash}\0{sample}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little") >> 1


def configured_ends(model: PackedModel) -> list[int]:
    """The end tokens that a checkpoint's generation_config names."""
    config = getattr(model.backbone, "generation_config", None)
    ends = getattr(config, "eos_token_id", None)
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


def placeholders(model: PackedModel) -> list[int]:
    """Tokens that stand for media: written by a model, they would shift every medium when they are read again."""
    names = ("image_token_id", "video_token_id", "image_token_index", "video_token_index")
    found = {getattr(model.backbone.config, name, None) for name in names}
    return sorted(token for token in found if isinstance(token, int) and token >= 0)


def _inputs(model: PackedModel, ids: Tensor, group: EncodedGroup) -> Mapping[str, Tensor]:
    """What the stock model's own `generate` is given for one sequence (1, L)."""
    media = {name: tensor.to(model.device) for name, tensor in group.media.items()}
    arguments = media_arguments(model.backbone, ids, [media], [group.num_images])
    if "mm_token_type_ids" in inspect.signature(base_model(model.backbone).forward).parameters:
        arguments["mm_token_type_ids"] = media_kinds(model.backbone.config, ids)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **arguments}


def _until(ids: list[int], ends: set[int]) -> Continuation:
    """The tokens before the first end token, and that token."""
    place = next((i for i, token in enumerate(ids) if token in ends), len(ids))
    return Continuation(ids[:place], ids[place] if place < len(ids) else None)
