"""Any endpoint that speaks OpenAI's chat protocol: a service, vLLM, SGLang, llama.cpp, ...

What comes back is a stranger's: an answer has a time and a size that it may take, a redirect is not followed (the
key would go with it), and a request that is refused for what it says, or that fails however often it is made, is an
outcome with a reason, not the end of the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import json
import os
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC
from typing import Any, Generic, TypeVar

import httpx
import tenacity

from mmrlhf.endpoints.completions import (
    DETAIL,
    FILTERED,
    MODERATED,
    TOO_SLOW,
    Answer,
    Use,
    kind_of_problem,
    read_completion,
)
from mmrlhf.errors import ConfigError, HubError
from mmrlhf.ranges import Count, Natural, NonNegative, Positive, check_fields
from mmrlhf.text import one_line

T = TypeVar("T")
Messages = Sequence[Mapping[str, Any]]

RETRIED = frozenset({408, 409, 425, 429, *range(500, 600)})
# what a service says about one request: too long, not understood, not allowed to be answered
REFUSED = frozenset({400, 413, 422, 451})
LONGEST_PAUSE = 300.0
# settings of an endpoint that say how patiently it is asked, and how fast; no answer depends on them
HOW_LONG = ("key_variable", "concurrency", "timeout", "retries", "pause", "max_bytes", "give_up_after")


class _Busy(Exception):
    """Worth asking again, after `pause` seconds if the service said so."""

    def __init__(self, detail: str, pause: float | None = None) -> None:
        super().__init__(detail)
        self.pause = pause


@dataclass(frozen=True)
class ChatEndpoint:
    """An endpoint and how it is asked.

    Args:
        url: up to and including the version, e.g. `http://localhost:8000/v1`.
        model: the model's name there.
        key_variable: environment variable that holds the key; where it is unset, none is sent.
        concurrency: requests under way at once.
        timeout: seconds for one try, from the first byte sent to the last byte received.
        retries: further tries after a busy or broken answer.
        pause: seconds before the first further try; it doubles with each, unless the service asks for another.
        max_bytes: largest answer that is read.
        give_up_after: requests that fail in a row, with none answered in between, until the endpoint counts as down.

    Raises:
        ConfigError: settings that no request could be made with.
    """

    url: str
    model: str
    key_variable: str = "OPENAI_API_KEY"
    concurrency: Count = 8
    timeout: Positive = 120.0
    retries: Natural = 5
    pause: NonNegative = 1.0
    max_bytes: Count = 8388608
    give_up_after: Count = 8

    def __post_init__(self) -> None:
        check_fields(self)
        _check_url(self.url)

    @property
    def address(self) -> str:
        """Where requests go."""
        return f"{self.url.rstrip('/')}/chat/completions"

    def ask(self, requests: Iterable[tuple[T, Messages]], **sampling: Any) -> Iterator[tuple[T, Answer]]:
        """Yield (name, answer) of named requests as they come, in any order.

        Args:
            sampling: further fields of each request, such as `max_tokens` and `temperature`.

        Raises as `send`.
        """
        return self.send((name, {"messages": list(messages), **sampling}) for name, messages in requests)

    def send(self, requests: Iterable[tuple[T, Mapping[str, Any]]]) -> Iterator[tuple[T, Answer]]:
        """The same for requests with fields of their own; each is made when its turn comes, in another thread.

        So millions of requests with pictures take the memory of those under way.

        Raises:
            HubError: the endpoint cannot be reached, does not know the key or the model, or fails request after
                request. What was yielded before stays right.
        """
        results: queue.SimpleQueue[tuple[T, Answer] | Exception | None] = queue.SimpleQueue()
        stop, asker = threading.Event(), threading.get_ident()
        worker = threading.Thread(
            target=_drive, args=(self._ask_all(_InTurn(requests), results.put, stop), results.put), daemon=True
        )
        worker.start()
        try:
            while (item := results.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            stop.set()
            # the collector may end this in a thread that the worker waits for
            if threading.get_ident() == asker:
                worker.join()

    async def _ask_all(
        self,
        requests: _InTurn[tuple[T, Mapping[str, Any]]],
        put: Callable[[tuple[T, Answer]], None],
        stop: threading.Event,
    ) -> None:
        failed = answered = 0
        last: _Busy | None = None

        async def work(client: httpx.AsyncClient) -> None:
            nonlocal failed, answered, last
            while (item := await requests.next()) is not None:
                name, content = item
                tries: list[str] = []
                try:
                    answer = await self._ask_until_answered(client, content, tries)
                    failed, answered = 0, answered + 1
                except _Busy as busy:
                    failed, last = failed + 1, busy
                    use = Use(tries=tuple(tries))
                    answer = Answer("", f"{busy}, after {self.retries + 1} tries", failed=True, use=use)
                    if failed >= self.give_up_after:
                        raise self._failure(answer.problem) from busy
                put((name, answer))

        async with self._client() as client, asyncio.TaskGroup() as group:
            workers = [group.create_task(work(client)) for _ in range(self.concurrency)]
            while not all(task.done() for task in workers):
                await asyncio.wait(workers, timeout=0.1)
                if stop.is_set():
                    for task in workers:
                        task.cancel()
        if last is not None and not answered and not stop.is_set():
            # fewer requests than it takes to give up, and none of them came
            raise self._failure(f"{last}, after {self.retries + 1} tries") from last

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[httpx.AsyncClient]:
        key = os.environ.get(self.key_variable)
        # an answer that is packed may be small here and without end once it is unpacked
        headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {key}"} if key else {})
        limits = httpx.Limits(max_connections=self.concurrency)
        async with httpx.AsyncClient(headers=headers, timeout=self.timeout, limits=limits) as client:
            yield client

    async def _ask_until_answered(
        self, client: httpx.AsyncClient, content: Mapping[str, Any], tries: list[str]
    ) -> Answer:
        """Ask until there is an answer; why tries brought none is added to `tries`."""

        def pause(state: tenacity.RetryCallState) -> float:
            asked_for = getattr(state.outcome.exception() if state.outcome else None, "pause", None)
            return min(LONGEST_PAUSE, self.pause * 2 ** (state.attempt_number - 1) if asked_for is None else asked_for)

        async def once() -> Answer:
            try:
                return await self._ask_once(client, {"model": self.model, **content})
            except _Busy as busy:
                tries.append(kind_of_problem(str(busy)))
                raise

        again = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(_Busy),
            stop=tenacity.stop_after_attempt(self.retries + 1),
            wait=pause,
            reraise=True,
        )
        answer = await again(once)
        return replace(answer, use=replace(answer.use, tries=tuple(tries)))

    async def _ask_once(self, client: httpx.AsyncClient, content: Mapping[str, Any]) -> Answer:
        try:
            async with asyncio.timeout(self.timeout), client.stream("POST", self.address, json=content) as response:
                body = await self._read(response)
        except (TimeoutError, httpx.TimeoutException) as error:
            raise _Busy(f"{TOO_SLOW} within {self.timeout:g} s") from error
        except httpx.HTTPError as error:
            raise _Busy(f"{type(error).__name__}: {error}") from error
        detail = f"HTTP {response.status_code}: {body[:DETAIL].decode(errors='replace')}"
        if response.status_code in RETRIED:
            raise _Busy(detail, _asked_for(response.headers.get("Retry-After")))
        if response.status_code in REFUSED:
            return Answer("", f"{FILTERED}: {detail}" if any(word in body for word in MODERATED) else detail)
        if response.status_code != httpx.codes.OK:
            target = response.headers.get("Location")
            raise self._failure(f"{detail}, a redirect to {target}, which is not followed" if target else detail)
        return self._answer(body)

    async def _read(self, response: httpx.Response) -> bytes:
        packed = response.headers.get("Content-Encoding", "")
        if packed.strip().lower() not in ("", "identity"):
            raise _Busy(f"an answer that is packed ({one_line(packed, DETAIL)})")
        body = bytearray()
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > self.max_bytes:
                raise _Busy(f"an answer of more than {self.max_bytes} bytes")
        return bytes(body)

    def _answer(self, body: bytes) -> Answer:
        try:
            return read_completion(json.loads(body))
        except (ValueError, RecursionError) as error:
            raise _Busy(f"an answer that is no JSON: {body[:DETAIL].decode(errors='replace')}") from error
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise self._failure(f"an answer without choices[0].message.content ({error!r})") from error

    def _failure(self, detail: str) -> HubError:
        return HubError(
            "the endpoint does not answer as it should",
            where=self.address,
            given=detail,
            expected="OpenAI's chat completions",
            fix=f"check the address, the model's name {self.model!r} and the key in {self.key_variable}; what was "
            "answered is kept",
        )


class _InTurn(Generic[T]):
    """Items of an iterator for tasks that run beside each other: each is made in a thread, one after another."""

    def __init__(self, items: Iterable[T]) -> None:
        self._items, self._lock = iter(items), asyncio.Lock()

    async def next(self) -> T | None:
        """The next one; None behind the last."""
        async with self._lock:
            return await asyncio.to_thread(next, self._items, None)


def _drive(work: Any, put: Callable[[Any], None]) -> None:
    """Run the requests to their end in this thread; the last thing put is the error that ended them, or None."""
    try:
        with contextlib.suppress(asyncio.CancelledError):
            asyncio.run(work)
        put(None)
    except BaseExceptionGroup as group:
        put(group.exceptions[0])
    except Exception as error:
        put(error)


def _check_url(url: str) -> None:
    try:
        parsed = httpx.URL(url)
        fine = parsed.scheme in ("http", "https") and bool(parsed.host)
    except httpx.InvalidURL:
        parsed, fine = httpx.URL(), False
    if not fine or parsed.userinfo:
        raise ConfigError(
            "this is no address of an endpoint",
            given="an address with a password in it" if parsed.userinfo else url,
            expected="http(s)://HOST/v1, and the key in an environment variable",
        )


def _asked_for(retry_after: str | None) -> float | None:
    """Seconds of a `Retry-After` header, which holds a number or a date; None for none, or for something else."""
    if retry_after is None:
        return None
    with contextlib.suppress(ValueError):
        return max(0.0, float(retry_after))
    with contextlib.suppress(ValueError, TypeError, OverflowError, IndexError):
        when = email.utils.parsedate_to_datetime(retry_after)
        # a date of HTTP that names no zone, as asctime writes them, is in universal time
        return max(0.0, when.replace(tzinfo=when.tzinfo or UTC).timestamp() - time.time())
    return None
