"""What the report page is made from: artefact folders, and the responses, rewards and margins of the data."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from statistics import fmean
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from mmrlhf.errors import DataError, UserError
from mmrlhf.files import is_remote, read_lines
from mmrlhf.losses.objective import Objective, PairInputs
from mmrlhf.parts import ARTIFACT_FILE, artifact_of, remedy
from mmrlhf.records.fields import is_number, text_field, wrong_type
from mmrlhf.records.json_text import parse_row
from mmrlhf.reporting.best_answers import Judged, best_of, most_drawn
from mmrlhf.shards.index import Index
from mmrlhf.shards.sidecar import SideCar
from mmrlhf.summaries.curve_file import FILE_NAME as CURVE_FILE
from mmrlhf.summaries.curve_file import read_curves
from mmrlhf.summaries.datasets import PackSummary
from mmrlhf.summaries.evaluations import BestOf, EvaluateSummary
from mmrlhf.summaries.histogram_file import Histogram, read_histograms
from mmrlhf.summaries.kinds import kind_of
from mmrlhf.summaries.scores import RewardsSummary
from mmrlhf.summaries.summary import METRICS_FILE, Summary
from mmrlhf.summaries.trainings import TrainingSummary
from mmrlhf.types import PreferenceGroup

logger = logging.getLogger(__name__)

S = TypeVar("S", bound=Summary, covariant=True)

AnswerPair = tuple[str, str, float, float]  # key, category, before, after
Curves = Mapping[str, tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class StageResult(Generic[S]):
    """One stage's folder: its record (settings, versions, seconds; empty for a folder of the user's own), what it found
    (`content` as it lies there, `summary` read as one of the kinds that were asked for; None where it is of none),
    and its training curves and histograms if it trained."""

    name: str
    folder: Path
    record: Mapping[str, Any] = field(default_factory=dict)
    content: Mapping[str, Any] = field(default_factory=dict)
    summary: S | None = None
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


def read_group(index: Index, row: int, *, media: bool = True) -> PreferenceGroup | None:
    """Read a query for a page; None, with a line in the log, where it cannot be read: the page shows the others."""
    try:
        return index.read(row, media=media)
    except UserError as error:
        logger.warning("not shown: %s", error)
        return None


def read_stage(name: str, path: str | Path | None, *kinds: type[S]) -> StageResult[S] | None:
    """Read a stage's folder; None where it was not given or is not there.

    The path may point into the artefact (its `model`, its `rewards`): the record is then found above it.

    kinds: that its summary may be of. What another stage made has none of them (a mixed set that is read as a packed
    one). Raises: DataError where it should be of a kind, and its keys are not.
    """
    if path is None or not Path(path).exists():
        return None
    folder = artifact_of(path) or Path(path)
    record = read_json(folder / ARTIFACT_FILE) or {}
    content = read_json(folder / METRICS_FILE) or record.get("summary") or {}
    curves = read_curves(folder) if (folder / CURVE_FILE).is_file() else {}
    summary = _summary(folder, record, content, kinds) if content else None
    return StageResult(name, folder, record, content, summary, curves, read_histograms(folder))


def _summary(folder: Path, record: Mapping[str, Any], content: Mapping[str, Any], kinds: Sequence[type[S]]) -> S | None:
    """What made the folder decides the kind; where nothing says that, the most fitting one."""
    target = str(record.get("settings", {}).get("_target_", ""))
    fitting = [kind for kind in kinds if not target or kind is kind_of(target)]
    if not fitting:
        return None
    kind = min(fitting, key=lambda kind: len({item.name for item in fields(kind)} ^ set(content)))  # type: ignore[arg-type]
    where = folder / METRICS_FILE
    return kind.from_json(content, where=where if where.is_file() else folder / ARTIFACT_FILE)


@dataclass(frozen=True)
class RunStages:
    """The stages that a page is about; None for one that was not given, or is not there."""

    pack: StageResult[PackSummary] | None = None
    sft: StageResult[TrainingSummary] | None = None
    reward: StageResult[TrainingSummary] | None = None
    score: StageResult[RewardsSummary] | None = None
    reference: StageResult[Summary] | None = None
    mmdpo: StageResult[TrainingSummary] | None = None
    before: StageResult[EvaluateSummary] | None = None
    after: StageResult[EvaluateSummary] | None = None
    others: Sequence[StageResult[Summary]] = ()

    def known(self) -> list[StageResult[Summary]]:
        """All that are there, in the order in which they are run."""
        own: list[StageResult[Any] | None] = [self.pack, self.sft, self.reward, self.score, self.reference]
        own += [self.mmdpo, self.before, self.after]
        return [*(stage for stage in own if stage is not None), *self.others]


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object; None where the file is absent. Raises: DataError where it is damaged."""
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(
            "a result file is not JSON", where=path, given=str(error), fix=remedy(path, "run its stage again")
        ) from error
    if not isinstance(found, dict):
        raise DataError(
            "a result file is no object", where=path, given=str(found)[:80], fix=remedy(path, "run its stage again")
        )
    return found


