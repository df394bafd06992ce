"""Published pairs that have a way of their own: RLHF-V, LLaVA-Hound, InternLM-XComposer, InternVL."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mmrlhf.records.fields import wrong_type
from mmrlhf.records.json_text import Row
from mmrlhf.records.pair_forms import ranked_pair

_PLACE = "<ImageHere>"


def pair(row: Row, where: str) -> Row:
    """A pair in any of the usual forms (`mmrlhf.records.pair_forms`)."""
    return ranked_pair(row, where)


def rlhf_v(row: Row, where: str) -> Row:
    """RLHF-V (arXiv 2312.00849): question, chosen and rejected are in `text`, as JSON in a string, or as an object."""
    value = row.get("text")
    try:
        said = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        said = None
    if not isinstance(said, Mapping):
        raise wrong_type(where, "text", value, '{"question", "chosen", "rejected"}, as an object or as its JSON')
    # image_path is the path of the picture that lies in the row, or the picture where none does
    left = {name: item for name, item in row.items() if name != "text"}
    return ranked_pair({**left, **said}, where)


def llava_hound(row: Row, where: str) -> Row:
    """LLaVA-Hound-DPO (arXiv 2404.01258): a folder of frames, two answers with scores; `answer` is the reference."""
    reference = row.get("answer")
    left = {name: value for name, value in row.items() if name != "answer"}
    return ranked_pair({**left, **({"meta": {"reference": reference}} if reference else {})}, where)


def internlm_xcomposer(row: Row, where: str) -> Row:
    """InternLM-XComposer-2.5-Reward: `conversations_a` is the better one; `<ImageHere>` is where a picture stands."""
    left: dict[str, Any] = {
        name: _with_places(value) if name in ("conversations_a", "conversations_b") else value
        for name, value in row.items()
        if name not in ("model_a", "model_b")
    }
    left |= {"chosen_model": row.get("model_a"), "rejected_model": row.get("model_b")}
    return ranked_pair({"preference": "a", **left}, where)


def _with_places(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace(_PLACE, "<image>")
    if isinstance(value, list):
        return [_with_places(item) for item in value]
    return {name: _with_places(item) for name, item in value.items()} if isinstance(value, dict) else value


def internvl(row: Row, where: str) -> Row:
    """InternVL's MPO, and MMPR (arXiv 2411.10442): a question without `<image>` has its picture in front.

    A row that names a part of a clip (`clip`) is refused: clips are read whole.
    """
    if row.get("clip") is not None:
        raise wrong_type(where, "clip", row["clip"], "nothing: clips are read whole, so cut them first")
    return ranked_pair(row, where)
