"""Records for the supervised stage: scene listings, short questions about what is where, and mostly right answers.

Listings and questions teach seeing, in the words that critiques use for evidence; answers teach the format of ordinary
answers. Their claims are true with a set probability only, which leaves preference training something to improve.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mmrlhf.errors import ConfigError
from mmrlhf.shapes.annotators import TOP_QUALITY
from mmrlhf.shapes.claims import RELATIONS, Claim, hops, listed_items, listing, seen_at, seen_count, seen_thing
from mmrlhf.shapes.prompts import LIST_PICTURE, LIST_VIDEO, category_of
from mmrlhf.shapes.queries import TwinQuery, draw_query, pick_claims
from mmrlhf.shapes.ranked_query import Drawn
from mmrlhf.shapes.safety import is_hazard, reply
from mmrlhf.shapes.scene import CELLS, HAZARD, STEPS, THINGS, Scene

TASKS = ("listing", "questions", "answer")
MAX_QUESTION_WORDS = 17
NUM_QUESTIONS = 3
TRUE_QUESTIONS = 0.45  # share of yes-or-no questions that are made to hold; a few more hold by chance
VIDEO_SHARE = 0.2  # of warm-up records, beside the clips that come in the released shares
PRESENT = 0.95  # share of questions about a thing or cell that is there or filled


@dataclass(frozen=True)
class WarmupSettings:
    """How warm-up records are drawn.

    Args:
        mix: shares of listings, questions and answers.
        truth: probability that a claim of an answer is true.
    """

    num_objects: tuple[int, int] = (2, 4)
    mix: dict[str, float] = field(default_factory=lambda: {"listing": 0.25, "questions": 0.6, "answer": 0.15})
    truth: float = 0.6

    def __post_init__(self) -> None:
        if set(self.mix) - set(TASKS) or min(self.mix.values()) < 0 or sum(self.mix.values()) <= 0:
            raise ConfigError("bad warm-up mix", given=dict(self.mix), expected=f"shares >= 0 of {', '.join(TASKS)}")
        if not 0 <= self.truth <= 1:
            raise ConfigError("warm-up truth is a probability", given=self.truth, expected="0 to 1")


def draw_warmup(num_groups: int, seed: int, settings: WarmupSettings) -> Iterator[Drawn]:
    """Groups of one response each, category "warmup"; the n-th is the same whatever the number drawn."""
    shares = np.array(list(settings.mix.values())) / sum(settings.mix.values())
    for number in range(num_groups):
        rng = np.random.default_rng([seed, 1, number])
        # Clips are a seventh of the preference data, too few to learn to watch from.
        category = "video" if rng.random() < VIDEO_SHARE else category_of(number)
        query = draw_query(category, rng, num_objects=settings.num_objects)
        task = str(rng.choice(list(settings.mix), p=shares))
        prompt, text, extra = _exercise(task, rng, query, settings.truth)
        response = {"text": text, "rank": 1, "scores": {}, "reasons": {}, "critiques": {}, "model": "warmup"}
        row = {
            "id": f"warmup-{number:06d}",
            "prompt": prompt,
            "category": "warmup",
            "responses": [response],
            "meta": query.to_meta(0) | {"task": task} | extra,
        }
        yield Drawn(row, query.scenes[0], (seed, 3, number))


def _exercise(task: str, rng: np.random.Generator, query: TwinQuery, truth: float) -> tuple[str, str, dict[str, Any]]:
    """(prompt, text, further meta) of one record."""
    scene = query.scenes[0]
    if task == "listing":
        return LIST_VIDEO if scene.event else LIST_PICTURE, listing(scene), {}
    if task == "questions":
        prompt, answers = _questions(rng, scene)
        # Look first, then answer: from what is written down, every answer is one look-up in text.
        text = f"{' , '.join(listed_items(scene))} . {answers}"
        return prompt, text, {"answer": text}
    right = rng.random(TOP_QUALITY) < truth
    if query.category == "safety":
        quality = int(right.sum())
        rung = quality if is_hazard(scene, query.asked) else TOP_QUALITY - quality
        text = reply(rung, query.asked, query.verb)
    else:
        claims = pick_claims(rng, query, [0 if r else 1 for r in right])
        text = " ".join(claim.text() for claim in claims)
    return query.prompt, text, {"quality": [int(right.sum())], "hops": hops(query.kinds)}


def _questions(rng: np.random.Generator, scene: Scene) -> tuple[str, str]:
    """Up to three questions and their answers, as long as the prompt stays short."""
    askers: list[Callable[[np.random.Generator, Scene], tuple[str, str]]]
    askers = [_ask_count, _ask_cell, _ask_place, _ask_whether, _ask_beside, _ask_relation]
    if scene.event:
        askers.append(_ask_change)
    prompts, answers = [], []
    for i in rng.permutation(len(askers))[:NUM_QUESTIONS].tolist():
        prompt, answer = askers[i](rng, scene)
        if len(" ".join([*prompts, prompt]).split()) <= MAX_QUESTION_WORDS:
            prompts.append(prompt)
            answers.append(answer)
    return " ".join(prompts), " ".join(answers)


def _pick(rng: np.random.Generator, items: list[str]) -> str:
    return items[int(rng.integers(len(items)))]


def _some_thing(rng: np.random.Generator, scene: Scene) -> str:
    there = [thing for thing in scene.cells if thing and thing != HAZARD]
    return _pick(rng, there if there and rng.random() < PRESENT else list(THINGS))


def _ask_cell(rng: np.random.Generator, scene: Scene) -> tuple[str, str]:
    filled = [cell for cell, thing in zip(CELLS, scene.cells, strict=True) if thing]
    cell = _pick(rng, filled if rng.random() < PRESENT else list(CELLS))
    return f"what is {cell} ?", f"{seen_at(scene, cell)} ."


def _ask_place(rng: np.random.Generator, scene: Scene) -> tuple[str, str]:
    thing = _some_thing(rng, scene)
    return f"where is the {thing} ?", f"{seen_thing(scene, thing)} ."


def _ask_beside(rng: np.random.Generator, scene: Scene) -> tuple[str, str]:
    one, other, side = _some_thing(rng, scene), _some_thing(rng, scene), _pick(rng, list(STEPS))
    cell = scene.find(one)
    if cell is not None:
        filled = [way for way in STEPS if scene.neighbour(cell, way) not in ("", HAZARD)]
        side = _pick(rng, filled) if filled else side
        if filled and rng.random() < TRUE_QUESTIONS:
            other = scene.neighbour(cell, side)
    return f"has the {one} a {other} {side} ?", _checked(Claim("neighbour", (one, other, side)), scene)


def _ask_whether(rng: np.random.Generator, scene: Scene) -> tuple[str, str]:
    thing, cell = _some_thing(rng, scene), _pick(rng, list(CELLS))
    found = scene.find(thing)
    if found is not None and rng.random() < TRUE_QUESTIONS:
        cell = CELLS[found]
    return f"is {cell} a {thing} ?", _checked(Claim("cell", (cell, thing)), scene)


def _ask_relation(rng: np.random.Generator, scene: Scene) -> tuple[str, str]:
    one, relation = _some_thing(rng, scene), _pick(rng, list(RELATIONS))
    while (other := _some_thing(rng, scene)) == one:
        pass
    return f"is the {one} {relation} the {other} ?", _checked(Claim("relation", (one, relation, other)), scene)


def _ask_count(rng: np.random.Generator, scene: Scene) -> tuple[str, str]:
    return "how many ?", f"{seen_count(scene)} ."


def _checked(claim: Claim, scene: Scene) -> str:
    """The answer to a yes-or-no question, in the words in which a critique checks a claim."""
    return f"said {claim.said()} {claim.evidence(scene)} {'true' if claim.true_of(scene) else 'false'} ."


def _ask_change(rng: np.random.Generator, scene: Scene) -> tuple[str, str]:
    return "what changes ?", f"{scene.event} ."
