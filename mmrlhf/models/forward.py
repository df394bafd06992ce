"""The packed forward: every image encoded once, every prompt read once, every response scored once.

Follows: the tree attention of prefix-shared preference training (arXiv 2410.20305), through the stock model's own
`attention_mask` (4-D) and `position_ids`. Differs in: media, any number of responses, several groups per row,
log-probabilities only at response positions and in chunks that are recomputed in backward.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint
from transformers import Cache, PreTrainedModel

from mmrlhf.errors import ModelError
from mmrlhf.models.attention import SEGMENTS, choose_back_end, use_packed_attention
from mmrlhf.models.families import base_model, check_packable, media_arguments, token_types, vision_modules
from mmrlhf.models.features import VisionFeatures
from mmrlhf.models.layout import Layout, grouped, segmented, single_row
from mmrlhf.models.masks import attention_pattern
from mmrlhf.models.settings import ModelSettings
from mmrlhf.models.trainable import set_trainable
from mmrlhf.tensors import PackedBatch, ResponseOutputs


class PackedModel(nn.Module):
    """A stock backbone that scores packed rows, with an optional score head.

    Args:
        backbone: a transformers image-text-to-text model; its parts are frozen or adapted in place as settings say.
        settings: see `ModelSettings`.
        score_head: reads the reward off the last hidden state of a response (`mmrlhf.models.heads`).

    Attributes:
        layout: `packed` or `rows`: what runs. With `settings.layout=auto` it is packed where the kinds of layers allow;
            `mmrlhf.models.selfcheck` looks closer.
        vision_features: where features of pictures are kept, or None (they are computed in every forward).
    """

    def __init__(self, backbone: PreTrainedModel, settings: ModelSettings, score_head: nn.Module | None = None) -> None:
        super().__init__()
        adapters = set_trainable(backbone, settings)
        self.backbone = backbone
        self.score_head = score_head
        self.settings = settings
        self.layout = settings.layout
        if settings.layout == "auto":
            self.layout = "rows" if check_packable(backbone) else "packed"
        self.vision_features: VisionFeatures | None = None
        self._pattern = attention_pattern(backbone.config)
        if self.layout == "packed" and self._pattern.plain:
            use_packed_attention(backbone)
        # In a list, so that the adapters' owner is not registered as a second path to the same parameters.
        self._adapters = [adapters] if adapters is not None else []

    @property
    def adapters(self) -> Any:
        """The peft model that owns the adapters, or None."""
        return self._adapters[0] if self._adapters else None

    @property
    def device(self) -> torch.device:
        """Where it computes: where its parameters lie, but for shards, which may be on the host."""
        return next(each for each in self.backbone.parameters() if not isinstance(each, DTensor)).device

    def train(self, mode: bool = True) -> PackedModel:
        """As in torch, but a frozen vision tower stays in evaluation mode."""
        super().train(mode)
        if self.settings.vision == "frozen":
            for module in vision_modules(self.backbone):
                module.eval()
        return self

    def forward(self, batch: PackedBatch, layout: Layout | None = None) -> ResponseOutputs:
        """Score every response of a row: log-probability (R,), token count (R,), last hidden state (R, D).

        Args:
            layout: of a packed row, where it is there already (a simulation without numbers has to bring it).
        """
        if self.layout == "rows":
            at_labels, at_end = self._hidden_rows(batch)
        else:
            hidden = self._hidden_packed(batch, layout or self._layout_of(batch))
            at_labels, at_end = hidden[batch.predict_at], hidden[batch.last_token]
        token_logprob = self._label_logprobs(at_labels, batch.label_ids)
        zeros = torch.zeros(batch.num_responses, device=token_logprob.device)
        return ResponseOutputs(
            logprob=zeros.index_add(0, batch.label_response, token_logprob),
            num_tokens=zeros.index_add(0, batch.label_response, torch.ones_like(token_logprob)),
            hidden=at_end,
            token_logprob=token_logprob,
        )

    def score(self, outputs: ResponseOutputs) -> Tensor:
        """Rewards (R,) of a forward's responses; raises as `scores`."""
        return self.scores(outputs)[:, 0]

    def scores(self, outputs: ResponseOutputs) -> Tensor:
        """Rewards and scores on the head's dimensions (R, 1 + dimensions) of a forward's responses, float32.

        The head computes in float32 whatever the precision around it: in bfloat16, close scores would tie.

        Raises:
            ModelError: where the model has no score head.
        """
        if self.score_head is None:
            raise ModelError("this model has no score head", expected="a folder written by the reward stage")
        with torch.autocast(outputs.hidden.device.type, enabled=False):
            return self.score_head(outputs.hidden.float())

    @contextmanager
    def adapters_off(self) -> Iterator[None]:
        """Run as the reference: the same weights with the adapters switched off.

        Raises:
            ModelError: where the model has no adapters.
        """
        if self.adapters is None:
            raise ModelError(
                "the reference is asked from the adapters, but this model has none",
                where="reference=adapter",
                expected="model.settings.language=lora",
                fix="train adapters, or use the cached reference log-probabilities",
            )
        with self.adapters.disable_adapter():
            yield

    def extend(self, cache: Cache, ids: Tensor, positions: Tensor, mask: Any, **media: Tensor) -> Tensor:
        """Read tokens (B, L) behind those in a cache; hidden states (B, L, D).

        A second forward of a sharded model, which gathers its parameters for this call, too (`models.sharding`).
        """
        outputs = base_model(self.backbone)(
            input_ids=ids,
            attention_mask=mask,
            position_ids=_model_positions(positions),
            past_key_values=cache,
            use_cache=True,
            **media,
        )
        return outputs.last_hidden_state

    def _hidden_packed(self, batch: PackedBatch, layout: Layout) -> Tensor:
        """Hidden states of the whole row (T, D)."""
        outputs = base_model(self.backbone)(
            input_ids=layout.ids,
            attention_mask=layout.mask,  # type: ignore[arg-type]
            position_ids=_model_positions(layout.positions),
            use_cache=False,
            **({SEGMENTS: layout.segments} if layout.segments is not None else {}),
            **self._media_arguments(layout.ids, *batch.media_in_order()),
        )
        return layout.unpack(outputs.last_hidden_state)

    def _layout_of(self, batch: PackedBatch) -> Layout:
        """A row as the back end of its attention wants it."""
        back_end = choose_back_end(self.settings.attention, batch, self._pattern)
        if back_end == "flex":
            return single_row(batch)
        if back_end == "cascade":
            return segmented(batch)
        return grouped(batch, self._pattern, compute_dtype(batch.input_ids.device))

    def _hidden_rows(self, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        """The reference layout: one padded row per response, one call per group; states at labels and ends."""
        at_labels = [torch.empty(0)] * batch.num_responses
        at_end = []
        for group in range(len(batch.keys)):
            responses = (batch.group_of_response == group).nonzero()[:, 0].tolist()
            rows = [_row_of_response(batch, group, response) for response in responses]
            media = [batch.media_of(group, response) for response in responses]
            hidden = self._hidden_of_rows(batch, rows, media)
            for states, row, response in zip(hidden, rows, responses, strict=True):
                wanted = batch.predict_at[batch.label_response == response]
                at_labels[response] = states[torch.searchsorted(row, wanted)]
                at_end.append(states[len(row) - 1])
        return torch.cat(at_labels), torch.stack(at_end)

    def _hidden_of_rows(
        self, batch: PackedBatch, rows: list[Tensor], media: Sequence[tuple[Mapping[str, Tensor], int]]
    ) -> Tensor:
        """Hidden states (K, longest row, D) of one group's responses, each with its media."""
        ids = pad_sequence([batch.input_ids[row] for row in rows], batch_first=True)
        positions = [batch.position_ids[:, row].T for row in rows]
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        outputs = base_model(self.backbone)(
            input_ids=ids,
            attention_mask=mask,
            position_ids=_model_positions(pad_sequence(positions, batch_first=True).permute(2, 0, 1)),
            use_cache=False,
            **self._media_arguments(ids, [tensors for tensors, _ in media], [count for _, count in media]),
        )
        return outputs.last_hidden_state

    def _media_arguments(
        self, ids: Tensor, media: Sequence[Mapping[str, Tensor]], num_images: Sequence[int]
    ) -> dict[str, Any]:
        """The media of a call, as pixels or, where they are kept, as features."""
        if self.vision_features is None:
            return media_arguments(self.backbone, ids, media, num_images)
        encoded = self.vision_features(media, num_images)
        return {"mm_encoder_outputs": encoded, **token_types(self.backbone, ids)}

    def _label_logprobs(self, hidden: Tensor, label_ids: Tensor) -> Tensor:
        """Log-probabilities (N,) of the labels, in chunks whose logits are recomputed in backward, all but the last."""
        head = self.backbone.get_output_embeddings()
        assert head is not None, "a language model without a head"
        count = -(-len(label_ids) // self.settings.logprob_chunk) or 1
        *others, last = zip(hidden.chunk(count), label_ids.chunk(count), strict=True)
        # Backward begins with the last chunk, so keeping its logits takes no more memory than computing them again.
        pieces = [_recomputed(head, *chunk) for chunk in others]
        return torch.cat([*pieces, _chunk_logprobs(head, *last)])


def _recomputed(head: nn.Module, hidden: Tensor, labels: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return _chunk_logprobs(head, hidden, labels)
    return checkpoint(_chunk_logprobs, head, hidden, labels, use_reentrant=False)  # type: ignore[return-value]


def _chunk_logprobs(head: nn.Module, hidden: Tensor, labels: Tensor) -> Tensor:
    return -cross_entropy(head(hidden).float(), labels, reduction="none")


def compute_dtype(device: torch.device) -> torch.dtype:
    """What attention runs in on a device now; a mask of that type is used as it is by every layer."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return torch.float32


def _model_positions(positions: Tensor) -> Tensor:
    """Position ids as models take them: (B, T) for one axis, (3, B, T) for M-RoPE."""
    return positions[0] if positions.shape[0] == 1 else positions


def _row_of_response(batch: PackedBatch, group: int, response: int) -> Tensor:
    """Row positions of one response's complete sequence (L,): what it sees of its group, which is all the shared
    tokens before its end, and its branch."""
    before = torch.arange(batch.num_tokens, device=batch.shared.device) <= batch.last_token[response]
    seen = (batch.group_of_token == group) & batch.shared & before
    return (seen | (batch.branch_of_token == response + 1)).nonzero()[:, 0]


def autocast(settings: ModelSettings, device: torch.device) -> Any:
    """The precision a forward runs in: bf16 autocast, or nothing."""
    if settings.precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()
