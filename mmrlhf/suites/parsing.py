"""Short answers out of what a model says: yes or no, an option's letter, a phrase.

Each reader returns None where the answer has no such form, and never guesses: a guess would turn a change of style into
a change of skill.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

_LEAD = re.compile(
    r"^(?:so|therefore|thus|hence)?[,\s]*(?:the\s+)?(?:correct\s+|final\s+|right\s+)?(?:answer|option|choice)"
    r"(?:\s+(?:is|would be|to the question is))?\s*[:=]?\s*",
    re.IGNORECASE,
)
_SAID = re.compile(
    r"(?:answer|option|choice)(?:\s+is|\s*:|\s+would be)?\s*(?:[:=]\s*)?\**[\(\[]?([A-Z])[\)\]]?(?![A-Za-z'])"
)
# an answer of more words is no single word or phrase
LONGEST_PHRASE = 8


def yes_or_no(answer: str) -> str | None:
    """`yes` or `no` where the answer begins with one of them, or has one of them alone."""
    words = re.findall(r"[a-z]+", _without_lead(answer).lower())
    if words and words[0] in ("yes", "no"):
        return words[0]
    named = {word for word in words if word in ("yes", "no")}
    return next(iter(named)) if len(named) == 1 else None


def letter(answer: str, options: Sequence[str]) -> str | None:
    """The letter of the option that the answer names: by itself, in front, after `answer`, or by the option's words.

    None where it names none, or several.
    """
    letters = string.ascii_uppercase[: len(options)]
    text = answer.strip().strip("*").strip()
    if found := re.match(r"[\(\[]?([A-Z])(?:[\)\].:,\s]|$)", _without_lead(text)):
        rest = _without_lead(text)[found.end() :].split()
        # "A cat" is a word and no letter, unless that is how the option goes on
        bare = found.group(0).strip() == found[1] and rest
        if found[1] in letters and (not bare or _matches(" ".join(rest), options, found[1])):
            return found[1]
    said = {each for each in _SAID.findall(text) if each in letters}
    if len(said) == 1:
        return said.pop()
    named = [letters[n] for n, option in enumerate(options) if _names(text, option)]
    return named[0] if len(named) == 1 else None


def _matches(rest: str, options: Sequence[str], found: str) -> bool:
    place = string.ascii_uppercase.index(found)
    words = normal(options[place]) if place < len(options) else ""
    return bool(words) and words in normal(rest)


def _names(text: str, option: str) -> bool:
    words = normal(option)
    return bool(words) and re.search(rf"(?<!\w){re.escape(words)}(?!\w)", normal(text)) is not None


def phrase(answer: str) -> str | None:
    """The answer without `The answer is`, quotes and a full stop; None where it is not one line of a few words."""
    lines = [line for line in answer.strip().split("\n") if line.strip()]
    if len(lines) != 1:
        return None
    text = _without_lead(lines[0].strip()).strip().strip("\"'*`").rstrip(".").strip()
    return text if text and len(text.split()) <= LONGEST_PHRASE else None


def normal(text: str) -> str:
    """Lower case, one space between words, no punctuation at the ends."""
    return " ".join(text.lower().split()).strip(string.punctuation + " ")


def _without_lead(text: str) -> str:
    return _LEAD.sub("", text.strip(), count=1).lstrip("*: ")
