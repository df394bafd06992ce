"""Queries to features: threads read media, batches are encoded, and a query without features says why."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmrlhf.curation.encoders import Encoder
from mmrlhf.curation.hashes import difference_hash
from mmrlhf.curation.query_rows import Queries
from mmrlhf.errors import DataError
from mmrlhf.media.images import decode_image
from mmrlhf.media.video import decode_frames, decode_video
from mmrlhf.types import PreferenceGroup

Of = Literal["image", "text", "both"]
NOT_FINITE, ZERO = "features are not finite", "features are zero"
_NO_PICTURE = "no picture or clip, and features are of pictures alone"


@dataclass(frozen=True)
class FeatureSettings:
    """What is encoded of a query.

    Args:
        of: its pictures, its text, or both one behind the other (what a query lacks is zero there).
        frames: pictures at most; of a clip so many frames, evenly spread (one: the middle one).
        batch: queries that are encoded at once.
    """

    of: Of = "both"
    frames: int = 1
    batch: int = 64


@dataclass
class Encoded:
    """Features (n, D) float16 of some rows, unit or zero, and what was seen beside; left_out: place -> why."""

    features: np.ndarray
    hashes: list[int]
    media: list[int]
    texts: list[int]
    left_out: dict[int, str]
    texts_cut: int


@dataclass
class _Seen:
    """One query, read: its pictures, text, hash of the first picture and digests of media and text, or why not."""

    images: list[Image.Image] = field(default_factory=list)
    text: str = ""
    hash: int = 0
    media: int = 0
    asked: int = 0
    problem: str = ""


def encode_rows(
    queries: Queries, rows: Sequence[int], encoder: Encoder, settings: FeatureSettings, pool: ThreadPoolExecutor
) -> Encoded:
    """Encode some rows, `settings.batch` at a time."""
    found, features = Encoded(np.empty((0, 0)), [], [], [], {}, 0), []
    for start in range(0, len(rows), settings.batch):
        seen = list(pool.map(partial(_see, queries, settings), rows[start : start + settings.batch]))
        encoded, cut = _encode(encoder, seen, settings.of)
        features.append(encoded)
        found.texts_cut += cut
        found.hashes += [each.hash for each in seen]
        found.media += [each.media for each in seen]
        found.texts += [each.asked for each in seen]
        found.left_out |= {start + place: each.problem for place, each in enumerate(seen) if each.problem}
    found.features = np.concatenate(features)
    return found


def _see(queries: Queries, settings: FeatureSettings, row: int) -> _Seen:
    """Read one query; whatever is wrong with its media is its problem alone."""
    try:
        group = queries.read(row)
        images = [] if settings.of == "text" else pictures_of(group, settings.frames)
    except DataError as error:
        return _Seen(problem=error.problem)
    text = group.prompt.transcript
    seen = _Seen(images, text, media=media_digest(group), asked=text_digest(text))
    if images:
        seen.hash = difference_hash(images[0])
    elif settings.of == "image":
        seen.problem = _NO_PICTURE
    return seen


def pictures_of(group: PreferenceGroup, most: int) -> list[Image.Image]:
    """At most so many pictures of a query, in their order; a clip gives so many frames, evenly spread.

    Raises:
        DataError: media that cannot be decoded.
    """
    found: list[Image.Image] = []
    for media in group.media or next((response.media for response in group.responses if response.media), ()):
        where = f"{group.key}:{media.names[0]}"
        if media.kind == "image":
            found.append(decode_image(media.data[0], where=where))
        elif media.kind == "video":
            found += map(Image.fromarray, decode_video(media.data[0], num_frames=most, where=where).frames)
        else:
            found += map(Image.fromarray, decode_frames(media.data, num_frames=most, where=where).frames)
        if len(found) >= most:
            break
    return found[:most]


def _encode(encoder: Encoder, seen: Sequence[_Seen], of: Of) -> tuple[np.ndarray, int]:
    """Unit rows (n, D); a row without features is zero, and its problem says why."""
    halves, cut = [], 0
    usable = [place for place, each in enumerate(seen) if not each.problem]
    if of != "text":
        halves.append(_of_pictures(encoder, seen, usable))
    if of != "image":
        texts = torch.zeros(len(seen), encoder.dim)
        if usable:
            texts[usable], cut = encoder.texts([seen[place].text for place in usable])
        halves.append(texts)
    for half, places in zip(halves, _needed(seen, usable, of), strict=True):
        for place in places:
            if not torch.isfinite(half[place]).all():
                seen[place].problem = NOT_FINITE
            elif not half[place].any():
                seen[place].problem = ZERO
    joined = torch.cat([torch.nn.functional.normalize(half, dim=1) for half in halves], dim=1)
    joined = torch.nn.functional.normalize(joined, dim=1)
    joined[[place for place, each in enumerate(seen) if each.problem]] = 0
    return joined.numpy().astype(np.float16), cut


def _needed(seen: Sequence[_Seen], usable: Sequence[int], of: Of) -> list[list[int]]:
    """Rows of which each half has to be a direction."""
    shown = [place for place in usable if seen[place].images]
    return {"image": [shown], "text": [list(usable)], "both": [shown, list(usable)]}[of]


def _of_pictures(encoder: Encoder, seen: Sequence[_Seen], usable: Sequence[int]) -> Tensor:
    """The mean direction (n, dim) of each query's pictures; zero for one that has none."""
    found = torch.zeros(len(seen), encoder.dim)
    images = [(place, image) for place in usable for image in seen[place].images]
    if images:
        directions = encoder.pictures([image for _, image in images])
        norms = directions.norm(dim=1, keepdim=True)
        found.index_add_(0, torch.tensor([place for place, _ in images]), directions / norms.clamp_min(1e-30))
    return found


def text_digest(text: str) -> int:
    """64 bits of a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest())


def media_digest(group: PreferenceGroup) -> int:
    """64 bits of the bytes of all media; 0 where there are none."""
    content = hashlib.blake2b(digest_size=8)
    media = [*group.media, *(media for response in group.responses for media in response.media)]
    for data in (data for each in media for data in each.data):
        content.update(len(data).to_bytes(8, "little") + data)
    return int.from_bytes(content.digest()) if media else 0
