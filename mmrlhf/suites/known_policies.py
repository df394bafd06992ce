"""Policies whose scores are known beforehand: they check every number of a table.

`Constant` says one thing. `Oracle` knows the right answers: it gives one with probability p, else a wrong one, in a
style. Chance depends on (seed, document) alone, so two oracles of one seed and different p differ by fixes only.
"""

from __future__ import annotations

import hashlib
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from mmrlhf.ranges import Natural, Share, check_fields
from mmrlhf.suites.answer_forms import FORMS
from mmrlhf.suites.documents import Document
from mmrlhf.suites.harness import FORM, PREFIX
from mmrlhf.suites.judged_forms import JUDGED

Style = Literal["plain", "sentence", "verbose", "markdown"]
_STYLES: Mapping[str, Callable[[str], str]] = {
    "plain": lambda text: text,
    "sentence": lambda text: f"{text[:1].upper()}{text[1:]}.",
    "verbose": lambda text: f"The answer is {text}",
    "markdown": lambda text: f"**{text}**",
}


@dataclass(frozen=True)
class Constant:
    """Says the same to every question."""

    text: str = "yes"

    def answer(self, document: Document) -> str:
        """The text."""
        return self.text


@dataclass(frozen=True)
class Oracle:
    """Is right with a known probability.

    Args:
        p: share of documents that it answers right; by_task: another share for some benchmarks.
        style: `plain` as benchmarks ask for, a `sentence` with a full stop, `verbose` with words in front, `markdown`.
        seed: draws which.
    """

    p: Share = 0.5
    style: Style = "plain"
    seed: Natural = 0
    by_task: Mapping[str, Share] | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def knows(self, document: Document) -> bool:
        """Whether it answers this document right."""
        drawn = hashlib.sha256(f"{self.seed} {document.key.removeprefix(PREFIX)}".encode()).digest()
        share = (self.by_task or {}).get(document.task, self.p)
        return int.from_bytes(drawn[:6], "big") / 2**48 < share

    def answer(self, document: Document) -> str:
        """A right or wrong answer to this document, in the style."""
        text = self._text(document)
        if document.truth["form"] == "letter" and self.style == "verbose":
            option = document.truth["options"][string.ascii_uppercase.index(text)]
            text = f"{text}. {option}"
        return _STYLES[self.style](text)

    def _text(self, document: Document) -> str:
        if document.truth["form"] == FORM:
            target = document.truth["target"]
            right = str(target[0] if isinstance(target, list) and target else target)
            return right if self.knows(document) else "zebra"
        form = {**FORMS, **JUDGED}[document.truth["form"]]
        return (form.right if self.knows(document) else form.wrong)(document.truth)
