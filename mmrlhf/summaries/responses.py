"""What asking models for answers was taken to need, and what came: the summary of `respond`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mmrlhf.summaries.left_out import Quarantined
from mmrlhf.summaries.summary import Summary


@dataclass(frozen=True)
class AskingEstimate(Summary):
    """What asking one responder is taken to need, said before it is asked; None: not known.

    `answered` of the `answers` are there already; tokens, cost and seconds are of the others. `most_` are tokens and
    cost where every answer is as long as it may be.
    """

    answers: int
    answered: int
    tokens_in: int | None
    tokens_out: int | None
    most_tokens_out: int | None
    cost: float | None
    most_cost: float | None
    seconds: float | None


@dataclass(frozen=True)
class ResponderUse(Summary):
    """What one responder said.

    usable: answers that became responses; `without` counts the others by reason; `cut` are those at their longest
    length, which are among the usable ones where these are kept. tries: why tries before an answer brought nothing.
    models: who answered, as they call themselves. tokens and cost: of all answers, as far as they are known.
    """

    kind: str
    answers: int
    usable: int
    cut: int
    without: Mapping[str, int]
    tries: Mapping[str, int]
    models: Mapping[str, int]
    tokens_in: int
    tokens_out: int
    cost: float | None
    estimate: AskingEstimate


@dataclass(frozen=True)
class RespondSummary(Summary):
    """Stage `respond`: queries that have responses now, and what came of every responder.

    merged: answers that say the same as another one to the query.
    """

    queries: int
    groups: int
    queries_with_too_few: int
    responses: int
    merged: int
    responses_per_group: Mapping[str, int]
    responders: Mapping[str, ResponderUse]
    quarantined: Quarantined
    digest: str
