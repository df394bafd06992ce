"""Perceptual hashes: 64 bits of a picture that smaller copies, other qualities and small boxes change little.

Source: the difference hash (dHash): grey, 9 x 8, is each pixel brighter than its right neighbour. Mirrored pictures,
and crops of more than a few per cent, have other hashes.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

BITS = 64
# differences of grey that a flat picture has by chance of its encoding
_FLAT = 2


def difference_hash(image: Image.Image) -> int:
    """The hash of one picture; 0 for a flat one, which says nothing about it."""
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    if np.ptp(grey) <= _FLAT:
        return 0
    bits = (grey[:, :-1] > grey[:, 1:]).ravel()
    return int.from_bytes(np.packbits(bits).tobytes())


def bit_distance(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Bits (...) that differ between hashes (...) uint64, broadcast; BITS where one of them says nothing (0)."""
    count = np.bitwise_count(left ^ right).astype(np.int64)
    return np.where((left == 0) | (right == 0), BITS, count)
