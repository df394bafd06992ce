"""Atomic claims about a scene: how each kind reads, when it is true, what one sees when checking it, and its negatives.

The vocabulary is closed and every word stands alone, so a word-level tokenizer makes each one token. All claims of one
kind have the same number of words: a response's length depends on the kinds asked for, never on truth.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from mmrlhf.shapes.scene import CELLS, COLOURS, HAZARD, MOVES, SHAPES, SIDE, STEPS, Scene, adjoining

_CELL = "(" + "|".join(CELLS) + ")"
_THING = "((?:" + "|".join(COLOURS) + ") (?:" + "|".join(SHAPES) + "))"
_EVENT = "(" + "|".join([f"moves (?:{'|'.join(MOVES)})", "appears now", f"turns (?:{'|'.join(COLOURS)})"]) + ")"
RELATIONS = ("higher than", "lower than", "left of", "right of")
LETTERS = ("a", "b", "c")

# what a hurried human calls each kind; `care`, `refusal` and `reason` are the three checks of a safety answer
NAMES = {
    "count": "count",
    "cell": "place",
    "relation": "relation",
    "neighbour": "neighbour",
    "motion": "motion",
    "answer": "answer",
    "care": "care",
    "refusal": "refusal",
    "reason": "reason",
}

_WORDING = {
    "count": "there are {0} objects",
    "cell": "{0} is a {1}",
    "relation": "the {0} is {1} the {2}",
    "neighbour": "the {0} has a {1} {2}",
    "motion": "the {0} {1}",
    "answer": "the answer is {0}",
}
_PATTERNS = {
    kind: re.compile(_WORDING[kind].format(*groups))
    for kind, groups in {
        "count": (r"(\d+)",),
        "cell": (_CELL, _THING),
        "relation": (_THING, f"({'|'.join(RELATIONS)})", _THING),
        "neighbour": (_THING, _THING, f"({'|'.join(STEPS)})"),
        "motion": (_THING, _EVENT),
        "answer": (f"({'|'.join(LETTERS)})",),
    }.items()
}
_HOPS = {"count": 1, "cell": 1, "relation": 2, "neighbour": 2, "motion": 1, "answer": 1}


@dataclass(frozen=True)
class Question:
    """What a multiple-choice prompt asks: which of three things is in a cell."""

    cell: str
    options: tuple[str, ...]


@dataclass(frozen=True)
class Claim:
    """One checkable statement: a kind and the words that fill its wording."""

    kind: str
    parts: tuple[str, ...]

    def text(self) -> str:
        """The claim as a sentence."""
        return _WORDING[self.kind].format(*self.parts) + " ."

    def true_of(self, scene: Scene, question: Question | None = None) -> bool:
        """Whether the claim holds; naming a thing that is not there makes it false."""
        parts = self.parts
        if self.kind == "count":
            return scene.num_objects == int(parts[0])
        if self.kind == "cell":
            return scene.cells[CELLS.index(parts[0])] == parts[1]
        if self.kind == "motion":
            return scene.event == " ".join(parts)
        if self.kind == "answer":
            return question is not None and parts[0] == right_letter(scene, question)
        subject = scene.find(parts[0])
        if subject is None:
            return False
        if self.kind == "neighbour":
            return scene.neighbour(subject, parts[2]) == parts[1]
        other = scene.find(parts[2])
        return other is not None and related(subject, parts[1], other)

    def said(self, question: Question | None = None) -> str:
        """The words of the claim that evidence is compared with; a critique repeats them beside it."""
        if self.kind == "answer":
            return " ".join(self._answered(question))
        where = {"count": (0,), "cell": (1, 0), "relation": (1,), "neighbour": (2,), "motion": (0, 1)}
        return " ".join(self.parts[i] for i in where[self.kind])

    def evidence(self, scene: Scene, question: Question | None = None) -> str:
        """What one sees on looking for the things that the claim names; it ends with `said()` if the claim is true."""
        parts = self.parts
        if self.kind == "count":
            return seen_count(scene)
        if self.kind == "motion":
            return scene.event
        if self.kind in ("cell", "answer"):
            return seen_shape(scene, parts[1] if self.kind == "cell" else self._answered(question)[0])
        if self.kind == "neighbour":
            return f"{seen_shape(scene, parts[0])} {seen_shape(scene, parts[1])} {seen_side(scene, *parts[:2])}"
        return f"{seen_shape(scene, parts[0])} {seen_shape(scene, parts[2])} {seen_relation(scene, *parts)}"

    def _answered(self, question: Question | None) -> tuple[str, str]:
        """What a letter says: which thing is in which cell."""
        assert question is not None
        return question.options[LETTERS.index(self.parts[0])], question.cell


def related(subject: int, relation: str, other: int) -> bool:
    """Whether one cell is higher than, lower than, left of or right of another (rows and columns compared alone)."""
    rows, columns = subject // SIDE - other // SIDE, subject % SIDE - other % SIDE
    return {"higher than": rows < 0, "lower than": rows > 0, "left of": columns < 0, "right of": columns > 0}[relation]


def right_letter(scene: Scene, question: Question) -> str | None:
    """The letter of the option that is in the asked cell."""
    thing = scene.cells[CELLS.index(question.cell)]
    return LETTERS[question.options.index(thing)] if thing in question.options else None


def seen_count(scene: Scene) -> str:
    """What counting finds: "saw 3"."""
    return f"saw {scene.num_objects}"


def seen_at(scene: Scene, cell: str) -> str:
    """What looking at a cell finds: "northwest red circle"."""
    return f"{cell} {scene.cells[CELLS.index(cell)] or 'empty'}"


def seen_thing(scene: Scene, thing: str) -> str:
    """Where looking for a thing leads: "red circle northwest"."""
    cell = scene.find(thing)
    return f"{thing} {'absent' if cell is None else CELLS[cell]}"


def seen_shape(scene: Scene, thing: str) -> str:
    """Where looking for a thing's shape leads, whatever its colour there: "blue circle northwest"."""
    shape = thing.split()[1]
    for cell, found in zip(CELLS, scene.cells, strict=True):
        if found.endswith(f" {shape}"):
            return f"{found} {cell}"
    return seen_thing(scene, thing)


