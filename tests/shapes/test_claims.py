"""Claims: a drawn scene done by hand, texts that parse back, and pools in which twins are opposed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrlhf.shapes.claims import Claim, Question, hops, opposed_claims, parse_claims, related
from mmrlhf.shapes.prompts import KINDS
from mmrlhf.shapes.queries import draw_query
from mmrlhf.shapes.scene import NUM_CELLS, Scene

# red circle | blue square
# -          | green cross
SCENE = Scene(("red circle", "blue square", "", "green cross"))
CLIP = Scene(SCENE.cells, ("", *SCENE.cells[1:]), "red circle appears now", 2)
QUESTION = Question("northwest", ("blue square", "red circle", "green cross"))


APART = "red circle northwest green cross southeast"
LEVEL = "red circle northwest blue square northeast"


@pytest.mark.parametrize(
    ("text", "holds", "evidence"),
    [
        ("there are 3 objects .", True, "saw 3"),
        ("there are 4 objects .", False, "saw 3"),
        ("northeast is a blue square .", True, "blue square northeast"),
        ("northeast is a blue circle .", False, "red circle northwest"),
        ("southwest is a blue triangle .", False, "blue triangle absent"),
        ("the red circle is left of the green cross .", True, f"{APART} left of"),
        (
            "the red circle is lower than the green cross .",
            False,
            f"{APART} higher than",
        ),
        (
            "the red circle is higher than the blue square .",
            False,
            f"{LEVEL} level with",
        ),
        ("the red circle is left of the blue circle .", False, "red circle northwest red circle northwest absent"),
        ("the blue square has a green cross below .", True, "blue square northeast green cross southeast below"),
        ("the blue square has a green cross above .", False, "blue square northeast green cross southeast below"),
        ("the green cross has a red circle left .", False, "green cross southeast red circle northwest apart"),
        ("the blue circle has a green cross above .", False, f"{APART} absent"),
        ("the red circle appears now .", True, "red circle appears now"),
        ("the red circle turns blue .", False, "red circle appears now"),
        ("the answer is b .", True, "red circle northwest"),
        ("the answer is c .", False, "green cross southeast"),
    ],
)
def test_truth_and_evidence_by_hand(text: str, holds: bool, evidence: str) -> None:
    (claim,) = parse_claims(text)
    assert claim is not None and claim.text() == text
    assert claim.true_of(CLIP, QUESTION) is holds
    assert claim.evidence(CLIP, QUESTION) == evidence


@pytest.mark.parametrize(
    "text", ["", "...", "there are many objects .", "the red circle", "northwest is a red .", "\x00"]
)
def test_other_text_is_no_claim(text: str) -> None:
    assert not any(parse_claims(text))


def test_spelling_of_spaces_and_case_does_not_matter() -> None:
    assert parse_claims("There are  4 objects.Northwest is  a red circle") == [
        Claim("count", ("4",)),
        Claim("cell", ("northwest", "red circle")),
    ]


@given(st.integers(0, NUM_CELLS - 1), st.integers(0, NUM_CELLS - 1))
def test_relations_are_antisymmetric(one: int, other: int) -> None:
    assert related(one, "higher than", other) == related(other, "lower than", one)
    assert related(one, "left of", other) == related(other, "right of", one)
    assert not (related(one, "left of", other) and related(one, "right of", other))


@given(st.integers(0, 2**32 - 1), st.sampled_from([name for name in KINDS if name != "safety"]))
@settings(max_examples=100, deadline=None)
def test_every_claim_in_a_pool_is_true_of_one_twin_only(seed: int, category: str) -> None:
    query = draw_query(category, np.random.default_rng(seed))
    one, other = query.scenes
    for kind, (first, second) in query.pools.items():
        assert first and second
        for claims, true_scene, false_scene in ((first, one, other), (second, other, one)):
            for claim in claims:
                assert claim.true_of(true_scene, query.question) and not claim.true_of(false_scene, query.question)
                assert parse_claims(claim.text()) == [claim]
                evidence = claim.evidence(false_scene, query.question)
                assert kind not in ("relation", "neighbour") or evidence.split()[2] != "absent", "whom it speaks of"
                assert not evidence.endswith(f" {claim.said(query.question)}")
                assert claim.evidence(true_scene, query.question).endswith(claim.said(query.question))
        assert len({len(claim.text().split()) for claim in first + second}) == 1
        swapped = opposed_claims(kind, other, one, query.question)
        assert {c.text() for c in swapped[0]} == {c.text() for c in second}


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_claims_about_a_clip_hold_in_every_frame_but_for_motion(seed: int) -> None:
    query = draw_query("video", np.random.default_rng(seed))
    for side in (0, 1):
        for kind in ("cell", "relation"):
            for claim in query.pools[kind][side]:
                for cells in query.scenes[side].frames(4):
                    assert claim.true_of(Scene(cells))


def test_hops_are_the_longest_claim_s() -> None:
    assert hops(("count", "cell")) == 1 and hops(KINDS["long"]) == 2
