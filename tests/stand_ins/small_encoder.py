"""A random CLIP of a few thousand weights in the real format, and pictures that its features tell apart."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmrlhf.curation.random_encoder import write_random_clip

WORDS = ["what", "is", "in", "the", "picture", "how", "many", "red", "blue", "circle", "where", "count", "name", "?"]


def build_clip(folder: Path, *, seed: int = 0) -> Path:
    """Write model and processor as `save_pretrained` does."""
    write_random_clip(folder, WORDS, seed=seed)
    return folder


def drawing(number: int, *, quality: int = 90, side: int = 64) -> bytes:
    """Picture `number`: smooth shapes of colour; another quality or side is nearly the same picture."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 255, (5, 5, 3), dtype=np.uint8))
    stream = io.BytesIO()
    coarse.resize((side, side), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=quality)
    return stream.getvalue()


@pytest.fixture(scope="session")
def small_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_clip(tmp_path_factory.mktemp("clip"))
