"""What groups whose branches are written at once have read: their cache, whose each slot is, and one step more of it.

Each group is read by itself into a key-value cache, its prefix and its branches behind one another as in a packed row;
the caches are then laid side by side, a row for each group. A step feeds the newest token of each branch, and a mask
lets it see the prefix and its own branch. Whose the slots of coming steps will be is known, so one mask serves many
steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

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
# Tokens of branches that one forward reads, a single branch apart: its mask has a row for each, none for the prefix.
READ_TOGETHER = 2048


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
    """Read prefixes and branches; logits of each branch's end (G, Q, V)."""
    device = model.device
    branches = [_starts(group, num_samples) for group in groups]
    read = [_read(model, group, own) for group, own in zip(groups, branches, strict=True)]
    counts = [len(own) * (1 if own[0].owner else num_samples) for own in branches]
    copies = [count // len(own) for count, own in zip(counts, branches, strict=True)]

    def of_each(values: Callable[[_Start], Tensor]) -> list[Tensor]:
        found = [torch.stack([values(start) for start in own], dim=-1) for own in branches]
        return [each.repeat_interleave(number, dim=-1) for each, number in zip(found, copies, strict=True)]

    owner = _pad([each.owner for each in read], NOBODY).to(device)
    state = Decoding(
        join_caches([each.cache for each in read]),
        owner,
        place=_pad([each.place for each in read]).to(device),
        filled=owner.shape[1],
        branch=_pad([torch.arange(1, count + 1) for count in counts], NOBODY).to(device),
        number=_pad(list(torch.arange(sum(counts)).split(counts)), NOBODY),
        reach=_pad(of_each(lambda start: torch.tensor(start.reach))).to(device),
        following=_pad(of_each(lambda start: torch.tensor(start.place + len(start.ids)))).to(device),
        position=_pad_positions(of_each(lambda start: start.positions[:, -1] + 1)).to(device),
        token=torch.zeros(0),
        mask=torch.zeros(0),
    )
    ends = [each.ends.repeat_interleave(number, dim=0) for each, number in zip(read, copies, strict=True)]
    return state, next_logits(model, pad_sequence(ends, batch_first=True))


class _Start(NamedTuple):
    """A branch that is continued: ids (L,), positions (A, L), the place of its first token, who owns it (0: others see
    it), and up to which place what is written behind it sees what is shared."""

    ids: Tensor
    positions: Tensor
    place: int
    owner: int
    reach: int


def _starts(group: EncodedGroup, num_samples: int) -> list[_Start]:
    """What is read of a group before anything is written: each branch once a sample, or once where others see it."""
    place = len(group.prefix_ids)
    found = []
    for branch, positions in zip(group.branches, group.row_positions, strict=True):
        if group.in_turn:
            found.append(_Start(branch.ids, positions, place, 0, place + len(branch.ids)))
            place += len(branch.ids)
        else:
            numbers = range(len(found) + 1, len(found) + num_samples + 1)
            found += [_Start(branch.ids, positions, place, number, place) for number in numbers]
    return found


class _Read(NamedTuple):
    """A group that was read: its cache of one row, owner (S,) and place (S,) of the slots, states of ends (Q, D)."""

    cache: DynamicCache
    owner: Tensor
    place: Tensor
    ends: Tensor


def _read(model: PackedModel, group: EncodedGroup, starts: Sequence[_Start]) -> _Read:
    """Read a prefix and the branches behind it, as many as may be in the prefix's own forward."""
    pattern, device = attention_pattern(model.backbone.config), model.device
    cache = build_cache(model.backbone.config.get_text_config())
    ids, positions = group.prefix_ids, group.prefix_positions
    owner, place = torch.zeros(len(ids), dtype=torch.int64), torch.arange(len(ids))
    tensors = {name: tensor.to(device) for name, tensor in group.media.items()}
    media = media_arguments(model.backbone, ids[None].to(device), [tensors], [group.num_images])
    if not pattern.plain:  # masks of prefixes have another form there
        _read_prefix(model, cache, group, media)
        ids, positions, media = ids[:0], positions[:, :0], {}
    ends = []
    for portion in _read_together(starts):
        lengths = torch.tensor([len(start.ids) for start in portion])
        owner = torch.cat([owner, torch.tensor([start.owner for start in portion]).repeat_interleave(lengths)])
        place = torch.cat([place, *(start.place + torch.arange(len(start.ids)) for start in portion)])
        reach = torch.tensor([start.reach for start in portion]).repeat_interleave(lengths)
        owners, places, reached = (each[None].to(device) for each in (owner, place, reach))
        mask = step_masks(owners, places, reached, pattern, compute_dtype(device))
        ids = torch.cat([ids, *(start.ids for start in portion)])
        positions = torch.cat([positions, *(start.positions for start in portion)], dim=1)
        hidden = model.extend(cache, ids[None].to(device), positions[:, None].to(device), mask, **media)
        ends.append(hidden[0, (len(ids) - lengths.sum() + lengths.cumsum(0) - 1).to(device)])
        ids, positions, media = ids[:0], positions[:, :0], {}
    return _Read(cache, owner, place, torch.cat(ends))


def _read_prefix(model: PackedModel, cache: DynamicCache, group: EncodedGroup, media: dict[str, Any]) -> None:
    pattern, ids = attention_pattern(model.backbone.config), group.prefix_ids[None].to(model.device)
    valid = torch.ones_like(ids)
    mask = valid if pattern.window is None else prefix_masks(valid, ids, pattern)
    model.extend(cache, ids, group.prefix_positions[:, None].to(model.device), mask, **media)


def _read_together(starts: Sequence[_Start]) -> list[list[_Start]]:
    """The branches of a group, those together that one forward reads."""
    portions, tokens = [list[_Start]()], 0
    for start in starts:
        if portions[-1] and tokens + len(start.ids) > READ_TOGETHER:
            portions, tokens = [*portions, []], 0
        portions[-1].append(start)
        tokens += len(start.ids)
    return portions


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
