"""Queries on their way through the model: encoded ahead, batched by the token budget, answered to whom they belong.

Two sorts of threads share one lock. Encoders take the query that waits longest, with all that wait for the same prefix,
and turn them into tokens, about one batch ahead of the model. The scorer takes encoded queries, in their order, as many
as the token budget holds. Nothing waits for a clock while the model is idle, but for one case: right after a batch,
whose askers are about to come back, the scorer waits for them for a twentieth of that batch's time, so that askers who
came at the same time go on doing so.

A query that cannot be used is refused by itself, and a batch that fails is tried again query by query, so no query
depends on what runs beside it.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from mmrlhf.errors import DataError
from mmrlhf.inference.passes import CACHE_PER_BUDGET, Encode
from mmrlhf.inference.reward_model import RewardModel
from mmrlhf.inference.verdicts import Verdict
from mmrlhf.models.decoding import cache_size
from mmrlhf.serving.limits import Limits
from mmrlhf.serving.measures import Measures
from mmrlhf.serving.merging import merge, part
from mmrlhf.serving.refusals import Refusal, come_again, unusable
from mmrlhf.tensors import EncodedGroup
from mmrlhf.text import first_line
from mmrlhf.types import PreferenceGroup

log = logging.getLogger(__name__)

_LINGER = 0.05  # of the time of the last batch
_RESPONSE = re.compile(r", response (\d+)$")  # as errors of length end that name a query's place


@dataclass(eq=False)
class Job:
    """A query under way; its key is its content's (`content_key`)."""

    group: PreferenceGroup
    answer: Future[list[Verdict]]


@dataclass(eq=False)
class _Ready:
    """Jobs of one prefix as one encoded query, and what it costs of the budget."""

    jobs: list[Job]
    group: PreferenceGroup
    encoded: EncodedGroup
    cost: int


