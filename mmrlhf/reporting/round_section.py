"""The section on rounds: reward, quality and distance on held-out queries after every round of self-improvement."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmrlhf.reporting import plots
from mmrlhf.reporting.inputs import read_stage
from mmrlhf.reporting.plots import Interval, dot
from mmrlhf.summaries.evaluations import EvaluateSummary, Measure, Round
from mmrlhf.summaries.rankings import Estimate

MEASURES = {
    "quality": "true quality",
    "reward": "reward model's score",
    "kl": "distance from the start, nats an answer",
    "length": "length, tokens",
}
PARTS = ("mean", "low", "high")


def read_rounds(before: str | Path | None, rounds: Sequence[str | Path]) -> list[Round]:
    """What is known of the policy before the first round (round 0), and after each."""
    rows = []
    for turn, path in enumerate([before, *rounds]):
        stage = read_stage(f"round {turn}", path, EvaluateSummary)
        found = stage.summary if stage is not None else None
        if found is not None:
            means = (_overall(found.quality), _overall(found.reward), _overall(found.kl), _overall(found.length))
            rows.append(Round(turn, *means))
    return rows


def _overall(found: Measure | None) -> Estimate | None:
    return None if found is None else Estimate(found.mean, found.low, found.high)


def rounds_section(rows: Sequence[Round]) -> dict[str, Any]:
    """The table and one dot plot each of quality and reward, where they are known."""
    dots = [(row.round, {name: _dot(found, row.round) for name, found in row.measures().items()}) for row in rows]
    shown = [name for name in MEASURES if any(found[name] is not None for _, found in dots)]
    section: dict[str, Any] = {
        "measures": [MEASURES[name] for name in shown],
        "rows": [{"round": turn, "values": [found[name] for name in shown]} for turn, found in dots],
    }
    for name in ("quality", "reward"):
        known = [own for _, found in dots if (own := found[name]) is not None]
        if known:
            section[name] = plots.intervals(known, label=MEASURES[name])
    return section


def _dot(found: Estimate | None, turn: int) -> Interval | None:
    return None if found is None else dot(found, f"round {turn}" if turn else "start", strong=turn > 0)


def write_rounds(path: Path, rows: Sequence[Round]) -> None:
    """Write the rounds as a table: round, then mean, low and high of each measure (empty where not known)."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["round", *(f"{name}_{part}" for name in MEASURES for part in PARTS)])
        for row in rows:
            known = row.measures()
            values = [(v.mean, v.low, v.high) if v is not None else ("", "", "") for v in map(known.get, MEASURES)]
            writer.writerow([row.round, *(value for triple in values for value in triple)])
