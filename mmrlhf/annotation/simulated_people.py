"""Simulated annotators of the embedded world: the truth about an answer plus noise, as filled forms.

They say in their reasons what is wrong, which is right, and give scores and rankings that are as noisy as those of
`mmrlhf.shapes.annotators`: the world's own annotators, of whom each here ranks by its own overall score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmrlhf.annotation.filled_forms import DIMENSIONS, Form
from mmrlhf.errors import DataError
from mmrlhf.shapes import critique
from mmrlhf.shapes.annotators import DIMENSIONS as DRAWN
from mmrlhf.shapes.annotators import AnnotatorSettings, annotate
from mmrlhf.shapes.judge import check
from mmrlhf.types import PreferenceGroup

SECONDS = 60.0  # that a form is said to take


def simulated_form(group: PreferenceGroup, number: int, *, sigma: float, seed: int, at: float = 0.0) -> Form:
    """What annotator `number` says of a query; the same for the same seed, whatever else is asked.

    Args:
        sigma: standard deviation of the noise, in levels.

    Raises:
        DataError: a query whose truth is not known.
    """
    checks = [_checks(group, response.text) for response in group.responses]
    digest = int(group.key.encode().hex() or "0", 16)
    rng = np.random.default_rng([seed, number, digest % 2**63])
    drawn = annotate(
        [sum(each) for each in checks], rng, AnnotatorSettings(sigma=sigma, num_annotators=1),
        is_safety=group.category == "safety",
    )  # fmt: skip
    levels: Mapping[str, Sequence[int]] = dict(zip(DRAWN, drawn.levels[0].tolist(), strict=True))
    said = tuple(critique.short(group.meta["kinds"], each) for each in checks)
    return Form(
        key=group.key, annotator=f"simulated-{number + 1}", hashes=tuple(r.hash for r in group.responses),
        ranks=tuple(drawn.ranks), scores={name: tuple(levels[name]) for name in DIMENSIONS},
        reasons={"faithfulness": said}, kind="simulated", tool="simulated", origin=f"seed {seed}", at=at,
        seconds=SECONDS,
    )  # fmt: skip


def _checks(group: PreferenceGroup, text: str) -> list[bool]:
    meta: Mapping[str, Any] = group.meta
    if "scene" not in meta or "kinds" not in meta:
        raise DataError(
            "simulated annotators do not know the truth about this query",
            where=f"key {group.key}, shard {group.shard}",
            expected="queries of the embedded world, whose meta has their scene",
            fix="annotator=people asks people",
        )  # fmt: skip
    return check(meta, text)
