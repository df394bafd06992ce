"""Continue every branch of many groups at once, computing each prefix (and its media) once.

Prefixes of all groups run as one padded batch into a key-value cache; the cache rows are then copied once per branch,
the branches are fed, and all rows decode together until each has written its end token. Rows that are finished leave
the batch, so long stragglers do not pay for the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from mmrlhf.models.cache import build_cache
from mmrlhf.models.families import base_model, media_arguments
from mmrlhf.models.forward import PackedModel, autocast
from mmrlhf.models.generate_rows import generate_rows
from mmrlhf.models.masks import attention_pattern, cached_masks
from mmrlhf.types import EncodedGroup


@dataclass
class _Decoding:
    """Rows that still write: cache, key mask (B, S), next position (A, B), last token (B,), their row numbers."""

    cache: DynamicCache
    mask: Tensor
    position: Tensor
    token: Tensor
    rows: Tensor

    def keep(self, alive: Tensor) -> None:
        self.cache.batch_select_indices(alive)
        self.mask, self.position = self.mask[alive], self.position[:, alive]
        self.token, self.rows = self.token[alive], self.rows[alive]


# Not inference_mode: while training, a sharded model keeps what it gathers here for its next steps.
@torch.no_grad()
def generate(
    model: PackedModel,
    groups: Sequence[EncodedGroup],
    *,
    max_new_tokens: int,
    end_tokens: Sequence[int],
    temperature: float = 0.0,
    num_samples: int = 1,
    seed: int = 0,
) -> list[list[list[int]]]:
    """Continue each branch of each group `num_samples` times.

    Args:
        groups: encoded contexts (`Encoder.context`); every branch is continued.
        end_tokens: ids that end a continuation; they are not part of the result.
        temperature: 0 takes the most likely token.

    Returns:
        per group, its branches' continuations as token ids, branch by branch, the samples of a branch adjacent.
    """
    was_training = model.training
    model.eval()
    if model.layout == "rows":
        with autocast(model.settings, model.device):
            rows = generate_rows(
                model,
                groups,
                max_new_tokens=max_new_tokens,
                end_tokens=end_tokens,
                temperature=temperature,
                num_samples=num_samples,
                seed=seed,
            )
        model.train(was_training)
        return rows
    with autocast(model.settings, model.device):
        state, logits = _prefill(model, groups, num_samples)
        written = _decode(model, state, logits, max_new_tokens, end_tokens, temperature, seed)
    model.train(was_training)
    counts = [len(group.branches) * num_samples for group in groups]
    rows = iter(written)
    return [[next(rows) for _ in range(count)] for count in counts]


def _prefill(model: PackedModel, groups: Sequence[EncodedGroup], num_samples: int) -> tuple[_Decoding, Tensor]:
    """Run prefixes once, copy the cache per branch and sample, run the branches; logits of each branch's end (B, V)."""
    device = model.device
    cache = build_cache(model.backbone.config.get_text_config())
    mask = pad_sequence([torch.ones_like(g.prefix_ids) for g in groups], batch_first=True).to(device)
    media = [{name: tensor.to(device) for name, tensor in group.media.items()} for group in groups]
    prefixes = pad_sequence([g.prefix_ids for g in groups], batch_first=True).to(device)
    _hidden(
        model,
        cache,
        ids=prefixes,
        positions=_pad_positions([g.prefix_positions for g in groups]).to(device),
        mask=mask,
        **media_arguments(model.backbone, prefixes, media, [g.num_images for g in groups]),
    )
    branches = [(i, branch) for i, g in enumerate(groups) for branch in g.branches for _ in range(num_samples)]
    owner = torch.tensor([i for i, _ in branches], device=device)
    cache.batch_select_indices(owner)
    ids = [branch.ids for _, branch in branches]
    mask = torch.cat([mask[owner], pad_sequence([torch.ones_like(i) for i in ids], batch_first=True).to(device)], dim=1)
    positions = [branch.positions for _, branch in branches]
    hidden = _hidden(
        model,
        cache,
        ids=pad_sequence(ids, batch_first=True).to(device),
        positions=_pad_positions(positions).to(device),
        mask=mask,
    )
    ends = torch.tensor([len(i) - 1 for i in ids], device=device)
    logits = _logits(model, hidden[torch.arange(len(ids), device=device), ends])
    following = torch.stack([p[:, -1] + 1 for p in positions], dim=1).to(device)
    rows = torch.arange(len(ids), device=device)
    return _Decoding(cache, mask, following, logits.argmax(-1), rows), logits


def _decode(
    model: PackedModel,
    state: _Decoding,
    logits: Tensor,
    max_new_tokens: int,
    end_tokens: Sequence[int],
    temperature: float,
    seed: int,
) -> list[list[int]]:
    ends = torch.tensor(list(end_tokens), device=logits.device)
    generator = torch.Generator(device=logits.device).manual_seed(seed)
    written: list[list[int]] = [[] for _ in range(len(state.rows))]
    done = torch.zeros(len(state.rows), dtype=torch.bool, device=logits.device)
    for step in range(max_new_tokens):
        state.token = _choose(logits, temperature, generator)
        done |= torch.isin(state.token, ends)
        for row, token, finished in zip(state.rows.tolist(), state.token.tolist(), done.tolist(), strict=True):
            if not finished:
                written[row].append(token)
        if done.all() or step + 1 == max_new_tokens:
            break
        # Copying the cache costs about as much as one step, so rows leave in bulk.
        if done.float().mean() > 0.3:
            state.keep((~done).nonzero()[:, 0])
            done = torch.zeros(len(state.rows), dtype=torch.bool, device=logits.device)
        state.mask = torch.cat([state.mask, torch.ones_like(state.mask[:, :1])], dim=1)
        positions = state.position[..., None]
        hidden = _hidden(model, state.cache, ids=state.token[:, None], positions=positions, mask=state.mask)
        logits = _logits(model, hidden[:, -1])
        state.position = state.position + 1
    return written


def _choose(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    if temperature <= 0:
        return logits.argmax(-1)
    return torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)[:, 0]


def _hidden(
    model: PackedModel, cache: DynamicCache, *, ids: Tensor, positions: Tensor, mask: Tensor, **media: Any
) -> Tensor:
    pattern = attention_pattern(model.backbone)
    outputs = base_model(model.backbone)(
        input_ids=ids,
        attention_mask=mask if pattern.window is None else cached_masks(mask, ids, pattern),
        position_ids=positions[0] if positions.shape[0] == 1 else positions,
        past_key_values=cache,
        use_cache=True,
        **media,
    )
    return outputs.last_hidden_state


def _logits(model: PackedModel, hidden: Tensor) -> Tensor:
    head = model.backbone.get_output_embeddings()
    assert head is not None, "a language model without a head"
    return head(hidden).float()


def _pad_positions(positions: Sequence[Tensor]) -> Tensor:
    """[(A, L)] -> (A, B, longest L)."""
    return pad_sequence([p.T for p in positions], batch_first=True).permute(2, 0, 1)
