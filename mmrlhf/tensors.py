"""The nouns that hold tensors, from a query as tokens to the pairs that enter a loss.

Shape legend, used in every docstring:

    T   tokens of one packed row            N   tokens whose log-probability counts (label tokens)
    G   groups in a packed row              R   responses in a packed row (sum of the groups' K)
    K   responses of one group              P   (chosen, rejected) pairs
    A   rows of the position ids: 1 for plain rotary models, 3 for M-RoPE families
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

# Of a group's media tensors: pictures (N, C, H, W) that a model is shown as one view each, without crops.
THUMBNAILS = "thumbnails"


def num_before_labels(is_label: Tensor) -> int:
    """How many tokens stand before the first label (L,) bool; all where there is none."""
    return int(is_label.float().argmax()) if bool(is_label.any()) else len(is_label)


@dataclass(frozen=True)
class Branch:
    """One response of an encoded group: the tokens behind the shared prefix.

    ids (L,), positions (A, L), labels (L,) bool: which tokens' log-probabilities count; truncated: tokens that the
    response lost; shown: what is left of its text. media: the processor's tensors of media that stand in this branch.
    """

    ids: Tensor
    positions: Tensor
    labels: Tensor
    response_hash: str
    truncated: int = 0
    shown: str = ""
    media: Mapping[str, Tensor] = field(default_factory=dict)
    num_images: int = 0
    num_videos: int = 0

    @property
    def num_context(self) -> int:
        """Tokens before the first label; all of them where there is none."""
        return num_before_labels(self.labels)


@dataclass(frozen=True)
class EncodedGroup:
    """A group as a two-level token tree: one prefix (L0,) with the media tokens, K branches.

    `media` holds the processor's tensors (pixel values, grids, sizes) of the media in the prefix, each once; where some
    response has media of its own, all media are in the branches.
    `columns` are per-response values (K,), such as rank, reward and reference log-probability.
    `in_turn`: each branch also sees the contexts of those before it, and goes on where the last of them ended.
    """

    key: str
    prefix_ids: Tensor
    prefix_positions: Tensor
    branches: tuple[Branch, ...]
    media: Mapping[str, Tensor]
    num_images: int
    num_videos: int
    pairs: tuple[tuple[int, int], ...]
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    weight: float = 1.0
    in_turn: bool = False

    @property
    def num_tokens(self) -> int:
        """Tokens that this group adds to a packed row."""
        return len(self.prefix_ids) + sum(len(branch.ids) for branch in self.branches)

    @property
    def num_shared(self) -> tuple[int, ...]:
        """How many first tokens of each branch the branches behind it see: none, or in turn its context."""
        return tuple(branch.num_context if self.in_turn else 0 for branch in self.branches)

    @property
    def row_positions(self) -> tuple[Tensor, ...]:
        """Position ids (A, L) of each branch where it stands: in turn, behind the contexts before it."""
        raised, found = 0, list[Tensor]()
        for branch, shared in zip(self.branches, self.num_shared, strict=True):
            found.append(branch.positions + raised if raised else branch.positions)
            raised += shared
        return tuple(found)


@dataclass(frozen=True)
class PackedBatch:
    """One micro-batch: several encoded groups behind one another in one row, without padding.

    input_ids (T,), position_ids (A, T); group_of_token, branch_of_token and shared (T,) say who may attend to whom:
    branch 0 is the group's prefix, otherwise 1 + the response's index in the row; a token sees what comes before it in
    its own branch, and what is shared of its group: the prefix, and contexts of branches that are read in turn.
    label_ids (N,) are predicted from row positions predict_at (N,) and belong to response label_response (N,).
    last_token (R,) is each response's last row position, group_of_response (R,) its group. pairs (P, 2) hold response
    indices (chosen, rejected).
    content (R,) numbers what responses say: two of a group share a number where a cut has made them the same.
    media: one mapping of processor tensors per group, branch_media: one per response, for media of its own.
    columns: (R,) float tensors. group_weight (G,): 0 marks a group that only fills up the step.
    """

    input_ids: Tensor
    position_ids: Tensor
    group_of_token: Tensor
    branch_of_token: Tensor
    shared: Tensor
    label_ids: Tensor
    predict_at: Tensor
    label_response: Tensor
    last_token: Tensor
    group_of_response: Tensor
    pairs: Tensor
    group_weight: Tensor
    media: tuple[Mapping[str, Tensor], ...]
    columns: Mapping[str, Tensor]
    keys: tuple[str, ...]
    response_hashes: tuple[str, ...]
    num_images: tuple[int, ...]
    num_videos: tuple[int, ...]
    content: Tensor
    truncated_tokens: int = 0
    branch_media: tuple[Mapping[str, Tensor], ...] = ()
    branch_images: tuple[int, ...] = ()

    def media_in_order(self) -> tuple[list[Mapping[str, Tensor]], list[int]]:
        """Media tensors as they come in the row, and how many pictures each holds: a group's, then its branches'."""
        media, num_images = list(self.media), list(self.num_images)
        if any(self.branch_media):
            place = 0
            for group, count in enumerate(torch.bincount(self.group_of_response, minlength=len(self.keys)).tolist()):
                own = slice(place, place := place + count)
                at = group + own.start + 1
                media[at:at] = self.branch_media[own]
                num_images[at:at] = self.branch_images[own]
        return media, num_images

    def media_of(self, group: int, response: int) -> tuple[Mapping[str, Tensor], int]:
        """Media tensors of one response's own sequence, and how many pictures they hold."""
        if self.branch_media and self.branch_media[response]:
            return self.branch_media[response], self.branch_images[response]
        return self.media[group], self.num_images[group]

    @property
    def num_tokens(self) -> int:
        """T, the length of the row."""
        return self.input_ids.shape[0]

    @property
    def equal_pairs(self) -> int:
        """Pairs of which a cut made both sides the same, so that there is nothing to compare."""
        same = self.content[self.pairs[:, 0]] == self.content[self.pairs[:, 1]]
        return int((same & (self.group_weight[self.group_of_response[self.pairs[:, 0]]] > 0)).sum())

    @property
    def num_responses(self) -> int:
        """R, the responses in the row."""
        return self.last_token.shape[0]

    def to(self, device: torch.device | str) -> PackedBatch:
        """Move every tensor to a device."""
        moved: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Tensor):
                moved[item.name] = value.to(device, non_blocking=True)
            elif isinstance(value, Mapping):
                moved[item.name] = _move(value, device)
        for name in ("media", "branch_media"):
            moved[name] = tuple(_move(media, device) for media in getattr(self, name))
        return replace(self, **moved)


