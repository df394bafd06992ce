"""A judge: every verdict is asked once, kept, counted and paid for within a budget.

A verdict that does not come, or that says nothing, is never a score: it is an exclusion with a reason, and above a
share of them the scoring ends. What came is kept, so the same command asks for the rest alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

from mmrlhf.endpoints.client import ChatEndpoint
from mmrlhf.endpoints.completions import Answer
from mmrlhf.endpoints.prices import check_cost, prices_of, require_prices
from mmrlhf.errors import ConfigError, DataError
from mmrlhf.files import write_json
from mmrlhf.ranges import Count, Natural, NonNegative, Positive, Share, check_fields
from mmrlhf.summaries.judges import JudgeUse
from mmrlhf.terminal.progress import track

log = logging.getLogger(__name__)

T = TypeVar("T")
Messages = Sequence[Mapping[str, Any]]
# why something has no score whose judge said nothing that counts
NO_VERDICT = "no verdict"
# tokens of requests whose pictures are held at once: about 120 pictures of a megabyte or two
WINDOW = 100_000
# what a text costs where nobody has counted: English prose
CHARS_PER_TOKEN = 4
# settings of a judge that no verdict depends on
LIMITS = ("key_variable", "concurrency", "timeout", "retries", "price_in", "price_out", "max_cost")
# what a picture costs, whatever its size: services take 85 to 1,100 tokens
TOKENS_PER_PICTURE = 800


class Asker(Protocol):
    """Anything that answers named requests: `mmrlhf.endpoints.client.ChatEndpoint`, or a model on this machine."""

    def ask(self, requests: Iterable[tuple[T, Messages]], **sampling: Any) -> Iterator[tuple[T, Answer]]:
        """Yield (name, answer), in any order."""
        ...


class JudgeModel(Protocol):
    """Who judges, and within which limits: `JudgeSettings`, `mmrlhf.judging.local_judge.LocalJudge`."""

    @property
    def model(self) -> str | None: ...
    @property
    def max_tokens(self) -> int: ...
    @property
    def max_missing(self) -> float: ...
    @property
    def price_in(self) -> float | None: ...
    @property
    def price_out(self) -> float | None: ...
    @property
    def max_cost(self) -> float | None: ...

    def identity(self) -> str | None:
        """What verdicts are kept under: those of another model are other verdicts."""
        ...

    def asker(self) -> Asker:
        """Who is asked; raises ConfigError where nobody judges."""
        ...


@dataclass(frozen=True)
class JudgeSettings:
    """A judge behind an endpoint that speaks OpenAI's chat protocol, and its limits.

    Args:
        url: address up to and including the version; null: nobody.
        model: the model's name there.
        max_tokens: longest verdict.
        max_missing: share of a benchmark's verdicts that may be missing, left out and counted; more end the scoring.
        price_in, price_out: of a million tokens read and written; null: the estimate counts tokens alone.
        max_cost: stops before asking where the estimate is above this.
        concurrency, timeout, retries: as in `mmrlhf.endpoints.client.ChatEndpoint`.
        key_variable: environment variable that holds the key.
    """

    url: str | None = None
    model: str | None = None
    max_tokens: Count = 512
    max_missing: Share = 0.0
    price_in: NonNegative | None = None
    price_out: NonNegative | None = None
    max_cost: NonNegative | None = None
    concurrency: Count = 8
    timeout: Positive = 120.0
    retries: Natural = 5
    key_variable: str = "OPENAI_API_KEY"

    def __post_init__(self) -> None:
        check_fields(self)
        require_prices(self.max_cost, prices_of(self.price_in, self.price_out), "judge.max_cost")
        if (self.url is None) != (self.model is None):
            raise ConfigError(
                "a judge is an address and a model",
                where="judge", given=f"url={self.url}, model={self.model}", expected="both, or neither",
            )  # fmt: skip

    def identity(self) -> str | None:
        """The model's name."""
        return self.model

    def asker(self) -> ChatEndpoint:
        """Who is asked; raises ConfigError where nobody judges."""
        if self.url is None or self.model is None:
            raise ConfigError(
                "these benchmarks need a judge",
                where="judge.url", given="null", expected="an address such as http://localhost:8000/v1",
                fix="judge.url=URL judge.model=NAME, or suite=no_judge",
            )  # fmt: skip
        return ChatEndpoint(
            self.url, self.model, self.key_variable,
            concurrency=self.concurrency, timeout=self.timeout, retries=self.retries,
        )  # fmt: skip


@dataclass(frozen=True)
class Request:
    """What a judge is asked, before its pictures are read.

    Args:
        said: everything that determines the request; JSON-able.
        tokens: about how many tokens it is.
        messages: makes it; raises DataError where a picture cannot be read.
    """

    said: Any
    tokens: int
    messages: Callable[[], Messages]

    @classmethod
    def of(cls, messages: Messages) -> Request:
        """A request whose messages are at hand."""
        return cls(list(messages), tokens_of(messages), lambda: messages)


