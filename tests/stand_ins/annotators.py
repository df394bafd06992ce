"""Queries with unranked answers, forms that somebody filled in, and what Label Studio exports of its tasks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from stand_ins.sample_groups import make_group

from mmrlhf.annotation.filled_forms import DIMENSIONS, Form
from mmrlhf.annotation.label_studio_project import write_projects
from mmrlhf.types import PreferenceGroup


def unranked(key: str, num_responses: int = 3, **fields: Any) -> PreferenceGroup:
    """A query whose answers nobody has ranked."""
    group = make_group(key, num_responses=num_responses, **fields)
    return replace(group, responses=tuple(replace(response, rank=None) for response in group.responses))


def filled(group: PreferenceGroup, annotator: str, ranks: Sequence[int | None], **fields: Any) -> Form:
    """A form with these ranks and scores that go with them."""
    scores = {name: tuple(None if rank is None else max(1, 6 - rank) for rank in ranks) for name in DIMENSIONS}
    hashes = tuple(response.hash for response in group.responses)
    return Form(group.key, annotator, hashes, tuple(ranks), **{"scores": scores, "tool": "page", **fields})


def exported_tasks(folder: Path, groups: Sequence[PreferenceGroup]) -> list[dict[str, Any]]:
    """Tasks of queries of one medium and K, in the form in which Label Studio exports them, not annotated yet."""
    refused: list[str] = []
    (name,) = write_projects(folder, groups, lambda key, reason: refused.append(reason))
    assert not refused
    tasks = json.loads((folder / name / "tasks.json").read_text())
    return [{"id": number, "annotations": [], "predictions": [], **task} for number, task in enumerate(tasks, start=1)]


def rating(field: str, number: int, stars: int) -> dict[str, Any]:
    return {
        "from_name": f"{field}_{number}",
        "to_name": f"response_{number}",
        "type": "rating",
        "value": {"rating": stars},
    }


def texts(field: str, to: str, *lines: str) -> dict[str, Any]:
    return {"from_name": field, "to_name": to, "type": "textarea", "value": {"text": list(lines)}}


def ranking(value: Any) -> dict[str, Any]:
    return {"from_name": "ranking", "to_name": "items", "type": "ranker", "value": {"ranker": value}}


def annotation(number: int, *result: dict[str, Any], by: Any = 1, **fields: Any) -> dict[str, Any]:
    """One annotation as the export has it."""
    return {
        "id": number, "completed_by": by, "result": list(result), "was_cancelled": False, "ground_truth": False,
        "created_at": f"2026-11-0{number}T10:00:00.000000Z", "updated_at": f"2026-11-0{number}T10:01:00.000000Z",
        "lead_time": 61.5, **fields,
    }  # fmt: skip
