"""What was cut and left out, a line for each stage: said where the results are, not in a file beside them only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# (key of a stage's summary, what it counts)
_CUTS = (
    ("responses_shortened", "responses were shortened"),
    ("truncated_tokens", "tokens were cut off responses"),
    ("equal_pairs", "times a pair was left out because the cut had made its two responses the same"),
    ("critiques_cut", "critiques reached their longest length and end there"),
    ("num_cut_off", "answers reached their longest length and end there"),
)


def cut_line(summary: Mapping[str, Any]) -> str:
    """What a stage's summary says was cut, and which queries it left out and why; "" where there is nothing to say."""
    parts = [f"{summary[key]:,.0f} {what}" for key, what in _CUTS if summary.get(key)]
    # of best of n the two sides are curves, and no rankings
    sides = [side for side in (summary.get("heldout"), summary.get("train"), summary) if isinstance(side, Mapping)]
    by_model = sum(side.get("labelled_by_model") or 0 for side in sides)
    if by_model:
        parts.append(f"{by_model:,} queries whose labels a model made judge nobody")
    left_out = summary.get("quarantined") or {}
    if left_out.get("queries"):
        reasons = "; ".join(f"{row['queries']} x {row['reason']}" for row in left_out["reasons"])
        parts.append(f"{left_out['queries']:,} of {left_out['of']:,} queries were left out ({reasons})")
    return ", ".join(parts)
