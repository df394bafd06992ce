"""What a model needs for training, counted from its configuration: no weight is loaded, nothing is computed.

The model is built on torch's meta device. What backward keeps for each token is counted by running the language model
there and listing the tensors that autograd saves, so it holds for any architecture, adapters and checkpointing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AutoModelForImageTextToText

from mmrlhf.models.families import LANGUAGE_NAMES, base_model, parts
from mmrlhf.models.load import load_config
from mmrlhf.models.masks import AttentionPattern, attention_pattern
from mmrlhf.models.settings import ModelSettings
from mmrlhf.models.step_bytes import BF16, FLOAT32, Footprint
from mmrlhf.models.storage import storage_of, stored_bytes
from mmrlhf.models.tower_shards import LARGE_TOWER, tower_parameters
from mmrlhf.models.trainable import set_trainable

_NAME = "footprint"
_TOKENS = 256

# what has been counted in this process: the model of a configuration with its settings
_COUNTED: dict[tuple[str, str, int], Footprint] = {}


def footprint(
    path: str | Path, settings: ModelSettings, *, large_tower: int = LARGE_TOWER, on_host: bool | None = None
) -> Footprint:
    """Read a checkpoint's configuration and count, once in a process for each configuration.

    Args:
        path: folder or hub id.
        settings: how the model is stored and trained.
        large_tower: see `mmrlhf.models.sharding.Sharding`.
        on_host: whether it computes on processors; None: as on this machine.
    """
    config = load_config(path)
    known = (config.to_json_string(), repr(settings), large_tower)
    if known not in _COUNTED:
        _COUNTED[known] = _count(config, settings, large_tower)
    on_host = not torch.cuda.is_available() if on_host is None else on_host
    return replace(_COUNTED[known], masked=_has_mask(attention_pattern(config), settings, on_host=on_host))


def _count(config: Any, settings: ModelSettings, large_tower: int) -> Footprint:
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa")
        storage = storage_of(model, settings)
        compact = {id(model.get_parameter(name)): stored_bytes(model, storage, name) for name in _compact(storage)}
        set_trainable(model, settings)
        tower = tower_parameters(model, large_tower)
    of_part = parts(model)
    split = {id(parameter) for parameter in (*of_part["language"], *tower)}
    rounded = {id(model.get_parameter(name)) for name, kind in storage.items() if kind is torch.bfloat16}
    head: Any = model.get_output_embeddings()
    embedding: Any = model.get_input_embeddings()
    tied = head.weight is embedding.weight
    counts = {(kept, trains): 0 for kept in (True, False) for trains in (True, False)}
    for parameter in model.parameters():
        if id(parameter) not in compact:
            counts[id(parameter) in split, parameter.requires_grad] += parameter.numel()
    text: Any = config.get_text_config()
    bf16 = settings.precision == "bf16"
    saved = _saved_per_token(model, text.hidden_size, bf16)
    layer = saved / text.num_hidden_layers
    if settings.gradient_checkpointing:
        layer = _count(config, replace(settings, gradient_checkpointing=False), large_tower).layer_per_token
    return Footprint(
        sharded=counts[True, True] + counts[True, False],
        replicated=counts[False, True] + counts[False, False],
        compact=sum(compact.values()),
        compact_sharded=sum(size for each, size in compact.items() if each in split & rounded),
        mapped=sum(size for each, size in compact.items() if each in rounded),
        tower=sum(compact.get(id(parameter), FLOAT32 * parameter.numel()) for parameter in tower),
        trainable_sharded=counts[True, True],
        trainable_replicated=counts[False, True],
        trainable_head=sum(parameter.numel() for parameter in head.parameters() if parameter.requires_grad),
        root=0 if id(head.weight) in compact else head.weight.numel(),
        compact_root=compact.get(id(head.weight), 0.0),
        embedding=0 if tied or id(embedding.weight) in compact else embedding.weight.numel(),
        tied=tied,
        saved_per_token=saved,
        recomputed_per_token=layer if settings.gradient_checkpointing else 0.0,
        layer_per_token=layer,
        adapter_per_token=_in_adapter(model, of_part["language"], text.hidden_size) if bf16 else 0.0,
        projector_per_token=_saved_in_projector(model, of_part["projector"], BF16 if bf16 else FLOAT32),
        cache_per_token=2 * text.num_hidden_layers * _key_width(text) * (BF16 if bf16 else FLOAT32),
        layers=text.num_hidden_layers,
        vocabulary=text.vocab_size,
        logprob_chunk=settings.logprob_chunk,
        bf16=bf16,
        masked=False,
    )


def _has_mask(pattern: AttentionPattern, settings: ModelSettings, *, on_host: bool) -> bool:
    """Whether the back end that `models.attention` chooses has one."""
    return settings.attention == "sdpa" or (settings.attention == "auto" and (on_host or not pattern.plain))


def _in_adapter(model: nn.Module, language: list[nn.Parameter], width: int) -> float:
    """Bytes that the adapted map that takes most works on for a token in bfloat16, and that backward does not keep.

    They are the map's input, that in float32 again (as peft's adapters want it), three results, and what the layer's
    normed states are in float32 meanwhile.
    """
    own = {id(parameter) for parameter in language}
    adapted: list[Any] = [each for each in model.modules() if hasattr(each, "lora_A")]
    maps = [each for each in adapted if id(each.base_layer.weight) in own]
    sizes = [(FLOAT32 + BF16) * each.in_features + 3 * BF16 * each.out_features for each in maps]
    return max(sizes) + FLOAT32 * width if sizes else 0.0


def _saved_in_projector(model: nn.Module, projector: list[nn.Parameter], bytes_of_number: int) -> float:
    """Bytes that a projector's backward keeps for a visual token: inputs of its maps, and what lies between them."""
    own = {id(parameter) for parameter in projector if parameter.requires_grad}
    maps = [each for each in model.modules() if isinstance(each, nn.Linear) and id(each.weight) in own]
    between = sum(each.out_features for each in maps[:-1])
    return bytes_of_number * (sum(each.in_features for each in maps) + between)


