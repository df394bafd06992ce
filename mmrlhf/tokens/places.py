"""Whether a group's media fit the places of its prompt, and the group's name in what refuses them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from mmrlhf.errors import DataError
from mmrlhf.tokens.length import place_of
from mmrlhf.types import PreferenceGroup, Response


def check_places(group: PreferenceGroup, responses: Sequence[Response]) -> None:
    """Refuse a group without responses, without a medium for a place of its prompt, or a place for a medium."""
    if not responses:
        raise DataError(
            "a query has no response",
            where=place_of(group),
            given="a query that is still to be answered",
            expected="at least one response",
            fix="let models answer it first, or leave such queries out: data.selection.responses=[1,null]",
        )
    for response in responses:
        shown = [media.slot.kind for media in group.shown_to(response)]
        places = [slot.kind for slot in group.prompt.slots]
        if shown != places:
            raise DataError(
                "the prompt has places for other media than are shown",
                where=place_of(group),
                given=f"{len(shown)} ({', '.join(shown) or 'none'})",
                expected=f"{len(places)} ({', '.join(places) or 'none'}), in this order",
                fix="a query whose media are all those of its responses cannot be asked without one"
                if group.has_own_media
                else "repair the record",
            )


@contextmanager
def naming(group: PreferenceGroup) -> Iterator[None]:
    """Let a refusal of media of some size name the group that has them."""
    try:
        yield
    except DataError as error:
        error.where = place_of(group)
        raise
