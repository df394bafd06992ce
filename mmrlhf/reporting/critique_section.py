"""What a reward model said of a few held-out queries at every validation, as cards of the report page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mmrlhf.reporting.inputs import StageResult
from mmrlhf.reporting.sample_cards import find_group, picture_cards, read_pictures, response_letter
from mmrlhf.shards.index import Index
from mmrlhf.summaries.validation_files import CRITIQUES, read_steps

Row = Mapping[str, Any]


def critiques_while_training(stage: StageResult[Any], index: Index | None) -> list[dict[str, Any]]:
    """A card for each query: picture, prompt, and for each response, best rank first, what was said of it when.

    Empty where nothing was kept; a query that the index does not hold is shown without its picture.
    """
    steps = read_steps(stage.folder / CRITIQUES)
    cards = []
    for row in steps[0][1] if steps else ():
        said = [(step, found) for step, rows in steps for found in rows if found["key"] == row["key"]]
        group = find_group(index, row["key"])
        pictures = picture_cards(read_pictures(group) if group is not None else None)
        cards.append({**row, **pictures, "responses": _responses(said)})
    return cards


def _responses(said: Sequence[tuple[int, Row]]) -> list[dict[str, Any]]:
    """The responses of one query, each with its verdicts, step by step."""
    found = []
    for place, response in enumerate(said[0][1]["responses"]):
        verdicts = [{"step": step, **row["responses"][place]} for step, row in said]
        found.append({"text": response["text"], "rank": response["rank"], "verdicts": verdicts})
    found.sort(key=lambda item: math.inf if item["rank"] is None else item["rank"])
    return [{**item, "letter": response_letter(place)} for place, item in enumerate(found)]