def _move(tensors: Mapping[str, Tensor], device: torch.device | str) -> dict[str, Tensor]:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}


@dataclass(frozen=True)
class StepBatch:
    """One rank's share of one optimizer step.

    Ranks have the same number of micro-batches, but for those that were above the token budget and have been split.
    `num_groups` counts the step's real (weight > 0) groups over all ranks. A step has a fixed number of places, each on
    one rank: of this rank's, `num_padded` only fill up the epoch's last step, and in `num_quarantined` a neighbour at
    weight 0 stands for a damaged group. `quarantined` says of each damaged group's key why.
    """

    epoch: int
    step: int
    micro_batches: tuple[PackedBatch, ...]
    num_groups: int
    quarantined: Mapping[str, str] = field(default_factory=dict)
    num_padded: int = 0
    num_quarantined: int = 0


@dataclass(frozen=True)
class ResponseOutputs:
    """What a forward says about each response.

    logprob (R,) float32: sum of the label tokens' log-probabilities; num_tokens (R,): how many;
    hidden (R, D): hidden state at the response's last token; token_logprob (N,): each label token's, response after
    response.
    """

    logprob: Tensor
    num_tokens: Tensor
    hidden: Tensor
    token_logprob: Tensor


@dataclass(frozen=True)
class PairIndex:
    """Which (chosen, rejected) response pairs enter the loss: chosen, rejected, group (P,) int64; weight (P,) float."""

    chosen: Tensor
    rejected: Tensor
    group: Tensor
    weight: Tensor

    def __len__(self) -> int:
        return self.chosen.shape[0]
