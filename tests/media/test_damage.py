"""Damaged pictures: the same damage for the same name, of the original's size, and without what it showed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from mmrlhf.errors import ConfigError
from mmrlhf.media.damage import DAMAGED, KEPT_AREA, Damage, damaged_only


def ramp(width: int = 96, height: int = 64) -> Image.Image:
    """A picture whose pixels say where they are: red is the column, green the row."""
    columns, rows = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([columns, rows, np.zeros_like(rows)], axis=-1).astype(np.uint8))


def test_a_crop_is_a_small_part_at_full_size() -> None:
    for number in range(20):
        damaged = Damage("crop").image(ramp(), name=f"query-{number}/image0")
        assert damaged.size == (96, 64)
        columns, rows, _ = np.asarray(damaged, dtype=float).reshape(-1, 3).T
        area = (np.ptp(columns) / 255) * (np.ptp(rows) / 255)
        assert area <= KEPT_AREA[1] + 0.02


def test_the_part_follows_from_name_and_seed() -> None:
    def pixels(name: str, seed: int = 0) -> bytes:
        return Damage("crop", seed).image(ramp(), name=name).tobytes()

    assert pixels("a") == pixels("a")
    assert len({pixels("a"), pixels("b"), pixels("a", seed=1)}) == 3


def test_blank_shows_nothing() -> None:
    assert len(np.unique(np.asarray(Damage("blank").image(ramp(), name="a")))) == 1


def test_frames_of_a_clip_lose_the_same_part() -> None:
    clip = np.stack([np.asarray(ramp())] * 3)
    damaged = Damage("crop").frames(clip, name="a")
    assert damaged.shape == clip.shape and damaged.dtype == np.uint8
    assert (damaged == damaged[0]).all()


def test_damaged_tensors_take_the_originals_place() -> None:
    media = {"pixel_values": torch.zeros(1), DAMAGED + "pixel_values": torch.ones(1)}
    assert damaged_only(media) == {"pixel_values": torch.ones(1)}


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="crop, blank"):
        Damage("blur")  # pyright: ignore
