"""A judge behind an endpoint: every verdict is asked once, kept, counted and paid for within a budget.

A verdict that does not come, or that says nothing, is never a score: it is an exclusion with a reason, and above a
share of them the scoring ends. What came is kept, so the same command asks for the rest alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmrlhf.endpoints.client import Answer, ChatEndpoint
from mmrlhf.errors import ConfigError
from mmrlhf.files import write_json
from mmrlhf.ranges import Count, Natural, NonNegative, Positive, Share, check_fields
from mmrlhf.summaries.suites import JudgeUse
from mmrlhf.terminal.progress import track

log = logging.getLogger(__name__)

Messages = Sequence[Mapping[str, Any]]
# why a document has no score whose judge said nothing that counts
NO_VERDICT = "no verdict"
# what a text costs where nobody has counted: English prose
_CHARS_PER_TOKEN = 4
# what a picture costs, whatever its size: services take 85 to 1,100 tokens
_TOKENS_PER_PICTURE = 800


@dataclass(frozen=True)
class JudgeSettings:
    """Who judges, and within which limits.

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
        if (self.url is None) != (self.model is None):
            raise ConfigError(
                "a judge is an address and a model",
                where="judge", given=f"url={self.url}, model={self.model}", expected="both, or neither",
            )  # fmt: skip


@dataclass
class Judge:
    """Asks for verdicts, each once.

    Args:
        settings: who and how.
        cache: folder of verdicts, shared by runs.
        progress: show a bar.
    """

    settings: JudgeSettings
    cache: Path
    progress: bool = False
    _counts: Counter[str] = field(default_factory=Counter)
    _failed: Counter[str] = field(default_factory=Counter)
    _tokens: Counter[str] = field(default_factory=Counter)

    def ask(self, requests: Mapping[str, Messages]) -> dict[str, Answer]:
        """The judge's words to every request, by its name; an answer with a `problem` is no verdict.

        Raises:
            ConfigError: nobody judges, or the estimate is above `max_cost`.
            HubError: the endpoint is down; what came is kept.
        """
        found = {name: self._kept(messages) for name, messages in requests.items()}
        missing = {name: requests[name] for name, answer in found.items() if answer is None}
        self._counts["cached"] += len(requests) - len(missing)
        answers = {name: answer for name, answer in found.items() if answer is not None}
        if not missing:
            return answers
        self._check_cost(missing)
        # the same question of several documents is asked once
        unique = {self._digest(messages): messages for messages in missing.values()}
        came: dict[str, Answer] = {}
        asked = self.endpoint().ask(unique.items(), temperature=0.0, max_tokens=self.settings.max_tokens)
        for digest, answer in track(asked, "judging (verdicts)", len(unique), enabled=self.progress):
            came[digest] = answer
            self._counts["asked"] += 1
            self._tokens["in"] += tokens_of(unique[digest])
            self._tokens["out"] += len(answer.text) // _CHARS_PER_TOKEN
            if answer.problem:
                self._failed[answer.problem.split(":")[0]] += 1
            else:
                write_json(self._path(digest), {"text": answer.text})
        return answers | {name: came[self._digest(messages)] for name, messages in missing.items()}

    def refuse(self, messages: Messages, reason: str) -> None:
        """Count an answer that says no verdict, and forget it, so that it is asked again."""
        self._failed[reason] += 1
        self._path(self._digest(messages)).unlink(missing_ok=True)

    def use(self) -> JudgeUse:
        """What was asked so far."""
        return JudgeUse(
            self._counts["cached"], self._counts["asked"], dict(self._failed),
            self._cost(self._tokens["in"], self._tokens["out"]),
        )  # fmt: skip

    def _kept(self, messages: Messages) -> Answer | None:
        try:
            return Answer(json.loads(self._path(self._digest(messages)).read_text(encoding="utf-8"))["text"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _digest(self, messages: Messages) -> str:
        asked = [self.settings.model, self.settings.max_tokens, list(messages)]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    def _path(self, digest: str) -> Path:
        folder = self.cache / digest[:2]
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{digest}.json"

    def endpoint(self) -> ChatEndpoint:
        """Who is asked; raises ConfigError where nobody judges."""
        own = self.settings
        if own.url is None or own.model is None:
            raise ConfigError(
                "these benchmarks need a judge",
                where="judge.url", given="null", expected="an address such as http://localhost:8000/v1",
                fix="judge.url=URL judge.model=NAME, or suite=no_judge",
            )  # fmt: skip
        return ChatEndpoint(
            own.url, own.model, own.key_variable,
            concurrency=own.concurrency, timeout=own.timeout, retries=own.retries,
        )  # fmt: skip

    def _check_cost(self, requests: Mapping[str, Messages]) -> None:
        self.endpoint()
        read = sum(tokens_of(messages) for messages in requests.values())
        written = len(requests) * self.settings.max_tokens
        cost = self._cost(read, written)
        price = "" if cost is None else f", at most {cost:.2f}"
        log.info("%d verdicts are to be asked: about %d tokens read%s", len(requests), read, price)
        if cost is not None and self.settings.max_cost is not None and cost > self.settings.max_cost:
            raise ConfigError(
                "judging would cost more than it may",
                where="judge.max_cost", given=f"{cost:.2f} for {len(requests)} verdicts",
                expected=f"at most {self.settings.max_cost}", fix="raise judge.max_cost, or ask fewer documents",
            )  # fmt: skip

    def _cost(self, read: int, written: int) -> float | None:
        own = self.settings
        if own.price_in is None or own.price_out is None:
            return None
        return (read * own.price_in + written * own.price_out) / 1e6


def tokens_of(messages: Messages) -> int:
    """About how many tokens a request is."""
    total = 0
    for message in messages:
        content = message["content"]
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            total += len(part["text"]) // _CHARS_PER_TOKEN if part["type"] == "text" else _TOKENS_PER_PICTURE
    return total
