"""Stage `reference`: the reference policy's log-probability of every response, computed once and kept.

A preference run then never loads a second model. The table is keyed by query and response text, and carries the
fingerprint of the policy, the template and the media settings that it is true for.
"""

from __future__ import annotations

import logging
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from mmrlhf.callbacks.progress import track
from mmrlhf.data.index import Index
from mmrlhf.data.selection import Selection, select
from mmrlhf.data.sidecar import SideCarWriter
from mmrlhf.stages.passes import (
    GroupScores,
    Policy,
    describe_source,
    describe_template,
    encoded_batches,
    forward_groups,
    pick_device,
)
from mmrlhf.stages.runtime import Runtime
from mmrlhf.stages.settings import PassSettings
from mmrlhf.stages.store import write_json
from mmrlhf.types import PreferenceGroup

log = logging.getLogger(__name__)

COLUMNS = ("reference_logprob", "reference_tokens")
LOGPROBS = "logprobs"
SECONDS_BETWEEN_WRITES = 30.0


def run(
    out: Path,
    *,
    shards: Path,
    policy: Path | str,
    passes: PassSettings | None = None,
    holdout: float = 0.05,
    limit: int | None = None,
    selection: Selection | None = None,
    runtime: Runtime,
) -> dict[str, Any]:
    """Write `out/logprobs` (a side-car: reference_logprob, reference_tokens per response).

    A run that was stopped goes on with the queries that are missing.

    Args:
        shards: folder of shards.
        policy: the reference: a checkpoint folder or hub id.
        passes: how it is asked; its media must be those of the preference run, its precision and layout should be.
        holdout: share of held-out queries, as in training (all of them are done).
        limit: at most this many training queries.
        selection: which queries, as in training.
    """
    index, passes = Index.load(shards), passes or PassSettings()
    reference = Policy.load(policy, passes, device=pick_device(runtime))
    fingerprint = {
        "made_by": "reference",
        "shards": index.digest,
        "policy": describe_source(policy),
        "template": describe_template(reference.encoder.template),
        "media": asdict(reference.encoder.media),
    }
    writer = SideCarWriter(out / LOGPROBS, columns=COLUMNS, fingerprint=fingerprint)
    done = writer.done_keys()
    share = {"holdout": holdout, "selection": selection}
    sides = select(index, "heldout", **share), select(index, "train", limit=limit, **share)
    rows = np.concatenate([side.rows for side in sides])
    missing = [int(row) for row in rows if index.entries[int(row)].key not in done]
    if done:
        log.info("%d of %d queries were done before", len(rows) - len(missing), len(rows))
    summary = _score(writer, index, missing, reference, passes, runtime)
    write_json(out / "metrics.json", summary)
    return summary


def _score(
    writer: SideCarWriter,
    index: Index,
    rows: list[int],
    reference: Policy,
    passes: PassSettings,
    runtime: Runtime,
) -> dict[str, Any]:
    started = written = time.monotonic()
    responses = 0
    batches = encoded_batches(
        index, rows, reference.encoder, reference.encoder,
        groups_per_batch=passes.groups_per_batch, num_workers=runtime.num_workers,
    )  # fmt: skip
    total = -(-len(rows) // passes.groups_per_batch)
    for batch in track(batches, "reference log-probabilities (batches)", total, enabled=runtime.progress):
        found = forward_groups(reference.model, [encoded for _, encoded in batch], token_budget=passes.token_budget)
        for (group, _), scores in zip(batch, found, strict=True):
            _add(writer, group, scores)
            responses += len(group.responses)
        if time.monotonic() - written > SECONDS_BETWEEN_WRITES:
            writer.flush()
            written = time.monotonic()
    writer.flush()
    seconds = max(time.monotonic() - started, 1e-9)
    return {"queries": len(rows), "responses": responses, "responses_per_second": round(responses / seconds, 2)}


def _add(writer: SideCarWriter, group: PreferenceGroup, scores: GroupScores) -> None:
    values = zip(scores.logprob.tolist(), scores.num_tokens.tolist(), strict=True)
    for response, row in zip(group.responses, values, strict=True):
        writer.add(group.key, response.hash, dict(zip(COLUMNS, row, strict=True)))
