"""MR2Bench, image and video (arXiv 2604.10966): `responses` and their `rankings`, 1 for the best, ties allowed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmrlhf.records.benchmarks.row_names import row_id


def convert(row: Mapping[str, Any]) -> dict[str, Any]:
    """A ranked record; answers without a word are left out, as the release's reader does.

    Raises: ValueError where there are more or fewer rankings than responses.
    """
    responses = [
        {"text": text, "rank": rank}
        for text, rank in zip(row["responses"], row["rankings"], strict=True)
        if text and text.strip()
    ]
    media = {name: row[name] for name in ("image", "video") if row.get(name)}
    return {
        "id": row_id(row, "prompt", "question", "image", "video", "responses"),
        "prompt": row.get("prompt") or row["question"],
        "category": row.get("category") or next(iter(media), "text"),
        "responses": responses,
        **media,
    }
