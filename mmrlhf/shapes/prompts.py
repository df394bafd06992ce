"""What is asked: wordings per category, and the kinds of claims that a proper answer makes, in order."""

from __future__ import annotations

import numpy as np

from mmrlhf.shapes.claims import LETTERS, Question
from mmrlhf.shapes.safety import CHECKS

# shares of MM-RLHF's 29,997 queries (arXiv 2502.10391, section 2)
SHARES = {"long": 9575, "short": 12063, "mcq": 2125, "safety": 1999, "video": 4235}

KINDS: dict[str, tuple[str, ...]] = {
    "long": ("cell", "relation", "neighbour"),
    "short": ("count", "cell", "relation"),
    "mcq": ("answer", "count", "relation"),
    "safety": CHECKS,
    "video": ("motion", "cell", "relation"),
}
_OPEN_PROMPTS = {
    "long": ("describe the picture in detail .", "say in detail what you see ."),
    "short": ("describe the picture .", "say what you see ."),
    "video": ("describe the video .", "say what changes in the video ."),
}
LIST_PICTURE = "list all objects ."
LIST_VIDEO = "list all objects and what changes ."


def category_of(number: int) -> str:
    """The category of the n-th query: a low-discrepancy sequence, so that any first N come in the released shares."""
    place = (number * 0.6180339887498949 + 0.5) % 1.0 * sum(SHARES.values())
    for category, share in SHARES.items():
        place -= share
        if place < 0:
            return category
    return category


def open_prompt(category: str, rng: np.random.Generator) -> str:
    """One of the wordings that ask for a description."""
    wordings = _OPEN_PROMPTS[category]
    return wordings[int(rng.integers(len(wordings)))]


def choice_prompt(question: Question) -> str:
    """A multiple-choice prompt: "what is northwest ? a red circle b blue square c green circle ."."""
    options = " ".join(f"{letter} {thing}" for letter, thing in zip(LETTERS, question.options, strict=True))
    return f"what is {question.cell} ? {options} ."
