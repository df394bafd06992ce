"""The attention of packed rows, registered with transformers under one name, so that stock models call it.

- A mask with fewer rows than there are queries belongs to the last ones: those before them are a shared prefix, which
  is plain causal attention. Two calls of torch's scaled-dot-product attention then do half the work of one under a
  dense mask, and the mask has branch tokens x row entries instead of row x row.
- A FlexAttention block mask goes to FlexAttention, compiled once for each bucket of lengths.
- A mask without rows says that the row's segments are given instead (`packed_segments`): see `mmrlhf.models.cascade`.
- Everything else (generation, one row per response, the vision tower) is left to the stock function.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from mmrlhf.errors import ConfigError
from mmrlhf.models.cascade import Segments, cascade_attention
from mmrlhf.models.masks import AttentionPattern
from mmrlhf.models.settings import ModelSettings
from mmrlhf.tensors import PackedBatch

NAME = "packed"
# The argument of a stock model's forward that reaches its layers' attention: what a row consists of.
SEGMENTS = "packed_segments"
# What layers of some models ask of the stock function beside a mask and a scale.
_OTHER_SCORES = ("softcap", "s_aux", "position_bias")
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
        check_plain_scores(module, kwargs)
        return _flex(*rounded(query, key, value), attention_mask, kwargs.get("scaling")), None
    if attention_mask is not None and attention_mask.shape[2] == 0:
        check_plain_scores(module, kwargs)
        segments, scale = _segments(module, kwargs), kwargs.get("scaling") or query.shape[-1] ** -0.5
        return cascade_attention(*rounded(query, key, value), segments, scale), None
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
    """Decide on a back end for a batch where it lies: `auto` is flex on a GPU, for plain causal layers, else sdpa.

    Raises:
        ConfigError: another than sdpa is asked for layers that are not plain causal attention, or flex to train on a
            CPU, or cascade for branches that are read in turn.
    """
    device = batch.input_ids.device.type
    if wanted == "cascade" and bool((batch.shared & (batch.branch_of_token > 0)).any()):
        raise _no_cascade()
    require_plain(wanted, pattern)
    if torch.is_grad_enabled():
        require_trainable(wanted, device)
    if wanted == "auto":
        return "flex" if device == "cuda" and pattern.plain else "sdpa"
    return wanted


def require_plain(wanted: str, pattern: AttentionPattern) -> None:
    """Raise ConfigError for a back end that knows plain causal attention alone where layers are something else."""
    if wanted in ("flex", "cascade") and not pattern.plain:
        raise ConfigError(
            f"attention={wanted} is for plain causal layers; this model has others",
            where="model.settings.attention",
            given=f"{wanted}, layers with {_others(pattern)}",
            expected="sdpa or auto",
        )


def require_trainable(wanted: str, device: str) -> None:
    """Raise ConfigError for a back end that has no backward on a kind of device."""
    if wanted == "flex" and device == "cpu":
        raise ConfigError(
            "FlexAttention cannot train on a CPU: torch has no backward of it there",
            where="model.settings.attention",
            given="flex",
            expected="sdpa, or auto, which chooses flex on a GPU only",
        )


def require_in_turn(reading: str, settings: ModelSettings) -> None:
    """Raise ConfigError for a back end that computes branches apart where they are read in turn in packed rows."""
    if reading == "in_turn" and settings.attention == "cascade" and settings.layout != "rows":
        raise _no_cascade()


def _no_cascade() -> ConfigError:
    return ConfigError(
        "attention=cascade computes branches apart, and here each response is read with those before it",
        where="model.settings.attention",
        given="cascade, with reading=in_turn",
        expected="sdpa, flex or auto",
        fix="model.settings.attention=auto",
    )


def _others(pattern: AttentionPattern) -> str:
    window = f"a sliding window of {pattern.window} tokens" if pattern.window is not None else ""
    pictures = "pictures whose tokens see each other both ways" if pattern.image_token is not None else ""
    return " and ".join(each for each in (window, pictures) if each)


def check_plain_scores(module: nn.Module, kwargs: Mapping[str, Any]) -> None:
    """Refuse layers that do more with scores than scale them: only the stock function knows what.

    Raises:
        ConfigError: names the layer and what it asks for.
    """
    asked = [name for name in _OTHER_SCORES if kwargs.get(name) is not None]
    if asked:
        raise ConfigError(
            "this model's attention does more with its scores than the back end can",
            where="model.settings.attention",
            given=f"{type(module).__name__} with {', '.join(asked)}",
            expected="sdpa, or model.settings.layout=rows",
        )


def _segments(module: nn.Module, kwargs: Mapping[str, Any]) -> Segments:
    if SEGMENTS not in kwargs:
        raise ConfigError(
            "this model does not hand on to its layers what a packed row consists of",
            where="model.settings.attention",
            given=f"cascade, {type(module).__name__}",
            expected="sdpa",
        )
    return kwargs[SEGMENTS]


def rounded(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values in the type that autocast asks for.

    Autocast reaches torch's own attention but no other: rotary embeddings leave queries and keys in float32.
    """
    kind = query.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
    return query.to(dtype), key.to(dtype), value.to(dtype)


def _flex(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, scale: float | None) -> Tensor:
    options: dict[str, Any] = {"block_mask": mask, "scale": scale, "enable_gqa": key.shape[1] != query.shape[1]}
    if query.is_cuda:
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
