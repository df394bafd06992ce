"""Fixtures on tiny random models and groups of every modality, shared by the tests of several floors."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmrlhf.conversation import IMAGE, Conversation, Turn
from mmrlhf.models.random_checkpoints import FAMILIES, build_tiny, is_available
from mmrlhf.types import Media, PreferenceGroup, Response

# Families whose processors need a package that is not installed are left out (`pip install mmrlhf[smolvlm]`).
AVAILABLE = [family for family in FAMILIES if is_available(family)]

TEXTS = [
    "there is a red circle above the blue square . 4 objects",
    "what is in the picture ? Frame1: Frame2: Frame3: Frame4: user assistant",
] * 20


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One saved tiny model per family."""
    root = tmp_path_factory.mktemp("tiny")
    for family in AVAILABLE:
        build_tiny(family, root / family, texts=TEXTS)
    return {family: root / family for family in AVAILABLE}


def png(width: int, height: int, seed: int = 0) -> bytes:
    """A PNG of coloured noise."""
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def image(width: int, height: int, seed: int = 0) -> Media:
    """One image member."""
    return Media("image", (f"{seed}.png",), (png(width, height, seed),))


def frames(count: int, width: int, height: int, seed: int = 0) -> Media:
    """A video given as frames."""
    return Media(
        "frames",
        tuple(f"f{i:03d}.png" for i in range(count)),
        tuple(png(width, height, seed + i) for i in range(count)),
    )


def responses(*texts: str) -> tuple[Response, ...]:
    """Responses ranked in the order given, each with a critique."""
    return tuple(
        Response(text, rank=i + 1, critiques={"full": f"critique of {text}", "short": "so so"})
        for i, text in enumerate(texts)
    )


@pytest.fixture(scope="session")
def groups() -> list[PreferenceGroup]:
    """An image, several images, a video, and no media; K = 3, 2, 4, 1."""
    return [
        PreferenceGroup(
            "one", "what is in the picture ?", responses("a red circle", "a blue square", "no"), (image(60, 90),)
        ),
        PreferenceGroup(
            "two",
            "compare both",
            responses("same same", "quite different things here"),
            (image(60, 50, 1), image(90, 70, 2)),
        ),
        PreferenceGroup(
            "video", "what happens ?", responses("a", "b moves left", "c", "d e f g h"), (frames(4, 60, 50, 10),)
        ),
        PreferenceGroup("text", "no picture ?", responses("fine answer"), ()),
    ]


def formed_groups() -> list[PreferenceGroup]:
    """Two pictures between words in several turns; and answers of which two have their own picture."""
    turns = (
        Turn("user", ("first", IMAGE, "then")),
        Turn("assistant", ("a red circle",)),
        Turn("user", ("and", IMAGE, "?")),
    )
    own = [
        replace(one, media=(image(50, 60 + 10 * n, n),) if n else ())
        for n, one in enumerate(responses("a", "b", "a c"))
    ]
    return [
        PreferenceGroup(
            "talk", Conversation(turns), responses("same", "quite different"), (image(60, 50, 1), image(90, 70, 2))
        ),
        PreferenceGroup(
            "own", Conversation((Turn("user", ("look at", IMAGE, "what ?")),)), tuple(own), (image(60, 50, 3),)
        ),
    ]


def lora_on(family: str, wanted: Sequence[str]) -> dict[str, Any]:
    """Settings that adapt parts of a model; Gemma 3's projector, a bare matrix, stays frozen instead."""
    return {part: "frozen" if (family, part) == ("gemma3", "projector") else "lora" for part in wanted}
