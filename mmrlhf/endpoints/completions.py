"""What an endpoint's chat completion says: a text that may be used, or why there is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mmrlhf.text import one_line

DETAIL = 200  # characters of a service's own words that are shown
CUT, FILTERED, EMPTY = "cut off", "filtered", "empty"
TOO_SLOW = "no whole answer"
# of one answer; a count above it, with which no cost could be reckoned, is none
MOST_TOKENS = 2**31 - 1
# how services say in a refusal that it is a moderation's
MODERATED = (b"content_filter", b"content_policy", b"ResponsibleAIPolicyViolation")


@dataclass(frozen=True)
class Use:
    """What a service says about an answer beside its text, as far as it says so, and what came of earlier tries.

    `model`: who answered, as it calls itself; `finish`: why it ended; `tokens_in`, `tokens_out`: read and written;
    `tries`: why tries before the last one brought nothing.
    """

    model: str = ""
    finish: str = ""
    tokens_in: int | None = None
    tokens_out: int | None = None
    tries: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """What became of one request: its text, or `problem`, why there is none that may be used.

    `failed`: none came, for a reason that may pass (busy, broken off, too slow); otherwise the problem is final.
    `use`: what is known about it beside.
    """

    text: str
    problem: str = ""
    failed: bool = False
    use: Use = field(default=Use(), compare=False)

    @property
    def kept(self) -> bool:
        """Whether a model has worked on it, so that it is paid for and never asked for again."""
        return not self.failed and bool(self.use.finish or not self.problem)

    @property
    def reason(self) -> str:
        """The kind of the problem, without what is true of this request only."""
        return kind_of_problem(self.problem)


def kind_of_problem(problem: str) -> str:
    """A problem without its detail: `HTTP 429: {...}, after 6 tries` is `HTTP 429`."""
    kind = problem.partition(":")[0].partition(", after ")[0]
    return TOO_SLOW if kind.startswith(TOO_SLOW) else kind


def read_completion(content: Any) -> Answer:
    """What an endpoint's chat completion, or a line of a batch's results, says.

    Raises:
        KeyError, IndexError, TypeError, AttributeError: it is none.
    """
    choice = content["choices"][0]
    finish, message = choice.get("finish_reason"), choice["message"]
    filtered = finish == "content_filter"
    # what a moderation takes away is null, or not there at all
    text = _text_of(message.get("content") if filtered else message["content"])
    said = one_line(finish, DETAIL) if finish else ""
    use = Use(_word(content.get("model")), said, *_tokens(content.get("usage")))
    if filtered:
        return Answer(_whole(text), FILTERED, use=use)
    if _whole(text) != text:
        return Answer(_whole(text), "text with half of a surrogate pair", use=use)
    if finish == "length":
        return Answer(text, CUT, use=use)
    if said not in ("", "stop"):
        return Answer(text, f"ended by {said}", use=use)
    if not text and isinstance(message.get("refusal"), str):
        return Answer("", "declined", use=use)
    return Answer(text, "" if text else EMPTY, use=use)


def _word(value: Any) -> str:
    return one_line(value, DETAIL) if isinstance(value, str) else ""


def _tokens(usage: Any) -> tuple[int | None, int | None]:
    """(read, written) as a service counts them; None where it does not say."""
    found = [usage.get(name) if isinstance(usage, Mapping) else None for name in ("prompt_tokens", "completion_tokens")]
    read, wrote = (count if type(count) is int and 0 <= count <= MOST_TOKENS else None for count in found)
    return read, wrote


def _whole(text: str) -> str:
    """A text with question marks for surrogates without their other half, which no UTF-8 file can hold."""
    return text if text.isascii() else text.encode(errors="replace").decode()


def _text_of(content: Any) -> str:
    """The text of a message, whose content may also be a list of parts."""
    if isinstance(content, list):
        content = "".join(part["text"] for part in content if part.get("type") in ("text", "output_text"))
    if content is not None and not isinstance(content, str):
        raise TypeError(f"content is {type(content).__name__}")
    return (content or "").strip()
