"""The section on rounds: reward, quality and distance on held-out queries after every round of self-improvement."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmrlhf.reporting import plots
from mmrlhf.reporting.inputs import read_stage
from mmrlhf.reporting.plots import Interval, dot

MEASURES = {
    "quality": "true quality",
    "reward": "reward model's score",
    "kl": "distance from the start, nats an answer",
    "length": "length, tokens",
}
PARTS = ("mean", "low", "high")


def read_rounds(before: str | Path | None, rounds: Sequence[str | Path]) -> list[dict[str, Any]]:
    """One row for the policy before the first round (round 0) and one for each round: measure -> Interval or None."""
    rows = []
    for turn, path in enumerate([before, *rounds]):
        stage = read_stage(f"round {turn}", path)
        if stage is not None:
            rows.append({"round": turn, **{name: _interval(stage.summary, name, turn) for name in MEASURES}})
    return rows


def _interval(summary: Mapping[str, Any], name: str, turn: int) -> Interval | None:
    found = summary.get(name)
    if not isinstance(found, Mapping) or found.get("mean") is None:
        return None
    return dot(found, f"round {turn}" if turn else "start", strong=turn > 0)


def plain_interval(found: Interval | None) -> dict[str, float | None] | None:
    """An interval as plain numbers."""
    return None if found is None else dict(zip(PARTS, (found.value, found.low, found.high), strict=True))


def rounds_section(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The table and one dot plot each of quality and reward, where they are known."""
    shown = [name for name in MEASURES if any(row[name] is not None for row in rows)]
    section: dict[str, Any] = {
        "measures": [MEASURES[name] for name in shown],
        "rows": [{"round": row["round"], "values": [row[name] for name in shown]} for row in rows],
    }
    for name in ("quality", "reward"):
        known = [row[name] for row in rows if row[name] is not None]
        if known:
            section[name] = plots.intervals(known, label=MEASURES[name])
    return section


def write_rounds(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the rounds as a table: round, then mean, low and high of each measure (empty where not known)."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["round", *(f"{name}_{part}" for name in MEASURES for part in PARTS)])
        for row in rows:
            values = [(v.value, v.low, v.high) if v is not None else ("", "", "") for v in map(row.get, MEASURES)]
            writer.writerow([row["round"], *(value for triple in values for value in triple)])
