"""Writes the embedded world to disk in the layout of the released data.

`data.jsonl` has one row per query: id, image or video (path below the root), prompt, category, responses (text, rank,
scores, reasons, critiques, model) and meta (scene, true claims, quality; what `judge` reads). `dpo_pairs.jsonl` has one
row per pair of a query's responses; ties carry `is_tie`. Media lie in one folder per category.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mmrlhf.errors import ConfigError
from mmrlhf.shapes.draw import encode_image, encode_video, render
from mmrlhf.shapes.forms import in_form
from mmrlhf.shapes.prompts import SHARES
from mmrlhf.shapes.ranked_query import Drawn, PreferenceSettings, draw_preference
from mmrlhf.shapes.scene import NUM_CELLS, Scene
from mmrlhf.shapes.statistics import WorldStatistics
from mmrlhf.shapes.warmup import WarmupSettings, draw_warmup
from mmrlhf.terminal.progress import track

WorldKind = Literal["preference", "warmup"]
NUM_FRAMES = 4


@dataclass(frozen=True)
class WorldSettings:
    """Everything about the world but its size and seed.

    Args:
        image_format: `png` (lossless) or `jpg`.
        jitter: largest shift of a glyph, in pixels.
        noise: standard deviation of tints, in levels of 255.
    """

    preference: PreferenceSettings = field(default_factory=PreferenceSettings)
    warmup: WarmupSettings = field(default_factory=WarmupSettings)
    image_format: str = "png"
    jitter: int = 1
    noise: float = 4.0

    def __post_init__(self) -> None:
        for low, high in (self.preference.num_objects, self.warmup.num_objects):
            if not 2 <= low < high <= NUM_CELLS:
                raise ConfigError("bad number of objects", given=(low, high), expected="2 <= fewest < most <= 4")
        if not 0 <= self.jitter <= 2:
            raise ConfigError(
                "bad jitter", given=self.jitter, expected="0 to 2 pixels: glyphs must stay in their cells"
            )
        if self.image_format not in ("png", "jpg"):
            raise ConfigError("unknown image format", given=self.image_format, expected="png or jpg")


def write_world(
    root: Path,
    *,
    num_groups: int,
    seed: int,
    kind: WorldKind = "preference",
    settings: WorldSettings | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Draw `num_groups` groups and write them below `root`; returns the statistics of `WorldStatistics.summary`."""
    statistics = WorldStatistics()
    rows = world_rows(root, num_groups=num_groups, seed=seed, kind=kind, settings=settings)
    for row in track(rows, f"drawing {kind}", num_groups, enabled=progress):
        statistics.add(row)
    return statistics.summary()


def world_rows(
    root: Path, *, num_groups: int, seed: int, kind: WorldKind = "preference", settings: WorldSettings | None = None
) -> Iterator[dict[str, Any]]:
    """Write group by group and yield each row of data.jsonl once it is on disk; equal arguments give equal bytes.

    Raises:
        ConfigError: no groups asked for, or an unknown kind.
    """
    settings = settings or WorldSettings()
    if num_groups < 1:
        raise ConfigError("a world needs at least one group", given=num_groups, expected="1 or more")
    for folder in SHARES if kind == "preference" else ("warmup",):
        (root / folder).mkdir(parents=True, exist_ok=True)
    with (root / "data.jsonl").open("w", encoding="utf-8") as data, _pair_file(root, kind) as pairs:
        for drawn in _draw(kind, num_groups, seed, settings):
            row = _write_media(root, drawn, settings)
            data.write(_line(row))
            if kind == "preference":
                pairs.writelines(_line(pair) for pair in pair_rows(row))
            yield row


def _draw(kind: WorldKind, num_groups: int, seed: int, settings: WorldSettings) -> Iterator[Drawn]:
    if kind == "preference":
        return draw_preference(num_groups, seed, settings.preference)
    if kind == "warmup":
        return draw_warmup(num_groups, seed, settings.warmup)
    raise ConfigError("unknown kind of world", given=kind, expected="preference or warmup")


def _pair_file(root: Path, kind: WorldKind) -> Any:
    """Groups of one response have no pairs, and an empty file would look like a loss."""
    path = root / "dpo_pairs.jsonl"
    if kind == "preference":
        return path.open("w", encoding="utf-8")
    path.unlink(missing_ok=True)
    return contextlib.nullcontext()


def _write_media(root: Path, drawn: Drawn, settings: WorldSettings) -> dict[str, Any]:
    """Write the picture or clip, and another where the form has two; the row gets its path, right behind its id."""
    row, kind = dict(drawn.row), "video" if drawn.scene.event else "image"
    name = f"{row['category']}/{row['id']}"
    path = _write_scene(root, name, drawn.scene, drawn.pixel_seed, settings)
    shown = {"id": row.pop("id"), kind: path, **row}
    if not drawn.form or drawn.other is None:
        return shown
    other = _write_scene(root, f"{name}-2", drawn.other, (*drawn.pixel_seed, 1), settings)
    return in_form(drawn.form, shown, drawn.scene, other)


def _write_scene(root: Path, name: str, scene: Scene, seed: tuple[int, ...], settings: WorldSettings) -> str:
    """Draw a scene as a picture or clip; its path below the root."""
    shown = scene.frames(NUM_FRAMES) if scene.event else [scene.cells]
    frames = render(shown, np.random.default_rng(list(seed)), jitter=settings.jitter, noise=settings.noise)
    suffix = "mp4" if scene.event else settings.image_format
    content = encode_video(frames) if scene.event else encode_image(frames[0], settings.image_format)
    (root / f"{name}.{suffix}").write_bytes(content)
    return f"{name}.{suffix}"


def pair_rows(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows of dpo_pairs.jsonl of one row of data.jsonl: every two responses, better one first, ties marked.

    Pairs of responses with media of their own have no place in that layout.
    """
    media = {name: row[name] for name in ("image", "images", "video") if name in row}
    shared = [response for response in row["responses"] if not {"image", "video"} & response.keys()]
    for one, other in combinations(shared, 2):
        chosen, rejected = (one, other) if one["rank"] <= other["rank"] else (other, one)
        yield {
            "id": row["id"],
            **media,
            "prompt": row["prompt"],
            "chosen": chosen["text"],
            "rejected": rejected["text"],
            "chosen_reason": chosen["reasons"]["overall"],
            "rejected_reason": rejected["reasons"]["overall"],
            "is_tie": chosen["rank"] == rejected["rank"],
        }


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
