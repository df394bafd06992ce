"""Damaged copies of pictures and clips: what an answer should become less likely with.

Follows: mDPO (arXiv 2406.11839), whose hard negatives are random crops of 0 to 20% of the picture.
Differs in: what is kept is drawn once for each query (from a seed and its key), not anew for every step, so that the
reference's log-probabilities can be kept in a table and a resumed run sees the same pictures. A copy has the original's
size, so that it has the same number of tokens.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from PIL import Image
from torch import Tensor

from mmrlhf.errors import ConfigError

DamageKind = Literal["crop", "blank"]

# A group's media tensors have those of its damaged copy beside them, under names with this in front.
DAMAGED = "damaged/"
KEPT_AREA = (0.01, 0.2)
GREY = 127


@dataclass(frozen=True)
class Damage:
    """Takes what a picture says out of it.

    Args:
        kind: `crop`: a random part of 1 to 20% of the area, blown up to the whole size; `blank`: nothing but grey.
        seed: draws the part, together with the name of the picture.
    """

    kind: DamageKind = "crop"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in get_args(DamageKind):
            raise ConfigError("unknown kind of damage", given=self.kind, expected="one of crop, blank")

    def image(self, image: Image.Image, *, name: str) -> Image.Image:
        """Damage a picture; the same name gives the same damage."""
        if self.kind == "blank":
            return Image.new("RGB", image.size, (GREY, GREY, GREY))
        return image.resize(image.size, Image.Resampling.BICUBIC, box=self._box(*image.size, name))

    def frames(self, frames: np.ndarray, *, name: str) -> np.ndarray:
        """Damage a clip's frames (F, H, W, 3) uint8, all in the same way."""
        return np.stack([np.asarray(self.image(Image.fromarray(frame), name=name)) for frame in frames])

    def _box(self, width: int, height: int, name: str) -> tuple[float, float, float, float]:
        rng = np.random.default_rng([self.seed, zlib.crc32(name.encode())])
        side = rng.uniform(*KEPT_AREA) ** 0.5
        left, top = rng.uniform(0, 1 - side, size=2)
        return left * width, top * height, (left + side) * width, (top + side) * height


def damaged_only(media: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A group's media tensors with the damaged copies in place of the originals."""
    return {name.removeprefix(DAMAGED): tensor for name, tensor in media.items() if name.startswith(DAMAGED)}