def read_answers(stage: StageResult[Any] | None) -> dict[str, list[dict[str, Any]]]:
    """Read an evaluation's `samples.jsonl`: the rows of every key, in sample order; empty without one.

    Raises: DataError for a line that is no answer, or one whose quality or reward is no number; names it.
    """
    answers: dict[str, list[dict[str, Any]]] = {}
    path = stage.folder / "samples.jsonl" if stage is not None else None
    if path is not None and path.is_file():
        for number, line in enumerate(read_lines(path), start=1):
            if line:
                row = _answer(line, f"{path}:{number}")
                answers.setdefault(row["key"], []).append(row)
    return answers


def _answer(line: str, where: str) -> dict[str, Any]:
    row = parse_row(line.encode(), where)
    text_field(row, ("key",), where)
    for name in ("quality", "reward"):
        if row.get(name) is not None and not is_number(row[name]):
            raise wrong_type(where, name, row[name], "a number, or null where it was not asked for")
    return dict(row)


def paired_answers(
    before: Mapping[str, list[dict[str, Any]]], after: Mapping[str, list[dict[str, Any]]], column: str
) -> list[AnswerPair]:
    """Match two evaluations by query: (key, category, mean before, mean after) wherever both know the column."""
    found = []
    for key, rows in after.items():
        old, new = (
            [float(row[column]) for row in of if row.get(column) is not None] for of in (before.get(key, ()), rows)
        )
        if old and new:
            found.append((key, str(rows[0].get("category", "unknown")), fmean(old), fmean(new)))
    return found


def best_of_before(before: Mapping[str, list[dict[str, Any]]]) -> BestOf | None:
    """What the best of a query's answers by reward is worth before training; None where each has one answer."""
    judged = []
    for key, rows in before.items():
        scored = [row for row in rows if row.get("reward") is not None]
        quality = [row.get("quality") for row in scored]
        known = None if None in quality else [float(value) for value in quality if value is not None]
        if scored:
            judged.append(Judged(key, [float(row["reward"]) for row in scored], [1] * len(scored), known))
    most = most_drawn(judged)
    return best_of(judged, most) if most > 1 else None


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

    betas (P,) is None where no objective was given; length_gaps (P,): characters of the chosen minus the rejected one;
    num_groups: how many queries they are of.
    """

    margins: np.ndarray
    length_gaps: np.ndarray
    betas: np.ndarray | None
    rewards: np.ndarray
    category: np.ndarray
    num_groups: int


def read_pairs(
    index: Index, rewards: SideCar | None, objective: Objective | None, *, limit: int, seed: int = 0
) -> PairTable | None:
    """Collect margins of at most `limit` groups with rewards, none labelled by a model, and the objective's betas."""
    if rewards is None:
        return None
    margins: list[float] = []
    values: list[float] = []
    category: list[str] = []
    gaps: list[int] = []
    num_groups = 0
    for row in scored_rows(index, rewards, limit=limit, seed=seed):
        group = read_group(index, int(row), media=False)
        if group is None or group.labelled_by_model:  # whoever made the labels would be judged by itself
            continue
        reward = rewards.lookup(group.key, [response.hash for response in group.responses])["reward"].tolist()
        values += reward
        num_groups += 1
        pairs = group.ranked_pairs()
        margins += [reward[chosen] - reward[rejected] for chosen, rejected in pairs]
        category += [group.category] * len(pairs)
        lengths = [len(response.text) for response in group.responses]
        gaps += [lengths[chosen] - lengths[rejected] for chosen, rejected in pairs]
    if not margins:
        return None
    betas = pair_betas(margins, objective) if objective is not None else None
    return PairTable(np.array(margins), np.array(gaps), betas, np.array(values), np.array(category), num_groups)


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
