"""A question asked from Python, as the group that stages work on: pictures and clips of any form, prompt, responses."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from mmrlhf.conversation import Conversation
from mmrlhf.errors import DataError
from mmrlhf.files import expanded, read_regular
from mmrlhf.records.fields import MediaItem
from mmrlhf.records.messages import HOLDERS
from mmrlhf.records.query_form import read_question
from mmrlhf.types import Media, PreferenceGroup, Response

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi")
Picture = Image.Image | bytes | str | Path
Prompt = str | Conversation | Sequence[Mapping[str, Any]]


def ask(media: Picture | Sequence[Picture] | None, prompt: Prompt, responses: Sequence[str]) -> PreferenceGroup:
    """Make the group of one question and its responses.

    Args:
        media: an image, several, a video file, or None. An image is a PIL image, encoded bytes or a path; a path with a
            video's suffix is a video.
        prompt: the question, which media stand in front of; or a conversation: one that a packed set holds, or messages
            `{"role", "content"}`, whose contents are texts or parts. Parts hold their image or video themselves, or
            stand for the next of `media`.
        responses: one or more answers.

    Raises:
        DataError: a file that is not there, no response, other media than the conversation has places for.
    """
    if isinstance(responses, str) or not responses:
        raise DataError(
            "there is no list of responses",
            where="responses",
            given=responses,
            expected="a list of one or more answers",
        )
    shown = _read_media(media)
    if isinstance(prompt, str):
        prompt = Conversation.about(prompt, [each.slot for each in shown])
    elif not isinstance(prompt, Conversation):
        prompt, shown = _read_messages(prompt, shown)
    if prompt.slots != tuple(each.slot for each in shown):
        raise DataError(
            "the conversation has places for other media than are given",
            where="media",
            given=f"{len(shown)} ({', '.join(each.slot.kind for each in shown) or 'none'})",
            expected=f"{len(prompt.slots)} ({', '.join(slot.kind for slot in prompt.slots) or 'none'}), in this order",
        )
    answers = tuple(Response(text) for text in responses)
    return PreferenceGroup(key="call", prompt=prompt, responses=answers, media=shown)


def _read_messages(
    messages: Sequence[Mapping[str, Any]], given: Sequence[Media]
) -> tuple[Conversation, tuple[Media, ...]]:
    """The conversation, and its media in order: those that parts hold, and those given for the others."""
    by_name = {f"media[{number}]": each for number, each in enumerate(given)}
    fields = [MediaItem(each.slot, name) for name, each in by_name.items()]
    held = list(_held(messages))
    by_name |= {f"part {n}": _read_medium(item, len(given) + n) for n, (_, _, item) in enumerate(held)}
    named = {id(part): {**part, holder: f"part {n}"} for n, (part, holder, _) in enumerate(held)}
    turns = [
        {**turn, "content": [named.get(id(part), part) for part in content]}
        if isinstance(content := turn.get("content"), list)
        else turn
        for turn in messages
    ]
    question = read_question({"prompt": turns}, fields, "messages")
    return question.conversation, tuple(by_name[str(item.ref)] for item in question.media)


def _held(messages: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], str, Picture]]:
    """(part, field, what it holds) of parts that hold their image or video."""
    for turn in messages:
        content = turn.get("content")
        for part in content if isinstance(content, list) else ():
            for holder in HOLDERS if isinstance(part, Mapping) else ():
                value = part.get(holder)
                value = value.get("url") if isinstance(value, Mapping) else value
                if value is not None:
                    yield part, holder, value
                    break


def _read_media(media: Picture | Sequence[Picture] | None) -> tuple[Media, ...]:
    if media is None:
        return ()
    items = [media] if isinstance(media, Image.Image | bytes | str | Path) else list(media)
    return tuple(_read_medium(item, number) for number, item in enumerate(items))


def _read_medium(item: Picture, number: int) -> Media:
    if isinstance(item, Image.Image):
        buffer = io.BytesIO()
        item.convert("RGB").save(buffer, format="PNG")
        return Media("image", (f"{number}.png",), (buffer.getvalue(),))
    if isinstance(item, bytes):
        return Media("image", (f"{number}.img",), (item,))
    path = expanded(item)
    is_video = path.suffix.lower() in VIDEO_SUFFIXES
    return Media("video" if is_video else "image", (path.name,), (read_regular(path, what="image or video"),))
