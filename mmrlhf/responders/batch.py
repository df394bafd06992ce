"""A batch as whoever answers queries: requests are written to files, and the results are read from files.

OpenAI's batch service and those that copy it take the files, and so does `vllm run-batch -i FILE -o FILE --model NAME`.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmrlhf.endpoints.completions import Answer
from mmrlhf.endpoints.prices import Prices, prices_of
from mmrlhf.errors import DataError, Lines
from mmrlhf.files import expanded, write_json
from mmrlhf.parts import begin
from mmrlhf.ranges import Count, NonNegative, Positive, check_fields
from mmrlhf.responders.asking import Answers, Asked
from mmrlhf.responders.batch_files import BatchResults, custom_id, read_results, write_requests
from mmrlhf.responders.chat_request import check_options
from mmrlhf.responders.endpoint import check_failed
from mmrlhf.responders.requests import Place, ServiceRequests
from mmrlhf.responders.spending import Purse, check_limit, cost_of, in_words
from mmrlhf.summaries.responses import AskingEstimate
from mmrlhf.tokens.processing import MediaSettings

log = logging.getLogger(__name__)

REQUESTS, RESULTS, RECORD, WRITTEN = "requests", "results", "asked.json", "written.json"
MISSING = "no result"


@dataclass(frozen=True)
class BatchAnswerer:
    """A model that works files of requests off.

    Args:
        folder: `requests/` is written there, what is still to be answered; results are read from `results/*.jsonl`,
            under any names, failures included.
        model: the model's name in each request.
        options, media, longest_side: as of an endpoint.
        price_in, price_out, max_cost, tokens_per_answer: as of an endpoint; services halve prices for batches.
        max_requests: of one file.
        max_megabytes: of one file, in units of 1,000,000 bytes.
    """

    folder: str
    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    media: MediaSettings | None = None
    longest_side: Count | None = 1024
    price_in: NonNegative | None = None
    price_out: NonNegative | None = None
    max_cost: NonNegative | None = None
    tokens_per_answer: Count = 200
    max_requests: Count = 50000
    max_megabytes: Positive = 200

    def __post_init__(self) -> None:
        check_fields(self)
        prices_of(self.price_in, self.price_out)
        check_options(self.options)

    @property
    def kind(self) -> str:
        return "batch"

    @property
    def prices(self) -> Prices | None:
        """Of its tokens."""
        return prices_of(self.price_in, self.price_out)

    @property
    def place(self) -> Path:
        """The folder."""
        return expanded(self.folder)

    def describe(self) -> Mapping[str, Any]:
        return {"model": self.model, "options": dict(self.options), "longest_side": self.longest_side}

    def estimate(self, asked: Asked) -> AskingEstimate:
        requests, digests, results = self._state(asked)
        there = {p: not self._result(asked, results, p).failed for p in digests}
        return requests.estimate(there, self.prices, self.tokens_per_answer, None)

    def answers(self, asked: Asked, purse: Purse) -> Answers:
        if not asked.ranks.leads:
            return {}
        requests, digests, results = self._state(asked)
        found = {place: self._result(asked, results, place) for place in digests}
        self._tell_unused(asked, results, found)
        paid = sum(cost_of(self.prices, answer) for answer in found.values() if not answer.failed)
        purse.begin_with(paid)
        pending = {place: digest for place, digest in digests.items() if found[place].failed}
        if pending:
            estimate = self.estimate(asked)
            log.info("%s (%s) is to be asked: %s", asked.name, self.model, in_words(estimate))
            check_limit(estimate, self.prices, self.max_cost, f"max_cost of {asked.name}", paid)
            self._write(asked, requests, pending)
        if len(pending) == len(found):
            raise self._waiting(asked, found)
        check_failed(list(found.values()), self.place / RESULTS, asked.runtime.max_damaged)
        return {
            asked.key(row): [found[row, sample] for sample in range(asked.how.num_samples)] for row in asked.usable()
        }

    def _state(self, asked: Asked) -> tuple[ServiceRequests, dict[Place, str], BatchResults]:
        if "requests" not in asked.memo:
            self._begin(asked)
            fields = {"model": self.model, **self.options}
            requests = ServiceRequests(asked, fields, self.media or MediaSettings(), self.longest_side)
            results = read_results(sorted((self.place / RESULTS).glob("*.jsonl")))
            asked.memo["requests"] = requests, requests.digests(self.describe()), results
        return asked.memo["requests"]

    def _begin(self, asked: Asked) -> None:
        """Refuse results that answer other requests: their names say neither the question nor how it was asked."""
        how, record = asked.how, self.place / f"{asked.name}.{RECORD}"
        made_by = {
            **self.describe(), "shards": asked.index.digest, "media": repr(self.media),
            "temperature": how.temperature, "max_new_tokens": how.max_new_tokens, "seed": how.seed,
        }  # fmt: skip

        def read() -> Mapping[str, Any]:
            try:
                return json.loads(record.read_text(encoding="utf-8"))
            except ValueError as error:
                raise DataError("the record of a batch is damaged", where=record, given=str(error)) from error

        begin(record, made_by, what="a batch", read=read)

    def _result(self, asked: Asked, results: BatchResults, place: Place) -> Answer:
        called = custom_id(asked.key(place[0]), asked.name, place[1])
        return results.answers.get(called, Answer("", MISSING, failed=True))

    def _tell_unused(self, asked: Asked, results: BatchResults, found: Mapping[Place, Answer]) -> None:
        wanted = {custom_id(asked.key(row), asked.name, sample) for row, sample in found}
        strange = [name for name in results.answers if name not in wanted]
        for why, count in results.unused.most_common():
            log.warning("%s: %d x %s, first at %s", asked.name, count, why, results.first_unused[why])
        if strange:
            log.warning("%s: %d results are of requests that this stage does not ask, such as %s",
                        asked.name, len(strange), strange[0])  # fmt: skip

    def _write(self, asked: Asked, requests: ServiceRequests, pending: Mapping[Place, str]) -> None:
        """Write what is still to be answered, unless it is there already: a service may be at work on it."""
        folder = self.place / REQUESTS
        record = folder / f"{asked.name}.{WRITTEN}"
        digest = hashlib.sha256("\n".join(pending.values()).encode()).hexdigest()
        limits = {"max_requests": self.max_requests, "max_megabytes": self.max_megabytes}
        files = sorted(path.name for path in folder.glob(f"{asked.name}-*.jsonl"))
        now = {"digest": digest, **limits, "files": files}
        if files and record.is_file() and json.loads(record.read_text(encoding="utf-8")) == now:
            return
        named = (
            (custom_id(asked.key(row), asked.name, sample), body)
            for (row, sample), body in requests.make(iter(pending))
        )
        written = write_requests(
            folder, asked.name, named, max_requests=self.max_requests, max_bytes=int(self.max_megabytes * 1e6)
        )
        write_json(record, {**now, "files": [path.name for path in written]})

    def _waiting(self, asked: Asked, found: Mapping[Place, Answer]) -> DataError:
        files = sorted((self.place / REQUESTS).glob(f"{asked.name}-*.jsonl"))
        reasons = Counter(answer.problem for answer in found.values())
        return DataError(
            "a batch waits to be worked off",
            where=self.place / REQUESTS,
            given=Lines([f"{len(found)} requests in {len(files)} files"]
                        + [f"{count} x {reason}" for reason, count in reasons.most_common(5) if reason != MISSING]),
            expected=f"results in {self.place / RESULTS}/*.jsonl, in any order",
            fix="send the files to a batch service, or `vllm run-batch -i FILE -o RESULTS --model NAME`, and run the "
            "same command again",
        )  # fmt: skip
