"""Continue every branch of many groups at once, computing and storing each prefix (and its media) once.

Prefixes of all groups run as one padded batch into a key-value cache. All branches of a group then live in its one row,
side by side as in a packed row: a step feeds the newest token of each, and a mask lets it see the prefix and its own
branch. So a prefix's keys and values are held once and read once a step, however many branches continue it. Groups
that are finished leave the batch, and branches that are finished leave the step, in bulk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from mmrlhf.models.cache import build_cache
from mmrlhf.models.decoding_rows import generate_rows
from mmrlhf.models.families import media_arguments
from mmrlhf.models.forward import PackedModel, autocast, compute_dtype
from mmrlhf.models.masks import attention_pattern, prefix_masks, step_masks
from mmrlhf.types import EncodedGroup

NOBODY = -1


@dataclass
class _Decoding:
    """Groups that still write (G), with their cache of S slots and their Q branches that still write.

    owner (G, S): the branch that a slot belongs to; 0: the prefix; NOBODY: padding. place (G, S): its place in the
    branch's own sequence. branch (G, Q): the branches, NOBODY where a group has fewer; number (G, Q): of the result;
    following (G, Q), position (A, G, Q): place and position ids of the next token; token (G, Q): the newest one.
    """

    cache: DynamicCache
    owner: Tensor
    place: Tensor
    branch: Tensor
    number: Tensor
    following: Tensor
    position: Tensor
    token: Tensor

    def keep(self, alive: Tensor) -> None:
        """Let branches go that are not alive (G, Q), and groups without any."""
        groups = alive.any(1).nonzero()[:, 0]
        if len(groups) < len(alive):
            self.cache.batch_select_indices(groups)
        self.owner, self.place, alive = self.owner[groups], self.place[groups], alive[groups]
        # the living first, in their order
        order = alive.logical_not().long().argsort(dim=1, stable=True)[:, : int(alive.sum(1).max())]
        ended = alive.gather(1, order).logical_not()
        self.branch = self.branch[groups].gather(1, order).masked_fill(ended, NOBODY)
        self.number = self.number[groups].gather(1, order).masked_fill(ended, NOBODY)
        self.following = self.following[groups].gather(1, order)
        self.token = self.token[groups].gather(1, order)
        self.position = self.position[:, groups].gather(2, order.expand(len(self.position), -1, -1))


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
    with _answering(model), autocast(model.settings, model.device):
        if model.layout == "rows":
            return generate_rows(
                model,
                groups,
                max_new_tokens=max_new_tokens,
                end_tokens=end_tokens,
                temperature=temperature,
                num_samples=num_samples,
                seed=seed,
            )
        state, logits = _prefill(model, groups, num_samples)
        written = iter(_decode(model, state, logits, max_new_tokens, end_tokens, temperature, seed))
    counts = [len(group.branches) * num_samples for group in groups]
    return [[next(written) for _ in range(count)] for count in counts]


@contextmanager
def _answering(model: PackedModel) -> Iterator[None]:
    """Evaluation mode, and the former mode afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _prefill(model: PackedModel, groups: Sequence[EncodedGroup], num_samples: int) -> tuple[_Decoding, Tensor]:
    """Run prefixes, then all branches side by side; logits of each branch's end (G, Q, V)."""
    device = model.device
    cache = build_cache(model.backbone.config.get_text_config())
    owner, place = _prefixes(model, cache, groups)
    branches = [[branch for branch in group.branches for _ in range(num_samples)] for group in groups]
    lengths = [[len(branch.ids) for branch in each] for each in branches]
    starts = [len(group.prefix_ids) for group in groups]
    owners = [torch.repeat_interleave(torch.arange(1, len(own) + 1), torch.tensor(own)) for own in lengths]
    places = [torch.cat([start + torch.arange(n) for n in own]) for start, own in zip(starts, lengths, strict=True)]
    ids = _pad([torch.cat([branch.ids for branch in each]) for each in branches]).to(device)
    positions = _pad_positions([torch.cat([branch.positions for branch in each], dim=1) for each in branches])
    state = _Decoding(
        cache,
        owner,
        place,
        branch=_pad([torch.arange(1, len(own) + 1) for own in lengths], NOBODY).to(device),
        number=_pad(list(torch.arange(sum(map(len, lengths))).split([len(own) for own in lengths])), NOBODY).to(device),
        following=_pad([start + torch.tensor(own) for start, own in zip(starts, lengths, strict=True)]).to(device),
        position=_pad_positions(
            [torch.stack([branch.positions[:, -1] + 1 for branch in each], dim=1) for each in branches]
        ).to(device),
        token=torch.zeros(0),
    )
    hidden = _step(model, state, ids, positions.to(device), _pad(owners, NOBODY).to(device), _pad(places).to(device))
    ends = _pad([torch.tensor(own).cumsum(0) - 1 for own in lengths]).to(device)
    rows = torch.arange(len(groups), device=device)[:, None]
    return state, _logits(model, hidden[rows, ends])


