"""A question asked from Python, as the group that stages work on: pictures and clips of any form, prompt, responses."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from mmrlhf.conversation import Conversation
from mmrlhf.errors import DataError
from mmrlhf.files import expanded, read_regular
from mmrlhf.types import Media, PreferenceGroup, Response

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi")
Picture = Image.Image | bytes | str | Path


def ask(
    media: Picture | Sequence[Picture] | None, prompt: str | Conversation, responses: Sequence[str]
) -> PreferenceGroup:
    """Make the group of one question and its responses.

    Args:
        media: an image, several, a video file, or None. An image is a PIL image, encoded bytes or a path; a path with a
            video's suffix is a video.
        prompt: the question.
        responses: one or more answers.

    Raises:
        DataError: a file that is not there, no response.
    """
    if isinstance(responses, str) or not responses:
        raise DataError(
            "there is no list of responses",
            where="responses",
            given=responses,
            expected="a list of one or more answers",
        )
    answers, shown = tuple(Response(text) for text in responses), _read_media(media)
    if isinstance(prompt, str):
        prompt = Conversation.about(prompt, [each.slot for each in shown])
    return PreferenceGroup(key="call", prompt=prompt, responses=answers, media=shown)


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
