"""Requests that are not answered: a status, one sentence that names the field, and a code for programs.

The body has the form of OpenAI's errors: `{"error": {"message", "type", "param", "code"}}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmrlhf.errors import UserError
from mmrlhf.text import one_line

_LONGEST = 400


class Refusal(Exception):
    """A request that gets no answer.

    Args:
        status: HTTP status.
        code: what is wrong, as one word for programs.
        problem: what is wrong, in words; with the field before it, the sentence that the client reads.
        field: which part of the request: `messages[0].content[1].image_url.url`; "" for the request as a whole.
        headers: further headers of the answer.
    """

    def __init__(
        self, status: int, code: str, problem: str, *, field: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        self.status, self.code, self.field, self.headers = status, code, field, dict(headers or {})
        self.sentence = one_line(f"{field}: {problem}" if field else problem, _LONGEST)
        super().__init__(self.sentence)

    def body(self) -> dict[str, Any]:
        """The answer's body."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.sentence, "type": kind, "param": self.field or None, "code": self.code}}

    def at(self, field: str) -> Refusal:
        """The same refusal of another field."""
        problem = self.sentence.removeprefix(f"{self.field}: ")
        return Refusal(self.status, self.code, problem, field=field, headers=self.headers)


def come_again(problem: str, *, code: str = "busy", seconds: int = 1) -> Refusal:
    """The refusal of a request that may be sent again."""
    return Refusal(503, code, problem, headers={"Retry-After": str(seconds)})


def unusable(error: UserError, field: str, *, code: str = "unusable") -> Refusal:
    """The refusal of a part that cannot be used, from the error that says so."""
    said = one_line(error.problem, _LONGEST // 2)
    details = [f"given {error.given}"] if error.given is not None else []
    details += [f"expected {error.expected}"] if error.expected else []
    return Refusal(422, code, said + (f" ({'; '.join(details)})" if details else ""), field=field)
