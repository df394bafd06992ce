"""What a reward model is trained to read and write: which critique stands behind a response, and is it there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from mmrlhf.errors import DataError
from mmrlhf.ranges import check_fields
from mmrlhf.shards.critique_tables import CRITIQUE, ShuffledCritiques, TableCritiques, check_critiques
from mmrlhf.shards.index import Index
from mmrlhf.shards.sidecar import SideCar
from mmrlhf.tokens.templates import EVALUATOR_INSTRUCTION, CritiqueTemplate
from mmrlhf.training.fit import check_table, need_path
from mmrlhf.training.settings import Schedule
from mmrlhf.types import PreferenceGroup

log = logging.getLogger(__name__)

Kind = Literal["full", "short", "evidence", "none"]
Source = Literal["oracle", "self", "shuffled"]
Missing = Literal["error", "score"]


@dataclass(frozen=True)
class CritiqueChoice:
    """Which critique a reward model learns, and in what prompt.

    Args:
        kind: which annotated critique; `none` scores at the end of the response.
        source: whose critique stands behind a response: the annotators' (`oracle`), the model's own (`self`, from the
            table that the stage `score` wrote), or a random one of the query's (`shuffled`).
        table: of the model's own critiques, for `self`.
        missing: a response without critique is an `error`, or only its `score` is learned.
        instruction: of the evaluator's prompt; None: the evaluator instruction, "": none.

    Raises:
        ConfigError: an unknown choice.
    """

    kind: Kind = "full"
    source: Source = "oracle"
    table: Path | str | None = None
    missing: Missing = "error"
    instruction: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def template(self) -> CritiqueTemplate:
        """The conversation that it makes."""
        instruction = EVALUATOR_INSTRUCTION if self.instruction is None else self.instruction
        return CritiqueTemplate(self.kind, instruction, allow_missing=self.missing == "score" and self.source != "self")

    def prepare(self, shards: Path, seed: int) -> Callable[[PreferenceGroup], PreferenceGroup] | None:
        """What puts another critique behind each response; None where it is the annotated one, or none.

        Raises:
            ConfigError: `self` without a table.
            DataError: a table of other shards.
        """
        if self.kind == "none" or self.source == "oracle":
            return None
        if self.source == "shuffled":
            return ShuffledCritiques(self.kind, seed)
        what, where = "a table of the model's own critiques", "stages.reward.critique.table"
        table = SideCar.load(need_path(self.table, what=what, where=where, stage="score"), columns=[CRITIQUE])
        check_table(table, {"shards": Index.load(shards).digest}, name="critiques", stage="score")
        return TableCritiques(table, self.kind)

    def check(self, index: Index, schedule: Schedule) -> None:
        """Find out whether every response has its critique, before a model is loaded; raises as `check_critiques`."""
        if self.kind != "none" and self.source != "self":
            check_critiques(index, used_rows(index, schedule), self.kind, only_count=self.missing == "score")


def used_rows(index: Index, schedule: Schedule) -> np.ndarray:
    """Rows that training or its validation reads."""
    return schedule.queries.rows(index)


def check_dimensions(index: Index, schedule: Schedule, dimensions: Sequence[str]) -> None:
    """Make sure that there are annotated scores on each dimension; raises DataError with those that there are."""
    if not dimensions:
        return
    found: set[str] = set()
    for row in used_rows(index, schedule):
        with suppress(DataError):  # damage is counted when the row is trained on
            found |= {name for response in index.read(int(row), media=False).responses for name in response.scores}
    lacking = sorted(set(dimensions) - found)
    if lacking:
        raise DataError(
            f"no response has a score for {', '.join(lacking)}",
            where=index.folder,
            given=f"annotated dimensions: {', '.join(sorted(found)) or 'none'}",
            fix="choose among these in stages.reward.head.dimensions, or leave it empty",
        )
