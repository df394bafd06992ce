"""Stage `triage`: a model's proposals, measured on a blind audit; who is asked, and what the model labels.

Follows: the open question of MM-RLHF (arXiv 2502.10391), how to spare annotators work: uncertainty sampling (Lewis and
Gale 1994) for those who are asked; `mmrlhf.triage.certificate` for those who are not.
"""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from mmrlhf.annotation.consensus import RANKING
from mmrlhf.annotation.pair_orders import Ranks, pair_agreement
from mmrlhf.chain.runtime import Runtime
from mmrlhf.errors import DataError
from mmrlhf.files import read_lines, write_bytes
from mmrlhf.methods.pairing import REWARD
from mmrlhf.metrics.intervals import mean_interval
from mmrlhf.ranges import Count, Natural, Share, ShareBelowOne
from mmrlhf.shards.index import Index
from mmrlhf.shards.sidecar import SideCar
from mmrlhf.summaries.rankings import Estimate
from mmrlhf.summaries.triages import TriageSummary
from mmrlhf.triage.budget import Budget
from mmrlhf.triage.certificate import Certificate, certify, fewest_trials
from mmrlhf.triage.decisions import Beyond, Order, decide, write_decisions
from mmrlhf.triage.model_proposals import Proposal, fitted_temperature, place_of, reward_scale, usual_excess
from mmrlhf.types import PreferenceGroup

log = logging.getLogger(__name__)

ASK = "ask.txt"

# another number builds the stage anew, whatever `code` says
VERSION = 1
# what is in a finished artefact; checked before it is published
PROMISES = ("ask.txt", "decisions.jsonl", "metrics.json")


def run(
    out: Path,
    *,
    shards: Path,
    rewards: Path,
    audit: Path,
    drawn: Path,
    known: Path | None = None,
    always: Sequence[str] = ("safety",),
    limit: Share = 0.35,
    level: ShareBelowOne = 0.95,
    rounds: Count = 1,
    fit_share: ShareBelowOne = 0.25,
    least: Count = 20,
    budget: Budget | None = None,
    order: Order = "unsure",
    beyond: Beyond = "leave_out",
    seed: Natural = 0,
    runtime: Runtime,
) -> dict[str, Any]:
    """Write `out/ask.txt`, keys for `stages.annotate.only` in their order, and `out/decisions.jsonl` about every query.

    Args:
        out: the folder to fill.
        shards: queries with answers.
        rewards: table of a model's rewards of them.
        audit: shards of audited queries with people's labels (stage `annotated` of what stage `audit` drew).
        drawn: keys that stage `audit` drew: what else people have labelled by now measures nothing.
        known: shards of queries that are labelled from an earlier round: nobody is asked again.
        always: categories that only people label.
        limit: share of pairs in which people may disagree with the model's labels.
        level: how sure it must be that they do not more often.
        rounds: in which this audit is used: each gets its part of 1 - level.
        fit_share: of the audit, that the temperature and the order of tests follow from; the rest certifies.
        least: audited queries that a tested share of the pool holds at least.
        budget: what may be spent on people.
        order: who is asked first: the most `unsure`; `random` and `surest` are controls.
        beyond: what becomes of a query that is neither certified nor within the budget.
        seed: of coins and of random orders.

    Raises:
        DataError: audited queries of others, with other answers, of which the model has proposed nothing, or whose
            labels are a model's.
        ConfigError: a budget in time or money where nobody knows how long a query takes.
    """
    out.mkdir(parents=True, exist_ok=True)
    index, table = Index.load(shards), SideCar.load(rewards, [REWARD])
    proposals = _proposals(index, table)
    keys = [str(key) for key in index.column("key")]
    people = _audited(audit, set(read_lines(drawn)), proposals, keys, always)
    safe = {key for key, name in zip(keys, map(str, index.column("category")), strict=True) if name in always}
    pool = [key for key in proposals if key not in safe]
    share_of_level = 1 - (1 - level) / rounds
    measured = _measure(proposals, people, pool, limit, share_of_level, fit_share, least, seed)
    certificate = measured.certificate
    before = _keys_of(known) - set(people)
    seconds = _seconds(people)
    affordable = (budget or Budget()).affordable(seconds)
    decisions = decide(
        keys, proposals, measured.uncertainty, audit=people, known=before & set(keys), always=safe,
        threshold=certificate.threshold, affordable=affordable, order=order, beyond=beyond, seed=seed,
    )  # fmt: skip
    write_decisions(out, decisions)
    write_bytes(out / ASK, "".join(f"{each.key}\n" for each in decisions if each.fate == "asked").encode())
    fates = Counter(each.fate for each in decisions)
    return TriageSummary(
        model=str(table.fingerprint.get("reward_model", table.fingerprint.get("made_by", "a table of rewards"))),
        pool=len(pool), audited=len(people), fitted=measured.fitted, temperature=measured.temperature,
        known=fates["known"], limit=limit, level=share_of_level,
        disagreement=_estimate([proposals[key].disagreement(_ranks(people[key])) for key in people]),
        among_people=_estimate([value for group in people.values() for value in _apart(group)]),
        certified=certificate.share, threshold=certificate.threshold,
        tested=certificate.tested, seconds=seconds, affordable=affordable,
        always=sum(each.key in safe for each in decisions if each.fate == "asked"),
        asked=fates["asked"], automatic=fates["automatic"] + fates["uncertified"], uncertified=fates["uncertified"],
        left_out=dict(Counter(each.reason for each in decisions if each.fate == "left out")), digest=index.digest,
    ).write(out)  # fmt: skip


