"""What stands behind the routes: the model that is loaded, being loaded or stopped, and the wait for its verdicts."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from mmrlhf.inference.verdicts import Verdict
from mmrlhf.serving.batching import Batcher
from mmrlhf.serving.limits import Limits
from mmrlhf.serving.reading import QueryReader, gathered
from mmrlhf.serving.refusals import Refusal, come_again
from mmrlhf.serving.wire import Message

T = TypeVar("T")


class Desk:
    """Takes queries, and says whether it can.

    Args:
        name: the model's, as answers give it.
        reader: reads queries.
        limits: how long a request may take.

    Attributes:
        batcher: scores queries; None while the model is being loaded.
        is_stopping: whether no more queries should come; those under way are still answered.
    """

    def __init__(self, name: str, reader: QueryReader, limits: Limits) -> None:
        self.name, self._reader, self._limits = name, reader, limits
        self.batcher: Batcher | None = None
        self.is_stopping: Callable[[], bool] = lambda: False

    @property
    def state(self) -> str:
        """`loading`, `ready` or `stopping`."""
        if self.is_stopping():
            return "stopping"
        return "loading" if self.batcher is None else "ready"

    async def judge(self, messages: Sequence[Message], responses: Sequence[str]) -> list[Verdict]:
        """The verdicts on the responses to a conversation.

        Raises:
            Refusal: the model is not loaded, or the query cannot be read, scored or taken.
        """
        if self.batcher is None:
            raise come_again("the model is being loaded", code="loading", seconds=5)
        group = await self._reader.read(messages, responses)
        answer = self.batcher.submit(group)
        verdicts = await asyncio.wrap_future(answer)  # which is cancelled with this task
        if not all(math.isfinite(score) for each in verdicts for score in (each.reward, *each.dimensions.values())):
            raise Refusal(500, "not_finite", "a score of the model is not a finite number")
        return verdicts

    async def judge_all(
        self, queries: Sequence[tuple[Sequence[Message], str]], place: Callable[[int, Refusal], str]
    ) -> list[Verdict]:
        """The verdicts on one response each of several conversations, all or none.

        Args:
            place: the field of the request that a refusal of query i is about.
        """

        async def one(number: int, messages: Sequence[Message], response: str) -> Verdict:
            try:
                return (await self.judge(messages, [response]))[0]
            except Refusal as refusal:
                raise refusal.at(place(number, refusal)) from None

        return await gathered(*(one(number, *query) for number, query in enumerate(queries)))

    async def in_time(self, work: Awaitable[T], gone: Awaitable[None]) -> T | None:
        """What some work comes to; None where the client left before.

        Raises:
            Refusal: it took too long, or what the work raises.
        """
        working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone)
        try:
            done, _ = await asyncio.wait(
                (working, leaving), timeout=self._limits.timeout, return_when=asyncio.FIRST_COMPLETED
            )
            if working in done:
                return working.result()
            if leaving in done:
                return None
            seconds = self._limits.timeout
            raise Refusal(504, "timeout", f"no answer within {seconds:g} s (limits.timeout)")
        finally:
            working.cancel()
            leaving.cancel()
