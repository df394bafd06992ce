"""Stage `respond`: several models answer queries; what they say are the responses that people will compare.

Follows: MM-RLHF (arXiv 2502.10391, section 3.1), where several strong models answer each query. Differs in: what it
takes is said first and limited, no paid answer is asked for twice, and the order of responses says nothing of whose
they are.
"""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mmrlhf.chain.runtime import Runtime
from mmrlhf.endpoints.completions import CUT
from mmrlhf.errors import ConfigError, DataError
from mmrlhf.files import write_json
from mmrlhf.inference.settings import PassSettings
from mmrlhf.inference.sharing import Ranks, share_pass
from mmrlhf.ranges import Count, Natural, NonNegative
from mmrlhf.records.quarantine import Quarantine
from mmrlhf.responders import endpoint
from mmrlhf.responders.answered import Said, counted, with_answers
from mmrlhf.responders.asking import Answers, AnswerSettings, Asked
from mmrlhf.responders.named import Responder, named_responders
from mmrlhf.responders.spending import AskingStopped, Purse, check_limit, cost_of, in_words
from mmrlhf.shards.index import Index
from mmrlhf.shards.writer import write_shards
from mmrlhf.summaries.responses import AskingEstimate, ResponderUse, RespondSummary
from mmrlhf.terminal.progress import track
from mmrlhf.terminal.words import add_row, new_table, show
from mmrlhf.types import PreferenceGroup

log = logging.getLogger(__name__)

SHARDS, ANSWERS, ESTIMATE = "shards", "answers", "estimate.json"

# another number builds the stage anew, whatever `code` says
VERSION = 2
# settings that no result depends on
LIMITS = ("max_cost", *(f"responders.*.{name}" for name in endpoint.LIMITS))
# what is in a finished artefact; checked before it is published
PROMISES = ("shards/manifest.json", "shards/index.parquet", "estimate.json", "metrics.json")