class Batcher:
    """Scores queries as they come.

    Args:
        judge: the reward model, which belongs to this object's threads from now on.
        limits: how many may wait, and how large a query may be.
        groups_per_batch: queries of one batch at most.
        encoders: threads that encode.
        measures: counts what is done.
    """

    def __init__(
        self, judge: RewardModel, *, limits: Limits, groups_per_batch: int, encoders: int, measures: Measures
    ) -> None:
        self._judge, self._limits, self._groups_per_batch, self._measures = judge, limits, groups_per_batch, measures
        self._budget = judge.token_budget * (CACHE_PER_BUDGET if judge.writes_critiques else 1)
        # where a query's responses are compared, by a vote or read in turn, another query's would change their rewards
        self._may_merge = not (judge.in_turn or (judge.writes_critiques and judge.critiques.combine == "vote"))
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._ready: deque[_Ready] = deque()
        self._encoding, self._ending = 0, False
        self._expected, self._linger_until = 0, 0.0
        own = [judge.another_encoder() for _ in range(encoders)]
        encode = [each.context if judge.writes_critiques else each for each in own]
        self._encode_here: Encode = judge.encoder.context if judge.writes_critiques else judge.encoder
        self._threads = [threading.Thread(target=self._encode_all, args=(each,), name="encoder") for each in encode]
        self._threads.append(threading.Thread(target=self._score_all, name="scorer"))
        for thread in self._threads:
            thread.start()

    def submit(self, group: PreferenceGroup) -> Future[list[Verdict]]:
        """Ask for the verdicts on a query's responses; cancelling the future takes a query back that is not begun.

        Raises:
            Refusal: too many wait.
        """
        job = Job(group, Future())
        with self._changed:
            if self._ending:
                raise come_again("the server is stopping", code="stopping")
            if len(self._waiting) >= self._limits.max_waiting:
                raise come_again(f"{len(self._waiting)} queries are waiting already (limits.max_waiting)")
            self._waiting.append(job)
            self._measures.waiting.set(len(self._waiting))
            self._changed.notify_all()
        job.answer.add_done_callback(lambda answer: self._withdraw(job) if answer.cancelled() else None)
        return job.answer

    def _withdraw(self, job: Job) -> None:
        """Let go of a query that was taken back: its place is another's, and its pictures need not be held."""
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
                self._measures.waiting.set(len(self._waiting))
                self._changed.notify_all()

    def stop(self) -> None:
        """Finish what was submitted, and end the threads."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _encode_all(self, encode: Encode) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: (self._waiting and self._has_room()) or (self._ending and self._empty()))
                if not self._waiting:
                    return
                jobs = self._take_alike()
                self._encoding += 1
            ready = self._encoded(jobs, encode)
            with self._changed:
                self._ready += ready
                self._encoding -= 1
                self._changed.notify_all()

    def _empty(self) -> bool:
        return not self._waiting

    def _has_room(self) -> bool:
        """Whether less than a batch is encoded; what waits longer may still be merged."""
        return sum(each.cost for each in self._ready) < self._budget and len(self._ready) < self._groups_per_batch

    def _take_alike(self) -> list[Job]:
        """The job that waits longest and, up to a query's largest number of responses, others with its prefix."""
        first = self._waiting.popleft()
        taken, room = [first], self._limits.max_responses - len(first.group.responses)
        if self._may_merge:
            for job in [job for job in self._waiting if job.group.key == first.group.key]:
                if len(job.group.responses) <= room:
                    room -= len(job.group.responses)
                    taken.append(job)
                    self._waiting.remove(job)
        self._measures.waiting.set(len(self._waiting))
        return [job for job in taken if job.answer.set_running_or_notify_cancel()]

    def _encoded(self, jobs: Sequence[Job], encode: Encode) -> list[_Ready]:
        """Encode jobs of one prefix together; where that fails, each by itself, and refuse those that fail then."""
        if not jobs:
            return []
        group = merge([job.group for job in jobs]) if self._may_merge else jobs[0].group
        try:
            encoded = encode(group)
            self._check_size(encoded)
        except Exception as error:
            if len(jobs) > 1:
                return [ready for job in jobs for ready in self._encoded([job], encode)]
            _fail(jobs[0], error)
            return []
        return [_Ready(list(jobs), group, encoded, self._cost(encoded))]

    def _check_size(self, encoded: EncodedGroup) -> None:
        if encoded.num_tokens > self._limits.max_query_tokens:
            problem = (
                f"{encoded.num_tokens} tokens with the conversation; the limit is {self._limits.max_query_tokens} "
                "(limits.max_query_tokens)"
            )
            raise Refusal(413, "query_too_large", problem, field="responses")

    def _cost(self, encoded: EncodedGroup) -> int:
        how = self._judge.critiques
        turns = len(encoded.branches) if self._judge.in_turn and how.orders == "all" else 1
        if not self._judge.writes_critiques:
            return turns * encoded.num_tokens
        lengths = [len(branch.ids) for branch in encoded.branches]
        return turns * cache_size(len(encoded.prefix_ids), lengths, how.num_samples, how.max_tokens)

    def _score_all(self) -> None:
        while True:
            with self._changed:
                self._wait_for_batch()
                batch = self._take_batch()
                self._changed.notify_all()
            if not batch:
                return
            started = time.monotonic()
            found = self._verdicts(batch)
            self._expect(batch)
            self._answer(batch, found)
            now = time.monotonic()
            self._measures.batch.observe(sum(len(each.jobs) for each in batch))
            self._measures.batch_seconds.observe(now - started)
            with self._changed:
                self._linger_until = now + _LINGER * (now - started)

    def _wait_for_batch(self) -> None:
        """Wait until there is something to do and nothing that will be encoded in a moment is missing."""
        while not (self._ending and self._empty() and not self._encoding):
            full = not self._has_room()
            coming = bool(self._waiting or self._encoding)
            if self._ready and (full or not coming):
                here = sum(len(each.jobs) for each in self._ready)
                left = self._linger_until - time.monotonic()
                if full or here >= self._expected or left <= 0:
                    return
                self._changed.wait(left)
            else:
                self._changed.wait()

    def _take_batch(self) -> list[_Ready]:
        """The first encoded queries that the budget holds; one at least."""
        batch, cost = list[_Ready](), 0
        while self._ready and len(batch) < self._groups_per_batch:
            if batch and cost + self._ready[0].cost > self._budget:
                break
            cost += self._ready[0].cost
            batch.append(self._ready.popleft())
        return batch

    def _verdicts(self, batch: Sequence[_Ready]) -> list[list[Verdict]] | Exception:
        try:
            return self._judge.score_groups([each.group for each in batch], [each.encoded for each in batch])
        except Exception as error:
            return error

    def _expect(self, batch: Sequence[_Ready]) -> None:
        """Expect as many askers as are here, before any is answered: who asks again at once would count twice."""
        with self._changed:
            here = len(self._waiting) + self._encoding + sum(len(each.jobs) for each in self._ready)
            self._expected = here + sum(len(each.jobs) for each in batch)

    def _answer(self, batch: Sequence[_Ready], found: list[list[Verdict]] | Exception) -> None:
        if isinstance(found, Exception):
            self._score_in_parts(batch, found)
            return
        for ready, verdicts in zip(batch, found, strict=True):
            self._hand_out(ready, verdicts)

    def _score_in_parts(self, batch: Sequence[_Ready], error: Exception) -> None:
        """Score a batch that failed query by query, and a query that failed job by job; refuse a job that failed."""
        if len(batch) > 1:
            parts = [[each] for each in batch]
        elif len(batch[0].jobs) > 1:
            parts = [self._encoded([job], self._encode_here) for job in batch[0].jobs]
        else:
            _fail(batch[0].jobs[0], error)
            return
        log.warning("a batch of %d failed and is tried again in parts: %s", len(parts), first_line(error))
        for each in parts:
            if each:
                self._answer(each, self._verdicts(each))

    def _hand_out(self, ready: _Ready, verdicts: list[Verdict]) -> None:
        self._measures.queries.inc(len(ready.jobs))
        self._measures.shared.inc(len(ready.jobs) - 1)
        self._measures.critique_tokens.inc(sum(verdict.critique_tokens for verdict in verdicts))
        for job in ready.jobs:
            own = part(job.group, ready.group, verdicts) if self._may_merge else verdicts
            self._measures.responses.inc(len(own))
            job.answer.set_result(own)


def _fail(job: Job, error: Exception) -> None:
    """Refuse one job."""
    if not isinstance(error, Refusal):
        error = refusal_of(job.group, error)
    job.answer.set_exception(error)


def refusal_of(group: PreferenceGroup, error: Exception) -> Refusal:
    """What the client is told of an error that one query met."""
    if isinstance(error, DataError):
        return unusable(error, _field_of(group, str(error.where)))
    log.error("a query failed", exc_info=error)
    return Refusal(500, "failed", "the server failed at this query; its log says why")


def _field_of(group: PreferenceGroup, where: str) -> str:
    """The field of the request that an error's place in a query is: a medium, a response, or the conversation."""
    names = [name for item in group.media for name in item.names]
    response = _RESPONSE.search(where)
    return next((name for name in names if name in where), f"responses[{response[1]}]" if response else "messages")
