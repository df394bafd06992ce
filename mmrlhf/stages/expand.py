"""Stage `expand`: short human reasons become full critiques, written by a larger model and checked.

Follows: MM-RLHF (arXiv 2502.10391), section 3, where GPT-4o expands the annotators' reasons.
Differs in: what it will cost is said first, no paid answer is asked for twice, and an expansion that adds facts or
changes the verdict is refused and counted; the annotator's own words then stand in its place.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmrlhf.chain.runtime import Runtime
from mmrlhf.chain.store import final_place
from mmrlhf.endpoints.answer_store import AnswerStore, request_digest
from mmrlhf.endpoints.client import HOW_LONG
from mmrlhf.endpoints.completions import Answer
from mmrlhf.endpoints.prices import Prices, check_cost, prices_of, require_prices
from mmrlhf.errors import DataError
from mmrlhf.expansion.expanders import Expander
from mmrlhf.expansion.request import INSTRUCTION, Request, make_request, refusals
from mmrlhf.files import write_json, written
from mmrlhf.ranges import Count, NonNegative, Positive
from mmrlhf.responders.endpoint import check_failed
from mmrlhf.responders.spending import cost_of
from mmrlhf.shards.index import Index
from mmrlhf.shards.writer import write_shards
from mmrlhf.summaries.datasets import CostEstimate, ExpandSummary, ExpansionExample
from mmrlhf.terminal.progress import track
from mmrlhf.types import PreferenceGroup, Response

log = logging.getLogger(__name__)

SHARDS, REQUESTS, ESTIMATE = "shards", "requests.jsonl", "estimate.json"
NUM_EXAMPLES = 5
USED = "used"

# another number builds the stage anew, whatever `code` says
VERSION = 4
# settings that no answer depends on: what it costs, how long is waited, how many are asked at once
LIMITS = ("max_cost", "price_in", "price_out", "tokens_per_critique", *(f"expander.{name}" for name in HOW_LONG))
# what is in a finished artefact; checked before it is published
PROMISES = ("shards/manifest.json", "metrics.json")


class Outcome(NamedTuple):
    """A text, and why it is not used (empty where it is); `failed`: none came, and another time one may."""

    text: str
    refused: tuple[str, ...]
    failed: bool = False


def run(
    out: Path,
    *,
    shards: Path,
    expander: Expander,
    source: str = "short",
    target: str = "full",
    instruction: str = INSTRUCTION,
    max_new_words: NonNegative = 0.15,
    max_growth: Positive = 20.0,
    tokens_per_critique: Count = 200,
    price_in: NonNegative | None = None,
    price_out: NonNegative | None = None,
    max_cost: NonNegative | None = None,
    limit: Count | None = None,
    runtime: Runtime,
) -> dict[str, Any]:
    """Write `out/shards`: the same queries, whose responses have a `target` critique wherever they had a `source` one.

    Before anything is asked, `out/estimate.json` says what it will take, and `out/requests.jsonl` what will be asked
    (for a batch elsewhere: `RecordedExpander` reads the answers). Answers are kept in `runtime.answers` when they come:
    a run that was stopped, or one with another limit, asks only for what is missing.

    Args:
        shards: packed queries.
        expander: who writes.
        source, target: kinds of critique.
        instruction: what the expander is told.
        max_new_words, max_growth: what is refused, see `refusals`.
        tokens_per_critique: how long a critique is taken to be in the estimate.
        price_in, price_out: for a million tokens, in any currency; None: the estimate counts tokens alone.
        max_cost: stop before asking where what was paid and the estimate of the rest are above it together.
        limit: at most this many queries.

    Raises:
        ConfigError: an estimate above max_cost, or no price to compare it with; one price alone.
        DataError: no response has a `source` critique.
        HubError: more requests than `runtime.max_damaged` allows met a service that was busy, broke off or was too
            slow, however often they were made. What was answered is kept, and the next run asks for the others.
    """
    index = Index.load(shards)
    rows = index.split("all", 0.0, limit)
    requests = list(_requests(index, rows, source, instruction, runtime))
    if not requests:
        raise DataError(f"no response has a '{source}' critique to expand", where=shards, given=f"{len(rows)} queries")
    _write_lines(out / REQUESTS, ({"digest": request.digest, "prompt": request.prompt} for request in requests))
    prices = prices_of(price_in, price_out)
    require_prices(max_cost, prices, "stages.expand.max_cost")
    with AnswerStore(runtime.answers) as store:
        places = _places(requests, expander)
        there = {digest: answer for digest, place in places.items() if (answer := store.get(place)) is not None}
        missing = list({r.digest: r for r in requests if r.digest not in there}.values())
        estimate = estimate_cost(missing, expander, tokens_per_critique, prices, answered=len(there))
        write_json(out / ESTIMATE, estimate.to_json())
        log.info(
            "%s will be asked: %s; all are in %s, once the stage is done in %s",
            expander.name, _in_words(estimate), out / REQUESTS, final_place(out / REQUESTS),
        )  # fmt: skip
        paid = _paid(there, requests, expander, prices)
        check_cost(estimate.cost, max_cost, where="stages.expand.max_cost", given=_in_words(estimate), spent=paid)
        answers = there | ask(store, places, missing, expander, runtime)
    check_failed(list(answers.values()), expander.name, runtime.max_damaged)
    outcomes = {r.digest: _outcome(r, answers[r.digest], max_new_words, max_growth) for r in requests}
    return _finish(out, index, rows, requests, outcomes, source, target, instruction, estimate, runtime)


def _places(requests: Sequence[Request], expander: Expander) -> dict[str, str]:
    """Under what the answers of requests are kept, by their digests; empty where they need not be."""
    who = expander.describe()
    return {} if who is None else {r.digest: request_digest({**who, "prompt": r.prompt}) for r in requests}


def _paid(there: Mapping[str, Answer], requests: Sequence[Request], expander: Expander, prices: Prices | None) -> float:
    """What earlier runs have paid for the answers that are there."""
    asked = {request.digest: request for request in requests}
    return sum(cost_of(prices, each, expander.count_tokens(asked[d].prompt)) for d, each in there.items())


def _outcome(request: Request, answer: Answer, max_new_words: float, max_growth: float) -> Outcome:
    """What may be used of an answer, and why not."""
    if answer.problem:
        return Outcome(answer.text, (answer.problem,), answer.failed)
    found = refusals(request, answer.text, max_new_words=max_new_words, max_growth=max_growth)
    return Outcome(answer.text, tuple(found))


def estimate_cost(
    missing: Sequence[Request],
    expander: Expander,
    tokens_per_critique: int,
    prices: Prices | None,
    *,
    answered: int = 0,
) -> CostEstimate:
    """What expanding will take beside the `answered` requests: tokens, and the cost where prices are known."""
    sample = missing[:: max(1, len(missing) // 200)]
    mean = sum(expander.count_tokens(request.prompt) for request in sample) / max(1, len(sample))
    read, written = round(mean * len(missing)), tokens_per_critique * len(missing)
    cost = None if prices is None else prices.cost(read, written)
    return CostEstimate(len(missing) + answered, read, written, cost, answered)


def ask(
    store: AnswerStore, places: Mapping[str, str], missing: Sequence[Request], expander: Expander, runtime: Runtime
) -> dict[str, Answer]:
    """Ask for what is missing, keep each answer when it comes, and return them by the requests' digests.

    Args:
        places: under what answers are kept, by digest; what failed or was refused unread is not.
    """
    came = {request.digest: Answer("", "no answer came", failed=True) for request in missing}
    found = expander.expand(missing) if missing else ()
    for request, answer in track(found, "expanding (reasons)", len(missing), enabled=runtime.progress):
        came[request.digest] = answer
        if places and answer.kept:
            store.add(places[request.digest], answer)
    return came


def _requests(index: Index, rows: np.ndarray, source: str, instruction: str, runtime: Runtime) -> Iterator[Request]:
    for row in track(rows, "reading reasons", len(rows), enabled=runtime.progress):
        group = index.read(int(row))
        for response in group.responses:
            if _reason(response, source):
                yield make_request(group, response, response.critiques[source], instruction)


def _finish(
    out: Path,
    index: Index,
    rows: np.ndarray,
    requests: Sequence[Request],
    outcomes: Mapping[str, Outcome],
    source: str,
    target: str,
    instruction: str,
    estimate: CostEstimate,
    runtime: Runtime,
) -> dict[str, Any]:
    """Write the shards, and say how many expansions are used and why others are not."""
    folder = out / SHARDS
    for path in folder.glob("*") if folder.is_dir() else ():
        path.unlink()  # what an interrupted run left
    without = 0

    def groups() -> Iterator[PreferenceGroup]:
        nonlocal without
        for row in track(rows, "writing shards", len(rows), enabled=runtime.progress):
            group = index.read(int(row))
            without += sum(not _reason(response, source) for response in group.responses)
            yield expanded(group, outcomes, source, target, instruction)

    write_shards(groups(), folder)
    counts, examples = _count(requests, outcomes)
    used, failed = counts.pop(USED, 0), sum(outcomes[request.digest].failed for request in requests)
    summary = ExpandSummary(
        requests=len(requests),
        used=used,
        refused=len(requests) - used - failed,
        failed=failed,
        refused_by_reason=dict(counts.most_common()),
        responses_without_a_reason=without,
        estimate=estimate,
    )
    replace(summary, examples=examples).write(out)
    if used < len(requests):
        log.warning(
            "of %d expansions %d were refused and %d never came, and the reasons stand instead",
            len(requests), summary.refused, failed,
        )  # fmt: skip
    return summary.to_json()


def _count(
    requests: Sequence[Request], outcomes: Mapping[str, Outcome]
) -> tuple[Counter[str], dict[str, list[ExpansionExample]]]:
    """How many expansions are used and why others are not (one may have several reasons), with a few examples each."""
    counts: Counter[str] = Counter()
    examples: dict[str, list[ExpansionExample]] = {}
    for request in requests:
        text, refused, _ = outcomes[request.digest]
        for reason in refused or (USED,):
            counts[reason] += 1
            if len(examples.setdefault(reason, [])) < NUM_EXAMPLES:
                examples[reason].append(ExpansionExample(request.key, request.reason, text))
    return counts, examples


def _reason(response: Response, source: str) -> str:
    return response.critiques.get(source, "").strip()


def expanded(
    group: PreferenceGroup, outcomes: Mapping[str, Outcome], source: str, target: str, instruction: str
) -> PreferenceGroup:
    """Give every response with a reason its expansion, or where that was refused the reason itself."""
    responses = []
    for response in group.responses:
        if _reason(response, source):
            reason = response.critiques[source]
            text, refused, _ = outcomes[make_request(group, response, reason, instruction).digest]
            response = replace(response, critiques={**response.critiques, target: reason if refused else text})
        responses.append(response)
    return replace(group, responses=tuple(responses), shard="")


def _in_words(estimate: CostEstimate) -> str:
    there = f", {estimate.answered:,} are there" if estimate.answered else ""
    cost = "" if estimate.cost is None else f", about {estimate.cost:.2f}"
    asked = f"{estimate.requests - estimate.answered:,} requests{there}"
    return f"{asked}, about {estimate.tokens_in:,} tokens read and {estimate.tokens_out:,} written{cost}"


def _write_lines(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with written(path) as part, part.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