def _compact(storage: Mapping[str, torch.dtype | str]) -> list[str]:
    """Names of the parameters that are stored in fewer than 32 bits."""
    return [name for name, kind in storage.items() if kind is not torch.float32]


def _key_width(text: Any) -> int:
    """Numbers in a layer's keys for one token."""
    heads = text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    return width * (getattr(text, "num_key_value_heads", None) or heads)


def _saved_per_token(model: Any, width: int, bf16: bool) -> float:
    """Bytes that the language model's backward keeps for one token, weights left out."""
    base: Any = base_model(model)
    language = next(getattr(base, name) for name in LANGUAGE_NAMES if hasattr(base, name))
    language.set_attn_implementation(_NAME)
    if bf16:
        _round_products(language)
    model.train()
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in weights:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    states = torch.zeros(1, _TOKENS, width, device="meta", requires_grad=True)
    positions = torch.arange(_TOKENS, device="meta")[None]
    mask = torch.zeros(1, 1, 1, _TOKENS, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        language(inputs_embeds=states, position_ids=positions, attention_mask=mask, use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / _TOKENS


def _round_products(language: nn.Module) -> None:
    """Let matrix products take and give bfloat16 and nothing else, as autocast does (it has no meta device)."""
    for module in language.modules():
        if isinstance(module, nn.Linear):
            module.to(torch.bfloat16)
            module.register_forward_pre_hook(lambda _, inputs: tuple(each.to(torch.bfloat16) for each in inputs))


class _FusedAttention(torch.autograd.Function):
    """Keeps what fused attention keeps: queries, keys, values and the result, but no scores."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return ctx.saved_tensors[:3]


def _attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
    # rotated in float32, attended to in the precision of products
    query, key = query.to(value.dtype), key.to(value.dtype)
    return _FusedAttention.apply(query, key, value).transpose(1, 2).contiguous(), None


AttentionInterface.register(_NAME, _attend)
