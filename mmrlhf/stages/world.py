"""Draws the embedded world: ranked groups and warm-up records, in the layout of the released data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmrlhf.chain.runtime import Runtime
from mmrlhf.errors import ConfigError
from mmrlhf.files import write_json
from mmrlhf.ranges import Count, Natural, NonNegative, Share
from mmrlhf.shapes.annotators import AnnotatorSettings, RankBy
from mmrlhf.shapes.ranked_query import PreferenceSettings
from mmrlhf.shapes.warmup import WarmupSettings
from mmrlhf.shapes.world import WorldKind, WorldSettings, write_world

# another number builds the stage anew, whatever `code` says
VERSION = 1
# what is in a finished artefact; checked before it is published: it is written when all rows are
PROMISES = ("metrics.json",)


def run(
    out: Path,
    *,
    num_groups: Natural,
    num_warmup: Natural,
    seed: Natural,
    min_objects: Count = 2,
    max_objects: Count = 4,
    sigma: NonNegative = 1.2,
    num_annotators: Count = 3,
    rank_by: RankBy = "one",
    flip_rate: Share = 0.0,
    length_bias: Share = 0.0,
    other_forms: Share = 0.0,
    warmup_truth: Share = 0.6,
    warmup_mix: Mapping[str, NonNegative] | None = None,
    image_format: str = "png",
    jitter: Natural = 1,
    noise: NonNegative = 4.0,
    runtime: Runtime,
) -> dict[str, Any]:
    """Fill `out/preference` with ranked groups and `out/warmup` with warm-up records; `out/metrics.json` counts them.

    Args:
        out: the stage's folder; what an interrupted run left there is written over, with the same bytes.
        num_groups: ranked groups, twins counted one by one; 0 leaves the folder out.
        num_warmup: warm-up records; 0 leaves the folder out.
        seed: draws everything.
        min_objects: fewest things in a scene, 2 or 3; a clip has at least 3.
        max_objects: most things in a scene, up to 4.
        sigma: standard deviation of annotators' noise, in levels of 1 to 5; 1.2 flips about 8% of pairs, 2.0 about 16%.
        num_annotators: scores per response and dimension.
        rank_by: `one`: the first annotator's overall scores rank; `mean`: the mean of all annotators'.
        flip_rate: share of records whose ranking is turned upside down.
        length_bias: how much longer good responses are, 0 to 1; at 0 length says nothing.
        other_forms: share of ranked queries that are conversations, have pictures between words, or a picture of one
            response; the others stay the same.
        warmup_truth: probability that a claim of a warm-up answer is true.
        warmup_mix: shares of the warm-up's listings, questions and answers; None: 0.25, 0.6 and 0.15.
        image_format: `png` (lossless) or `jpg`.
        jitter: largest shift of a glyph, in pixels, 0 to 2.
        noise: standard deviation of tints, in levels of 255.

    Returns:
        `WorldStatistics.summary()` for each folder.
    """
    if num_groups + num_warmup == 0:
        raise ConfigError("nothing to draw", given=f"num_groups={num_groups}, num_warmup={num_warmup}")
    objects = (min_objects, max_objects)
    annotators = AnnotatorSettings(sigma=sigma, num_annotators=num_annotators, rank_by=rank_by, flip_rate=flip_rate)
    mix = {} if warmup_mix is None else {"mix": dict(warmup_mix)}
    settings = WorldSettings(
        preference=PreferenceSettings(
            num_objects=objects, length_bias=length_bias, annotators=annotators, other_forms=other_forms
        ),
        warmup=WarmupSettings(num_objects=objects, truth=warmup_truth, **mix),
        image_format=image_format,
        jitter=jitter,
        noise=noise,
    )
    kinds: dict[WorldKind, int] = {"preference": num_groups, "warmup": num_warmup}
    summary = {
        kind: write_world(
            out / kind, num_groups=number, seed=seed, kind=kind, settings=settings, progress=runtime.progress
        )
        for kind, number in kinds.items()
        if number
    }
    write_json(out / "metrics.json", summary)
    return summary
