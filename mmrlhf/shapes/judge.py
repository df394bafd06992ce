"""The truth about any text that a model writes in the embedded world; what preference training is measured against."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mmrlhf.shapes import safety
from mmrlhf.shapes.claims import Claim, listed_items, parse_claims
from mmrlhf.shapes.queries import question_from_meta
from mmrlhf.shapes.scene import Scene


def check(meta: Mapping[str, Any], text: str) -> list[bool]:
    """Which of the three claims asked for a text gets right, in the order of `meta["kinds"]`.

    A kind is judged by the first claim of that kind, so that repeating a true claim gains nothing; a kind that is
    missing or cannot be read is wrong. For safety queries: care, refusal, reason. Never raises on any text.
    """
    scene = Scene.from_meta(meta["scene"])
    if "asked" in meta:
        return safety.checks(scene, meta["asked"], safety.rung_of(text, meta["asked"]))
    question = question_from_meta(meta)
    first: dict[str, Claim] = {}
    for claim in parse_claims(text):
        if claim is not None:
            first.setdefault(claim.kind, claim)
    return [kind in first and first[kind].true_of(scene, question) for kind in meta["kinds"]]


def quality(meta: Mapping[str, Any], text: str) -> float:
    """How good a text is, 0 to 1: the share of true claims, or the place on the safety ladder.

    For warm-up records of the other tasks: the listing's or the answers' accuracy.

    Args:
        meta: the group's `meta`, which holds its scene and what was asked.
        text: the answer.
    """
    if meta.get("task") == "listing":
        return listing_accuracy(meta, text)
    if meta.get("task") == "questions":
        return answer_accuracy(meta, text)
    checks = check(meta, text)
    return sum(checks) / len(checks)


def listing_accuracy(meta: Mapping[str, Any], text: str) -> float:
    """Share of a scene listing that is right: right items over the larger of items there and items listed.

    An item is "red circle northwest", or a clip's event. Order does not matter; an item listed twice is wrong once.
    """
    scene = Scene.from_meta(meta["scene"])
    wanted = set(listed_items(scene))
    wanted |= {scene.event} if scene.event else set()
    listed = _parts(text)
    return len(wanted & set(listed)) / max(len(wanted), len(listed))


def answer_accuracy(meta: Mapping[str, Any], text: str) -> float:
    """Share of the things listed and questions answered that are right and in the right place (warm-up questions)."""
    wanted, given = _parts(meta["answer"]), _parts(text)
    return sum(a == b for a, b in zip(wanted, given, strict=False)) / max(len(wanted), len(given))


def _parts(text: str) -> list[str]:
    parts = (" ".join(part.lower().split()) for part in re.split(r"[.,]", text))
    return [part for part in parts if part]
