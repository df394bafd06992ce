"""Bytes of a training step and of scoring, predicted from what `mmrlhf.models.footprint` has counted of a model."""

from __future__ import annotations

from dataclasses import dataclass

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
    adapter_per_token: that an adapted map works on for a token and backward does not keep, at the end of forward;
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
    adapter_per_token: float
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
            layer += max(_BACKWARD_OF_LAYER * self.layer_per_token, self.adapter_per_token) * row_tokens
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
