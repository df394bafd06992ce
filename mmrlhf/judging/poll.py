"""A generative judge asked about the queries of a benchmark: requests, verdicts, and what was found.

All is asked at once, so that the estimate of its cost comes first. What came is kept by request (`Judge`): a run that
was stopped asks for the rest alone.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from mmrlhf.endpoints.completions import Answer
from mmrlhf.errors import DataError, Lines
from mmrlhf.files import written
from mmrlhf.judging.ballots import Ballot
from mmrlhf.judging.judge_model import CHARS_PER_TOKEN, NO_VERDICT, Judge, Request
from mmrlhf.judging.polling import Polling, Question, questions_of, request_of
from mmrlhf.judging.tally import Tally, Vote
from mmrlhf.judging.verdict_words import NoVerdict
from mmrlhf.records.quarantine import Quarantine
from mmrlhf.shards.index import Index
from mmrlhf.summaries.judges import JudgeFindings
from mmrlhf.summaries.rankings import Estimate
from mmrlhf.types import PreferenceGroup

log = logging.getLogger(__name__)

VERDICTS = "verdicts.jsonl"
_EXAMPLES = 3


@dataclass(frozen=True)
class _Asked:
    """A query without its media, and what is asked about it."""

    group: PreferenceGroup
    name: str
    ballot: Ballot
    requests: Mapping[Question, Request]


def poll(
    index: Index, rows: np.ndarray, judge: Judge, polling: Polling, quarantine: Quarantine, out: Path
) -> tuple[Tally, JudgeFindings]:
    """Ask about every query; writes `out/verdicts.jsonl`, every verdict with its words.

    Args:
        quarantine: takes queries that cannot be read, or asked about.

    Raises:
        ConfigError: nobody judges, or it would cost more than it may.
        HubError: the endpoint is down; what came is kept.
        DataError: more answers did not come than `max_missing` allows, or none holds a verdict.
    """
    asked = list(_asked(index, rows, polling, quarantine))
    requests = {
        f"{number} {question.name}": request
        for number, each in enumerate(asked)
        for question, request in each.requests.items()
    }
    said = judge.ask_votes(requests, votes=polling.votes, temperature=polling.temperature)
    _check_missing(said, judge.settings.max_missing)
    tally = Tally()
    with written(out / VERDICTS) as part, part.open("w", encoding="utf-8") as file:
        for number, each in enumerate(asked):
            answers = {question: said[f"{number} {question.name}"] for question in each.requests}
            votes = {q: [_vote(each.ballot, q, answer) for answer in own] for q, own in answers.items()}
            tally.add(each.group, each.name, each.ballot, votes)
            for row in _rows(each, answers, votes):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    if tally.excluded == sum(tally.ballots.values()):
        words = [answer.text[-80:] or answer.problem for own in said.values() for answer in own]
        raise DataError(
            "the judge has given no verdicts that can be read",
            where=judge.settings.model, given=Lines(words[:_EXAMPLES]),
            expected="a verdict as the request asks for", fix="stages.rewardbench.polling.ballot says how it is asked",
        )  # fmt: skip
    return tally, _findings(tally, judge, requests, said)


def _asked(index: Index, rows: np.ndarray, polling: Polling, quarantine: Quarantine) -> Iterator[_Asked]:
    """What is asked about each query, in order; media are read for their digests, and not held."""
    for row in rows:
        try:
            whole = index.read(int(row))
            name, ballot = polling.ballot_for(whole)
            questions = questions_of(whole, ballot, polling)
        except DataError as error:
            quarantine.add(index.entries[int(row)].key, error)
            continue
        read = partial(index.read, int(row))
        requests = {question: request_of(whole, ballot, question, polling, read) for question in questions}
        if requests:
            yield _Asked(index.read(int(row), media=False), name, ballot, requests)


def _vote(ballot: Ballot, question: Question, answer: Answer) -> Vote:
    if answer.problem:
        return Vote(None, answer.problem.split(":")[0])
    try:
        return Vote(ballot.read(answer.text, len(question.shown)))
    except NoVerdict:
        return Vote(None, NO_VERDICT)


def _rows(
    each: _Asked, answers: Mapping[Question, Sequence[Answer]], votes: Mapping[Question, Sequence[Vote]]
) -> Iterator[dict[str, object]]:
    for question, own in answers.items():
        for number, (answer, vote) in enumerate(zip(own, votes[question], strict=True)):
            rated = each.ballot.form == "rating"
            chosen = vote.chosen if rated or vote.chosen is None else question.shown[vote.chosen]
            yield {
                "key": each.group.key, "ballot": each.name, "shown": list(question.shown), "vote": number,
                "rating" if rated else "chosen": chosen, "reason": vote.reason, "words": answer.text,
            }  # fmt: skip


def _check_missing(said: Mapping[str, Sequence[Answer]], share_allowed: float) -> None:
    """Answers that did not come may come the next time; more of them than allowed end the run."""
    failed = [answer.problem for own in said.values() for answer in own if answer.failed]
    asked = sum(map(len, said.values()))
    if len(failed) > share_allowed * asked:
        raise DataError(
            "verdicts are missing",
            given=Lines([f"{len(failed)} of {asked}", *failed[:_EXAMPLES]]),
            expected=f"at most {share_allowed:.1%} (judge.max_missing); a missing verdict is no score",
            fix="run the same command again: verdicts that came are kept, and only the others are asked",
        )  # fmt: skip


def _findings(
    tally: Tally, judge: Judge, requests: Mapping[str, Request], said: Mapping[str, Sequence[Answer]]
) -> JudgeFindings:
    read = sum(requests[name].tokens * len(own) for name, own in said.items())
    wrote = sum(len(answer.text) // CHARS_PER_TOKEN for own in said.values() for answer in own)
    consistent = tally.consistent
    return JudgeFindings(
        model=str(judge.settings.model),
        ballots=dict(tally.ballots),
        verdicts=tally.verdicts,
        no_verdict=dict(tally.no_verdict),
        excluded=tally.excluded,
        excluded_pairs=tally.excluded_pairs,
        places=tally.places,
        tokens_read=read,
        tokens_written=wrote,
        use=judge.use(),
        consistent=None if consistent is None else Estimate(*consistent),
        cost=judge.cost(read, wrote),
    )
