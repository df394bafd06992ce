"""Continue contexts one by one with the stock `generate`: slow, and right for models that cannot read packed rows.

Layers that carry a state along cannot start several branches from one prefix, so every branch runs from its beginning.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmrlhf.models.families import base_model, media_arguments, media_kinds
from mmrlhf.models.forward import PackedModel
from mmrlhf.types import EncodedGroup


def generate_rows(
    model: PackedModel,
    groups: Sequence[EncodedGroup],
    *,
    max_new_tokens: int,
    end_tokens: Sequence[int],
    temperature: float = 0.0,
    num_samples: int = 1,
    seed: int = 0,
) -> list[list[list[int]]]:
    """Continue each branch of each group `num_samples` times; arguments and result as `mmrlhf.models.decoding`."""
    settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "eos_token_id": list(end_tokens)}
    settings["pad_token_id"] = settings["eos_token_id"][0]
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        settings.update(sampling, num_return_sequences=num_samples)
    else:
        settings["do_sample"] = False
    ends = set(end_tokens)
    backbone: Any = model.backbone
    found = []
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        for group in groups:
            written: list[list[int]] = []
            for branch in group.branches:
                ids = torch.cat([group.prefix_ids, branch.ids])[None].to(model.device)
                rows = backbone.generate(**_inputs(model, ids, group), **settings)[:, ids.shape[1] :]
                samples = [_until(row.tolist(), ends) for row in rows]
                written += samples if temperature > 0 else samples * num_samples
            found.append(written)
    return found


def _inputs(model: PackedModel, ids: Tensor, group: EncodedGroup) -> Mapping[str, Tensor]:
    """What the stock model's own `generate` is given for one sequence (1, L)."""
    media = {name: tensor.to(model.device) for name, tensor in group.media.items()}
    arguments = media_arguments(model.backbone, ids, [media], [group.num_images])
    if "mm_token_type_ids" in inspect.signature(base_model(model.backbone).forward).parameters:
        arguments["mm_token_type_ids"] = media_kinds(model.backbone.config, ids)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **arguments}


def _until(ids: list[int], ends: set[int]) -> list[int]:
    """The tokens before the first end token."""
    return ids[: next((i for i, token in enumerate(ids) if token in ends), len(ids))]
