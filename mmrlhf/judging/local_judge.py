"""A judge on this machine: any checkpoint that a policy can be loaded from, asked as an endpoint is."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

from mmrlhf.endpoints.completions import Answer
from mmrlhf.errors import ConfigError, DataError
from mmrlhf.inference.made_by import describe_source
from mmrlhf.inference.passes import CACHE_PER_BUDGET, decode_text
from mmrlhf.inference.policy import Policy
from mmrlhf.inference.question import ask
from mmrlhf.inference.settings import PassSettings
from mmrlhf.judging.judge_model import Messages
from mmrlhf.models.decoding import generate
from mmrlhf.ranges import Count, Share, check_fields
from mmrlhf.tensors import EncodedGroup

T = TypeVar("T")


@dataclass(frozen=True)
class LocalJudge:
    """A judge that is a model on this machine; it costs nothing.

    Args:
        model: checkpoint folder or hub id.
        max_tokens: longest verdict.
        max_missing: share of a benchmark's verdicts that may be missing, left out and counted; more end the scoring.
        passes: how the model runs; null: the defaults.
    """

    model: str | None = None
    max_tokens: Count = 512
    max_missing: Share = 0.0
    passes: PassSettings | None = None

    # nothing is paid for
    price_in = price_out = max_cost = None

    def __post_init__(self) -> None:
        check_fields(self)

    def identity(self) -> str | None:
        """A folder by its content, a hub id by its name."""
        return None if self.model is None else describe_source(self.model)

    def asker(self) -> LocalAsker:
        """The model, which is loaded when it is first asked; raises ConfigError where none is named."""
        if self.model is None:
            raise ConfigError(
                "a judge on this machine is a model",
                where="judge.model", given="null", expected="a checkpoint folder or hub id",
                fix="judge=local judge.model=FOLDER",
            )  # fmt: skip
        return LocalAsker(self.model, self.passes or PassSettings(), self.max_tokens)


class LocalAsker:
    """Answers requests in OpenAI's form with a policy's own model.

    Args:
        model, passes: as in `Policy.from_pretrained`; a request that does not fit is refused, never shortened.
        room: tokens of the longest answer.
    """

    def __init__(self, model: str, passes: PassSettings, room: int) -> None:
        self._model, self._room = model, room
        self._passes = replace(passes, model=replace(passes.model, too_long="refuse"))

    @cached_property
    def _policy(self) -> Policy:
        return Policy.from_pretrained(self._model, self._passes, room=self._room + 1)

    def ask(self, requests: Iterable[tuple[T, Messages]], **sampling: Any) -> Iterator[tuple[T, Answer]]:
        """Yield (name, answer) in the order of the requests.

        Args:
            sampling: `temperature` and `max_tokens`; several votes at a temperature are drawn from different seeds.
        """
        waiting, size = list(requests), self._passes.groups_per_batch
        for batch in (waiting[start : start + size] for start in range(0, len(waiting), size)):
            ready: list[tuple[T, EncodedGroup]] = []
            for name, messages in batch:
                try:
                    ready.append((name, self._context(messages, str(name))))
                except DataError as error:
                    yield name, Answer("", f"{error.problem}: {error.given}")
            yield from zip(
                [name for name, _ in ready], self._write([each for _, each in ready], **sampling), strict=True
            )

    def _context(self, messages: Messages, name: str) -> EncodedGroup:
        group = ask(None, [_with_bytes(turn) for turn in messages], ["no response is shown"])
        # what is drawn depends on the key
        return self._policy.encoder.context(replace(group, key=name))

    def _write(self, contexts: Sequence[EncodedGroup], *, temperature: float, max_tokens: int) -> Iterator[Answer]:
        if not contexts:
            return
        written = generate(
            self._policy.model, contexts, max_new_tokens=max_tokens, end_tokens=self._policy.encoder.end_tokens,
            temperature=temperature, cache_tokens=CACHE_PER_BUDGET * self._passes.token_budget,
        )  # fmt: skip
        for (one,) in written:
            text = decode_text(self._policy.encoder.processor, one.ids).strip()
            yield Answer(text, "cut off" if one.cut else "" if text else "empty")


def _with_bytes(turn: Mapping[str, Any]) -> Mapping[str, Any]:
    """A turn whose pictures are bytes, not addresses that hold them."""
    content = turn["content"]
    if isinstance(content, str):
        return turn
    parts = [
        {"type": "image", "image": base64.b64decode(part["image_url"]["url"].partition(",")[2])}
        if part["type"] == "image_url"
        else part
        for part in content
    ]
    return {**turn, "content": parts}
