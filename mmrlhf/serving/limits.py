"""What one request may be, and all requests together: sizes, numbers and times."""

from __future__ import annotations

from dataclasses import dataclass

from mmrlhf.ranges import Count, Natural, Positive, check_fields

MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """Limits of requests; whatever is above one is refused with the number and the name of the limit.

    Args:
        max_body_mib: largest body of a request, in MiB; pictures inside it are a third larger than their files.
        max_responses: responses of one query.
        max_queries: queries of one request, in the forms of trainers that send several.
        max_media: pictures and clips of one query.
        max_media_mib: largest picture or clip, in MiB.
        max_pixels: pixels of a picture, or of a clip's frame.
        max_query_tokens: tokens of a query with all its responses, which are computed together.
        max_waiting: queries that wait to be scored; more are told to come again (503).
        max_held_mib: bodies of all requests under way, in MiB; more are told to come again (503).
        max_connections: open connections; more are told to come again (503).
        timeout: seconds from a request's body to its answer.
        body_timeout: seconds for a request's body to arrive.
        fetch_timeout: seconds for a picture or clip from an address.
    """

    max_body_mib: Positive = 32.0
    max_responses: Count = 64
    max_queries: Count = 256
    max_media: Natural = 16
    max_media_mib: Positive = 16.0
    max_pixels: Count = 1 << 25
    max_query_tokens: Count = 1 << 16
    max_waiting: Count = 1024
    max_held_mib: Positive = 1024.0
    max_connections: Count = 512
    timeout: Positive = 120.0
    body_timeout: Positive = 30.0
    fetch_timeout: Positive = 10.0

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def max_body(self) -> int:
        """Bytes of a body."""
        return int(self.max_body_mib * MIB)

    @property
    def max_medium(self) -> int:
        """Bytes of a picture or clip."""
        return int(self.max_media_mib * MIB)

    @property
    def max_held(self) -> int:
        """Bytes of all bodies under way."""
        return int(self.max_held_mib * MIB)
