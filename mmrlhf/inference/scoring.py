"""A reward model at work on the rows of an index: side-cars of rewards, resumable and keyed by what made them."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mmrlhf.chain.runtime import Runtime
from mmrlhf.errors import DataError
from mmrlhf.inference.made_by import describe_run, describe_source, describe_template
from mmrlhf.inference.passes import Prepare, encoded_batches
from mmrlhf.inference.reward_model import CritiqueSource, RewardModel
from mmrlhf.inference.sharing import Ranks
from mmrlhf.inference.tables import TablePass
from mmrlhf.inference.verdicts import COLUMNS
from mmrlhf.records.quarantine import Quarantine
from mmrlhf.shards.index import Index
from mmrlhf.shards.sidecar import SideCar
from mmrlhf.tensors import EncodedGroup
from mmrlhf.types import PreferenceGroup

log = logging.getLogger(__name__)


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

    def write(
        self, folder: Path, rows: np.ndarray, source: CritiqueSource = "generate", quarantine: Quarantine | None = None
    ) -> dict[str, float]:
        """Score the rows that a side-car lacks and add them to it; returns what is in it and how fast that went.

        Args:
            quarantine: takes the queries that cannot be scored; None: one of this pass's own.
        """
        if quarantine is None:
            quarantine = Quarantine(len(rows), self.runtime.max_damaged)
        tokens, prepare = 0, self._preparation(source)

        def measure(batch: Sequence[tuple[PreferenceGroup, EncodedGroup]]) -> Iterator[tuple[PreferenceGroup, list]]:
            nonlocal tokens
            contexts = [encoded for _, encoded in batch]
            shown = [group if prepare is None else prepare(group) for group, _ in batch]
            verdicts = self.judge.score_groups(shown, contexts, critique_source=source, quarantine=quarantine)
            # responses go by their media, too, which a blind pass does not show
            for (group, _), found in zip(batch, verdicts, strict=True):
                tokens += sum(verdict.critique_tokens for verdict in found)
                if found:
                    yield group, [verdict.columns() for verdict in found]

        started = time.monotonic()
        asked = TablePass(
            verdict_columns(self.judge),
            self.fingerprint(source),
            [self.index.entries[int(row)].key for row in rows],
            batches=lambda places: encoded_batches(
                self.index, rows[places], self.judge.encoder, self._encoding(source),
                groups_per_batch=self.groups_per_batch, quarantine=quarantine, num_workers=self.runtime.num_workers,
                prepare=prepare, media=not self.blind, preflight=self.runtime.preflight,
            ),
            measure=measure,
            size=self.groups_per_batch,
            title="scoring (batches)",
            counted=("response_cut", "critique_cut"),
        )  # fmt: skip
        rates = asked.fill(folder, quarantine, self.ranks, self.runtime)
        seconds = max(time.monotonic() - started, 1e-9)
        return {
            "queries_scored": rates["queries"],
            "responses_scored": rates["responses"],
            "queries_per_second": rates["queries_per_second"],
            "responses_per_second": rates["responses_per_second"],
            "responses_shortened": rates["response_cut"],
            "critiques_cut": rates["critique_cut"],
            **self.ranks.total({"critique_tokens_per_second": round(tokens / seconds, 1)}),
        }

    def given(self, folder: Path, rows: np.ndarray, quarantine: Quarantine | None = None) -> SideCar:
        """Score rows with their annotated critiques in context, those of them whose responses all have one."""
        kind = self._kind
        complete = [row for row in rows if self._has_critiques(int(row), kind)]
        if len(complete) < len(rows):
            log.warning("%d of %d queries lack '%s' critiques to give", len(rows) - len(complete), len(rows), kind)
        self.write(folder, np.array(complete, dtype=np.int64), "given", quarantine)
        return SideCar.load(folder)

    def _has_critiques(self, row: int, kind: str) -> bool:
        """Whether all responses of a row have a critique; a row that cannot be read is left to the pass."""
        try:
            return all(kind in response.critiques for response in self.index.read(row, media=False).responses)
        except DataError:
            return True

    @property
    def _kind(self) -> str:
        return self.given_kind or self.judge.template.critique

    def _preparation(self, source: CritiqueSource) -> Prepare | None:
        slot = self.judge.template.critique
        if source == "given" and self._kind != slot:
            return partial(_with_critiques_of, kind=self._kind, slot=slot, blind=self.blind)
        return PreferenceGroup.without_media if self.blind else None

    def fingerprint(self, source: CritiqueSource) -> dict[str, Any]:
        """Everything that rewards depend on, for their side-car."""
        return {
            "made_by": "score",
            "shards": self.index.digest,
            "critique_source": source,
            **describe_judge(self.judge, self.reward_model, writes=source == "generate"),
            **({"media": "none"} if self.blind else {}),
            **({"given_kind": self._kind} if source == "given" else {}),
        }

    def _encoding(self, source: CritiqueSource) -> Any:
        """What the workers encode ahead: contexts where critiques are written from them, else complete sequences."""
        encoder = self.judge.encoder
        return encoder.context if self.judge.writes_critiques and source == "generate" else encoder


def _with_critiques_of(group: PreferenceGroup, *, kind: str, slot: str, blind: bool) -> PreferenceGroup:
    """Put the annotated critiques of one kind where the model expects its own."""
    responses = [replace(response, critiques={slot: response.critiques[kind]}) for response in group.responses]
    changed = replace(group, responses=tuple(responses))
    return changed.without_media() if blind else changed


def describe_judge(judge: RewardModel, reward_model: Path, *, writes: bool) -> dict[str, Any]:
    """Which reward model is asked, and all of how that its rewards depend on, for the fingerprint of their table.

    Args:
        writes: whether it writes its critiques itself.
    """
    critiques = {name: value for name, value in asdict(judge.critiques).items() if name != "orders"}
    return {
        "reward_model": describe_source(reward_model),
        "template": describe_template(judge.template),
        "media": asdict(judge.media),
        **describe_run(judge.model),
        **({"protocol": judge.protocol} if judge.protocol != "trained" else {}),
        **({"critiques": critiques} if writes and judge.writes_critiques else {}),
        **({"reading": judge.reading, "orders": judge.critiques.orders} if judge.in_turn else {}),
    }


def verdict_columns(judge: RewardModel) -> list[str]:
    """Columns of a side-car that takes a reward model's verdicts."""
    return [*COLUMNS, *(f"score_{name}" for name in judge.dimensions)]
