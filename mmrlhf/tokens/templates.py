"""What a model is asked and what it answers: the two conversations of the project.

A template only says what the turns contain; the chat template of the model's own processor turns them into text, so a
template works for every family.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from string import Formatter
from typing import Protocol

from mmrlhf.conversation import Conversation, Part, Turn
from mmrlhf.errors import ConfigError, DataError
from mmrlhf.types import PreferenceGroup, Response

CRITIQUE_KINDS = ("none", "full", "short", "evidence")

# Our own wording of an evaluator's task; MM-RLHF's released prompt has the same parts in the same order.
EVALUATOR_INSTRUCTION = (
    "You judge answers of a multimodal assistant. Check the answer below against the picture or video: is it helpful, "
    "is it faithful to what can be seen, is it safe? Name what is right and what is wrong."
)

# Stands for the question while a request is filled in; of Unicode's private use, it is no character of anyone's text.
_QUESTION = "\ue0f7"
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
    def shown(self) -> str:
        """What the user's turn shows of a branch's own: its "response" or its "question"; "" where a response is the
        assistant's turn."""
        ...

    def conversation(self, group: PreferenceGroup, response: Response) -> Conversation:
        """The turns before the assistant's; their places of media are those of the group's prompt, in its order."""
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
    def shown(self) -> str:
        """Nothing: the response is the assistant's turn."""
        return ""

    def conversation(self, group: PreferenceGroup, response: Response) -> Conversation:
        """The prompt."""
        return group.prompt

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
    def shown(self) -> str:
        """The response: the assistant's turn is about it."""
        return "response"

    def conversation(self, group: PreferenceGroup, response: Response) -> Conversation:
        """One turn: instruction, question and response, in the order of the released prompt.

        Media in front of a plain question stand in front of everything; others stand inside the question, which is the
        whole conversation, each turn under its role, where it has several.
        """
        prompt, instruction = group.prompt, f"{self.instruction}\n" if self.instruction else ""
        if prompt.plain is not None:
            request = self.request.format(question=prompt.plain, response=response.text)
            return Conversation.about(instruction + request, prompt.slots)
        head, _, tail = self.request.format(question=_QUESTION, response=response.text).partition(_QUESTION)
        tail = tail.replace(_QUESTION, prompt.transcript)
        return Conversation((Turn("user", tuple(_joined([instruction + head, *_as_question(prompt), tail]))),))

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


def _as_question(prompt: Conversation) -> Iterator[Part]:
    """A conversation as parts of one question: a line for each turn, with its role where there are several."""
    for number, turn in enumerate(prompt.turns):
        if len(prompt.turns) > 1:
            yield ("\n" if number else "") + f"{turn.role.capitalize()}: "
        yield from turn.parts


def _joined(parts: Iterable[Part]) -> list[Part]:
    """The same parts, neighbouring texts as one."""
    found: list[Part] = []
    for part in parts:
        if isinstance(part, str) and found and isinstance(found[-1], str):
            found[-1] += part
        else:
            found.append(part)
    return found
