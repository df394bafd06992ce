"""Memory of a training step, predicted from a model's configuration: no weight is loaded, nothing is computed.

The model is built on torch's meta device. What backward keeps for each token is counted by running the language model
there and listing the tensors that autograd saves, so it holds for any architecture, adapters and checkpointing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AutoModelForImageTextToText

from mmrlhf.models.families import LANGUAGE_NAMES, base_model, parts
from mmrlhf.models.load import load_config
from mmrlhf.models.masks import AttentionPattern, attention_pattern
from mmrlhf.models.settings import ModelSettings
from mmrlhf.models.storage import storage_of, stored_bytes
from mmrlhf.models.tower_shards import LARGE_TOWER, tower_parameters
from mmrlhf.models.trainable import set_trainable

_NAME = "footprint"
_TOKENS = 256
FLOAT32, BF16 = 4, 2
# Gradients that exist at once in a decoder layer's backward, as a share of what the layer keeps: those of its MLP.
# Rounded up: a layer alone, in float32 on torch's meta device, has .2 where the MLP is twice as wide as the model and
# .35 to .43 in the sizes of Qwen2 0.5B and 7B; whole steps of six shapes are within a tenth with it (docs/memory.md).
_BACKWARD_OF_LAYER = 0.45
# Layers whose gathered parameters exist at once under FSDP2: the one that computes and the one that is fetched. By how
# FSDP2 prefetches; held against simulated steps of 2 and 8 ranks (tests/test_memory_table.py).
_GATHERED_LAYERS = 2


@dataclass(frozen=True)
class _Whole:
    """Bytes of parameters in another form than they are held in: as forward ends, in the backward of the head, of a
    layer, of the last of them (when all gradients are there), and of the embedding."""

    forward: float = 0.0
    head: float = 0.0
    layer: float = 0.0
    last_layer: float = 0.0
    embedding: float = 0.0


@dataclass(frozen=True)
class Footprint:
    """What a model needs, in numbers of parameters and bytes.

    sharded: parameters in float32 that FSDP splits; replicated: the others; trainable_sharded, trainable_replicated
    and trainable_head of them train. compact: bytes of what is stored in fewer than 32 bits, which is none of
    these; compact_sharded of it are split, and mapped of it are pages of a checkpoint's files, where those are
    bf16. tower: bytes of a split vision tower while it is whole. root: parameters of the head, which FSDP gathers
    for a whole step; compact_root: its bytes where it is one of those; embedding: parameters of an embedding of its
    own (none where it is `tied` to the head).

    saved_per_token: bytes that backward keeps for a token of a row, over all layers; recomputed_per_token: bytes that
    one recomputed layer adds for a token during its backward; layer_per_token: that one layer works on for a token;
    projector_per_token: that backward keeps of a visual token in a projector that trains; cache_per_token: keys and
    values of a token, of all layers; vocabulary and logprob_chunk: of the largest logits; bf16: whether it computes in
    bfloat16; masked: whether attention has a mask.
    """

    sharded: int
    replicated: int
    compact: float
    compact_sharded: float
    mapped: float
    tower: float
    trainable_sharded: int
    trainable_replicated: int
    trainable_head: int
    root: int
    compact_root: float
    embedding: int
    tied: bool
    saved_per_token: float
    recomputed_per_token: float
    layer_per_token: float
    projector_per_token: float
    cache_per_token: float
    layers: int
    vocabulary: int
    logprob_chunk: int
    bf16: bool
    masked: bool

    def predict(
        self,
        *,
        row_tokens: int,
        label_tokens: int,
        num_shards: int,
        visual_tokens: int = 0,
        num_groups: int = 1,
        forwards: int = 1,
        frozen_copy: float = 0.0,
        accumulates: bool = False,
        moments: float = 2 * FLOAT32,
        offloaded: bool = False,
    ) -> dict[str, float]:
        """Bytes on one rank's device when they are most: parameters, gradients, optimizer, activations and their total.

        That is either when backward begins, with everything that forward has kept and the logits of a chunk, or when it
        ends, with all gradients; or, where a large tower is split, when all ranks have gathered it.

        Args:
            row_tokens: of the largest micro-batch.
            label_tokens: of them, tokens whose log-probability counts; visual_tokens: of media.
            num_shards: ranks that share one model (1 without FSDP).
            num_groups: in the row.
            forwards: of the row before its backward.
            frozen_copy: bytes of a reference that lies whole beside the policy, however that is split.
            accumulates: whether gradients of other micro-batches are there when backward begins.
            moments: bytes that the optimizer keeps for a number that trains.
            offloaded: whether shards, with their gradients and state, lie on the host (`host_bytes`).
        """
        kept = 0.0 if offloaded else 1 / num_shards  # share of what is split that lies on the device
        held = FLOAT32 * (kept * self.sharded + self.replicated) + self.compact - self.compact_sharded * (1 - kept)
        trainable = kept * self.trainable_sharded + self.trainable_replicated
        chunks = max(1, -(-label_tokens // self.logprob_chunk))
        # In a chunk's backward softmax, its gradient and that of what it was made of exist at once, in float32.
        logits = 3 * FLOAT32 * self.vocabulary * -(-label_tokens // chunks)
        # What branches may see (`attention=sdpa`): their tokens by those of a group.
        mask = self._computed * label_tokens * row_tokens / num_groups if self.masked else 0
        recomputes = self.recomputed_per_token > 0
        gathers = num_shards > 1 or offloaded
        whole = self._gathered() if gathers else self._copies(recomputes)
        layer = self.recomputed_per_token * row_tokens
        if not (recomputes and self.bf16):  # recomputed in bfloat16, a layer gives back what it has used fast enough
            layer += _BACKWARD_OF_LAYER * self.layer_per_token * row_tokens
        # The head's gradient comes with the first chunk: the others' logits and the layers meet it.
        first = FLOAT32 * kept * self.trainable_head if chunks > 1 or layer > logits else 0
        outside = self.projector_per_token * visual_tokens + mask
        last_layer = (1 + _BACKWARD_OF_LAYER) * self.layer_per_token * row_tokens
        saved = forwards * self.saved_per_token * row_tokens
        begins = {
            "gradients": FLOAT32 * trainable if accumulates else first,
            "activations": saved + max(logits + whole.forward, logits + whole.head, layer + whole.layer) + outside,
        }
        ends = {
            "gradients": FLOAT32 * trainable,
            "activations": max(last_layer + whole.last_layer, whole.embedding) + outside,
        }
        encodes = {
            "gradients": FLOAT32 * trainable if accumulates else 0,
            "activations": self.tower if gathers else 0,
        }
        found = {
            "parameters": held + frozen_copy,
            "optimizer": moments * trainable,
            **max(begins, ends, encodes, key=lambda moment: sum(moment.values())),
        }
        return found | {"total": sum(found.values())}

    def host_bytes(self, *, num_shards: int, moments: float = 2 * FLOAT32) -> float:
        """Bytes on the host of one rank's shards, their gradients and the optimizer's state, where they lie there."""
        parameters = FLOAT32 * self.sharded + self.compact_sharded
        return (parameters + (FLOAT32 + moments) * self.trainable_sharded) / num_shards

    @property
    def whole_bytes(self) -> float:
        """Bytes of all parameters as they are stored, before any are split."""
        return FLOAT32 * (self.sharded + self.replicated) + self.compact

    @property
    def _computed(self) -> int:
        """Bytes of a number that products compute in."""
        return BF16 if self.bf16 else FLOAT32

    def _copies(self, recomputes: bool) -> _Whole:
        """Autocast's bfloat16 copies of float32 weights.

        What backward needs keeps them alive; a layer that is recomputed makes its own again. Those of a frozen tower
        are gone at once.
        """
        if not self.bf16:
            return _Whole()
        layer = BF16 * self._in_layer
        if recomputes:
            cached = BF16 * (self.trainable_sharded + self.trainable_replicated)
            return _Whole(forward=cached, head=BF16 * self.root, layer=layer, last_layer=layer)
        needed = BF16 * (self.sharded + self.trainable_replicated)
        return _Whole(head=needed, layer=needed, last_layer=layer)

    def _gathered(self) -> _Whole:
        """Whole parameters and gradients under FSDP.

        The root's are there from forward to the end of backward. A layer's are while it computes, with its gradient
        and that in float32 which is sent; an embedding of its own comes last.
        """
        trains = self.trainable_head > 0
        root = self.root * (FLOAT32 if self.tied else self._computed) + self.compact_root
        roots = root * (2 if trains else 1)
        compact = (self.compact_sharded - self.compact_root) / self.layers
        fetched = _GATHERED_LAYERS * (self._computed * self._in_layer + compact)
        layer = roots + fetched + (self._computed + FLOAT32) * self._in_layer * trains
        embedding = roots + (3 if trains else 1) * FLOAT32 * self.embedding
        if self.tied and trains:  # the embedding's gradient is added to the head's, and the sum is sent
            embedding += 2 * FLOAT32 * self.root
        return _Whole(forward=root + fetched, head=roots, layer=layer, last_layer=layer, embedding=embedding)

    @property
    def _in_layer(self) -> float:
        """Parameters of a decoder layer that are stored in float32."""
        return (self.sharded - self.root - self.embedding) / self.layers

    def predict_scoring(self, *, cache_tokens: int, row_tokens: int) -> dict[str, float]:
        """Bytes that writing critiques and scoring them takes on one device: parameters, cache, activations, total.

        Args:
            cache_tokens: whose keys and values are held at once, at most.
            row_tokens: of the largest row that is scored, or of the longest prompt, if that is more.
        """
        logits = 2 * FLOAT32 * self.vocabulary * min(row_tokens, self.logprob_chunk)
        found: dict[str, float] = {
            "parameters": self.whole_bytes,
            # a layer's cache grows by a copy
            "cache": self.cache_per_token * (1 + 1 / self.layers) * cache_tokens,
            # nothing is kept but what one layer works on
            "activations": self.layer_per_token * row_tokens + logits,
        }
        return found | {"total": sum(found.values())}


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
