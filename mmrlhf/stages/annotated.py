"""Stage `annotated`: what people wrote becomes ranked queries: ranks with ties, scores, reasons, short critiques.

Follows: MM-RLHF (arXiv 2502.10391), section 2: scores on three dimensions with reasons, and a ranking with ties.
Differs in: the paper only mentions quality control; here agreement, gold questions, time, disputed queries and a
model's errors are on a page.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmrlhf.annotation.annotated_page import PAGE, annotated_page
from mmrlhf.annotation.consensus import SUPERSEDED, annotated_group, by_query, counted, latest
from mmrlhf.annotation.filled_forms import Form, closed_ranks, misfit
from mmrlhf.annotation.form_files import read_forms
from mmrlhf.annotation.model_forms import reward_forms
from mmrlhf.annotation.pair_orders import Ranks
from mmrlhf.annotation.quality_control import agreement, annotators, confusion, disputed
from mmrlhf.chain.runtime import Runtime
from mmrlhf.errors import ConfigError, DataError, Lines
from mmrlhf.files import write_bytes
from mmrlhf.ranges import Count, Positive, Share
from mmrlhf.shards.index import Index
from mmrlhf.shards.writer import ShardSink
from mmrlhf.summaries.people import AnnotatedSummary
from mmrlhf.terminal.progress import track
from mmrlhf.types import PreferenceGroup

log = logging.getLogger(__name__)

SHARDS, REFUSED, LEFT_OUT, QUEUE = "shards", "refused.jsonl", "left_out.jsonl", "expert_queue.txt"
NOT_ANNOTATED, PROBLEM = "nobody annotated it", "annotators flag a problem"
ONLY_EXCLUDED, ONLY_MODEL = "only excluded annotators", "only a model"

# another number builds the stage anew, whatever `code` says
VERSION = 1
# what is in a finished artefact; checked before it is published
PROMISES = ("shards/manifest.json", "shards/index.parquet", "expert_queue.txt", "report.html", "metrics.json")


@dataclass
class Refused:
    """Counts and lists everything that cannot be used."""

    rows: list[dict[str, str]] = field(default_factory=list)

    def __call__(self, where: str, reason: str) -> None:
        """Note one."""
        self.rows.append({"where": where, "reason": reason})

    def counts(self) -> dict[str, int]:
        """Reason -> how many, the most frequent first."""
        return dict(Counter(row["reason"].partition(" (")[0] for row in self.rows).most_common())


def run(
    out: Path,
    *,
    shards: Path,
    annotations: Path,
    gold: Path | None = None,
    rewards: Path | None = None,
    experts: Sequence[str] = (),
    exclude: Sequence[str] = (),
    dispute_from: Share = 0.34,
    max_groups_per_shard: Count = 1000,
    max_megabytes: Positive = 1024,
    runtime: Runtime,
) -> dict[str, Any]:
    """Write `out/shards`, ranked queries, `out/report.html`, `out/expert_queue.txt`, and lists of what was left out.

    Args:
        out: the folder to fill.
        shards: the queries that were asked about.
        annotations: forms: what stage `annotate` wrote, the page's database, Label Studio's JSON exports, or a folder
            of such files.
        gold: shards of queries whose ranking is known; forms of them measure annotators and become no data.
        rewards: table of a reward model's rewards of these queries, to be compared with people.
        experts: annotators whose word counts alone where they gave one.
        exclude: annotators whose forms are not used.
        dispute_from: share of pairs that two annotators order oppositely from which on a query goes to the experts.
        max_groups_per_shard, max_megabytes: a shard is finished when it reaches either.

    Raises:
        DataError: annotations that cannot be read, of other queries, or nothing usable in them.
        ConfigError: an expert or an excluded annotator that nobody is.
    """
    index, refused = Index.load(shards), Refused()
    golden = _gold_groups(gold)
    read = read_forms(annotations, refused)
    named = [replace(form, kind="expert") if form.annotator in experts else form for form in read]
    _check_names({"experts": experts, "exclude": exclude}, named)
    fitting, gaps = _fitting(index, named, golden, refused)
    forms, superseded = latest(fitting)
    for form in superseded:
        refused(_place(form), SUPERSEDED)
    people = [form for form in forms if form.key not in golden]
    by_key = by_query([*people, *reward_forms(index, rewards, {form.key for form in people})], exclude)
    left_out = _left_out(index, by_key, {form.key for form in people})
    facts = _write(out, index, by_key, left_out, max_groups_per_shard, max_megabytes, runtime)
    usable = {key: by_key[key] for key in facts.ranks}
    queue = disputed(by_key, dispute_from)
    summary = AnnotatedSummary(
        queries=len(index), groups=len(facts.ranks), left_out=dict(Counter(left_out.values()).most_common()),
        forms=sum(form.kind != "model" for form in people), refused=refused.counts(), gaps=gaps,
        unranked=facts.unranked, replaced=facts.replaced,
        several=sum(sum(form.kind != "model" for form in forms) > 1 for forms in usable.values()),
        disputed=len(queue), pairs=facts.pairs, ties=facts.ties, with_reasons=facts.with_reasons,
        agreement=agreement(usable),
        annotators=annotators(
            by_query(people), {key: [response.rank for response in group.responses] for key, group in golden.items()},
            [form for form in forms if form.key in golden],
        ),
        models=confusion(usable, facts.ranks), digest=Index.load(out / SHARDS).digest,
    )  # fmt: skip
    _write_lines(out / REFUSED, (json.dumps(row) for row in refused.rows))
    _write_lines(out / LEFT_OUT, (json.dumps({"key": key, "reason": reason}) for key, reason in left_out.items()))
    _write_lines(out / QUEUE, queue)
    page = annotated_page(summary, queue, by_key, index)
    write_bytes(out / PAGE, page.encode("utf-8", errors="backslashreplace"))
    if refused.rows:
        log.warning("%d forms or tasks could not be used, see %s: %s", len(refused.rows), REFUSED, refused.counts())
    return summary.write(out)


@dataclass
class _Written:
    """What was written: key -> ranks, and counts."""

    ranks: dict[str, Ranks] = field(default_factory=dict)
    unranked: int = 0
    replaced: int = 0
    pairs: int = 0
    ties: int = 0
    with_reasons: int = 0


def _gold_groups(gold: Path | None) -> dict[str, PreferenceGroup]:
    if gold is None:
        return {}
    index = Index.load(gold)
    found = {group.key: group for group in (index.read(row, media=False) for row in range(len(index)))}
    unknown = [key for key, group in found.items() if not group.ranked_pairs()]
    if unknown:
        raise DataError("a gold query has no ranking", where=gold, given=", ".join(unknown[:5]),
                        expected="queries whose responses are ranked")  # fmt: skip
    return found


def _check_names(named: Mapping[str, Sequence[str]], forms: Sequence[Form]) -> None:
    known = sorted({form.annotator for form in forms})
    for argument, names in named.items():
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ConfigError("no annotator has this name", argument=argument, given=", ".join(unknown),
                              expected=f"some of {', '.join(known) or 'nobody: there are no forms'}")  # fmt: skip


def _fitting(
    index: Index, forms: Sequence[Form], gold: Mapping[str, PreferenceGroup], refused: Refused
) -> tuple[list[Form], int]:
    """Forms that fit their query, with ranks that have no gaps, and how many had some."""
    rows = {str(key): row for row, key in enumerate(index.column("key"))}
    fitting, gaps = [], 0
    for form in forms:
        group = index.read(rows[form.key], media=False) if form.key in rows else gold.get(form.key)
        reason = misfit(form, group)
        if reason:
            refused(_place(form), reason)
            continue
        closed = closed_ranks(form.ranks)
        gaps += closed != form.ranks
        fitting.append(replace(form, ranks=closed))
    if not fitting:
        problem = "annotations of other queries" if forms else "nothing is annotated"
        if any(form.key in rows for form in forms):
            problem = "no annotation can be used"
        raise DataError(
            problem,
            given=Lines([f"{count} x {reason}" for reason, count in refused.counts().items()] or ["no form"]),
            expected=f"forms of queries of {index.folder}", fix="give the shards that were annotated (inputs.shards)",
        )  # fmt: skip
    return fitting, gaps


def _left_out(index: Index, by_key: Mapping[str, Sequence[Form]], annotated: set[str]) -> dict[str, str]:
    """Key -> why a query gets no labels."""
    found = {}
    for key in map(str, index.column("key")):
        forms = counted(by_key.get(key, ()))
        if not forms:
            found[key] = NOT_ANNOTATED if key not in annotated else ONLY_MODEL if by_key.get(key) else ONLY_EXCLUDED
        elif 2 * sum(bool(form.problem) for form in forms) > len(forms):
            found[key] = PROBLEM
    return found


def _write(
    out: Path,
    index: Index,
    by_key: Mapping[str, Sequence[Form]],
    left_out: Mapping[str, str],
    max_groups_per_shard: int,
    max_megabytes: float,
    runtime: Runtime,
) -> _Written:
    sink, facts = (
        ShardSink(out / SHARDS, max_groups_per_shard=max_groups_per_shard, max_megabytes=max_megabytes),
        _Written(),
    )
    sink.start_over()  # what was said of every query is counted anew
    if len(left_out) == len(index):
        raise DataError("no query has usable annotations", given=Lines(
            [f"{count} x {reason}" for reason, count in Counter(left_out.values()).items()]
        ))  # fmt: skip
    with closing(sink):
        for row in track(range(len(index)), "writing annotated queries", enabled=runtime.progress):
            group = index.read(row)
            if group.key in left_out:
                continue
            facts.replaced += any(response.rank is not None or response.scores for response in group.responses)
            group = annotated_group(group, by_key[group.key])
            ranks = facts.ranks[group.key] = [response.rank for response in group.responses]
            known = [rank for rank in ranks if rank is not None]
            pairs = len(group.ranked_pairs())
            facts.pairs += pairs
            facts.ties += len(known) * (len(known) - 1) // 2 - pairs
            facts.unranked += len(ranks) - len(known)
            facts.with_reasons += sum(bool(response.reasons) for response in group.responses)
            sink.add(group)
            if sink.full:
                sink.close_shard()
        sink.finish()
    sink.clear_records()
    return facts


def _place(form: Form) -> str:
    return f"query {form.key}: {form.annotator}, {form.tool}" + (f", {form.origin}" if form.origin else "")


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    write_bytes(path, "".join(f"{line}\n" for line in lines).encode())
