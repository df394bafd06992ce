"""A conversation as the page shows it: turn by turn, pictures and frames at their places."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmrlhf.conversation import Conversation


def turn_cards(prompt: Conversation, counts: Sequence[int]) -> list[dict[str, Any]]:
    """A row for each turn: `role`, and `parts`, each a `text` or `pictures` (numbers among those of the query).

    Args:
        counts: how many pictures are shown of each medium.

    Returns:
        no row for a plain question with its media in front, which is shown as its text.
    """
    if prompt.plain is not None:
        return []
    first, left = 0, iter(counts)
    turns = []
    for turn in prompt.turns:
        parts: list[dict[str, Any]] = []
        for part in turn.parts:
            if isinstance(part, str):
                parts.append({"text": part})
                continue
            count = next(left, 0)
            parts.append({"pictures": list(range(first, first + count))})
            first += count
        turns.append({"role": turn.role, "parts": parts})
    return turns
