"""Continue every branch of many groups at once, computing and storing each prefix (and its media) once.

Each prefix is read by itself, causally and without a mask, into a key-value cache; the caches are then laid side by
side, a row for each group. All branches of a group live in its one row as in a packed row: they are read one after
another, then a step feeds the newest token of each, and a mask lets it see the prefix and its own branch. So a prefix's
keys and values are held once and read once a step, however many branches continue it. Branches of a group that are read
in turn are shared like the prefix, each by those behind it; what is written behind one sees the branches up to it.
Groups that are finished leave the batch, and branches that are finished leave the step, in bulk. Groups of like length
run together, as many as their caches have room for (`cache_tokens`).

One policy for what is written, here and where single rows are continued (`decoding_rows`): plain greedy choice or plain
sampling at a temperature; the checkpoint's own generation_config is read for its end tokens and for nothing else
(repetition penalties, top-k, forced or suppressed tokens are not applied); placeholders of media are never written.

What is drawn for a branch depends on (seed, key, response hash, sample) alone, not on what runs beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from mmrlhf.models.cache import build_cache, join_caches
from mmrlhf.models.decoding_rows import Continuation, Writing, configured_ends, draw_seed, generate_rows, placeholders
from mmrlhf.models.families import media_arguments
from mmrlhf.models.forward import PackedModel, autocast, compute_dtype
from mmrlhf.models.masks import attention_pattern, prefix_masks, step_masks
from mmrlhf.types import EncodedGroup

NOBODY = -1


@dataclass
class _Decoding:
    """Groups that still write (G), with their cache of S slots and their Q branches that still write.

    owner (G, S): the branch that a slot belongs to; 0: what branches share; NOBODY: padding. place (G, S): its place in
    the branch's own sequence. branch (G, Q): the branches, NOBODY where a group has fewer; number (G, Q): of the
    result; reach (G, Q): up to which place they see what is shared; following (G, Q), position (A, G, Q): place and
    position ids of the next token; token (G, Q): the newest one.
    """

    cache: DynamicCache
    owner: Tensor
    place: Tensor
    branch: Tensor
    number: Tensor
    reach: Tensor
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
        self.reach = self.reach[groups].gather(1, order)
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
    cache_tokens: int | None = None,
) -> list[list[Continuation]]:
    """Continue each branch of each group `num_samples` times.

    Args:
        groups: encoded contexts (`Encoder.context`); every branch is continued.
        end_tokens: ids that end a continuation, beside those of the checkpoint's generation_config.
        temperature: 0 takes the most likely token.
        seed: of what is drawn at a temperature.
        cache_tokens: tokens whose keys and values are held at once, a single group apart; None: all groups at once.

    Returns:
        per group, its branches' continuations, branch by branch, the samples of a branch adjacent.
    """
    parts = [_apart(group) for group in groups]
    alone = [part for each in parts for part in each]
    found: list[list[Continuation]] = [[] for _ in alone]
    how = Writing(
        max_new_tokens, sorted({*end_tokens, *configured_ends(model)}), placeholders(model), temperature, seed
    )
    with _answering(model), autocast(model.settings, model.device):
        for places in _portions(alone, num_samples, max_new_tokens, cache_tokens):
            own = [alone[place] for place in places]
            if model.layout == "rows":
                written = iter(generate_rows(model, own, how, num_samples))
            else:
                state, logits = _prefill(model, own, num_samples)
                draws = None if temperature <= 0 else _draws(own, num_samples, max_new_tokens, seed)
                written = iter(_decode(model, state, logits, how, draws))
            for place in places:
                found[place] = [next(written) for _ in range(len(alone[place].branches) * num_samples)]
    continued = iter(found)
    return [[each for _ in part for each in next(continued)] for part in parts]


def _apart(group: EncodedGroup) -> list[EncodedGroup]:
    """The group; or, where branches hold media, one for each, whose prefix is all that the branch reads but one token.

    Media are read with a prefix, not in steps beside other branches.
    """
    if not any(branch.media for branch in group.branches):
        return [group]
    found = []
    for branch in group.branches:
        ids = torch.cat([group.prefix_ids, branch.ids])
        positions = torch.cat([group.prefix_positions, branch.positions], dim=1)
        rest = replace(branch, ids=ids[-1:], positions=positions[:, -1:], labels=branch.labels[-1:], media={})
        shown = {"media": branch.media, "num_images": branch.num_images, "num_videos": branch.num_videos}
        before = {"prefix_ids": ids[:-1], "prefix_positions": positions[:, :-1]}
        found.append(replace(group, branches=(rest,), pairs=(), **before, **shown))
    return found


def cache_size(prefix: int, branches: Sequence[int], num_samples: int, max_new_tokens: int) -> int:
    """Tokens whose keys and values a group holds when all its branches have been written to their longest."""
    return prefix + num_samples * sum(length + max_new_tokens for length in branches)


def _portions(
    groups: Sequence[EncodedGroup], num_samples: int, max_new_tokens: int, cache_tokens: int | None
) -> list[list[int]]:
    """Places of groups that run together: the longest first, each row as long as its portion's first."""
    sizes = [
        cache_size(len(group.prefix_ids), [len(branch.ids) for branch in group.branches], num_samples, max_new_tokens)
        for group in groups
    ]
    portions: list[list[int]] = []
    for place in sorted(range(len(groups)), key=lambda place: -sizes[place]):
        fits = portions and (cache_tokens is None or (len(portions[-1]) + 1) * sizes[portions[-1][0]] <= cache_tokens)
        if fits:
            portions[-1].append(place)
        else:
            portions.append([place])
    return portions


