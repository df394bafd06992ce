"""Which objects a caption names, and which of them are not there (CHAIR), without downloads.

Follows: Rohrbach et al. 2018, "Object hallucination in image captioning", on COCO's 80 categories. Differs in: words
are found by plural rules and our own list of synonyms, not by a lemmatizer's dictionary.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import yaml

from mmrlhf.shapes.scene import SHAPES

# a shape that no picture of the stand-ins has
_NEVER = "star"
_IRREGULAR = {
    "men": "man",
    "women": "woman",
    "children": "child",
    "people": "person",
    "geese": "goose",
    "mice": "mouse",
}
_ENDINGS = (
    ("ies", "y"),
    ("ves", "fe"),
    ("ches", "ch"),
    ("shes", "sh"),
    ("sses", "ss"),
    ("ses", "s"),
    ("xes", "x"),
    ("oes", "o"),
)


@cache
def vocabulary(name: str) -> Mapping[str, str]:
    """Word or words -> category, of `coco` or of the `shapes` of stand-ins."""
    if name == "shapes":
        return {shape: shape for shape in (*SHAPES, _NEVER)}
    listed = yaml.safe_load((Path(__file__).parent / "coco_objects.yaml").read_text(encoding="utf-8"))
    return {word: category for category, words in listed.items() for word in (category, *words)}


def named_objects(caption: str, words: Mapping[str, str]) -> list[str]:
    """The categories that a caption names, once for each time, longest names first where they overlap."""
    said = [_single(word, words) for word in re.findall(r"[a-z]+", caption.lower())]
    found, place = [], 0
    while place < len(said):
        for length in (3, 2, 1):
            name = " ".join(said[place : place + length])
            if length <= len(said) - place and name in words:
                found.append(words[name])
                place += length
                break
        else:
            place += 1
    return found


def _single(word: str, words: Mapping[str, str]) -> str:
    """A word in the singular, where that is in the vocabulary."""
    if word in words:
        return word
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    ways = [word[: -len(end)] + new for end, new in _ENDINGS if word.endswith(end)] + [word[:-1]] * word.endswith("s")
    return next((way for way in ways if way in words or _part_of_name(way, words)), word)


def _part_of_name(word: str, words: Mapping[str, str]) -> bool:
    return any(word in name.split() for name in words if " " in name)


def _vocabulary_of(present: Sequence[str]) -> Mapping[str, str]:
    """The vocabulary that a picture's objects are of."""
    return vocabulary("shapes" if present and set(present) <= set(SHAPES) else "coco")


def false_objects(caption: str, present: Sequence[str]) -> tuple[int, int]:
    """How many objects a caption names, and how many of them are not there."""
    words = _vocabulary_of(present)
    named = named_objects(caption, words)
    there = {words.get(each.lower(), each.lower()) for each in present}
    return len(named), sum(each not in there for each in named)


def absent_object(present: Sequence[str]) -> str:
    """The first category that is not there."""
    return next(category for category in _vocabulary_of(present).values() if category not in present)
