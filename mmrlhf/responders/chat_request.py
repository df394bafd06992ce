"""A query as a request of OpenAI's chat protocol: pictures as data URLs, videos as frames of our own sampler."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from mmrlhf.conversation import Turn
from mmrlhf.errors import ConfigError
from mmrlhf.responders.spending import CHARS_PER_TOKEN
from mmrlhf.shards.entries import IndexEntry
from mmrlhf.tokens.picture_urls import urls_of
from mmrlhf.tokens.places import check_places
from mmrlhf.tokens.processing import MediaSettings
from mmrlhf.types import PreferenceGroup, Response

# Qwen2-VL reads 28 x 28 pixels as a token; others take more pixels
_PIXELS_PER_TOKEN = 784
_TOKENS_PER_PICTURE = 800  # of one whose size is not known
_TOKENS_PER_TURN = 8
_OWN_FIELDS = {"messages", "model", "stream", "n"}


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse fields of a request that are made here, or that no request can hold (ConfigError)."""
    wrong = sorted(_OWN_FIELDS & set(options))
    if wrong:
        raise ConfigError(
            "these options are not free",
            argument="options", given=", ".join(wrong), expected="other fields of a chat request, such as top_p",
            fix="`model` and `num_samples` are settings of their own; answers are not streamed",
        )  # fmt: skip
    try:
        json.dumps(options, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, TypeError) as error:
        raise ConfigError(
            "these options cannot be sent",
            argument="options", given=f"{options} ({error})", expected="values that JSON holds: no nan, no inf",
        ) from error  # fmt: skip


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
