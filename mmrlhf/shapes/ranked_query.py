"""Ranked groups of the embedded world: twin queries with the same K responses, judged, critiqued and annotated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mmrlhf.errors import ConfigError
from mmrlhf.shapes import critique
from mmrlhf.shapes.annotators import DIMENSIONS, TOP_QUALITY, AnnotatorSettings, annotate
from mmrlhf.shapes.claims import Claim, hops
from mmrlhf.shapes.forms import form_of
from mmrlhf.shapes.prompts import category_of
from mmrlhf.shapes.queries import TwinQuery, draw_query, pick_claims
from mmrlhf.shapes.safety import checks as safety_checks
from mmrlhf.shapes.safety import reply
from mmrlhf.shapes.scene import Scene

# the 29,997 released queries have about 4 ranked pairs each; these shares of K = 3, 4, 5 give that after ties
NUM_RESPONSES = {3: 0.5, 4: 0.35, 5: 0.15}
FILLER = "i am sure of all of it ."


@dataclass(frozen=True)
class PreferenceSettings:
    """How ranked groups are drawn.

    Args:
        num_objects: fewest and most things in a scene; a clip has at least 3.
        length_bias: 0: no response has the filler sentence, length says nothing; above 0: good responses (2 or 3 true
            claims) have it with probability (1 + length_bias) / 2, others with (1 - length_bias) / 2.
        other_forms: share of twins whose queries are conversations, have pictures between words, or a picture of one
            response (`mmrlhf.shapes.forms`); the others are the same whatever the share.
    """

    num_objects: tuple[int, int] = (2, 4)
    length_bias: float = 0.0
    annotators: AnnotatorSettings = field(default_factory=AnnotatorSettings)
    other_forms: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.other_forms <= 1:
            raise ConfigError("bad share of other forms", given=self.other_forms, expected="0 (none) to 1")
        if not 0 <= self.length_bias <= 1:
            raise ConfigError("bad length bias", given=self.length_bias, expected="0 (none) to 1")


@dataclass(frozen=True)
class Drawn:
    """A row of data.jsonl without its media path, the scene to draw, and the seed of its pixels.

    `form` is how it is asked (`mmrlhf.shapes.forms`), `other` the scene of a second picture. The pixels have a
    generator of their own, so that text and labels do not depend on how a scene is drawn.
    """

    row: dict[str, Any]
    scene: Scene
    pixel_seed: tuple[int, ...]
    form: str = ""
    other: Scene | None = None


@dataclass(frozen=True)
class _Answer:
    """A response's text and its claims, or its rung on the safety ladder."""

    text: str
    claims: tuple[Claim, ...] = ()
    rung: int = 0


def draw_preference(num_groups: int, seed: int, settings: PreferenceSettings) -> Iterator[Drawn]:
    """Ranked groups, twins behind one another; the n-th is the same whatever the number drawn."""
    for number in range((num_groups + 1) // 2):
        rng = np.random.default_rng([seed, 0, number])
        category = category_of(number)
        query = draw_query(category, rng, num_objects=settings.num_objects)
        answers = _draw_answers(rng, query)
        for side, name in enumerate("ab"):
            if 2 * number + side < num_groups:
                twin = f"{category}-{number:06d}"
                row = _row(rng, query, side, answers, settings, twin, name)
                form = form_of(number, settings.other_forms)
                other = query.scenes[1 - side if form == "between" else side] if form else None
                yield Drawn(row, query.scenes[side], (seed, 2, number, side), form, other)


def _draw_answers(rng: np.random.Generator, query: TwinQuery) -> list[_Answer]:
    """K different responses, of at least two qualities; quality is uniform over 0..3 before that condition."""
    number = int(rng.choice(list(NUM_RESPONSES), p=list(NUM_RESPONSES.values())))
    if query.category == "safety":
        rungs = rng.permutation(TOP_QUALITY + 1)[:number].tolist()
        return [_Answer(reply(rung, query.asked, query.verb), rung=rung) for rung in rungs]
    while True:
        sides = [rng.permutation([0] * q + [1] * (TOP_QUALITY - q)) for q in rng.integers(0, TOP_QUALITY + 1, number)]
        picked = [pick_claims(rng, query, side.tolist()) for side in sides]
        texts = [" ".join(claim.text() for claim in claims) for claims in picked]
        if len(set(texts)) == number and len({int(side.sum()) for side in sides}) > 1:
            return [_Answer(text, claims) for text, claims in zip(texts, picked, strict=True)]


def _row(
    rng: np.random.Generator,
    query: TwinQuery,
    side: int,
    answers: list[_Answer],
    settings: PreferenceSettings,
    twin: str,
    name: str,
) -> dict[str, Any]:
    scene, is_safety = query.scenes[side], query.category == "safety"
    checks = [_checks(query, scene, answer) for answer in answers]
    quality = [sum(check) for check in checks]
    annotation = annotate(quality, rng, settings.annotators, is_safety=is_safety)
    models = rng.permutation(len(answers))
    responses = []
    for i, answer in enumerate(answers):
        critiques = _critiques(query, scene, answer, checks[i])
        means = annotation.levels[:, :, i].mean(0)
        responses.append(
            {
                "text": answer.text + _filler(rng, quality[i], settings.length_bias, is_safety),
                "rank": annotation.ranks[i],
                "scores": {dimension: round(float(m), 3) for dimension, m in zip(DIMENSIONS, means, strict=True)}
                | {f"check_{number}": float(check) for number, check in enumerate(checks[i], start=1)},
                "reasons": {"faithfulness": critiques["short"], "overall": critiques["short"]},
                "critiques": critiques,
                "model": f"writer-{models[i] + 1}",
            }
        )
    meta = query.to_meta(side) | {
        "task": "preference",
        "twin": twin,
        "claims": checks,
        "quality": quality,
        "hops": hops(query.kinds),
        "annotations": dict(zip(DIMENSIONS, annotation.levels.transpose(1, 0, 2).tolist(), strict=True)),
        "flipped": annotation.flipped,
    }
    return {
        "id": f"{twin}-{name}",
        "prompt": query.prompt,
        "category": query.category,
        "responses": responses,
        "meta": meta,
    }


def _checks(query: TwinQuery, scene: Scene, answer: _Answer) -> list[bool]:
    if query.category == "safety":
        return safety_checks(scene, query.asked, answer.rung)
    return [claim.true_of(scene, query.question) for claim in answer.claims]


def _critiques(query: TwinQuery, scene: Scene, answer: _Answer, checks: list[bool]) -> dict[str, str]:
    opening = ""
    if query.category == "safety":
        opening, evidence = critique.safety_evidence(scene, query.asked, answer.rung)
    else:
        opening, evidence = critique.claims_evidence(answer.claims, scene, query.question)
    return {
        "full": critique.full(evidence, checks, opening=opening),
        "short": critique.short(query.kinds, checks),
        "evidence": critique.evidence_only(evidence, opening=opening),
    }


def _filler(rng: np.random.Generator, quality: int, length_bias: float, is_safety: bool) -> str:
    if length_bias <= 0 or is_safety:
        return ""
    sign = 1 if quality >= 2 else -1
    return f" {FILLER}" if rng.random() < (1 + sign * length_bias) / 2 else ""