def seen_side(scene: Scene, thing: str, other: str) -> str:
    """On which side of a thing another one is: "above", "below", "left", "right", "apart"; or "absent"."""
    here, there = scene.find(thing), scene.find(other)
    if here is None or there is None:
        return "absent"
    return next((side for side in STEPS if adjoining(here, side) == there), "apart")


def seen_relation(scene: Scene, thing: str, relation: str, other: str) -> str:
    """How two things lie on the axis that a relation speaks of: "left of", "right of", "level with"; or "absent"."""
    here, there = scene.find(thing), scene.find(other)
    if here is None or there is None:
        return "absent"
    axis = RELATIONS[:2] if relation in RELATIONS[:2] else RELATIONS[2:]
    return next((way for way in axis if related(here, way, there)), "level with")


def listed_items(scene: Scene) -> list[str]:
    """All things with their cells, shape by shape: "red circle northwest".

    A thing comes before its cell, so that to look one up in a listing is to copy what follows its name.
    """
    order = {shape: number for number, shape in enumerate((*SHAPES, HAZARD))}
    filled = [f"{thing} {cell}" for cell, thing in zip(CELLS, scene.cells, strict=True) if thing]
    return sorted(filled, key=lambda item: order[item.split()[-2]])


def listing(scene: Scene) -> str:
    """All things with their cells (see `listed_items`); a clip's event comes last."""
    text = " , ".join(listed_items(scene)) + " ."
    return f"{text} {scene.event} ." if scene.event else text


def parse_claims(text: str) -> list[Claim | None]:
    """Read a text's sentences as claims, None for those that are not one. Never raises."""
    sentences = [" ".join(part.lower().split()) for part in re.split(r"[.\n;]", text)]
    return [_parse_sentence(sentence) for sentence in sentences if sentence]


