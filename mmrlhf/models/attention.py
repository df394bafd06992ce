"""The attention of packed rows, registered with transformers under one name, so that stock models call it.

- A mask with fewer rows than there are queries belongs to the last ones: those before them are a shared prefix, which
  is plain causal attention. Two calls of torch's scaled-dot-product attention then do half the work of one under a
  dense mask, and the mask has branch tokens x row entries instead of row x row.
- A FlexAttention block mask goes to FlexAttention, compiled once for each bucket of lengths.
- Everything else (generation, one row per response, the vision tower) is left to the stock function.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from mmrlhf.errors import ConfigError
from mmrlhf.models.masks import AttentionPattern
from mmrlhf.types import PackedBatch

NAME = "packed"
# Lengths that may be compiled in one run; torch's own limit of 8 would leave the others to the slow path.
MAX_COMPILED_LENGTHS = 64


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | BlockMask | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend in a packed row; arguments and result (B, L, H, D) as in transformers' attention interface."""
    if isinstance(attention_mask, BlockMask):
        return _flex(query, key, value, attention_mask, kwargs.get("scaling")), None
    if attention_mask is None or attention_mask.shape[2] >= query.shape[2]:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    shared = query.shape[2] - attention_mask.shape[2]
    first, keys, values = query[:, :, :shared], key[:, :, :shared], value[:, :, :shared]
    plain: dict[str, Any] = {**kwargs, "is_causal": True}
    causal, _ = sdpa_attention_forward(module, first, keys, values, None, **plain)
    masked, _ = sdpa_attention_forward(module, query[:, :, shared:], key, value, attention_mask, **kwargs)
    return torch.cat([causal, masked], dim=1), None


def use_packed_attention(backbone: PreTrainedModel) -> None:
    """Have a stock model's language part call `packed_attention`."""
    if "text_config" in backbone.config.sub_configs:
        backbone.set_attn_implementation({"text_config": NAME})
    else:
        backbone.set_attn_implementation(NAME)


def choose_back_end(wanted: str, batch: PackedBatch, pattern: AttentionPattern) -> str:
    """Decide between `sdpa` and `flex` for a batch where it lies: `auto` is flex on a GPU, for plain causal layers.

    Raises:
        ConfigError: flex is asked for layers that are not plain causal attention, or to train on a CPU.
    """
    device = batch.input_ids.device.type
    if wanted == "flex" and not pattern.plain:
        raise ConfigError(
            "FlexAttention's mask of a packed row is for plain causal layers; this model has others",
            where="model.settings.attention",
            given="flex",
            expected="sdpa or auto",
        )
    if wanted == "flex" and device == "cpu" and torch.is_grad_enabled():
        raise ConfigError(
            "FlexAttention cannot train on a CPU: torch has no backward of it there",
            where="model.settings.attention",
            given="flex",
            expected="sdpa, or auto, which chooses flex on a GPU only",
        )
    if wanted == "auto":
        return "flex" if device == "cuda" and pattern.plain else "sdpa"
    return wanted


def _flex(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, scale: float | None) -> Tensor:
    kind = query.device.type
    # Autocast reaches torch's own attention but not this one: rotary embeddings leave queries and keys in float32.
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
    query, key, value = (part.to(dtype) for part in (query, key, value))
    options: dict[str, Any] = {"block_mask": mask, "scale": scale, "enable_gqa": key.shape[1] != query.shape[1]}
    if kind == "cuda":
        return _compiled_flex()(query, key, value, **options).transpose(1, 2).contiguous()
    with warnings.catch_warnings():
        # It says that the uncompiled form is slow, which on a CPU is only there to be compared with.
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        output = flex_attention(query, key, value, **options)
    assert isinstance(output, Tensor)
    return output.transpose(1, 2).contiguous()


@cache
def _compiled_flex() -> Any:
    # static shapes: one kernel per bucket of lengths (`layout.bucket_length`), shared by all layers and batches
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MAX_COMPILED_LENGTHS)
    return torch.compile(flex_attention, dynamic=False)


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
