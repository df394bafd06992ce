"""What asking is: the queries and how they are answered, who answers, and the answers of each query."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mmrlhf.chain.runtime import Runtime
from mmrlhf.endpoints.completions import CUT, Answer
from mmrlhf.inference.sharing import Ranks
from mmrlhf.ranges import Count, Natural, NonNegative, check_draws, check_fields
from mmrlhf.records.quarantine import Quarantine
from mmrlhf.responders.spending import CHARS_PER_TOKEN, Purse
from mmrlhf.shards.index import Index
from mmrlhf.summaries.responses import AskingEstimate

# query key -> its answers, in the order of samples
Answers = Mapping[str, Sequence[Answer]]


@dataclass(frozen=True)
class AnswerSettings:
    """How queries are answered.

    Args:
        num_samples: answers to each; several need a temperature above 0.
        temperature: 0 takes the likeliest token.
        max_new_tokens: longest answer, in tokens.
        seed: draws answers.
    """

    num_samples: Count = 1
    temperature: NonNegative = 1.0
    max_new_tokens: Count = 256
    seed: Natural = 0

    def __post_init__(self) -> None:
        check_fields(self)
        check_draws("answers to a query", self.num_samples, self.temperature)


@dataclass(frozen=True)
class Asked:
    """Queries that somebody is asked.

    Args:
        index, rows: the queries (n,); those in the quarantine are not asked.
        how: how they are answered.
        work: folder of what is finished, for answerers that keep it there.
        name: of the responder, in progress bars and batches.
        memo: what was found out about the queries, so that an estimate and the asking read them once.
    """

    index: Index
    rows: np.ndarray
    how: AnswerSettings
    work: Path
    runtime: Runtime
    quarantine: Quarantine
    ranks: Ranks = field(default_factory=Ranks)
    name: str = "policy"
    memo: dict[str, Any] = field(default_factory=dict)

    def key(self, row: int) -> str:
        """A row's key."""
        return self.index.entries[int(row)].key

    def usable(self) -> list[int]:
        """The rows that are not left out."""
        return [int(row) for row in self.rows if self.key(row) not in self.quarantine]


class Answerer(Protocol):
    """Whoever answers queries."""

    @property
    def kind(self) -> str:
        """What it is, in one word."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """What determines its answers, for what is kept of them."""
        ...

    def estimate(self, asked: Asked) -> AskingEstimate:
        """What asking will take; asks nothing."""
        ...

    def answers(self, asked: Asked, purse: Purse) -> Answers:
        """Ask, go on from what is there, and return all answers; processes that do not lead return nothing.

        A query that cannot be asked goes into the quarantine and has none.

        Raises:
            UserError: it cannot be asked, the purse is empty, or more fails than may. What was answered is kept.
        """
        ...


def text_of(answer: Answer, *, keep_cut: bool = True) -> str:
    """The text of an answer that may be used; empty otherwise."""
    return answer.text if not answer.problem or (keep_cut and answer.problem == CUT) else ""


def tokens_written(answer: Answer, longest: int) -> int:
    """How long an answer is: as its author counts, else by its characters; one that was cut has the longest length."""
    if answer.problem == CUT:
        return longest
    return round(len(answer.text) / CHARS_PER_TOKEN) if answer.use.tokens_out is None else answer.use.tokens_out


def problems_of(said: Answers) -> dict[str, int]:
    """How many answers have a problem, by its kind."""
    return dict(Counter(each.reason for answers in said.values() for each in answers if each.problem).most_common())