def _draws(groups: Sequence[EncodedGroup], num_samples: int, max_new_tokens: int, seed: int) -> np.ndarray:
    """Uniform numbers in [0, 1) for every token of every continuation (N, max_new_tokens)."""
    rows = [
        np.random.Generator(np.random.Philox(key=draw_seed(seed, group.key, branch.response_hash, sample))).random(
            max_new_tokens
        )
        for group in groups
        for branch in group.branches
        for sample in range(num_samples)
    ]
    return np.stack(rows)


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
    """Read prefixes, then branches; logits of each branch's end (G, Q, V)."""
    device = model.device
    cache, owner, place = _prefixes(model, groups)
    branches = [_starts(group, num_samples) for group in groups]
    counts = [len(own) * (num_samples if own[0].shared else 1) for own in branches]
    copies = [count // len(own) for count, own in zip(counts, branches, strict=True)]

    def of_each(values: Callable[[_Start], Tensor]) -> list[Tensor]:
        found = [torch.stack([values(start) for start in own], dim=-1) for own in branches]
        return [each.repeat_interleave(number, dim=-1) for each, number in zip(found, copies, strict=True)]

    state = _Decoding(
        cache,
        owner,
        place,
        branch=_pad([torch.arange(1, count + 1) for count in counts], NOBODY).to(device),
        number=_pad(list(torch.arange(sum(counts)).split(counts)), NOBODY).to(device),
        reach=_pad(of_each(lambda start: torch.tensor(start.reach))).to(device),
        following=_pad(of_each(lambda start: torch.tensor(start.place + len(start.ids)))).to(device),
        position=_pad_positions(of_each(lambda start: start.positions[:, -1] + 1)).to(device),
        token=torch.zeros(0),
    )
    ends = _read_branches(model, state, branches)
    last = [
        each[: len(own)].repeat_interleave(number, dim=0)
        for each, own, number in zip(ends, branches, copies, strict=True)
    ]
    return state, _logits(model, pad_sequence(last, batch_first=True))


class _Start(NamedTuple):
    """A branch that is continued: ids (L,), positions (A, L), the place of its first token, whether others see it, and
    up to which place what is written behind it sees what is shared."""

    ids: Tensor
    positions: Tensor
    place: int
    shared: bool
    reach: int


def _starts(group: EncodedGroup, num_samples: int) -> list[_Start]:
    """What is read of a group before anything is written: each branch once a sample, or once where others see it."""
    place = len(group.prefix_ids)
    found = []
    for branch, positions in zip(group.branches, group.row_positions, strict=True):
        if group.in_turn:
            found.append(_Start(branch.ids, positions, place, True, place + len(branch.ids)))
            place += len(branch.ids)
        else:
            found += [_Start(branch.ids, positions, place, False, place)] * num_samples
    return found


def _read_branches(model: PackedModel, state: _Decoding, branches: Sequence[Sequence[_Start]]) -> Tensor:
    """Read the branches into the cache, the first of every group, then the second; hidden states of ends (G, Q, D)."""
    device, rows = model.device, torch.arange(len(branches), device=model.device)
    nothing = branches[0][0]
    ends = []
    for number in range(max(len(own) for own in branches)):
        there = [number < len(own) for own in branches]
        read = [own[number] if is_there else nothing for own, is_there in zip(branches, there, strict=True)]
        lengths = [len(start.ids) for start in read]
        owner = [
            torch.full((len(start.ids),), NOBODY if not ok else 0 if start.shared else number + 1)
            for start, ok in zip(read, there, strict=True)
        ]
        hidden = _step(
            model,
            state,
            _pad([start.ids for start in read]).to(device),
            _pad_positions([start.positions for start in read]).to(device),
            _pad(owner, NOBODY).to(device),
            _pad([start.place + torch.arange(len(start.ids)) for start in read]).to(device),
            _pad([torch.full((len(start.ids),), start.reach) for start in read]).to(device),
        )
        ends.append(hidden[rows, torch.tensor(lengths, device=device) - 1])
    return torch.stack(ends, dim=1)


def _prefixes(model: PackedModel, groups: Sequence[EncodedGroup]) -> tuple[DynamicCache, Tensor, Tensor]:
    """Read every prefix by itself; one cache with a row for each, and the owner and place (G, P) of its slots."""
    pattern, device = attention_pattern(model.backbone.config), model.device
    caches = []
    for group in groups:
        cache = build_cache(model.backbone.config.get_text_config())
        ids = group.prefix_ids[None].to(device)
        valid = torch.ones_like(ids)
        media = {name: tensor.to(device) for name, tensor in group.media.items()}
        model.extend(
            cache,
            ids,
            group.prefix_positions[:, None].to(device),
            valid if pattern.window is None else prefix_masks(valid, ids, pattern),
            **media_arguments(model.backbone, ids, [media], [group.num_images]),
        )
        caches.append(cache)
    owner = _pad([torch.zeros(len(group.prefix_ids), dtype=torch.int64) for group in groups], NOBODY).to(device)
    place = _pad([torch.arange(len(group.prefix_ids)) for group in groups]).to(device)
    return join_caches(caches), owner, place


def _decode(
    model: PackedModel, state: _Decoding, logits: Tensor, how: Writing, draws: np.ndarray | None
) -> list[Continuation]:
    """Write on from the logits (G, Q, V) of every branch's end."""
    ends = torch.tensor(how.end_tokens, device=logits.device, dtype=torch.int64)
    written: list[list[int]] = [[] for _ in range(int(state.number.max()) + 1)]
    ended_by: dict[int, int] = {}
    for step in range(how.max_new_tokens):
        drawn = None if draws is None else torch.from_numpy(draws[:, step]).to(logits.device)[state.number]
        token = _choose(logits, how, drawn)
        writing = state.branch != NOBODY
        alive = writing & ~torch.isin(token, ends)
        columns = (t.flatten().tolist() for t in (state.number, token, writing, alive))
        for number, each, wrote, goes_on in zip(*columns, strict=True):
            if goes_on:
                written[number].append(each)
            elif wrote:
                ended_by[number] = each
        if step + 1 == how.max_new_tokens or not alive.any():
            break
        state.token, state.branch = token, state.branch.masked_fill(~alive, NOBODY)
        # Gathering the cache of other groups costs about as much as a step, so they leave in bulk.
        left = int(alive.any(1).sum()) * int(alive.sum(1).max())
        if left < 0.7 * alive.numel():
            state.keep(alive)
        hidden = _step(model, state, state.token, state.position, state.branch, state.following, state.reach)
        logits = _logits(model, hidden)
        state.position, state.following = state.position + 1, state.following + 1
    return [Continuation(ids, ended_by.get(number)) for number, ids in enumerate(written)]


def _step(
    model: PackedModel,
    state: _Decoding,
    ids: Tensor,
    positions: Tensor,
    owner: Tensor,
    place: Tensor,
    reach: Tensor,
) -> Tensor:
    """Feed tokens (G, L) of the branches that own them; hidden states (G, L, D)."""
    state.owner = torch.cat([state.owner, owner], dim=1)
    state.place = torch.cat([state.place, place], dim=1)
    pattern, dtype = attention_pattern(model.backbone.config), compute_dtype(ids.device)
    mask = step_masks(state.owner, state.place, reach, pattern, dtype)
    return model.extend(state.cache, ids, positions, mask)


def _choose(logits: Tensor, how: Writing, drawn: Tensor | None) -> Tensor:
    """The next token (G, Q) by logits (G, Q, V); at a temperature the one in whose share of [0, 1) the number falls."""
    if how.never:
        logits[..., how.never] = float("-inf")
    if drawn is None:
        return logits.argmax(-1)
    reached = (logits.double() / how.temperature).softmax(-1).cumsum(-1)
    # the last share ends at the sum itself, which rounding may leave below 1
    return torch.searchsorted(reached, (drawn.clamp(min=0) * reached[..., -1])[..., None], right=True)[..., 0]


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
