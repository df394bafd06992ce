"""Messages of a request -> the query that the reward model is asked, with its media read and everything looked at."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from mmrlhf.conversation import IMAGE, VIDEO, Conversation, Slot, Turn
from mmrlhf.serving.limits import Limits
from mmrlhf.serving.media_parts import MediaReader
from mmrlhf.serving.merging import content_key
from mmrlhf.serving.refusals import Refusal
from mmrlhf.serving.wire import ImagePart, Message, Part, TextPart, VideoPart
from mmrlhf.types import Media, PreferenceGroup, Response

T = TypeVar("T")


class QueryReader:
    """Reads queries.

    Args:
        media: reads pictures and clips.
        limits: how many of them and how many responses a query may have.
    """

    def __init__(self, media: MediaReader, limits: Limits) -> None:
        self._media, self._limits = media, limits

    async def read(self, messages: Sequence[Message], responses: Sequence[str]) -> PreferenceGroup:
        """The query of a conversation and its responses; its key is its content's.

        Raises:
            Refusal: more responses or media than a query may have, media that cannot be used, a conversation that this
                model does not read; names the field.
        """
        if len(responses) > self._limits.max_responses:
            problem = f"{len(responses)} responses; the limit is {self._limits.max_responses} (limits.max_responses)"
            raise Refusal(413, "too_many_responses", problem, field="responses")
        prompt = as_conversation(messages)
        found = await self._read_media(messages)
        answers = tuple(Response(text) for text in responses)
        group = PreferenceGroup("", prompt, answers, found)
        return replace(group, key=content_key(group))

    async def _read_media(self, messages: Sequence[Message]) -> tuple[Media, ...]:
        places = [
            (f"messages[{turn}].content[{place}]", part)
            for turn, message in enumerate(messages)
            for place, part in enumerate(message.content)
            if not isinstance(part, TextPart)
        ]
        if len(places) > self._limits.max_media:
            problem = f"{len(places)} pictures and clips; the limit is {self._limits.max_media} (limits.max_media)"
            raise Refusal(413, "too_many_media", problem, field="messages")
        return tuple(await gathered(*(self._read_part(field, part) for field, part in places)))

    async def _read_part(self, field: str, part: ImagePart | VideoPart) -> Media:
        if isinstance(part, ImagePart):
            return await self._media.read(part.image_url.url, "image", f"{field}.image_url.url")
        return await self._media.read(part.video_url.url, "video", f"{field}.video_url.url")


async def gathered(*work: Coroutine[Any, Any, T]) -> list[T]:
    """What several coroutines come to; the first refusal ends the others."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each) for each in work]
    except* Refusal as refusals:
        raise refusals.exceptions[0] from None
    return [task.result() for task in tasks]


def as_conversation(messages: Sequence[Message]) -> Conversation:
    """The conversation that messages are; raises Refusal where it does not end with a question."""
    last = len(messages) - 1
    if messages[last].role != "user":
        problem = f"the {messages[last].role}'s turn is the last; expected the user's, which the responses answer"
        raise Refusal(422, "not_a_conversation", problem, field=f"messages[{last}].role")
    return Conversation(tuple(Turn(message.role, tuple(_joined(message.content))) for message in messages))


def _joined(content: Sequence[Part]) -> Iterator[str | Slot]:
    """Places and texts; texts beside one another are one, as templates write them, and a turn ends with a text."""
    text = ""
    for part in content:
        if isinstance(part, TextPart):
            text += part.text
            continue
        if text:
            yield text
        yield IMAGE if isinstance(part, ImagePart) else VIDEO
        text = ""
    yield text
