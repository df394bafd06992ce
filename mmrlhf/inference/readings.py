"""A query whose responses are read in turn, once in every order that it is asked in, and one verdict of all of them.

A response's score depends on what stands before it, so a query is a forward of its own for every order (and for every
critique of each response). What came of them is put together as several critiques of one response are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from mmrlhf.inference.passes import GroupScores
from mmrlhf.tensors import EncodedGroup
from mmrlhf.types import PreferenceGroup

T = TypeVar("T")


@dataclass(frozen=True)
class Criticised:
    """A group with a critique behind every copy of a response, which is shown as far as its context showed it.

    critique_cut: of each copy, whether its critique reached its longest length, or lost its end; response_cut: tokens
    by which its response was shortened.
    """

    group: PreferenceGroup
    critique_cut: list[bool]
    response_cut: list[int]

    def sample(self, number: int, num_samples: int) -> Criticised:
        """Every response once, with one of its critiques, where the copies of a response lie next to one another."""
        own = slice(number, None, num_samples)
        group = replace(self.group, responses=self.group.responses[own])
        return Criticised(group, self.critique_cut[own], self.response_cut[own])


@dataclass(frozen=True)
class Asked:
    """A query as it is read once: response `order[i]` of it is the i-th of `criticised`, and of `encoded`."""

    order: tuple[int, ...]
    criticised: Criticised
    encoded: EncodedGroup


def uncriticised(group: PreferenceGroup, order: Sequence[int]) -> Criticised:
    """A group's responses in an order, with what it has of critiques."""
    chosen = replace(group, responses=tuple(group.responses[number] for number in order), pairs=())
    return Criticised(chosen, [False] * len(order), [0] * len(order))


def together(group: PreferenceGroup, read: Sequence[tuple[Asked, GroupScores]]) -> tuple[Criticised, GroupScores]:
    """All readings of a query as copies of its responses, those of a response next to one another, with their scores.

    Args:
        group: the query; a response that was not read is equal to an earlier one, whose scores it has.
    """
    hashes = [response.hash for response in group.responses]
    # place of each of the query's responses in each reading
    places = [[asked.order.index(hashes.index(name)) for asked, _ in read] for name in hashes]
    picked = [(number, place) for own in places for number, place in enumerate(own)]

    def each(values: Sequence[Sequence[T]]) -> list[T]:
        return [values[number][place] for number, place in picked]

    criticised = Criticised(
        replace(group, responses=tuple(each([asked.criticised.group.responses for asked, _ in read])), pairs=()),
        each([asked.criticised.critique_cut for asked, _ in read]),
        each([asked.criticised.response_cut for asked, _ in read]),
    )
    scores = [score for _, score in read]

    def joined(tensors: Sequence[Tensor]) -> Tensor:
        return torch.stack([tensors[number][place] for number, place in picked])

    return criticised, GroupScores(
        logprob=joined([score.logprob for score in scores]),
        num_tokens=joined([score.num_tokens for score in scores]),
        cut=joined([score.cut for score in scores]),
        token_logprob=tuple(each([score.token_logprob for score in scores])),
        reward=joined([_of_head(score.reward) for score in scores]),
        dimensions=joined([_of_head(score.dimensions) for score in scores]),
    )


def _of_head(values: Tensor | None) -> Tensor:
    assert values is not None, "a model without a score head"
    return values
