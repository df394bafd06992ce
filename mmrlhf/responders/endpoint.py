"""A model behind an endpoint that speaks OpenAI's chat protocol, as whoever answers queries.

Every answer is kept in one file for all runs (`mmrlhf.endpoints.answer_store`) when it comes, so what was paid for is
asked for once, whatever stage asks and whatever is killed.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import Any

from mmrlhf.endpoints.answer_store import AnswerStore
from mmrlhf.endpoints.client import HOW_LONG, ChatEndpoint
from mmrlhf.endpoints.completions import Answer
from mmrlhf.endpoints.prices import Prices, prices_of
from mmrlhf.errors import HubError, Lines
from mmrlhf.ranges import Count, NonNegative, Positive, whole
from mmrlhf.responders.asking import Answers, Asked, text_of
from mmrlhf.responders.chat_request import check_options
from mmrlhf.responders.requests import Place, ServiceRequests
from mmrlhf.responders.spending import Purse, check_limit, cost_of, in_words, require_all
from mmrlhf.summaries.responses import AskingEstimate
from mmrlhf.terminal.progress import track
from mmrlhf.tokens.processing import MediaSettings

log = logging.getLogger(__name__)
_SHOWN = 5
# settings of an answerer that none of its answers depends on
LIMITS = (*HOW_LONG, "price_in", "price_out", "max_cost", "tokens_per_answer", "tokens_per_second")


@dataclass(frozen=True)
class EndpointAnswerer(ChatEndpoint):
    """A model behind an endpoint: a service, vLLM, SGLang, llama.cpp, ...

    Args:
        url: up to and including the version, e.g. `http://localhost:8000/v1`.
        model: the model's name there.
        options: further fields of each request, such as `top_p`; null takes one of ours away (`seed: null`).
        media: how videos become frames.
        longest_side: larger pictures and frames are made smaller, in pixels; null: none is. It changes what is seen.
        price_in, price_out: of a million tokens read and written, in any currency; null: cost is not counted.
        max_cost: nothing is asked that could cost more than this in all; null: no limit.
        tokens_per_answer: how long an answer is taken to be in the estimate.
        tokens_per_second: how fast one answer is taken to be written in the estimate.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    media: MediaSettings | None = None
    longest_side: Count | None = 1024
    price_in: NonNegative | None = None
    price_out: NonNegative | None = None
    max_cost: NonNegative | None = None
    tokens_per_answer: Count = 200
    tokens_per_second: Positive = 40.0

    def __post_init__(self) -> None:
        super().__post_init__()
        prices_of(self.price_in, self.price_out)
        check_options(self.options)

    @property
    def kind(self) -> str:
        return "endpoint"

    @property
    def prices(self) -> Prices | None:
        """Of its tokens."""
        return prices_of(self.price_in, self.price_out)

    def describe(self) -> Mapping[str, Any]:
        return {"url": self.url.rstrip("/"), "model": self.model}

    def describe_requests(self) -> Mapping[str, Any]:
        """All that its answers depend on beside the queries: whom is asked, and how queries become requests."""
        media = None if self.media is None else asdict(self.media)
        return {
            **self.describe(), "options": dict(self.options), "longest_side": self.longest_side, "media": media,
        }  # fmt: skip

    def estimate(self, asked: Asked) -> AskingEstimate:
        with AnswerStore(asked.runtime.answers) as store:
            requests, digests = self._requests(asked)
            return self._estimate(requests, {place: store.get(digest) for place, digest in digests.items()})

    def answers(self, asked: Asked, purse: Purse) -> Answers:
        if not asked.ranks.leads:
            return {}
        own = Purse(self.max_cost, above=purse)
        with AnswerStore(asked.runtime.answers) as store:
            requests, digests = self._requests(asked)
            found = {place: store.get(digest) for place, digest in digests.items()}
            paid = sum(cost_of(self.prices, answer) for answer in found.values() if answer is not None)
            own.begin_with(paid)
            estimate = self._estimate(requests, found)
            log.info("%s (%s) is asked: %s", asked.name, self.model, in_words(estimate))
            check_limit(estimate, self.prices, self.max_cost, f"max_cost of {asked.name}", paid)
            came = self._ask(requests, found, digests, store, own)
        asked.quarantine.check("what a service is asked")
        places = [(row, sample) for row in asked.usable() for sample in range(asked.how.num_samples)]
        require_all(own, f"max_cost of {asked.name}", sum(place in came for place in places), len(places))
        check_failed([came[place] for place in places], self.address, asked.runtime.max_damaged)
        return {
            asked.key(row): [came[row, sample] for sample in range(asked.how.num_samples)] for row in asked.usable()
        }

    def _requests(self, asked: Asked) -> tuple[ServiceRequests, dict[Place, str]]:
        if "requests" not in asked.memo:
            requests = ServiceRequests(asked, self.options, self.media or MediaSettings(), self.longest_side)
            asked.memo["requests"] = requests, requests.digests(self.describe())
        return asked.memo["requests"]

    def _estimate(self, requests: ServiceRequests, found: Mapping[Place, Answer | None]) -> AskingEstimate:
        there = {place: answer is not None for place, answer in found.items()}
        rate = self.tokens_per_second * min(self.concurrency, max(1, sum(not each for each in there.values())))
        return requests.estimate(there, self.prices, self.tokens_per_answer, rate)

    def _ask(
        self,
        requests: ServiceRequests,
        found: Mapping[Place, Answer | None],
        digests: Mapping[Place, str],
        store: AnswerStore,
        purse: Purse,
    ) -> dict[Place, Answer]:
        """Ask for what is missing until all of it came or the money is gone; also what failed, which is not kept."""
        came = {place: answer for place, answer in found.items() if answer is not None}
        while missing := [place for place in digests if place not in came]:
            before = len(came)
            if self._ask_while_affordable(requests, missing, digests, store, purse, came):
                break
            # what requests had set aside is back now, but for those of others who share the purse
            if len(came) == before:
                if purse.over:
                    break
                purse.wait()
        return came

    def _ask_while_affordable(
        self,
        requests: ServiceRequests,
        missing: Sequence[Place],
        digests: Mapping[Place, str],
        store: AnswerStore,
        purse: Purse,
        came: dict[Place, Answer],
    ) -> bool:
        """Ask and keep what comes, one by one, and add it to `came`; whether the purse was enough for all."""
        asked, taken, enough = requests.asked, dict[Place, float](), True

        def affordable() -> Iterator[tuple[Place, dict[str, Any]]]:
            nonlocal enough
            for place, request in requests.make(iter(missing)):
                cost = purse.reserve(self.prices, requests.expected_tokens(place[0]), asked.how.max_new_tokens)
                if cost is None:
                    enough = False
                    return
                taken[place] = cost
                yield place, request

        with closing(self.send(affordable())) as sent:  # type: ignore[type-var]
            said = track(sent, f"asking {asked.name} (answers)", len(missing), enabled=asked.runtime.progress)
            for place, answer in said:
                purse.settle(self.prices, taken.pop(place), requests.expected_tokens(place[0]), answer)
                came[place] = answer
                if answer.kept:
                    store.add(digests[place], answer)
        return enough


def check_failed(answers: Sequence[Answer], where: object, max_failed: float) -> None:
    """Stop where more requests failed than may, one in any case, or where none has brought an answer of use.

    Raises:
        HubError: counts them by reason.
    """
    failed = Counter(answer.problem for answer in answers if answer.failed)
    budget = max(1, whole(max_failed * len(answers)))
    if failed.total() > budget:
        raise HubError(
            "requests were not answered",
            where=where, given=_counted(failed, len(answers)),
            expected=f"at most {budget} (runtime.max_damaged)",
            fix="run the same command again: what was answered is kept, and only the others are asked for",
        )  # fmt: skip
    if answers and not any(text_of(answer) for answer in answers):
        raise HubError(
            "no request has brought an answer of use",
            where=where, given=_counted(Counter(answer.problem or "empty" for answer in answers), len(answers)),
            expected="answers; a request that the service does not understand is changed with `options`",
        )  # fmt: skip


def _counted(reasons: Counter[str], total: int) -> Lines:
    rows = [f"{count} x {reason}" for reason, count in reasons.most_common(_SHOWN)]
    return Lines([f"{reasons.total()} of {total}", *rows])
