"""A verdict out of a judge's words, or none: nothing is guessed."""

from __future__ import annotations

import re


class NoVerdict(ValueError):
    """The judge's words hold no verdict, or several."""


def last_word(text: str, label: str, pattern: str) -> str:
    """What stands behind `label:`; raises NoVerdict where nothing does, or different things.

    `Rating: 7.5`, `Verdict: A or B` and `Verdict: a tie` are none: what was said is not what would be read.

    Args:
        pattern: of a number, or of a capital letter, which may be said as a small one where no word follows.
    """
    another = rf"\s*(?:(?:[-–—&,]|and\b|or\b|to\b)\s*|/\s*(?!\d))(?-i:{pattern})(?!\w)"
    more = rf"\w|[.,]\d|\s+(?:tie|draw|toss)\b|(?<=(?-i:[a-z]))[ \t]+\w|{another}"
    found = set(re.findall(rf"{label}\s*:[\s*]*({pattern})(?!{more})", text, re.IGNORECASE))
    if len(found) != 1:
        raise NoVerdict(f"{len(found)} verdicts in {text[-60:]!r}")
    return found.pop()
