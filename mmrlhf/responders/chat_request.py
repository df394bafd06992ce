"""A query as a request of OpenAI's chat protocol: pictures as data URLs, videos as frames of our own sampler."""

from __future__ import annotations

import base64
import hashlib
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from PIL import Image

from mmrlhf.conversation import Turn
from mmrlhf.media.images import decode_image, is_upright_jpeg
from mmrlhf.responders.spending import CHARS_PER_TOKEN
from mmrlhf.shards.entries import IndexEntry
from mmrlhf.tokens.places import check_places
from mmrlhf.tokens.processing import MediaSettings, decode_media
from mmrlhf.types import Media, PreferenceGroup, Response

# of a picture that was made smaller: its text stays sharp
_JPEG = {"quality": 90, "subsampling": 0}
# Qwen2-VL reads 28 x 28 pixels as a token; others take more pixels
_PIXELS_PER_TOKEN = 784
_TOKENS_PER_PICTURE = 800  # of one whose size is not known
_TOKENS_PER_TURN = 8


def messages_of(group: PreferenceGroup, media: MediaSettings, longest_side: int | None) -> list[dict[str, Any]]:
    """A query's turns as messages; a turn of text alone is one text.

    Args:
        media: how videos become frames, and what lies behind transparent pixels.
        longest_side: larger pictures and frames are made smaller; None: none is.

    Raises:
        DataError: a medium that cannot be read, or other media than the prompt has places for.
    """
    check_places(group, [Response("")])
    shown = iter([urls_of(group, item, media, longest_side) for item in group.media])
    return [{"role": turn.role, "content": _content(turn, shown)} for turn in group.prompt.turns]


def _content(turn: Turn, shown: Iterator[Sequence[str]]) -> str | list[dict[str, Any]]:
    if not turn.slots:
        return "".join(part for part in turn.parts if isinstance(part, str))
    parts: list[dict[str, Any]] = []
    for part in turn.parts:
        if not isinstance(part, str):
            parts += [{"type": "image_url", "image_url": {"url": url}} for url in next(shown)]
        elif part:
            parts.append({"type": "text", "text": part})
    return parts


def urls_of(group: PreferenceGroup, item: Media, media: MediaSettings, longest_side: int | None) -> list[str]:
    """Data URLs of a picture (one) or of a video's frames."""
    where = f"key {group.key}, member {item.names[0]}, shard {group.shard or '(not packed)'}"
    if item.kind == "image":
        image = decode_image(item.data[0], alpha=media.alpha, where=where)  # type: ignore[arg-type]
        fits = longest_side is None or max(image.size) <= longest_side
        if fits and is_upright_jpeg(item.data[0], where=where):
            return [_url("jpeg", item.data[0])]
        return [_encoded(image, longest_side)]
    frames = decode_media(group, media, [item]).as_pictures().images
    return [_encoded(frame, longest_side) for frame in frames]


def _encoded(image: Image.Image, longest_side: int | None) -> str:
    """A picture without loss, or smaller and as JPEG."""
    buffer = io.BytesIO()
    if longest_side is None or max(image.size) <= longest_side:
        image.save(buffer, "PNG")
        return _url("png", buffer.getvalue())
    smaller = image.copy()
    smaller.thumbnail((longest_side, longest_side), Image.Resampling.LANCZOS)
    smaller.save(buffer, "JPEG", **_JPEG)
    return _url("jpeg", buffer.getvalue())


def _url(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def query_record(group: PreferenceGroup, media: MediaSettings, longest_side: int | None) -> Mapping[str, Any]:
    """What determines a query's messages, without decoding a medium: the same record, the same messages."""
    return {
        "prompt": group.prompt.to_record(),
        "media": [[item.kind, *(hashlib.sha256(data).hexdigest() for data in item.data)] for item in group.media],
        "read": asdict(media),
        "longest_side": longest_side,
    }


def estimate_tokens(entry: IndexEntry, num_chars: int, media: MediaSettings, longest_side: int | None) -> int:
    """About how many tokens a service reads for a query: its text, and its pictures by their sizes.

    Args:
        num_chars: of the prompt.
    """
    of_responses = [sum(counts) for counts in zip(*entry.own_media, strict=True)] if entry.own_media else [0, 0]
    sizes = list(entry.image_sizes[: entry.num_images - of_responses[0]])
    frames = media.num_frames if media.fps is None else min(media.num_frames, max(1, round(entry.duration * media.fps)))
    if entry.num_frames:
        sizes += [entry.video_size or (0, 0)] * frames
    pictures = sum(_picture_tokens(size, longest_side) for size in sizes)
    return pictures + math.ceil(num_chars / CHARS_PER_TOKEN) + _TOKENS_PER_TURN * entry.num_turns


def _picture_tokens(size: tuple[int, int], longest_side: int | None) -> int:
    width, height = size
    if not width or not height:
        return _TOKENS_PER_PICTURE
    scale = 1.0 if longest_side is None else min(1.0, longest_side / max(size))
    return max(1, math.ceil(width * scale * height * scale / _PIXELS_PER_TOKEN))
