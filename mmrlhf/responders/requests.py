"""What is asked of a service: one request for each answer, its digest, and what all of them will take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mmrlhf.endpoints.answer_store import request_digest
from mmrlhf.endpoints.prices import Prices
from mmrlhf.errors import DataError
from mmrlhf.responders.asking import Asked
from mmrlhf.responders.chat_request import estimate_tokens, messages_of, query_record
from mmrlhf.summaries.responses import AskingEstimate
from mmrlhf.terminal.progress import track
from mmrlhf.tokens.processing import MediaSettings

# queries whose text is read for an estimate
_SAMPLED = 256
# seeds of one query's answers, from one seed of the command to the next
_DRAWS = 1000
Place = tuple[int, int]  # row, sample


@dataclass(frozen=True)
class ServiceRequests:
    """The requests of one service about some queries.

    Args:
        asked: the queries.
        fields: what every request says beside its messages: the model, and options.
        media: how videos become frames.
        longest_side: larger pictures are made smaller.
    """

    asked: Asked
    fields: Mapping[str, Any]
    media: MediaSettings
    longest_side: int | None

    @cached_property
    def _chars(self) -> float:
        """Mean length of a prompt, of a sample of the queries."""
        rows = self.asked.usable()
        sample = rows[:: max(1, len(rows) // _SAMPLED)]
        chars = [self.asked.index.read(row, media=False).prompt.num_chars for row in sample]
        return sum(chars) / max(1, len(chars))

    def expected_tokens(self, row: int) -> int:
        """About how many tokens the service reads for a query."""
        entry = self.asked.index.entries[row]
        return estimate_tokens(entry, round(self._chars), self.media, self.longest_side)

    def digests(self, who: Mapping[str, Any]) -> dict[Place, str]:
        """The digest of every request; a query that cannot be read goes into the quarantine.

        who: what beside the requests themselves determines the answers.
        """
        found: dict[Place, str] = {}
        rows = self.asked.usable()
        for row in track(rows, "reading queries", len(rows), enabled=self.asked.runtime.progress):
            try:
                record = query_record(self.asked.index.read(row), self.media, self.longest_side)
            except DataError as error:
                self.asked.quarantine.add(self.asked.key(row), error)
                continue
            for sample in range(self.asked.how.num_samples):
                found[row, sample] = request_digest({**who, **self._own(sample), "query": record})
        self.asked.quarantine.check("what a service is asked")
        return found

    def make(self, places: Iterator[Place]) -> Iterator[tuple[Place, dict[str, Any]]]:
        """(place, request), read and encoded one by one; a query that cannot be goes into the quarantine."""
        last: tuple[int, list[dict[str, Any]]] | None = None
        for row, sample in places:
            if self.asked.key(row) in self.asked.quarantine:
                continue
            if last is None or last[0] != row:
                try:
                    last = row, messages_of(self.asked.index.read(row), self.media, self.longest_side)
                except DataError as error:
                    self.asked.quarantine.add(self.asked.key(row), error)
                    continue
            yield (row, sample), {"messages": last[1], **self._own(sample)}

    def _own(self, sample: int) -> dict[str, Any]:
        how = self.asked.how
        own = {
            "max_tokens": how.max_new_tokens, "temperature": how.temperature,
            "seed": how.seed * _DRAWS + sample, **self.fields,
        }  # fmt: skip
        return {name: value for name, value in own.items() if value is not None}

    def estimate(
        self, places: Mapping[Place, bool], prices: Prices | None, tokens_per_answer: int, rate: float | None
    ) -> AskingEstimate:
        """What asking takes.

        Args:
            places: every request, and whether it is answered already.
            tokens_per_answer: how long an answer is taken to be.
            rate: tokens a second of all answers together; None: not known.
        """
        rows = [row for (row, _), there in places.items() if not there]
        read = sum(self.expected_tokens(row) for row in rows)
        longest = self.asked.how.max_new_tokens
        written, most = len(rows) * min(tokens_per_answer, longest), len(rows) * longest
        return AskingEstimate(
            answers=len(places),
            answered=len(places) - len(rows),
            tokens_in=read,
            tokens_out=written,
            most_tokens_out=most,
            cost=None if prices is None else prices.cost(read, written),
            most_cost=None if prices is None else prices.cost(read, most),
            seconds=None if rate is None else written / rate,
        )
