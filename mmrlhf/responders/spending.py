"""What answers cost: prices, the limit that no request may exceed, and what was spent."""

from __future__ import annotations

import threading

from mmrlhf.endpoints.completions import TOO_SLOW, Answer
from mmrlhf.endpoints.prices import Prices, check_cost, require_prices
from mmrlhf.errors import ConfigError
from mmrlhf.summaries.responses import AskingEstimate

# English prose, for services that do not show their tokenizer
CHARS_PER_TOKEN = 3.5


class AskingStopped(Exception):
    """The asking was ended from outside; what was answered is kept."""


class Purse:
    """Money for requests: each reserves the most that it can cost, and is settled at what it did cost.

    So the limit is never exceeded, as long as a request reads no more than is expected of it; what requests read beyond
    that is learned from those that were answered. Threads may share one.

    Args:
        limit: the most that may be spent; None: no limit.
        above: a purse that each request is taken from, too.

    Attributes:
        exhausted: whether a request was refused for which there is no money, and none that comes back.
    """

    def __init__(self, limit: float | None = None, above: Purse | None = None) -> None:
        self.limit, self.above = limit, above
        self.spent = self.reserved = 0.0
        self.exhausted = self.closed = False
        self._read, self._expected = 0, 0
        self._under_way = self._settled = 0
        self._changed = threading.Condition()

    def reserve(self, prices: Prices | None, read: int, written: int) -> float | None:
        """Take what a request may cost; None where that is too much or the purse is closed, and nothing is taken.

        What is missing may have been set aside for others, which give some back: `wait`, and try again unless `over`.
        """
        with self._changed:
            more = max(1.0, self._read / self._expected) if self._expected else 1.0
        cost = prices.cost(read * more, written) if prices is not None else 0.0
        return cost if self._take(cost) else None

    def _take(self, cost: float) -> bool:
        if self.above is not None and not self.above._take(cost):
            self.exhausted = self.exhausted or self.above.exhausted
            return False
        with self._changed:
            fits = self.limit is None or self.spent + self.reserved + cost <= self.limit
            if fits and not self.closed:
                self.reserved += cost
                self._under_way += 1
                return True
            self.exhausted = self.exhausted or not (fits or self._under_way)
        if self.above is not None:
            self.above._give_back(cost)
        return False

    def _give_back(self, cost: float) -> None:
        with self._changed:
            self.reserved -= cost
            self._under_way -= 1
            self._changed.notify_all()
        if self.above is not None:
            self.above._give_back(cost)

    def settle(self, prices: Prices | None, reserved: float, expected: int, answer: Answer) -> None:
        """Put back what an answered request has not cost.

        A try that was too slow has been worked on, and counts as if it had been answered.
        """
        cost = cost_of(prices, answer, expected) if prices is not None else 0.0
        slow = sum(reason == TOO_SLOW for reason in answer.use.tries) * reserved
        self._book(reserved, (slow if answer.failed else cost + slow), expected, answer)

    def _book(self, reserved: float, cost: float, expected: int, answer: Answer) -> None:
        with self._changed:
            self.reserved -= reserved
            self.spent += cost
            self._under_way -= 1
            self._settled += 1
            self._changed.notify_all()
            if answer.use.tokens_in is not None:
                self._read += answer.use.tokens_in
                self._expected += expected
        if self.above is not None:
            self.above._book(reserved, cost, expected, answer)

    def begin_with(self, cost: float) -> None:
        """Count what earlier runs have paid for the same answers."""
        with self._changed:
            self.spent += cost
        if self.above is not None:
            self.above.begin_with(cost)

    def close(self) -> None:
        """Let no further request begin."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()

    @property
    def over(self) -> bool:
        """Whether no request more can begin: no money is left for one, or the purse was closed."""
        return self.exhausted or self.closed or (self.above is not None and self.above.over)

    def wait(self) -> None:
        """Wait until one of the requests that share this money is settled; not at all where none is under way."""
        if self.above is not None:
            self.above.wait()
            return
        with self._changed:
            before = self._settled
            self._changed.wait_for(lambda: self.closed or not self._under_way or self._settled != before)


def cost_of(prices: Prices | None, answer: Answer, expected: int = 0) -> float:
    """What an answer has cost: by the service's own counts, else by what was expected and by its length."""
    if prices is None:
        return 0.0
    use = answer.use
    read = expected if use.tokens_in is None else use.tokens_in
    written = len(answer.text) / CHARS_PER_TOKEN if use.tokens_out is None else use.tokens_out
    return prices.cost(read, written)


def check_limit(
    estimate: AskingEstimate, prices: Prices | None, max_cost: float | None, where: str, spent: float = 0.0
) -> None:
    """Refuse what is expected to cost more than it may, or a limit without prices (ConfigError)."""
    require_prices(max_cost, prices, where)
    check_cost(estimate.cost, max_cost, where=where, given=in_words(estimate), spent=spent)


def require_all(purse: Purse, where: str, got: int, wanted: int) -> None:
    """Raise where money has kept answers from coming (ConfigError), or whoever closed the purse (AskingStopped)."""
    if got >= wanted:
        return
    while purse.above is not None and purse.above.exhausted:
        purse = purse.above
    if not purse.exhausted:
        raise AskingStopped(f"{where}: {got} of {wanted} answers")
    raise ConfigError(
        "the limit on the cost has stopped the asking",
        where=where, given=f"{purse.spent:.4f} spent, {got} of {wanted} answers",
        expected=f"at most {purse.limit:g}",
        fix="raise it and run the same command again: what was answered is kept, and only the others are asked for",
    )  # fmt: skip


def in_words(estimate: AskingEstimate) -> str:
    """One line about what asking will take."""
    said = [f"{estimate.answers - estimate.answered:,} answers"]
    if estimate.answered:
        said.append(f"{estimate.answered:,} are there")
    if estimate.tokens_in is not None and estimate.tokens_out is not None:
        said.append(f"about {estimate.tokens_in:,} tokens read and {estimate.tokens_out:,} written")
    if estimate.cost is not None and estimate.most_cost is not None:
        said.append(f"about {estimate.cost:.2f}, at most {estimate.most_cost:.2f}")
    if estimate.seconds is not None:
        said.append(
            f"about {estimate.seconds / 60:.0f} min" if estimate.seconds >= 90 else f"about {estimate.seconds:.0f} s"
        )
    return ", ".join(said)
