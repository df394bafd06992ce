"""Queries of the embedded world in other forms than a question behind its picture; what is true of them stays.

`between`: two pictures between words, of which the second is asked about (of a clip: the one, between words).
`turns`: a system turn and an earlier question with its answer. `own`: the worst answer was given to another drawing of
the same scene.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmrlhf.shapes.claims import listing
from mmrlhf.shapes.prompts import LIST_PICTURE, LIST_VIDEO
from mmrlhf.shapes.scene import Scene

FORMS = ("between", "turns", "own")
SYSTEM = "answer what is asked ."


def form_of(number: int, share: float) -> str:
    """The form of the n-th query, evenly spread: one of `FORMS` in turn for this share of them, else ""."""
    before, after = int(number * share), int((number + 1) * share)
    return FORMS[before % len(FORMS)] if after > before else ""


def in_form(form: str, row: Mapping[str, Any], scene: Scene, other: str) -> dict[str, Any]:
    """A row of data.jsonl in one of the `FORMS`.

    Args:
        scene: what is asked about.
        other: path of another picture or clip: of the twin (`between`), or of the same scene.
    """
    kind = "video" if scene.event else "image"
    found = {**row, "meta": {**row["meta"], "form": form}}
    if form == "turns":
        asked, listed = LIST_VIDEO if scene.event else LIST_PICTURE, listing(scene)
        found["prompt"] = [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": f"<{kind}>\n{asked}"},
            {"role": "assistant", "content": listed},
            {"role": "user", "content": row["prompt"]},
        ]
    elif form == "own":
        worst = max(range(len(row["responses"])), key=lambda n: row["responses"][n]["rank"])
        found["responses"] = [r | ({kind: other} if n == worst else {}) for n, r in enumerate(row["responses"])]
    elif scene.event:
        found["prompt"] = f"look at <video> and answer : {row['prompt']}"
    else:
        found["prompt"] = f"the first is <image> , the second is <image> , look at the second : {row['prompt']}"
        found["images"] = [other, found.pop("image")]
    return found
