"""What a model is asked and what it answers: the two conversations of the project.

A template only says what the user turn and the assistant turn contain; the chat template of the model's own processor
turns them into text, so a template works for every family.
"""

from __future__ import annotations

from dataclasses import dataclass
from string import Formatter
from typing import Protocol

from mmrlhf.errors import ConfigError, DataError
from mmrlhf.types import PreferenceGroup, Response

CRITIQUE_KINDS = ("none", "full", "short", "evidence")

# Our own wording of an evaluator's task; MM-RLHF's released prompt has the same parts in the same order.
EVALUATOR_INSTRUCTION = (
    "You judge answers of a multimodal assistant. Check the answer below against the picture or video: is it helpful, "
    "is it faithful to what can be seen, is it safe? Name what is right and what is wrong."
)


# MM-RLHF's released prompt names question and response like this.
REQUEST = "[Question]: {question}\n[LMM Response]: {response}\n[Evaluation]:"


class Template(Protocol):
    """Fills the turns of one conversation for one response."""

    @property
    def name(self) -> str:
        """Short name that enters fingerprints."""
        ...

    @property
    def closing(self) -> str:
        """Text behind the end of the assistant's turn: read, and where a score is pooled, but never learned."""
        ...

    @property
    def shows_response(self) -> bool:
        """Whether the response is part of the user turn, and not the assistant's turn itself."""
        ...

    def user(self, group: PreferenceGroup, response: Response) -> str:
        """Text of the user turn, behind the media."""
        ...

    def assistant(self, group: PreferenceGroup, response: Response) -> str | None:
        """Text of the assistant turn, whose tokens are labels; None if the sequence ends before it."""
        ...


@dataclass(frozen=True)
class AnswerTemplate:
    """The user asks the prompt, the assistant gives the response (supervised training, preference training)."""

    name: str = "answer"
    closing: str = ""

    @property
    def shows_response(self) -> bool:
        """No: the response is the assistant's turn."""
        return False

    def user(self, group: PreferenceGroup, response: Response) -> str:
        """The prompt alone."""
        return _plain(group)

    def assistant(self, group: PreferenceGroup, response: Response) -> str | None:
        """The response."""
        return response.text


def _shows_both(request: str) -> bool:
    """Whether a format names question and response and nothing else: no attribute, no index, no width."""
    try:
        places = [place[1:] for place in Formatter().parse(request) if place[1] is not None]
    except ValueError:
        return False
    return {name for name, *_ in places} == {"question", "response"} and not any(s or c for _, s, c in places)


@dataclass(frozen=True)
class CritiqueTemplate:
    """The user shows prompt and response, the assistant writes a critique (reward model; PAPER: MM-RLHF section 4).

    Args:
        critique: which of a response's critiques is the assistant's turn; `none` ends the sequence before it, which is
            both the context to generate a critique from and the input of a reward model without critiques.
        instruction: what the evaluator is told; empty for models too small to read it.
        request: how `{question}` and `{response}` are shown.
        closing: text behind the end of the critique, at whose last token the score is read.
        allow_missing: a response without the critique ends before the assistant's turn (only its score is learned)
            instead of being an error.
    """

    critique: str = "full"
    instruction: str = EVALUATOR_INSTRUCTION
    request: str = REQUEST
    closing: str = ""
    allow_missing: bool = False
    name: str = "critique"

    def __post_init__(self) -> None:
        if self.critique not in CRITIQUE_KINDS:
            raise ConfigError(
                "unknown kind of critique",
                where="critique",
                given=self.critique,
                expected=f"one of {', '.join(CRITIQUE_KINDS)}",
            )
        for name in ("instruction", "request", "closing"):
            if not isinstance(getattr(self, name), str):
                raise ConfigError("not a text", argument=name, given=getattr(self, name), expected="text")
        if not _shows_both(self.request):
            raise ConfigError(
                "a request does not show question and response",
                argument="request", given=self.request, expected="text with {question} and {response}, and no other {}",
            )  # fmt: skip

    @property
    def shows_response(self) -> bool:
        """Yes: the assistant's turn is about it."""
        return True

    def user(self, group: PreferenceGroup, response: Response) -> str:
        """Instruction, question and response, in the order of the released prompt."""
        parts = [self.instruction] if self.instruction else []
        return "\n".join([*parts, self.request.format(question=_plain(group), response=response.text)])

    def assistant(self, group: PreferenceGroup, response: Response) -> str | None:
        """The chosen kind of critique without white space around it (as in MM-RLHF's release), or None."""
        if self.critique == "none" or (self.allow_missing and self.critique not in response.critiques):
            return None
        if self.critique not in response.critiques:
            raise DataError(
                f"a response has no '{self.critique}' critique",
                where=f"key {group.key}, shard {group.shard or '(not packed)'}",
                given=f"critiques: {', '.join(response.critiques) or 'none'}",
                expected=f"every response carries a '{self.critique}' critique",
                fix="choose another critique, expand the annotations first, or train with critique=none",
            )
        return response.critiques[self.critique].strip()


def _plain(group: PreferenceGroup) -> str:
    text = group.prompt.plain
    if text is None or group.has_own_media:
        raise DataError(
            "this form of a query cannot be encoded yet",
            where=f"key {group.key}, shard {group.shard or '(not packed)'}",
            given=group.prompt.form or "media of one response",
            expected="one user's turn with its media in front",
        )
    return text