def _parse_sentence(sentence: str) -> Claim | None:
    for kind, pattern in _PATTERNS.items():
        if match := pattern.fullmatch(sentence):
            return Claim(kind, match.groups())
    return None


def hops(kinds: tuple[str, ...]) -> int:
    """The most look-ups that one of these claims takes."""
    return max((_HOPS.get(kind, 1) for kind in kinds), default=1)


def opposed_claims(
    kind: str, scene: Scene, twin: Scene, question: Question | None = None
) -> tuple[list[Claim], list[Claim]]:
    """All claims of a kind that are true of one twin only: those true of `scene`, and those true of `twin`.

    What a claim calls by name is there in both; only the wrong thing of a cell or neighbour claim may be "absent".
    """
    claims = _opposed(kind, scene, twin, question)
    first, second = [], []
    for claim, holds in claims:
        (first if holds else second).append(claim)
    return first, second


def _opposed(kind: str, scene: Scene, twin: Scene, question: Question | None) -> Iterator[tuple[Claim, bool]]:
    if kind == "cell":
        for cell, one, other in differing_cells(scene, twin):
            yield Claim("cell", (cell, one)), True
            yield Claim("cell", (cell, other)), False
    elif kind == "relation":
        yield from _opposed_relations(scene, twin)
    elif kind == "neighbour":
        yield from _opposed_neighbours(scene, twin)
    elif kind == "count" and scene.num_objects != twin.num_objects:
        yield Claim("count", (str(scene.num_objects),)), True
        yield Claim("count", (str(twin.num_objects),)), False
    elif kind == "motion" and scene.event != twin.event:
        for event, holds in ((scene.event, True), (twin.event, False)):
            colour, shape, *rest = event.split()
            yield Claim("motion", (f"{colour} {shape}", " ".join(rest))), holds
    elif kind == "answer" and question is not None:
        letters = right_letter(scene, question), right_letter(twin, question)
        if None not in letters and letters[0] != letters[1]:
            yield Claim("answer", (str(letters[0]),)), True
            yield Claim("answer", (str(letters[1]),)), False


def differing_cells(scene: Scene, twin: Scene) -> list[tuple[str, str, str]]:
    """(cell, what it holds here, what it holds in the twin) wherever these differ and none is empty or in motion."""
    moving = _moving(scene) | _moving(twin)
    return [
        (CELLS[i], one, other)
        for i, (one, other) in enumerate(zip(scene.cells, twin.cells, strict=True))
        if one and other and one != other and not {one, other} & moving and HAZARD not in (one, other)
    ]


def _moving(scene: Scene) -> set[str]:
    """The things that are not the same in every frame."""
    return set(scene.start) ^ set(scene.cells) | {" ".join(scene.event.split()[:2])} if scene.event else set()


def _common(scene: Scene, twin: Scene) -> list[tuple[str, int, int]]:
    """(thing, cell here, cell in the twin) of things that rest in both, by name: neither twin comes first."""
    things = (set(scene.cells) & set(twin.cells)) - {"", HAZARD} - _moving(scene) - _moving(twin)
    return [(thing, scene.cells.index(thing), twin.cells.index(thing)) for thing in sorted(things)]


def _opposed_relations(scene: Scene, twin: Scene) -> Iterator[tuple[Claim, bool]]:
    common = _common(scene, twin)
    for one, here, there in common:
        for other, other_here, other_there in common:
            for relation in RELATIONS:
                holds = related(here, relation, other_here)
                if holds != related(there, relation, other_there):
                    yield Claim("relation", (one, relation, other)), holds


def _opposed_neighbours(scene: Scene, twin: Scene) -> Iterator[tuple[Claim, bool]]:
    unusable = {"", HAZARD} | _moving(scene) | _moving(twin)
    for thing, here, there in _common(scene, twin):
        for direction in STEPS:
            if adjoining(here, direction) is None or adjoining(there, direction) is None:
                continue
            one, other = scene.neighbour(here, direction), twin.neighbour(there, direction)
            if one != other and not {one, other} & unusable:
                yield Claim("neighbour", (thing, one, direction)), True
                yield Claim("neighbour", (thing, other, direction)), False
