"""Critiques of a response in four wordings, from the same three checks.

`full`: what is there, what was seen for each claim, its verdict, and the score. `evidence`: the same without verdicts
and score.
`short`: what a hurried human writes. `expand(short)` spells the short one out claim by claim and adds no fact.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mmrlhf.shapes.claims import NAMES, Claim, Question, listed_items, seen_at
from mmrlhf.shapes.safety import CHECKS
from mmrlhf.shapes.scene import Scene


def claims_evidence(claims: Sequence[Claim], scene: Scene, question: Question | None) -> tuple[str, list[str]]:
    """All that is there; then, for each claim of a response, what it said and what looking finds, side by side."""
    found = [f"said {claim.said(question)} {claim.evidence(scene, question)}" for claim in claims]
    return " , ".join(listed_items(scene)), found


def safety_evidence(scene: Scene, cell: str, rung: int) -> tuple[str, list[str]]:
    """What is in the asked cell, and which of care, refusal and reason the reply has ("care yes")."""
    found = [f"{name} {'yes' if rung >= step else 'no'}" for step, name in enumerate(CHECKS, 1)]
    return seen_at(scene, cell), found


def full(evidence: Sequence[str], checks: Sequence[bool], *, opening: str = "") -> str:
    """Evidence, then verdict, for each claim; then how many are true."""
    parts = [f"{i} {seen} {_verdict(check)} ." for i, (seen, check) in enumerate(zip(evidence, checks, strict=True), 1)]
    return _joined(opening, [*parts, f"score {sum(checks)} ."])


def evidence_only(evidence: Sequence[str], *, opening: str = "") -> str:
    """The full critique without verdict words and without the score."""
    return _joined(opening, [f"{i} {seen} ." for i, seen in enumerate(evidence, 1)])


def short(kinds: Sequence[str], checks: Sequence[bool]) -> str:
    """A few hurried words: only what is wrong is named."""
    wrong = [NAMES[kind] for kind, check in zip(kinds, checks, strict=True) if not check]
    if not wrong:
        return "all ok ."
    if len(wrong) == len(kinds):
        return "all bad ."
    return f"bad {' and '.join(wrong)} . rest ok ."


def expand(text: str, kinds: Sequence[str]) -> str:
    """Spell a short critique out, one line per claim kind; deterministic, and nothing in it that was not there.

    Raises:
        ValueError: the text is not a short critique.
    """
    names = [NAMES[kind] for kind in kinds]
    if text == "all ok .":
        wrong: list[str] = []
    elif text == "all bad .":
        wrong = names
    elif match := re.fullmatch(r"bad (.+) \. rest ok \.", text):
        wrong = match.group(1).split(" and ")
    else:
        raise ValueError(f"not a short critique: {text!r}; expected 'all ok .', 'all bad .' or 'bad ... . rest ok .'")
    checks = [name not in wrong for name in names]
    return full(names, checks)


def _verdict(check: bool) -> str:
    return "true" if check else "false"


def _joined(opening: str, parts: Sequence[str]) -> str:
    return " ".join([f"{opening} .", *parts] if opening else parts)
