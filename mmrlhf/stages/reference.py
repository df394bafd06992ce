"""Stage `reference`: the reference policy's log-probability of every response, computed once and kept.

A preference run then never loads a second model. The table is keyed by query and response text, and carries the
fingerprint of the policy, the template and the media settings that it is true for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmrlhf.chain.runtime import Runtime
from mmrlhf.feed.selection import Queries, Selection
from mmrlhf.inference.made_by import describe_run, describe_source, describe_template
from mmrlhf.inference.passes import GroupScores, encoded_batches, forward_groups
from mmrlhf.inference.policy import Policy
from mmrlhf.inference.settings import PassSettings
from mmrlhf.inference.sharing import share_pass
from mmrlhf.inference.tables import TablePass
from mmrlhf.media.damage import Damage, DamageKind, damaged_only
from mmrlhf.methods.pairing import DAMAGED_REFERENCE, REFERENCE, REFERENCE_TOKENS, shared_column
from mmrlhf.ranges import Count, Natural, Share
from mmrlhf.records.quarantine import Quarantine
from mmrlhf.shards.index import Index
from mmrlhf.summaries.scores import ReferenceSummary
from mmrlhf.tensors import EncodedGroup
from mmrlhf.types import PreferenceGroup

CUT = "reference_cut"
COLUMNS: tuple[str, ...] = (REFERENCE, REFERENCE_TOKENS, CUT)
LOGPROBS = "logprobs"

# another number builds the stage anew, whatever `code` says
VERSION = 2
# what is in a finished artefact; checked before it is published
PROMISES = ("logprobs/_meta.json", "metrics.json")


def run(
    out: Path,
    *,
    shards: Path,
    policy: Path | str,
    passes: PassSettings | None = None,
    holdout: Share = 0.05,
    limit: Count | None = None,
    selection: Selection | None = None,
    damage: DamageKind | None = None,
    damage_seed: Natural = 0,
    shared_lengths: bool = False,
    runtime: Runtime,
) -> dict[str, Any]:
    """Write `out/logprobs`: a side-car with reference_logprob, reference_tokens and reference_cut of every response.

    Several processes share the queries. A run that was stopped goes on with the queries that are missing.

    Args:
        shards: folder of shards.
        policy: the reference: a checkpoint folder or hub id.
        passes: how it is asked; its media must be those of the preference run, its precision and layout should be.
        holdout: share of held-out queries, as in training (all of them are done).
        limit: at most this many training queries.
        selection: which queries, as in training.
        damage, damage_seed: also ask with damaged media (column `reference_damaged_logprob`), for mDPO; see `Damage`.
        shared_lengths: also keep each response's log-probability up to the length of every other response of its query
            (columns `reference_shared_0`, ...), for LD-DPO.
    """
    index, passes = Index.load(shards), passes or PassSettings()
    spoil = Damage(damage, damage_seed) if damage is not None else None
    queries = Queries(holdout, selection, limit)
    sides = queries.heldout(index), queries.train(index)
    rows = np.concatenate([side.rows for side in sides])
    most = max((index.entries[int(row)].num_responses for row in rows), default=0) if shared_lengths else 0
    shared = [shared_column(number) for number in range(most)]
    columns = (*COLUMNS, *([DAMAGED_REFERENCE] if spoil is not None else []), *shared)
    quarantine = Quarantine(len(rows), runtime.max_damaged)
    with share_pass(runtime) as ranks:
        reference = Policy.from_pretrained(policy, passes, damage=spoil, device=ranks.device)
        asked = TablePass(
            columns,
            _fingerprint(index, policy, reference),
            [index.entries[int(row)].key for row in rows],
            batches=lambda places: encoded_batches(
                index, rows[places], reference.encoder, reference.encoder,
                groups_per_batch=passes.groups_per_batch, quarantine=quarantine, num_workers=runtime.num_workers,
                preflight=runtime.preflight,
            ),
            measure=lambda batch: _measure(reference, batch, passes.token_budget, shared),
            size=passes.groups_per_batch,
            title="reference log-probabilities (batches)",
            counted=(CUT,),
        )  # fmt: skip
        rates = asked.fill(out / LOGPROBS, quarantine, ranks, runtime)
    if not ranks.leads:
        return rates
    counts = {name: rates[name] for name in ("queries", "responses", "queries_per_second", "responses_per_second")}
    summary = ReferenceSummary(**counts, responses_shortened=rates[CUT], quarantined=quarantine.summary())
    return summary.write(out)


def _fingerprint(index: Index, policy: Path | str, reference: Policy) -> dict[str, Any]:
    """Everything that the log-probabilities depend on, for their side-car."""
    damage = reference.encoder.damage
    return {
        "made_by": "reference",
        "shards": index.digest,
        "policy": describe_source(policy),
        "template": describe_template(reference.encoder.template),
        "media": asdict(reference.encoder.media),
        **describe_run(reference.model),
        **({"damage": asdict(damage)} if damage is not None else {}),
    }


def _measure(
    reference: Policy, batch: Sequence[tuple[PreferenceGroup, EncodedGroup]], token_budget: int, shared: Sequence[str]
) -> Iterator[tuple[PreferenceGroup, list[dict[str, float]]]]:
    """Each query with the table's values of its responses."""
    found = _ask(reference, [encoded for _, encoded in batch], token_budget, shared)
    for (group, _), columns in zip(batch, found, strict=True):
        yield group, [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _damaged(group: EncodedGroup) -> EncodedGroup:
    branches = tuple(replace(branch, media=damaged_only(branch.media)) for branch in group.branches)
    return replace(group, media=damaged_only(group.media), branches=branches)


def _ask(
    reference: Policy, groups: Sequence[EncodedGroup], token_budget: int, shared: Sequence[str]
) -> list[dict[str, list[float]]]:
    """The table's columns of each group, one value per response."""
    found = forward_groups(reference.model, groups, token_budget=token_budget)
    columns: list[dict[str, list[float]]] = [
        dict(zip(COLUMNS, (one.logprob.tolist(), one.num_tokens.tolist(), one.cut.tolist()), strict=True))
        | _shared_logprobs(one, shared)
        for one in found
    ]
    if reference.encoder.damage is not None:
        spoilt = [_damaged(group) for group in groups]
        for own, one in zip(columns, forward_groups(reference.model, spoilt, token_budget=token_budget), strict=True):
            own[DAMAGED_REFERENCE] = one.logprob.tolist()
    return columns


def _shared_logprobs(scores: GroupScores, columns: Sequence[str]) -> dict[str, list[float]]:
    """Column k: each response's log-probability (K,) up to the length of response k; whole where that is longer."""
    upto = [torch.cat((own.new_zeros(1), own.cumsum(0))) for own in (each.double() for each in scores.token_logprob)]
    lengths = [len(own) - 1 for own in upto]
    others = [*lengths, *[max(lengths)] * (len(columns) - len(lengths))]
    return {
        name: [float(own[min(len(own) - 1, other)]) for own in upto]
        for name, other in zip(columns, others, strict=False)
    }
