"""What groups whose branches are written at once have read: their cache, whose each slot is, and one step more of it.

Each prefix is read by itself, causally and without a mask, into a key-value cache; the caches are then laid side by
side, a row for each group. All branches of a group live in its one row as in a packed row: they are read behind one
another, then a step feeds the newest token of each, and a mask lets it see the prefix and its own branch. Whose the
slots of coming steps will be is known, so one mask serves many steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from mmrlhf.models.cache import build_cache, join_caches
from mmrlhf.models.families import media_arguments
from mmrlhf.models.forward import PackedModel, compute_dtype
from mmrlhf.models.masks import attention_pattern, prefix_masks, step_masks
from mmrlhf.tensors import EncodedGroup

NOBODY = -1
# Steps that one mask is made for: it is as wide as the cache, which grows by a slot of each branch a step.
STEPS_AHEAD = 16
# Tokens of one forward, over all groups, up to which branches are read together: fewer take about as long.
READ_TOGETHER = 1024


@dataclass
class Decoding:
    """Groups that still write (G), with the S slots of their cache that are filled and their Q branches.

    owner (G, S and more): the branch that a slot belongs to; 0: what branches share; NOBODY: padding. place (G, S and
    more): its place in the branch's own sequence; both also of slots that coming steps will fill. filled: S. branch
    (G, Q): the branches, NOBODY where a group has fewer; number (G, Q): of the result, on the host; reach (G, Q): up to
    which place they see what is shared; following (G, Q), position (A, G, Q): place and position ids of the next token;
    token (G, Q): the newest one. mask (G, 1, Q, S and more): of the steps that owner and place are known for.
    """

    cache: DynamicCache
    owner: Tensor
    place: Tensor
    filled: int
    branch: Tensor
    number: Tensor
    reach: Tensor
    following: Tensor
    position: Tensor
    token: Tensor
    mask: Tensor | dict[str, Tensor]

    def keep(self, alive: Tensor) -> None:
        """Let branches go that are not alive (G, Q; on the host), and groups without any."""
        groups = alive.any(1).nonzero()[:, 0]
        alive = alive[groups]
        # the living first, in their order
        order = alive.logical_not().long().argsort(dim=1, stable=True)[:, : int(alive.sum(1).max())]
        ended = alive.gather(1, order).logical_not()
        self.number = self.number[groups].gather(1, order).masked_fill(ended, NOBODY)
        device = self.owner.device
        groups, order, ended = groups.to(device), order.to(device), ended.to(device)
        if len(groups) < len(self.owner):
            self.cache.batch_select_indices(groups)
        self.owner, self.place = self.owner[groups, : self.filled], self.place[groups, : self.filled]
        self.branch = self.branch[groups].gather(1, order).masked_fill(ended, NOBODY)
        self.reach = self.reach[groups].gather(1, order)
        self.following = self.following[groups].gather(1, order)
        self.token = self.token[groups].gather(1, order)
        self.position = self.position[:, groups].gather(2, order.expand(len(self.position), -1, -1))


def prefill(model: PackedModel, groups: Sequence[EncodedGroup], num_samples: int) -> tuple[Decoding, Tensor]:
    """Read prefixes, then branches; logits of each branch's end (G, Q, V)."""
    device = model.device
    cache, owner, place = _prefixes(model, groups)
    branches = [_starts(group, num_samples) for group in groups]
    counts = [len(own) * (num_samples if own[0].shared else 1) for own in branches]
    copies = [count // len(own) for count, own in zip(counts, branches, strict=True)]

    def of_each(values: Callable[[_Start], Tensor]) -> list[Tensor]:
        found = [torch.stack([values(start) for start in own], dim=-1) for own in branches]
        return [each.repeat_interleave(number, dim=-1) for each, number in zip(found, copies, strict=True)]

    state = Decoding(
        cache,
        owner,
        place,
        filled=owner.shape[1],
        branch=_pad([torch.arange(1, count + 1) for count in counts], NOBODY).to(device),
        number=_pad(list(torch.arange(sum(counts)).split(counts)), NOBODY),
        reach=_pad(of_each(lambda start: torch.tensor(start.reach))).to(device),
        following=_pad(of_each(lambda start: torch.tensor(start.place + len(start.ids)))).to(device),
        position=_pad_positions(of_each(lambda start: start.positions[:, -1] + 1)).to(device),
        token=torch.zeros(0),
        mask=torch.zeros(0),
    )
    ends = _read_branches(model, state, branches)
    last = [
        each[: len(own)].repeat_interleave(number, dim=0)
        for each, own, number in zip(ends, branches, copies, strict=True)
    ]
    return state, next_logits(model, pad_sequence(last, batch_first=True))


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


def _read_branches(model: PackedModel, state: Decoding, branches: Sequence[Sequence[_Start]]) -> Tensor:
    """Read the branches into the cache, the first ones of every group, then the next; states of ends (G, Q, D)."""
    rows = torch.arange(len(branches), device=model.device)[:, None]
    ends = []
    for numbers in _read_together(branches):
        read = [_branches_of_all(branches, number) for number in numbers]
        ids, positions, owner, place, reach = zip(*(values for values, _ in read), strict=True)
        hidden = _feed(
            model,
            state,
            torch.cat(ids, dim=1).to(model.device),
            torch.cat(positions, dim=2).to(model.device),
            torch.cat(owner, dim=1).to(model.device),
            torch.cat(place, dim=1).to(model.device),
            torch.cat(reach, dim=1).to(model.device),
        )
        starts = torch.tensor([0, *(each.shape[1] for each in ids[:-1])]).cumsum(0)
        last = starts + torch.stack([end for _, end in read], dim=1)
        ends.append(hidden[rows, last.to(model.device)])
    return torch.cat(ends, dim=1)


def _read_together(branches: Sequence[Sequence[_Start]]) -> list[list[int]]:
    """Numbers of branches that one forward reads, of all groups at once."""
    longest = [
        max(len(own[number].ids) for own in branches if number < len(own)) for number in range(max(map(len, branches)))
    ]
    portions, tokens = list[list[int]](), 0
    for number, length in enumerate(longest):
        tokens += len(branches) * length
        if portions and tokens <= READ_TOGETHER:
            portions[-1].append(number)
        else:
            portions, tokens = [*portions, [number]], len(branches) * length
    return portions


def _branches_of_all(branches: Sequence[Sequence[_Start]], number: int) -> tuple[tuple[Tensor, ...], Tensor]:
    """The branch of a number of every group, filled up to the longest: ids (G, L), positions (A, G, L), owner, place,
    reach (G, L); and the index of its last token (G,). A group that has fewer reads padding."""
    there = [number < len(own) for own in branches]
    nothing = next(own[number] for own in branches if number < len(own))
    read = [own[number] if is_there else nothing for own, is_there in zip(branches, there, strict=True)]
    owner = [NOBODY if not ok else 0 if start.shared else number + 1 for start, ok in zip(read, there, strict=True)]
    values = (
        _pad([start.ids for start in read]),
        _pad_positions([start.positions for start in read]),
        _pad([torch.full((len(start.ids),), own) for start, own in zip(read, owner, strict=True)], NOBODY),
        _pad([start.place + torch.arange(len(start.ids)) for start in read]),
        _pad([torch.full((len(start.ids),), start.reach) for start in read]),
    )
    return values, torch.tensor([len(start.ids) - 1 for start in read])


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


def _feed(
    model: PackedModel,
    state: Decoding,
    ids: Tensor,
    positions: Tensor,
    owner: Tensor,
    place: Tensor,
    reach: Tensor,
) -> Tensor:
    """Feed tokens (G, L) of the branches that own them; hidden states (G, L, D)."""
    state.owner = torch.cat([state.owner, owner], dim=1)
    state.place = torch.cat([state.place, place], dim=1)
    state.filled += ids.shape[1]
    pattern, dtype = attention_pattern(model.backbone.config), compute_dtype(ids.device)
    mask = step_masks(state.owner, state.place, reach, pattern, dtype)
    return model.extend(state.cache, ids, positions, mask)


def feed_newest(model: PackedModel, state: Decoding) -> Tensor:
    """Feed the newest token of every branch; hidden states (G, Q, D).

    What a branch sees of the slots so far does not change, but where layers have a window: a mask made for the last of
    the coming steps holds for those before it, cut at their slots.
    """
    if state.filled == state.owner.shape[1]:
        pattern = attention_pattern(model.backbone.config)
        steps = STEPS_AHEAD if pattern.window is None else 1
        coming = state.following[:, None] + torch.arange(steps, device=model.device)[:, None]
        state.owner = torch.cat([state.owner, state.branch.repeat(1, steps)], dim=1)
        state.place = torch.cat([state.place, coming.flatten(1)], dim=1)
        state.mask = step_masks(state.owner, state.place, state.reach, pattern, compute_dtype(model.device))
    state.filled += state.token.shape[1]
    mask = state.mask if isinstance(state.mask, dict) else state.mask[..., : state.filled]
    hidden = model.extend(state.cache, state.token, state.position, mask)
    state.position, state.following = state.position + 1, state.following + 1
    return hidden


def next_logits(model: PackedModel, hidden: Tensor) -> Tensor:
    """What the head says of hidden states (G, Q, D): logits (G, Q, V) in float32."""
    head = model.backbone.get_output_embeddings()
    assert head is not None, "a language model without a head"
    return head(hidden).float()


def _pad(rows: Sequence[Tensor], value: int = 0) -> Tensor:
    """[(L,)] -> (B, longest L)."""
    return pad_sequence(list(rows), batch_first=True, padding_value=value)


def _pad_positions(positions: Sequence[Tensor]) -> Tensor:
    """[(A, L)] -> (A, B, longest L)."""
    return pad_sequence([p.T for p in positions], batch_first=True).permute(2, 0, 1)