def _prefixes(model: PackedModel, cache: DynamicCache, groups: Sequence[EncodedGroup]) -> tuple[Tensor, Tensor]:
    """Run all prefixes as one padded batch into the cache; the owner and place (G, P) of its slots."""
    device = model.device
    mask = _pad([torch.ones_like(g.prefix_ids) for g in groups]).to(device)
    media = [{name: tensor.to(device) for name, tensor in group.media.items()} for group in groups]
    ids = _pad([g.prefix_ids for g in groups]).to(device)
    pattern = attention_pattern(model.backbone)
    model.extend(
        cache,
        ids,
        _pad_positions([g.prefix_positions for g in groups]).to(device),
        mask if pattern.window is None else prefix_masks(mask, ids, pattern),
        **media_arguments(model.backbone, ids, media, [g.num_images for g in groups]),
    )
    return mask - 1, mask.cumsum(1) - 1


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
    written: list[list[int]] = [[] for _ in range(int(state.number.max()) + 1)]
    for step in range(max_new_tokens):
        token = _choose(logits, temperature, generator)
        alive = (state.branch != NOBODY) & ~torch.isin(token, ends)
        for number, each, writes in zip(*(t.flatten().tolist() for t in (state.number, token, alive)), strict=True):
            if writes:
                written[number].append(each)
        if step + 1 == max_new_tokens or not alive.any():
            break
        state.token, state.branch = token, state.branch.masked_fill(~alive, NOBODY)
        # Gathering the cache of other groups costs about as much as a step, so they leave in bulk.
        left = int(alive.any(1).sum()) * int(alive.sum(1).max())
        if left < 0.7 * alive.numel():
            state.keep(alive)
        hidden = _step(model, state, state.token, state.position, state.branch, state.following)
        logits = _logits(model, hidden)
        state.position, state.following = state.position + 1, state.following + 1
    return written


def _step(model: PackedModel, state: _Decoding, ids: Tensor, positions: Tensor, owner: Tensor, place: Tensor) -> Tensor:
    """Feed tokens (G, L) of the branches that own them; hidden states (G, L, D)."""
    state.owner = torch.cat([state.owner, owner], dim=1)
    state.place = torch.cat([state.place, place], dim=1)
    pattern, dtype = attention_pattern(model.backbone), compute_dtype(ids.device)
    mask = step_masks(state.owner, state.place, ids.shape[1], pattern, dtype)
    return model.extend(state.cache, ids, positions, mask)


def _choose(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """The next token (G, Q) by logits (G, Q, V)."""
    if temperature <= 0:
        return logits.argmax(-1)
    chances = (logits / temperature).softmax(-1).flatten(0, 1)
    return torch.multinomial(chances, 1, generator=generator)[:, 0].view(logits.shape[:2])


def _logits(model: PackedModel, hidden: Tensor) -> Tensor:
    head = model.backbone.get_output_embeddings()
    assert head is not None, "a language model without a head"
    return head(hidden).float()


def _pad(rows: Sequence[Tensor], value: int = 0) -> Tensor:
    """[(L,)] -> (B, longest L)."""
    return pad_sequence(list(rows), batch_first=True, padding_value=value)


def _pad_positions(positions: Sequence[Tensor]) -> Tensor:
    """[(A, L)] -> (A, B, longest L)."""
    return pad_sequence([p.T for p in positions], batch_first=True).permute(2, 0, 1)
