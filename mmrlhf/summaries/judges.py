"""What a generative judge was asked, and what there is to know of its verdicts beside how often they are right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mmrlhf.summaries.rankings import Estimate
from mmrlhf.summaries.summary import Summary


@dataclass(frozen=True)
class JudgeUse(Summary):
    """What a judge was asked: verdicts from the cache, newly given, failed by reason; cost where prices are known."""

    cached: int
    asked: int
    failed: Mapping[str, int]
    cost: float | None = None


@dataclass(frozen=True)
class JudgeFindings(Summary):
    """A generative judge on a benchmark of reward models (`mmrlhf.judging.tally`).

    Args:
        model: its name.
        ballots: how queries were asked, by the ballot's name.
        verdicts: that were asked for; no_verdict: those that are none, by reason.
        excluded_pairs: without a number because of them; excluded: queries that these are of, which ACC+ leaves out.
        consistent: share of comparisons whose every order chose the same response, over those with all their orders;
            None where one order was asked, or responses were rated one by one.
        places: share of verdicts that chose what stood at each place, by the number of responses shown; a judge that
            is led by nothing else chooses each equally often where all orders are asked.
        tokens_read, tokens_written: of all verdicts, about, whether asked now or kept from before; cost: of these.
        use: what this run asked.
    """

    model: str
    ballots: Mapping[str, int]
    verdicts: int
    no_verdict: Mapping[str, int]
    excluded: int
    excluded_pairs: int
    places: Mapping[str, Sequence[float]]
    tokens_read: int
    tokens_written: int
    use: JudgeUse
    consistent: Estimate | None = None
    cost: float | None = None
