"""Making sequences fit: shown responses are shortened, and the sequences cut where they no longer begin alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from mmrlhf.tokens.in_turn import ResponseStart
from mmrlhf.tokens.length import LengthLimit
from mmrlhf.tokens.sequences import SequenceMaker, Sequences, Slots
from mmrlhf.tokens.text_tokens import Rendered, shared_prefix
from mmrlhf.types import PreferenceGroup, Response


class Fitted(NamedTuple):
    """Sequences that fit, what they show of each response, tokens that it lost for it, their common prefix's length."""

    sequences: Sequences
    shown: list[Response]
    removed: list[int]
    cut: int


class Fitting:
    """Fits the sequences of a query's responses under a limit.

    Args:
        sequences: renders conversations.
        limit: of their lengths.
        start: where a response begins that is read in turn; None where none is.
    """

    def __init__(self, sequences: SequenceMaker, limit: LengthLimit, start: ResponseStart | None) -> None:
        self._sequences, self._limit, self._start = sequences, limit, start

    def fit(
        self,
        group: PreferenceGroup,
        responses: Sequence[Response],
        slots: Sequence[Slots],
        tokenize: Callable[[Sequence[Rendered]], Sequences],
        *,
        with_answer: bool,
        in_turn: bool,
    ) -> Fitted:
        """Shorten shown responses until all sequences fit.

        Args:
            slots: of the media that each response is shown.
            tokenize: the rendered conversations, media and all.
            with_answer: with the assistant's turn, or what comes before it.
            in_turn: this query's responses are read in turn.

        Raises:
            DataError: shortening does not help.
        """
        shown, removed = list(responses), [0] * len(responses)
        limit = replace(self._limit, in_turn=in_turn)
        while True:
            rendered = [
                self._sequences.render(group, each, own, with_answer) for each, own in zip(shown, slots, strict=True)
            ]
            found = tokenize(rendered)
            cut = _cut_point(found, own=any(response.media for response in responses))
            if self._start is not None and in_turn and len(rendered) > 1:
                behind = self._start.tokens_behind(group, shown[0], slots[0], rendered[0])
                cut = min(cut, len(found.ids[0]) - behind)
            over = limit.excess_of_each(found.ids, found.labels, cut, with_answer)
            if max(over) <= 0 or not limit.shown:
                break
            for place, excess in enumerate(over):
                if excess > 0:
                    shown[place], cut_now = limit.shorten(group, shown[place], excess)
                    removed[place] += cut_now
        limit.check(group, cut, max(over))
        return Fitted(found, shown, removed, cut)


def _cut_point(sequences: Sequences, *, own: bool) -> int:
    """Length of the longest common token prefix that leaves every label, and at least one token, to each branch.

    Args:
        own: media belong to responses, so that all are left to the branches, too.
    """
    ids, labels, _, before_media = sequences
    shared = shared_prefix([each.tolist() for each in ids], [flags.tolist() for flags in labels])
    return min(shared, min(map(len, ids)) - 1, before_media if own else shared)
