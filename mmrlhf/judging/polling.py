"""What a judge is asked about a query: every comparison, in which orders, with which pictures."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from mmrlhf.errors import ConfigError, DataError
from mmrlhf.files import expanded
from mmrlhf.judging.ballots import AUTO, BALLOTS, LETTERS, Ballot, ballot_of, check_ballot
from mmrlhf.judging.judge_model import CHARS_PER_TOKEN, TOKENS_PER_PICTURE, Messages, Request
from mmrlhf.ranges import Count, Natural, NonNegative, check_draws, check_fields
from mmrlhf.tokens.picture_urls import urls_of
from mmrlhf.tokens.processing import MediaSettings
from mmrlhf.types import Media, PreferenceGroup

Orders = Literal["all", "drawn"]


@dataclass(frozen=True)
class Polling:
    """How a generative judge is asked about a benchmark of reward models.

    Args:
        ballot: `auto`: the benchmark's own, else `pair`; `pair`, `best` (of all responses), `rating` (of each by
            itself), or a benchmark's (`mmrlhf.judging.ballots.BALLOTS`).
        orders: `all`: a pair in both orders, and each of several responses once at each place; `drawn`: one, drawn, as
            the benchmarks' own scripts do.
        votes: verdicts on each question; several need a temperature above 0.
        temperature: 0 takes the likeliest words.
        words: file with the request's own words, such as a benchmark's official ones; null: ours.
        seed: of orders that are drawn.
        num_frames: pictures that stand for a video.
        side: longest side of a picture, in pixels; larger ones are shrunk.
    """

    ballot: str = AUTO
    orders: Orders = "all"
    votes: Count = 1
    temperature: NonNegative = 0.0
    words: str | None = None
    seed: Natural = 0
    num_frames: Count = 8
    side: Count = 1024

    def __post_init__(self) -> None:
        check_fields(self)
        check_draws("votes on a question", self.votes, self.temperature, name="votes")
        check_ballot(self.ballot, self.own_words)

    @cached_property
    def own_words(self) -> str | None:
        """What the file of words holds; raises ConfigError where it cannot be read."""
        if self.words is None:
            return None
        try:
            return expanded(self.words).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ConfigError("the words for a judge cannot be read", argument="words", given=str(error)) from error

    def ballot_for(self, group: PreferenceGroup) -> tuple[str, Ballot]:
        """The name of a query's ballot, and the ballot."""
        name = ballot_of(group, self.ballot)
        ballot = BALLOTS[name]
        return name, ballot if self.own_words is None else Ballot(ballot.form, self.own_words, ballot.read)

    @property
    def media(self) -> MediaSettings:
        """How clips become pictures."""
        return MediaSettings(num_frames=self.num_frames)


@dataclass(frozen=True)
class Question:
    """One request about a query: which of its responses are shown, in their order."""

    shown: tuple[int, ...]

    @property
    def name(self) -> str:
        """A name within the query."""
        return "-".join(map(str, self.shown))


def questions_of(group: PreferenceGroup, ballot: Ballot, polling: Polling) -> list[Question]:
    """What is asked about a query, in all orders or in one that is drawn from its key; nothing where nobody ranked it.

    Raises: DataError where more responses are shown at once than there are letters.
    """
    number = len(group.responses)
    if not group.ranked_pairs():
        return []
    if ballot.form == "best" and number > len(LETTERS):
        raise DataError(
            "a query has more responses than letters",
            where=group.key, given=number, expected=f"at most {len(LETTERS)}",
            fix="stages.rewardbench.polling.ballot=pair or rating shows fewer at once",
        )  # fmt: skip
    if ballot.form == "rating":
        return [Question((place,)) for place in range(number)]
    if ballot.form == "best":
        order = random.Random(f"{polling.seed} {group.key}").sample(range(number), number)
        turns = [tuple(order[start:] + order[:start]) for start in range(number)]
        return [Question(turn) for turn in (turns if polling.orders == "all" else turns[:1])]
    found: list[Question] = []
    for pair in group.ranked_pairs():
        both = [pair, pair[::-1]]
        drawn = random.Random(f"{polling.seed} {group.key} {min(pair)} {max(pair)}").sample(both, 2)
        found += [Question(each) for each in (both if polling.orders == "all" else drawn[:1])]
    return found


def request_of(
    group: PreferenceGroup, ballot: Ballot, question: Question, polling: Polling, read: Callable[[], PreferenceGroup]
) -> Request:
    """The request of one question.

    Args:
        group: the query with its media's bytes, which are only looked at now.
        read: reads it again when the request is made.
    """
    text = ballot.request(group.prompt.transcript, [group.responses[place].text for place in question.shown])
    own = [group.responses[place].media for place in question.shown]
    seen = [*group.media, *(media for each in own for media in each)]
    said = {"text": text, "media": _digests(group.media), "own": [_digests(each) for each in own]}
    how = [polling.num_frames, polling.side] if seen else []
    pictures = sum(1 if media.kind == "image" else polling.num_frames for media in seen)
    tokens = len(text) // CHARS_PER_TOKEN + pictures * TOKENS_PER_PICTURE
    return Request([said, how], tokens, lambda: _messages(read(), question, text, polling))


def _digests(media: Sequence[Media]) -> list[str]:
    return [hashlib.sha256(b"".join(each.data)).hexdigest() for each in media]


def _messages(group: PreferenceGroup, question: Question, text: str, polling: Polling) -> Messages:
    shown = list(_parts(group, group.media, polling))
    for place, number in enumerate(question.shown):
        own = list(_parts(group, group.responses[number].media, polling))
        label = "What the answer is about:" if len(question.shown) == 1 else f"What answer {_labels(place)} is about:"
        shown += [{"type": "text", "text": label}, *own] if own else []
    return [{"role": "user", "content": [*shown, {"type": "text", "text": text}] if shown else text}]


def _labels(place: int) -> str:
    return f"{LETTERS[place]} ({place + 1})"


def _parts(group: PreferenceGroup, media: Sequence[Media], polling: Polling) -> Iterator[dict[str, Any]]:
    for item in media:
        for url in urls_of(group, item, polling.media, polling.side):
            yield {"type": "image_url", "image_url": {"url": url}}
