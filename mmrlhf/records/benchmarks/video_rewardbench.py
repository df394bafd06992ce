"""VideoRewardBench (arXiv 2509.00484): a question about a video, a chosen and a rejected answer, five dimensions.

The paper says what a row is and not what its fields are called, so each is known by any of several names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmrlhf.records.benchmarks.row_names import row_id

VIDEO = ("video", "video_path", "videos", "video_name")
QUESTION = ("prompt", "question", "query")
CHOSEN = ("chosen", "chosen_response", "response_chosen")
REJECTED = ("rejected", "rejected_response", "response_rejected")
CATEGORY = ("dimension", "category", "aspect", "task", "task_type", "subset")


def convert(row: Mapping[str, Any]) -> dict[str, Any]:
    """A pair.

    Raises: KeyError naming what the row lacks.
    """
    return {
        "id": row_id(row, *QUESTION, *VIDEO, *CHOSEN, *REJECTED),
        "prompt": _first(row, QUESTION),
        "video": _first(row, VIDEO),
        "chosen": _first(row, CHOSEN),
        "rejected": _first(row, REJECTED),
        "category": str(_first(row, CATEGORY)),
    }


def _first(row: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    found = next((row[name] for name in names if row.get(name) is not None), None)
    if found is None:
        raise KeyError(f"none of {', '.join(names)} among {', '.join(sorted(row))}")
    return found