@dataclass(frozen=True)
class _Measured:
    """What the audit says of the model: on `fitted` of its queries its temperature, on the others the certificate."""

    fitted: int
    temperature: float
    uncertainty: Mapping[str, float]
    certificate: Certificate


def _measure(
    proposals: Mapping[str, Proposal],
    people: Mapping[str, PreferenceGroup],
    pool: Sequence[str],
    limit: float,
    level: float,
    fit_share: float,
    least: int,
    seed: int,
) -> _Measured:
    fitted, certifying = _halves(list(people), fit_share, seed)
    measured, ranked = [proposals[key] for key in fitted], [_ranks(people[key]) for key in fitted]
    temperature = fitted_temperature(measured, ranked) if fitted else reward_scale(list(proposals.values()))
    excess = usual_excess(measured, ranked, temperature)
    uncertainty = {key: proposal.uncertainty(temperature) for key, proposal in proposals.items()}
    certificate = certify(
        [uncertainty[key] for key in pool], [uncertainty[key] for key in certifying],
        [_coin(proposals[key], people[key], seed) for key in certifying],
        limit=limit, level=level, least=least, expected=[uncertainty[key] + excess for key in certifying],
    )  # fmt: skip
    _warn(certificate, len(certifying), limit, level, least)
    return _Measured(len(fitted), temperature, uncertainty, certificate)


def _proposals(index: Index, table: SideCar) -> dict[str, Proposal]:
    """Of every query with two answers that the table has."""
    held, found = table.keys(), {}
    for row, key in enumerate(map(str, index.column("key"))):
        if key not in held:
            continue
        group = index.read(row, media=False)
        hashes = tuple(response.hash for response in group.responses)
        if len(hashes) > 1:
            scores = table.lookup(key, hashes)[REWARD].tolist()
            found[key] = Proposal(key, group.category, hashes, tuple(scores))
    if not found:
        raise DataError("the model has proposed nothing for these queries", where=index.folder,
                        given=f"a table of {len(held)} other queries",
                        fix="stage=proposals scores the queries that are asked about")  # fmt: skip
    return found


def _audited(
    audit: Path, drawn: Collection[str], proposals: Mapping[str, Proposal], keys: Sequence[str], always: Sequence[str]
) -> dict[str, PreferenceGroup]:
    """The audit's queries, as people ranked them."""
    index, every, found = Index.load(audit), set(keys), {}
    for row in range(len(index)):
        group = index.read(row, media=False)
        if group.key not in drawn:
            continue
        if group.labelled_by_model or not group.meta.get("labels"):
            given = "labels by a model" if group.labelled_by_model else "labels by nobody that is known"
            raise _unfit(audit, group.key, given, "what people said (stage=annotated)")
        if group.key not in every:
            raise _unfit(
                audit, group.key, "no such query among those that are asked about", "an audit of these queries"
            )
        if group.category in always:
            raise _unfit(audit, group.key, f"a query of {group.category}", "queries that a model might label")
        proposal = proposals.get(group.key)
        if proposal is None:
            raise _unfit(audit, group.key, "no proposal", "rewards of every audited query")
        if proposal.hashes != tuple(response.hash for response in group.responses):
            raise _unfit(audit, group.key, "other answers", "the answers that the model scored")
        if proposal.disagreement(_ranks(group)) is not None:
            found[group.key] = group
    return found


def _unfit(audit: Path, key: str, given: str, expected: str) -> DataError:
    return DataError("an audited query cannot measure the model", where=f"{audit}: key {key}", given=given,
                     expected=expected)  # fmt: skip


def _ranks(group: PreferenceGroup) -> Ranks:
    return [response.rank for response in group.responses]


def _halves(keys: Sequence[str], share: float, seed: int) -> tuple[list[str], list[str]]:
    """The audit's part for the temperature, and its part for the certificate."""
    drawn = sorted(keys, key=lambda key: place_of("part", seed, key))
    number = round(share * len(drawn))
    return drawn[:number], drawn[number:]


def _coin(proposal: Proposal, people: PreferenceGroup, seed: int) -> bool:
    """True with the share of pairs that people order otherwise as its probability."""
    apart = proposal.disagreement(_ranks(people))
    return place_of("coin", seed, proposal.key) < (apart or 0.0)


def _apart(group: PreferenceGroup) -> list[float]:
    """How far any two people are apart on a query."""
    rankings = (group.meta.get("annotations") or {}).get(RANKING, [])
    pairs = (pair_agreement(one, other) for one, other in itertools.combinations(rankings, 2))
    return [1 - sum(found) / len(found) for found in pairs if found]


def _seconds(people: Mapping[str, PreferenceGroup]) -> float | None:
    """The median time of a form."""
    said = [form.get("seconds") for group in people.values() for form in group.meta.get("annotators", ())]
    known = [float(each) for each in said if each]
    return float(median(known)) if known else None


def _keys_of(shards: Path | None) -> set[str]:
    """Queries that people have labelled; those of a model are decided anew."""
    if shards is None:
        return set()
    index = Index.load(shards)
    groups = (index.read(row, media=False) for row in range(len(index)))
    return {group.key for group in groups if not group.labelled_by_model}


def _estimate(values: Sequence[float | None]) -> Estimate | None:
    known = [value for value in values if value is not None]
    return Estimate(*mean_interval(known)) if known else None


def _warn(certificate: Certificate, audited: int, limit: float, level: float, least: int) -> None:
    needed = max(fewest_trials(limit, level), least)
    if audited < needed:
        log.warning(
            "%d audited queries certify nothing: at a limit of %g it needs %d of them, even if all agree "
            "(stages.audit.size)", audited, limit, needed,
        )  # fmt: skip
    elif certificate.threshold is None:
        log.warning("no share of the queries can be left to the model at a limit of %g: people get all", limit)
