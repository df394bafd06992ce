"""Stage `labelled`: queries with the labels of people and of a model, each marked by who made it; the audit apart."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmrlhf.chain.runtime import Runtime
from mmrlhf.errors import DataError
from mmrlhf.ranges import Count, Positive
from mmrlhf.shards.index import Index
from mmrlhf.shards.writer import ShardSink
from mmrlhf.summaries.summary import METRICS_FILE
from mmrlhf.summaries.triages import LabelledSummary, TriageSummary
from mmrlhf.terminal.progress import track
from mmrlhf.triage.decisions import Decision, read_decisions
from mmrlhf.types import PreferenceGroup

SHARDS, AUDIT = "shards", "audit"
NOT_ANSWERED = "asked, and nobody has annotated it"

# another number builds the stage anew, whatever `code` says
VERSION = 1
# what is in a finished artefact; checked before it is published
PROMISES = ("shards/manifest.json", "shards/index.parquet", "metrics.json")


def run(
    out: Path,
    *,
    shards: Path,
    people: Mapping[str, Path],
    triage: Path,
    max_groups_per_shard: Count = 1000,
    max_megabytes: Positive = 1024,
    runtime: Runtime,
) -> dict[str, Any]:
    """Write `out/shards` to train on, and `out/audit`, which nothing is trained on and judges can be measured by.

    Args:
        out: the folder to fill.
        shards: queries with answers.
        people: name -> shards with people's labels (stage `annotated`); of a query in several the last counts.
        triage: folder of stage `triage`.
        max_groups_per_shard, max_megabytes: a shard is finished when it reaches either.

    Raises:
        DataError: no query has labels, or the decisions are about other answers.
    """
    index = Index.load(shards)
    decided = {each.key: each for each in read_decisions(triage)}
    found = json.loads((triage / METRICS_FILE).read_text(encoding="utf-8"))
    model = TriageSummary.from_json(found, where=triage / METRICS_FILE).model
    said = _said(people)
    sinks = {
        name: ShardSink(out / name, max_groups_per_shard=max_groups_per_shard, max_megabytes=max_megabytes)
        for name in (SHARDS, AUDIT)
    }
    by, left_out, pairs, audit = Counter[str](), Counter[str](), 0, 0
    with closing(sinks[SHARDS]), closing(sinks[AUDIT]):
        for sink in sinks.values():
            sink.start_over()
        for row, key in enumerate(track([str(key) for key in index.column("key")], "labels", enabled=runtime.progress)):
            decision = decided.get(key)
            group = _labelled(index, row, said.get(key), decision, model)
            if group is None:
                left_out[_why(decision)] += 1
            elif decision is not None and decision.fate == "audit":
                audit += 1
                _put(sinks[AUDIT], group)
            else:
                by[group.meta["labels"]["by"]] += 1
                pairs += len(group.ranked_pairs())
                _put(sinks[SHARDS], group)
        if not by:
            raise DataError("no query has labels to train on", where=shards,
                            given=", ".join(f"{count} x {reason}" for reason, count in left_out.items()),
                            fix="the budget of stage=triage, or its limit")  # fmt: skip
        for name, sink in sinks.items():
            if name == SHARDS or audit:
                sink.finish()
    for sink in sinks.values():
        sink.clear_records()
    return LabelledSummary(
        groups=by.total(), by=dict(by.most_common()), audit=audit, left_out=dict(left_out.most_common()), pairs=pairs,
        digest=Index.load(out / SHARDS).digest,
    ).write(out)  # fmt: skip


def _labelled(
    index: Index, row: int, said: tuple[Index, int] | None, decision: Decision | None, model: str
) -> PreferenceGroup | None:
    """A query with people's labels, else with the model's where those were decided on; None: with neither."""
    if said is not None:
        place, number = said
        return place.read(number)
    if decision is not None and decision.fate in ("automatic", "uncertified"):
        return by_model(index.read(row), decision, model)
    return None


def _put(sink: ShardSink, group: PreferenceGroup) -> None:
    sink.add(group)
    if sink.full:
        sink.close_shard()


def _said(people: Mapping[str, Path]) -> dict[str, tuple[Index, int]]:
    """Key -> where people's labels of it are; labels that a model made in an earlier round are decided anew."""
    found = {}
    for folder in people.values():
        index = Index.load(folder)
        for row, key in enumerate(map(str, index.column("key"))):
            if not index.read(row, media=False).labelled_by_model:
                found[key] = (index, row)
    return found


def by_model(group: PreferenceGroup, decision: Decision, model: str) -> PreferenceGroup:
    """A query with the model's ranking instead of all that was said about its answers before.

    `meta.labels` says that a model made them, which, how unsure it was, and whether that was certified. It has no
    scores, reasons or critiques.

    Raises:
        DataError: the decision is about other answers.
    """
    if decision.hashes != tuple(response.hash for response in group.responses):
        raise DataError("a proposal for other answers of this query", where=f"key {group.key}, shard {group.shard}",
                        expected="the shards that stage=triage was given")  # fmt: skip
    responses = tuple(
        replace(response, rank=rank, scores={}, reasons={}, critiques={})
        for response, rank in zip(group.responses, decision.ranks, strict=True)
    )
    meta = {name: value for name, value in group.meta.items() if name not in ("annotations", "annotators")}
    labels = {
        "by": "model", "model": model, "uncertainty": decision.uncertainty, "certified": decision.fate == "automatic",
    }  # fmt: skip
    return replace(group, responses=responses, pairs=None, meta=meta | {"labels": labels})


def _why(decision: Decision | None) -> str:
    if decision is None:
        return "stage=triage does not know it"
    return decision.reason or (
        NOT_ANSWERED if decision.fate in ("asked", "audit") else "its earlier labels are not given"
    )
