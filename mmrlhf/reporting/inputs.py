"""What the report page is made from: artefact folders, and the responses, rewards and margins of the data."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmrlhf.callbacks.curves import FILE_NAME as CURVE_FILE
from mmrlhf.callbacks.curves import read_curves
from mmrlhf.callbacks.histograms import Histogram, read_histograms
from mmrlhf.chain.fingerprint import ARTIFACT_FILE
from mmrlhf.errors import DataError
from mmrlhf.files import is_remote, read_lines
from mmrlhf.losses.objective import Objective, PairInputs
from mmrlhf.shards.index import Index
from mmrlhf.shards.sidecar import SideCar

logger = logging.getLogger(__name__)

AnswerPair = tuple[str, str, float, float]  # key, category, before, after
Curves = Mapping[str, tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class StageResult:
    """One stage's folder: its record (settings, versions, seconds; empty for a folder of the user's own), its summary,
    and its training curves and histograms if it trained."""

    name: str
    folder: Path
    record: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    curves: Curves = field(default_factory=dict)
    histograms: Mapping[str, Sequence[Histogram]] = field(default_factory=dict)

    @property
    def seconds(self) -> float | None:
        """How long the stage took, where that is known."""
        value = self.record.get("seconds")
        return float(value) if value is not None else None


def open_shards(place: str | Path | None) -> Index | None:
    """Open packed data, in a folder or at an address; None where none is given or the folder is not there."""
    if place is None or not (is_remote(place) or Path(place).exists()):
        return None
    return Index.load(place)


def read_stage(name: str, path: str | Path | None) -> StageResult | None:
    """Read a stage's folder; None where it was not given or is not there.

    The path may point into the artefact (its `model`, its `rewards`): the record is then found above it.
    """
    if path is None or not Path(path).exists():
        return None
    folder = Path(path)
    for above in (folder, *list(folder.resolve().parents)[:2]):
        if (above / ARTIFACT_FILE).is_file():
            folder = above
            break
    record = read_json(folder / ARTIFACT_FILE) or {}
    summary = read_json(folder / "metrics.json") or record.get("summary") or {}
    curves = read_curves(folder) if (folder / CURVE_FILE).is_file() else {}
    return StageResult(name, folder, record, summary, curves, read_histograms(folder))


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object; None where the file is absent. Raises: DataError where it is damaged."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError("a result file is not JSON", where=path, given=str(error), fix="run its stage again") from error


def read_answers(stage: StageResult | None) -> dict[str, list[dict[str, Any]]]:
    """Read an evaluation's `samples.jsonl`: the rows of every key, in sample order; empty without one."""
    answers: dict[str, list[dict[str, Any]]] = {}
    path = stage.folder / "samples.jsonl" if stage is not None else None
    if path is not None and path.is_file():
        for line in filter(None, read_lines(path)):
            row = json.loads(line)
            answers.setdefault(row["key"], []).append(row)
    return answers


def paired_answers(
    before: Mapping[str, list[dict[str, Any]]], after: Mapping[str, list[dict[str, Any]]], column: str
) -> list[AnswerPair]:
    """Match two evaluations by (key, sample): (key, category, before, after) wherever both have the column."""
    return [
        (key, str(new.get("category", "unknown")), float(old[column]), float(new[column]))
        for key in after
        for old, new in zip(before.get(key, ()), after[key], strict=False)
        if old.get(column) is not None and new.get(column) is not None
    ]


def reward_table(path: str | Path | None) -> SideCar | None:
    """Load the rewards: the side-car itself, or the one in the folder `rewards` of the score stage."""
    if path is None or not Path(path).exists():
        return None
    folder = Path(path)
    inner = folder / "rewards"
    return SideCar.load(inner if inner.is_dir() else folder)


@dataclass(frozen=True)
class PairTable:
    """Margins (P,) and categories (P,) of the data's ranked pairs, the rewards (R,) of all their responses.

    betas (P,) is None where no objective was given.
    """

    margins: np.ndarray
    betas: np.ndarray | None
    rewards: np.ndarray
    category: np.ndarray
    num_groups: int


def read_pairs(
    index: Index, rewards: SideCar | None, objective: Objective | None, *, limit: int, seed: int = 0
) -> PairTable | None:
    """Collect the margins of at most `limit` groups that have rewards, and the beta that the objective gives them."""
    if rewards is None:
        return None
    margins: list[float] = []
    values: list[float] = []
    category: list[str] = []
    rows = scored_rows(index, rewards, limit=limit, seed=seed)
    for row in rows:
        group = index.read(int(row), media=False)
        reward = rewards.lookup(group.key, [response.hash for response in group.responses])["reward"].tolist()
        values += reward
        pairs = group.ranked_pairs()
        margins += [reward[chosen] - reward[rejected] for chosen, rejected in pairs]
        category += [group.category] * len(pairs)
    if not margins:
        return None
    betas = pair_betas(margins, objective) if objective is not None else None
    return PairTable(np.array(margins), betas, np.array(values), np.array(category), len(rows))


def scored_rows(index: Index, rewards: SideCar, *, limit: int, seed: int = 0) -> np.ndarray:
    """Draw at most `limit` rows (n,) of the index, ascending, among those that have rewards."""
    scored = rewards.keys()
    rows = np.array([row for row, key in enumerate(index.column("key")) if key in scored], dtype=np.int64)
    if len(rows) > limit:
        rows = np.sort(np.random.default_rng(seed).choice(rows, limit, replace=False))
    return rows


def pair_betas(margins: Sequence[float] | np.ndarray, objective: Objective) -> np.ndarray:
    """Ask the objective for beta (P,) of pairs with these margins, at log-ratio gap zero.

    An objective that looks at the other pairs of a call sees all of them at once here.
    """
    margin = torch.as_tensor(np.asarray(margins, dtype=np.float32))
    zero, one = torch.zeros_like(margin), torch.ones_like(margin)
    inputs = PairInputs(zero, zero, zero, zero, margin=margin, chosen_tokens=one, rejected_tokens=one)
    with torch.no_grad():
        return objective.scale(inputs).b.double().numpy()
