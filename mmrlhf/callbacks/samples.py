"""Samples one can look at, as a Weights & Biases table: picture, prompt, ranked responses, critiques, rewards, beta.

A sample is a plain mapping, the same that the report page shows:

    key, category, prompt: str                  image: PIL image or None (frames: list of PIL images of a video)
    responses: list of {"text", "rank", "reward", "critique", "quality", "beta", ...}; beta of its pair with the best
    generation_before, generation_after: str, optional

Without a W&B logger nothing happens; `WANDB_MODE=offline` works.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import wandb
from lightning.pytorch.loggers import Logger, WandbLogger
from PIL import Image

logger = logging.getLogger(__name__)

Sample = Mapping[str, Any]
RESPONSE_COLUMNS = ("rank", "text", "reward", "quality", "beta", "critique")
COLUMNS = ("key", "category", "picture", "prompt", *RESPONSE_COLUMNS, "generation_before", "generation_after")


def wandb_loggers(loggers: Iterable[Logger]) -> list[WandbLogger]:
    """Pick the W&B loggers."""
    return [item for item in loggers if isinstance(item, WandbLogger)]


def log_samples(
    loggers: Iterable[Logger], samples: Sequence[Sample], *, name: str = "samples", step: int | None = None
) -> bool:
    """Send a table of samples to every W&B logger among `loggers`; says whether there was one.

    The step goes in as the metric `trainer/global_step`, as Lightning's own metrics do.
    """
    targets = wandb_loggers(loggers)
    for target in targets:
        row: dict[str, Any] = {name: build_table(samples)}
        if step is not None:
            row["trainer/global_step"] = step
        target.experiment.log(row)
    return bool(targets)


def build_table(samples: Sequence[Sample]) -> wandb.Table:
    """Build a table with one row per response, best rank first; a sample without responses gets one row.

    Numbers stay numbers, so the table can be sorted and filtered by reward or beta.
    """
    table = wandb.Table(columns=list(COLUMNS))
    for sample in samples:
        picture = _picture(sample)
        responses = sorted(sample.get("responses") or [{}], key=lambda item: _rank(item.get("rank")))
        for response in responses:
            table.add_data(
                str(sample.get("key", "")),
                str(sample.get("category", "")),
                picture,
                str(sample.get("prompt", "")),
                *(_cell(response.get(column)) for column in RESPONSE_COLUMNS),
                sample.get("generation_before"),
                sample.get("generation_after"),
            )
    return table


def _cell(value: Any) -> str | float | None:
    """A column holds one type (or nothing): text stays text, every number becomes a float."""
    return value if value is None or isinstance(value, str) else float(value)


def _rank(value: Any) -> float:
    return float("inf") if value is None or value != value else float(value)


def _picture(sample: Sample) -> wandb.Image | None:
    image = sample.get("image")
    if image is None and sample.get("frames"):
        image = filmstrip(sample["frames"])
    return wandb.Image(image, caption=str(sample.get("key", ""))) if image is not None else None


def filmstrip(frames: Sequence[Image.Image], *, gap: int = 4) -> Image.Image:
    """Lay the frames of a video side by side, in order, all at the first one's height."""
    height = frames[0].height
    scaled = [
        frame.resize((max(1, round(frame.width * height / frame.height)), height)) if frame.height != height else frame
        for frame in frames
    ]
    width = sum(frame.width for frame in scaled) + gap * (len(scaled) - 1)
    strip = Image.new("RGB", (width, height), "white")
    left = 0
    for frame in scaled:
        strip.paste(frame, (left, 0))
        left += frame.width + gap
    return strip
