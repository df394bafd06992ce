"""Who expands short reasons: a local model, an endpoint that speaks OpenAI's protocol, or answers recorded before.

An expander is anything with `name`, `describe()` (under which its answers are kept), `count_tokens(text)` and
`expand(requests)`, which yields answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mmrlhf.endpoints.client import ChatEndpoint
from mmrlhf.endpoints.completions import CUT, Answer
from mmrlhf.errors import DataError, ModelError
from mmrlhf.expansion.answer_lines import read_lines, text_of
from mmrlhf.expansion.request import Request
from mmrlhf.inference.made_by import describe_source
from mmrlhf.ranges import Count
from mmrlhf.text import first_line

CHARS_PER_TOKEN = 3.5  # English prose, for services that do not show their tokenizer


class Expander(Protocol):
    """Turns requests into texts."""

    @property
    def name(self) -> str:
        """Who writes, in words."""
        ...

    def describe(self) -> Mapping[str, Any] | None:
        """What beside a request determines its answer; None where answers are at hand and need not be kept."""
        ...

    def count_tokens(self, text: str) -> int:
        """Tokens of a text, exactly or about."""
        ...

    def expand(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Answer]]:
        """Yield every request with its answer, in any order, as they come."""
        ...


class RecordedExpander:
    """Answers from a file of lines {"digest", "text"}: a batch that another service worked off, or a test.

    Args:
        path: the file; `requests.jsonl`, which the stage writes, says which digests are asked for. It need not exist
            before that: the stage then stops at the first request. `answers.jsonl` of an artefact of version 2 is such
            a file, too.

    Raises:
        DataError: names a line that holds no answer.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._answers: dict[str, Answer] = {}
        for where, row in read_lines(self.path) if self.path.exists() else ():
            if "made_by" in row:  # how artefacts of version 2 begin
                continue
            problem = text_of(row, "problem", where) if "problem" in row else ""
            self._answers[text_of(row, "digest", where)] = Answer(text_of(row, "text", where), problem)

    @property
    def name(self) -> str:
        return f"recorded: {self.path.name}"

    def describe(self) -> None:
        return None

    def count_tokens(self, text: str) -> int:
        return round(len(text) / CHARS_PER_TOKEN)

    def expand(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Answer]]:
        """Raises: DataError naming the first request that has no recorded answer."""
        for request in requests:
            if request.digest not in self._answers:
                raise DataError(
                    "a request has no recorded expansion" if self._answers else "there are no recorded expansions yet",
                    where=self.path,
                    given=f"nothing for key {request.key}, digest {request.digest}",
                    expected='a line {"digest", "text"} for every line of requests.jsonl, which the log names above',
                    fix="let a model answer those lines, and run the same command again",
                )
        yield from ((request, self._answers[request.digest]) for request in requests)


@dataclass(frozen=True)
class EndpointExpander(ChatEndpoint):
    """A model behind an endpoint that speaks OpenAI's chat protocol.

    Args:
        max_tokens: longest critique; one that is cut off there is not used.
    """

    max_tokens: Count = 512

    @property
    def name(self) -> str:
        return f"endpoint: {self.model}"

    def describe(self) -> Mapping[str, Any]:
        return {"url": self.url.rstrip("/"), "model": self.model, **self._sampling}

    @property
    def _sampling(self) -> dict[str, Any]:
        return {"max_tokens": self.max_tokens, "temperature": 0}

    def count_tokens(self, text: str) -> int:
        return round(len(text) / CHARS_PER_TOKEN)

    def expand(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Answer]]:
        """Raises: HubError where the endpoint cannot be reached or refuses everything."""
        asked = ((request, [{"role": "user", "content": request.prompt}]) for request in requests)
        return self.ask(asked, **self._sampling)


class LocalExpander:
    """A causal language model of transformers with a chat template, on this machine.

    Args:
        model: folder or hub id.
        max_tokens: longest critique; one that is cut off there is not used.
        batch_size: requests that are written together.
        device: default: the first GPU, else the CPU.
    """

    def __init__(
        self, model: str, *, max_tokens: Count = 512, batch_size: Count = 8, device: str | None = None
    ) -> None:
        self._path, self._max_tokens, self._batch_size = model, max_tokens, batch_size
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def name(self) -> str:
        return f"local: {Path(self._path).name}"

    def describe(self) -> Mapping[str, Any]:
        return {"model": describe_source(self._path), "max_tokens": self._max_tokens, "temperature": 0}

    def count_tokens(self, text: str) -> int:
        return len(self._tokenizer(text).input_ids)

    def expand(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Answer]]:
        for start in range(0, len(requests), self._batch_size):
            batch = requests[start : start + self._batch_size]
            yield from zip(batch, self._write([request.prompt for request in batch]), strict=True)

    @torch.inference_mode()
    def _write(self, prompts: Sequence[str]) -> list[Answer]:
        tokenizer, model = self._tokenizer, self._model
        turns = [[{"role": "user", "content": prompt}] for prompt in prompts]
        inputs = tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", padding=True
        ).to(self._device)
        written = model.generate(**inputs, max_new_tokens=self._max_tokens, do_sample=False)
        answers = written[:, inputs["input_ids"].shape[1] :]
        said = [text.strip() for text in tokenizer.batch_decode(answers, skip_special_tokens=True)]
        found = model.generation_config.eos_token_id
        ends = torch.tensor(
            found if isinstance(found, list) else [] if found is None else [found], device=answers.device
        )
        ended = torch.isin(answers, ends).any(dim=1) | (answers.shape[1] < self._max_tokens)
        return [Answer(text, "" if end else CUT) for text, end in zip(said, ended.tolist(), strict=True)]

    @cached_property
    def _tokenizer(self) -> Any:
        tokenizer: Any = self._load(AutoTokenizer, padding_side="left")
        if tokenizer.chat_template is None:
            raise ModelError("this model has no chat template", where=self._path, expected="an instruction-tuned model")
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    @cached_property
    def _model(self) -> Any:
        model: Any = self._load(AutoModelForCausalLM, dtype="auto")
        return model.to(self._device).eval()

    def _load(self, kind: Any, **settings: Any) -> Any:
        try:
            return kind.from_pretrained(self._path, **settings)
        except (OSError, ValueError) as error:
            raise ModelError(
                "the expander's model cannot be loaded",
                where=self._path,
                given=first_line(error),
                expected="a folder or hub id of a causal language model",
            ) from error
