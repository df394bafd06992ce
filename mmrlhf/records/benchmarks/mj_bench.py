"""MJ-Bench (arXiv 2407.04842): two pictures drawn from one caption, `label` says which is better, 0 or 1.

Its judges rate pictures. Here the caption is the answer to the question what the picture shows, given to one picture
and to the other: the reward is of the caption about each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmrlhf.records.benchmarks.row_names import row_id

QUESTION = "What does the picture show?"


def convert(row: Mapping[str, Any]) -> dict[str, Any]:
    """A ranked record of one text about two pictures.

    Raises: ValueError for a label other than 0 and 1.
    """
    label = row["label"]
    if label not in (0, 1) or isinstance(label, bool):
        raise ValueError(f"label is {label!r}, expected 0 or 1")
    pictures = [row["image0"], row["image1"]]
    names = [row.get("category"), row.get("subcategory")]
    return {
        "id": row_id(row, "caption", "image0", "image1", "label"),
        "prompt": QUESTION,
        "category": "/".join(name for name in names if name) or "unknown",
        "responses": [
            {"text": row["caption"], "image": pictures[label], "rank": 1},
            {"text": row["caption"], "image": pictures[1 - label], "rank": 2},
        ],
    }
