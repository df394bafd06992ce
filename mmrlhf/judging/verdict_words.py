"""A verdict out of a judge's words, or none: nothing is guessed."""

from __future__ import annotations

import re


class NoVerdict(ValueError):
    """The judge's words hold no verdict, or several."""


def last_word(text: str, label: str, pattern: str) -> str:
    """What stands behind `label:`; raises NoVerdict where nothing does, or different things."""
    found = set(re.findall(rf"{label}\s*:\s*\**\s*({pattern})(?!\w)", text, re.IGNORECASE))
    if len(found) != 1:
        raise NoVerdict(f"{len(found)} verdicts in {text[-60:]!r}")
    return found.pop()
