"""A reward model at work on the rows of an index: side-cars of rewards, resumable and keyed by what made them."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mmrlhf.chain.runtime import Runtime
from mmrlhf.inference.passes import (
    Prepare,
    describe_run,
    describe_source,
    describe_template,
    encoded_batches,
    without_media,
)
from mmrlhf.inference.reward_model import CritiqueSource, RewardModel
from mmrlhf.inference.sharing import Ranks
from mmrlhf.inference.verdicts import COLUMNS, Verdict
from mmrlhf.shards.index import Index
from mmrlhf.shards.sidecar import SideCar, SideCarWriter
from mmrlhf.terminal.progress import track
from mmrlhf.types import PreferenceGroup

log = logging.getLogger(__name__)

SECONDS_BETWEEN_WRITES = 30.0


@dataclass(frozen=True)
class Scoring:
    """Whom to ask about what.

    Args:
        index: the queries.
        judge: the reward model; reward_model: the folder it came from, for fingerprints.
        groups_per_batch: queries criticised together.
        blind: leave the pictures out; the scores then come from the words alone.
        given_kind: the annotated critiques that are given where critiques are given; "": the kind the model writes.
        ranks: the processes that share the rows.
    """

    index: Index
    judge: RewardModel
    reward_model: Path
    groups_per_batch: int
    runtime: Runtime
    blind: bool = False
    given_kind: str = ""
    ranks: Ranks = field(default_factory=Ranks)

    def write(self, folder: Path, rows: np.ndarray, source: CritiqueSource = "generate") -> dict[str, float]:
        """Score the rows that a side-car lacks and add them to it; returns how many and how fast, over all ranks."""
        columns, fingerprint = verdict_columns(self.judge), self.fingerprint(source)
        writer = SideCarWriter(folder, columns=columns, fingerprint=fingerprint, rank=self.ranks.rank)
        done, rows = writer.done_keys(), self.ranks.share(rows)
        missing = [int(row) for row in rows if self.index.entries[int(row)].key not in done]
        if done:
            log.info("%d of %d queries were scored before", len(rows) - len(missing), len(rows))
        started = written = time.monotonic()
        responses = tokens = 0
        batches = encoded_batches(
            self.index, missing, self.judge.encoder, self._encoding(source),
            groups_per_batch=self.groups_per_batch, num_workers=self.runtime.num_workers,
            prepare=self._preparation(source),
        )  # fmt: skip
        total = -(-len(missing) // self.groups_per_batch)
        for batch in track(batches, "scoring (batches)", total, enabled=self.runtime.progress):
            groups = [group for group, _ in batch]
            verdicts = self.judge.score_groups(groups, [encoded for _, encoded in batch], critique_source=source)
            for group, found in zip(groups, verdicts, strict=True):
                add_verdicts(writer, group, found)
                responses += len(found)
                tokens += sum(verdict.critique_tokens for verdict in found)
            if time.monotonic() - written > SECONDS_BETWEEN_WRITES:
                writer.flush()
                written = time.monotonic()
        writer.flush()
        seconds = max(time.monotonic() - started, 1e-9)
        return self.ranks.total(
            {
                "queries_scored": len(missing),
                "responses_scored": responses,
                "queries_per_second": round(len(missing) / seconds, 3),
                "responses_per_second": round(responses / seconds, 2),
                "critique_tokens_per_second": round(tokens / seconds, 1),
            }
        )

    def given(self, folder: Path, rows: np.ndarray) -> SideCar:
        """Score rows with their annotated critiques in context, those of them whose responses all have one."""
        kind, read = self._kind, self.index.read
        complete = [row for row in rows if all(kind in r.critiques for r in read(int(row), media=False).responses)]
        if len(complete) < len(rows):
            log.warning("%d of %d queries lack '%s' critiques to give", len(rows) - len(complete), len(rows), kind)
        self.write(folder, np.array(complete, dtype=np.int64), "given")
        return SideCar.load(folder)

    @property
    def _kind(self) -> str:
        return self.given_kind or self.judge.template.critique

    def _preparation(self, source: CritiqueSource) -> Prepare | None:
        slot = self.judge.template.critique
        if source == "given" and self._kind != slot:
            return partial(_with_critiques_of, kind=self._kind, slot=slot, blind=self.blind)
        return without_media if self.blind else None

    def fingerprint(self, source: CritiqueSource) -> dict[str, Any]:
        """Everything that rewards depend on, for their side-car."""
        judge = self.judge
        return {
            "made_by": "score",
            "shards": self.index.digest,
            "reward_model": describe_source(self.reward_model),
            "template": describe_template(judge.template),
            "media": asdict(judge.media),
            "critique_source": source,
            **describe_run(judge.model),
            **({"media": "none"} if self.blind else {}),
            **({"given_kind": self._kind} if source == "given" else {}),
            **({"critiques": asdict(judge.critiques)} if source == "generate" and judge.writes_critiques else {}),
        }

    def _encoding(self, source: CritiqueSource) -> Any:
        """What the workers encode ahead: contexts where critiques are written from them, else complete sequences."""
        encoder = self.judge.encoder
        return encoder.context if self.judge.writes_critiques and source == "generate" else encoder


def _with_critiques_of(group: PreferenceGroup, *, kind: str, slot: str, blind: bool) -> PreferenceGroup:
    """Put the annotated critiques of one kind where the model expects its own."""
    responses = [replace(response, critiques={slot: response.critiques[kind]}) for response in group.responses]
    changed = replace(group, responses=tuple(responses))
    return without_media(changed) if blind else changed


def verdict_columns(judge: RewardModel) -> list[str]:
    """Columns of a side-car that takes a reward model's verdicts."""
    return [*COLUMNS, *(f"score_{name}" for name in judge.dimensions)]


def add_verdicts(writer: SideCarWriter, group: PreferenceGroup, verdicts: Sequence[Verdict]) -> None:
    """Add one query's verdicts to a side-car."""
    for response, verdict in zip(group.responses, verdicts, strict=True):
        writer.add(group.key, response.hash, verdict.columns())