@dataclass
class Judge:
    """Asks for verdicts, each once.

    Args:
        settings: who and how.
        cache: folder of verdicts, shared by runs.
        progress: show a bar.
    """

    settings: JudgeModel
    cache: Path
    progress: bool = False
    _counts: Counter[str] = field(default_factory=Counter)
    _failed: Counter[str] = field(default_factory=Counter)
    _tokens: Counter[str] = field(default_factory=Counter)

    @cached_property
    def asker(self) -> Asker:
        """Who is asked; raises ConfigError where nobody judges."""
        return self.settings.asker()

    def ask(self, requests: Mapping[str, Messages]) -> dict[str, Answer]:
        """The judge's words to every request, by its name; an answer with a `problem` is no verdict.

        Raises:
            ConfigError: nobody judges, or the estimate is above `max_cost`.
            HubError: the endpoint is down; what came is kept.
        """
        said = self.ask_votes({name: Request.of(messages) for name, messages in requests.items()})
        return {name: votes[0] for name, votes in said.items()}

    def ask_votes(
        self, requests: Mapping[str, Request], *, votes: int = 1, temperature: float = 0.0
    ) -> dict[str, list[Answer]]:
        """As `ask`, `votes` times each; several verdicts on the same question are told apart by their number."""
        digests = {name: [self._digest(each, temperature, n) for n in range(votes)] for name, each in requests.items()}
        came = {digest: self._kept(digest) for own in digests.values() for digest in own}
        # the same question of several documents is asked once
        missing = {
            digest: requests[name] for name, own in digests.items() for digest in own if came[digest] is None
        }  # fmt: skip
        self._counts["cached"] += sum(came[digest] is not None for own in digests.values() for digest in own)
        if missing:
            self._check_cost(missing.values())
            came |= dict(self._ask(missing, temperature))
        found = {name: [came[digest] for digest in own] for name, own in digests.items()}
        return {name: [each for each in own if each is not None] for name, own in found.items()}

    def _ask(self, missing: Mapping[str, Request], temperature: float) -> Iterator[tuple[str, Answer]]:
        asked = self._in_windows(missing, temperature)
        for digest, answer in track(asked, "judging (verdicts)", len(missing), enabled=self.progress):
            self._counts["asked"] += 1
            self._tokens["in"] += missing[digest].tokens
            self._tokens["out"] += len(answer.text) // CHARS_PER_TOKEN
            if answer.problem:
                self._failed[answer.problem.split(":")[0]] += 1
            else:
                write_json(self._path(digest), {"text": answer.text})
            yield digest, answer

    def _in_windows(self, missing: Mapping[str, Request], temperature: float) -> Iterator[tuple[str, Answer]]:
        """Answers, window by window of about one size, so that no more pictures are held."""
        digests = list(missing)
        parts = min(len(digests), -(-sum(each.tokens for each in missing.values()) // WINDOW) or 1)
        for part in range(parts):
            own = digests[part * len(digests) // parts : (part + 1) * len(digests) // parts]
            ready: list[tuple[str, Messages]] = []
            for digest in own:
                try:
                    ready.append((digest, missing[digest].messages()))
                except DataError as error:
                    yield digest, Answer("", f"{error.problem}: {error.where}")
            if ready:
                yield from self.asker.ask(ready, temperature=temperature, max_tokens=self.settings.max_tokens)

    def refuse(self, messages: Messages, reason: str) -> None:
        """Count an answer that says no verdict, and forget it, so that it is asked again."""
        self._failed[reason] += 1
        self._path(self._digest(Request.of(messages), 0.0, 0)).unlink(missing_ok=True)

    def use(self) -> JudgeUse:
        """What was asked so far."""
        return JudgeUse(
            self._counts["cached"], self._counts["asked"], dict(self._failed),
            self.cost(self._tokens["in"], self._tokens["out"]),
        )  # fmt: skip

    def cost(self, read: int, written: int) -> float | None:
        """What so many tokens cost; None where no prices are known."""
        prices = prices_of(self.settings.price_in, self.settings.price_out)
        return None if prices is None else prices.cost(read, written)

    def _kept(self, digest: str) -> Answer | None:
        try:
            return Answer(json.loads(self._path(digest).read_text(encoding="utf-8"))["text"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _digest(self, request: Request, temperature: float, vote: int) -> str:
        drawn = [temperature, vote] if temperature or vote else []
        asked = [self.settings.identity(), self.settings.max_tokens, request.said, *drawn]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    def _path(self, digest: str) -> Path:
        folder = self.cache / digest[:2]
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{digest}.json"

    def _check_cost(self, requests: Iterable[Request]) -> None:
        _ = self.asker
        tokens = [request.tokens for request in requests]
        read, written = sum(tokens), len(tokens) * self.settings.max_tokens
        cost = self.cost(read, written)
        price = "" if cost is None else f", at most {cost:.2f}"
        log.info("%d verdicts are to be asked: about %d tokens read%s", len(tokens), read, price)
        given = f"at most {cost:.2f} for {len(tokens)} verdicts" if cost is not None else ""
        check_cost(cost, self.settings.max_cost, where="judge.max_cost", given=given)


def tokens_of(messages: Messages) -> int:
    """About how many tokens a request is."""
    total = 0
    for message in messages:
        content = message["content"]
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            total += len(part["text"]) // CHARS_PER_TOKEN if part["type"] == "text" else TOKENS_PER_PICTURE
    return total
