"""RewardBench 2 (arXiv 2506.01937), text alone: a prompt, right answers in `chosen`, others in `rejected`.

Ids of the subset Ties are `ref:N` and `tied:N`, questions with one and with several right answers; their score
compares both (`mmrlhf.metrics.best_choice.ties_score`), so the id is kept in `meta`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def convert(row: Mapping[str, Any]) -> dict[str, Any]:
    """A ranked record: right answers have rank 1, the others 2.

    Raises: ValueError where another number of answers is right than `num_correct` says.
    """
    right, wrong = list(row["chosen"]), list(row["rejected"])
    if row["num_correct"] != len(right) or not wrong:
        raise ValueError(f"num_correct is {row['num_correct']}, chosen has {len(right)}, rejected {len(wrong)} answers")
    responses = [{"text": text, "rank": 1 if place < len(right) else 2} for place, text in enumerate(right + wrong)]
    models = row.get("models") or []
    if len(models) == len(responses):
        responses = [{**each, "model": model} for each, model in zip(responses, models, strict=True)]
    return {
        "id": row["id"],
        "prompt": row["prompt"],
        "category": row["subset"],
        "responses": responses,
        "meta": {"sample": row["id"]},
    }