def run(
    out: Path,
    *,
    shards: Path,
    responders: Mapping[str, Any],
    passes: PassSettings | None = None,
    num_samples: Count = 1,
    temperature: NonNegative = 1.0,
    max_new_tokens: Count = 1024,
    least: Count = 2,
    keep_cut: bool = False,
    max_cost: NonNegative | None = None,
    limit: Count | None = None,
    seed: Natural = 0,
    runtime: Runtime,
) -> dict[str, Any]:
    """Write `out/shards`: the queries, each with what the responders said as unranked responses, in a shuffled order.

    Before anybody is asked, `out/estimate.json` and the log say what it will take. Answers of endpoints are kept in
    `runtime.answers` when they come, those of checkpoints in `out/answers`; a run that was stopped asks for what is
    missing. Endpoints are asked at the same time.

    Args:
        shards: the queries; responses that they have are not used.
        responders: name -> kind and settings (`mmrlhf.responders.named`).
        passes: how checkpoints are asked, and how videos become frames for everybody.
        num_samples, temperature, max_new_tokens: of each responder's answers, where its settings say nothing else.
        least: queries with fewer different answers are left out.
        keep_cut: use answers that ended at the longest length; they are counted in any case.
        max_cost: nothing is asked that could cost more than this in all; None: no limit.
        limit: at most so many queries.
        seed: draws answers and shuffles them.

    Raises:
        ConfigError: a responder that cannot be made, or a limit on the cost that is not enough.
        DataError: too many queries that cannot be asked or none with `least` answers; a batch that waits.
        HubError: an endpoint that does not answer as it should. What was answered is kept in any case.
    """
    passes = passes or PassSettings()
    how = AnswerSettings(num_samples, temperature, max_new_tokens, seed)
    named = named_responders(responders, how, passes)
    index = Index.load(shards)
    rows = index.split("all", 0.0, limit)
    quarantine = Quarantine(len(rows), runtime.max_damaged)
    with share_pass(runtime) as ranks:
        asked = {
            each.name: Asked(index, rows, each.how, out / ANSWERS / each.name, runtime, quarantine, ranks, each.name)
            for each in named
        }
        estimates = _estimates(out, named, asked, max_cost, ranks)
        said = _ask(named, asked, Purse(max_cost))
    if not ranks.leads:
        return {}
    groups = _Answered(index, asked[named[0].name].usable(), said, least, keep_cut, seed, runtime.progress)
    uses = {each.name: _use(each, said[each.name], estimates[each.name], keep_cut) for each in named}
    show(_table(uses))
    shutil.rmtree(out / SHARDS, ignore_errors=True)
    write_shards(groups, out / SHARDS)
    summary = RespondSummary(
        queries=len(rows),
        groups=sum(groups.sizes.values()),
        queries_with_too_few=groups.too_few,
        responses=sum(size * count for size, count in groups.sizes.items()),
        merged=groups.merged,
        responses_per_group={str(size): groups.sizes[size] for size in sorted(groups.sizes)},
        responders=uses,
        quarantined=quarantine.summary(),
        digest=Index.load(out / SHARDS).digest,
    )
    return summary.write(out)


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse responders that cannot be made (ConfigError), before anything is trained or read for them."""
    how = AnswerSettings(*(settings[name] for name in ("num_samples", "temperature", "max_new_tokens", "seed")))
    named = named_responders(settings["responders"], how, settings.get("passes") or PassSettings())
    most = sum(each.how.num_samples for each in named)
    if most < settings["least"]:
        raise ConfigError(
            "no query could get as many answers as are wanted", where="stages.respond.least", given=settings["least"],
            expected=f"at most {most}, which {len(named)} responders give",
        )  # fmt: skip


def _estimates(
    out: Path, named: Sequence[Responder], asked: Mapping[str, Asked], max_cost: float | None, ranks: Ranks
) -> dict[str, AskingEstimate]:
    """Say what asking will take, before anybody is asked; refuse what would cost too much."""
    if not ranks.leads:
        return {}
    found = {each.name: each.answerer.estimate(asked[each.name]) for each in named}
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / ESTIMATE, {name: estimate.to_json() for name, estimate in found.items()})
    for each in named:
        log.info("%s (%s) will be asked: %s", each.name, each.answerer.kind, in_words(found[each.name]))
    if max_cost is not None:
        services = [each for each in named if each.answerer.kind != "local"]
        for each in services:
            check_limit(found[each.name], each.prices, max_cost, "stages.respond.max_cost")
        total = sum(found[each.name].cost or 0.0 for each in services)
        if total > max_cost:
            raise ConfigError(
                "asking would cost more than it may", where="stages.respond.max_cost",
                given=f"about {total:.2f}", expected=f"at most {max_cost:g}",
                fix="raise it, or ask for less: stages.respond.limit=N, shorter answers, fewer responders",
            )  # fmt: skip
    return found


def _ask(named: Sequence[Responder], asked: Mapping[str, Asked], purse: Purse) -> dict[str, Answers]:
    """Everybody's answers; services are asked beside each other and beside what runs here.

    Where one ends in an error, the others are asked nothing more, and what they were asked is waited for and kept.
    """
    services = [each for each in named if each.answerer.kind in ("endpoint", "stand_in")]
    others = [each for each in named if each not in services]
    with ThreadPoolExecutor(max(1, len(services))) as pool:
        waiting: dict[str, Future[Answers]] = {}
        try:
            for each in services:
                waiting[each.name] = pool.submit(each.answerer.answers, asked[each.name], purse)
                waiting[each.name].add_done_callback(lambda done: purse.close() if done.exception() else None)
            found = {each.name: each.answerer.answers(asked[each.name], purse) for each in others}
            _raise_first(list(waiting.values()))
            found |= {name: each.result() for name, each in waiting.items()}
            return {each.name: found[each.name] for each in named}
        except BaseException:
            purse.close()
            raise


def _raise_first(waiting: Sequence[Future[Answers]]) -> None:
    """Wait for all; raise the error of one that ended in one by itself."""
    errors = [error for error in (each.exception() for each in waiting) if error is not None]
    own = [error for error in errors if not isinstance(error, AskingStopped)]
    for error in [*own, *errors]:
        raise error


class _Answered:
    """The queries with their answers, one by one, and counts of them; raises DataError where none has enough.

    `sizes`: responses of a query -> how many have so many; `merged`: answers that said what another one says.
    """

    def __init__(
        self,
        index: Index,
        rows: Sequence[int],
        said: Mapping[str, Answers],
        least: int,
        keep_cut: bool,
        seed: int,
        progress: bool,
    ) -> None:
        self.index, self.rows, self.said = index, rows, said
        self.least, self.keep_cut, self.seed, self.progress = least, keep_cut, seed, progress
        self.sizes: Counter[int] = Counter()
        self.too_few = self.merged = 0

    def __iter__(self) -> Iterator[PreferenceGroup]:
        for row in track(self.rows, "writing shards", len(self.rows), enabled=self.progress):
            group = self.index.read(row)
            every = [
                Said(name, sample, answer)
                for name, answers in self.said.items()
                for sample, answer in enumerate(answers[group.key])
            ]
            answered = with_answers(group, every, keep_cut=self.keep_cut, seed=self.seed)
            self.merged += sum(answered.meta["drawn"]) - len(answered.responses)
            if len(answered.responses) < self.least:
                self.too_few += 1
                continue
            self.sizes[len(answered.responses)] += 1
            yield answered
        self._check()

    def _check(self) -> None:
        if not self.sizes:
            raise DataError(
                "no query has as many different answers as are wanted",
                given=f"{self.too_few} queries", expected=f"{self.least} answers of use (least)",
                fix="the table above says why the others are of no use; stages.respond.keep_cut=true takes cut ones",
            )  # fmt: skip
        if self.too_few:
            log.warning(
                "%d of %d queries got fewer than %d different answers", self.too_few, len(self.rows), self.least
            )


def _use(responder: Responder, answers: Answers, estimate: AskingEstimate, keep_cut: bool) -> ResponderUse:
    usable, without, tries = counted(answers, keep_cut=keep_cut)
    every = [answer for each in answers.values() for answer in each]
    return ResponderUse(
        kind=responder.answerer.kind,
        answers=len(every),
        usable=usable,
        cut=sum(answer.problem == CUT for answer in every),
        without=dict(without.most_common()),
        tries=dict(tries.most_common()),
        models=dict(Counter(answer.use.model for answer in every if answer.use.model).most_common()),
        tokens_in=sum(answer.use.tokens_in or 0 for answer in every),
        tokens_out=sum(answer.use.tokens_out or 0 for answer in every),
        cost=None if responder.prices is None else sum(cost_of(responder.prices, a) for a in every if not a.failed),
        estimate=estimate,
    )


def _table(uses: Mapping[str, ResponderUse]) -> Any:
    table = new_table("who", "kind", "asked", "of use", "cut", "of no use", "read", "written", "cost",
                      right=("asked", "of use", "cut", "read", "written", "cost"), fold=True)  # fmt: skip
    for name, use in uses.items():
        without = ", ".join(f"{count} {reason}" for reason, count in use.without.items())
        cost = "" if use.cost is None else f"{use.cost:.2f}"
        add_row(table, name, use.kind, use.answers, use.usable, use.cut, without, use.tokens_in, use.tokens_out, cost)
    return table
