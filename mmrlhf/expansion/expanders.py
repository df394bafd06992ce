"""Who expands short reasons: a local model, an endpoint that speaks OpenAI's protocol, or answers recorded before.

An expander is anything with `name` (for fingerprints), `count_tokens(text)` and `expand(requests) -> texts`.
"""

from __future__ import annotations

import json
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mmrlhf.errors import ConfigError, DataError, HubError, ModelError
from mmrlhf.expansion.request import Request

log = logging.getLogger(__name__)

CHARS_PER_TOKEN = 3.5  # English prose, for services that do not show their tokenizer
RETRIED = (408, 409, 429, 500, 502, 503, 504)


class Expander(Protocol):
    """Turns requests into texts, in their order."""

    @property
    def name(self) -> str:
        """What made the texts, for the fingerprint."""
        ...

    def count_tokens(self, text: str) -> int:
        """Tokens of a text, exactly or about."""
        ...

    def expand(self, requests: Sequence[Request]) -> list[str]:
        """Answer every request."""
        ...


class RecordedExpander:
    """Answers from a file of lines {"digest", "text"}: a batch that another service worked off, or a test.

    Args:
        path: the file; `requests.jsonl`, which the stage writes, says which digests are asked for. It need not exist$
            before that: the stage then stops at the first request.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._texts: dict[str, str] = {}
        lines = self.path.read_text().splitlines() if self.path.is_file() else []
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                self._texts[str(row["digest"])] = str(row["text"])
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise DataError(
                    "a recorded expansion cannot be read",
                    where=f"{self.path}:{number}",
                    given=line[:80],
                    expected='{"digest": "...", "text": "..."}',
                ) from error

    @property
    def name(self) -> str:
        return f"recorded: {self.path.name}"

    def count_tokens(self, text: str) -> int:
        return round(len(text) / CHARS_PER_TOKEN)

    def expand(self, requests: Sequence[Request]) -> list[str]:
        """Raises: DataError naming the first request that has no recorded answer."""
        for request in requests:
            if request.digest not in self._texts:
                raise DataError(
                    "a request has no recorded expansion" if self._texts else "there are no recorded expansions yet",
                    where=self.path,
                    given=f"nothing for key {request.key}, digest {request.digest}",
                    expected='a line {"digest", "text"} for every line of requests.jsonl, which the log names above',
                    fix="let a model answer those lines, and run the same command again",
                )
        return [self._texts[request.digest] for request in requests]


class EndpointExpander:
    """Any endpoint that speaks OpenAI's chat protocol: a service, vLLM, SGLang, llama.cpp, ...

    Args:
        url: up to and including the version, e.g. `http://localhost:8000/v1`.
        model: the model's name there.
        key_variable: environment variable that holds the key; where it is unset, none is sent.
        max_tokens: longest critique.
        concurrency: requests under way at once.
        timeout: seconds for one request.
        retries: further tries after a busy or broken answer, with growing pauses.
        pause: seconds before the first further try; each one after that waits twice as long.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key_variable: str = "OPENAI_API_KEY",
        max_tokens: int = 512,
        concurrency: int = 8,
        timeout: float = 120.0,
        retries: int = 5,
        pause: float = 1.0,
    ) -> None:
        if not url.startswith(("http://", "https://")) or concurrency < 1 or max_tokens < 1 or retries < 0:
            raise ConfigError(
                "an endpoint cannot be asked like this",
                where="expander",
                given=f"url={url}, concurrency={concurrency}, max_tokens={max_tokens}, retries={retries}",
                expected="url http(s)://HOST/v1, concurrency and max_tokens of 1 or more, retries of 0 or more",
            )
        self._url, self._model, self._key_variable = f"{url.rstrip('/')}/chat/completions", model, key_variable
        self._max_tokens, self._concurrency = max_tokens, concurrency
        self._timeout, self._retries, self._pause = timeout, retries, pause

    @property
    def name(self) -> str:
        return f"endpoint: {self._model}"

    def count_tokens(self, text: str) -> int:
        return round(len(text) / CHARS_PER_TOKEN)

    def expand(self, requests: Sequence[Request]) -> list[str]:
        """Raises: HubError where the endpoint cannot be reached or refuses."""
        with ThreadPoolExecutor(self._concurrency) as pool:
            return list(pool.map(self._ask, requests))

    def _ask(self, request: Request) -> str:
        content = {
            "model": self._model,
            "messages": [{"role": "user", "content": request.prompt}],
            "max_tokens": self._max_tokens,
            "temperature": 0,
        }
        for turn in range(self._retries + 1):
            try:
                answer = self._post(content)
                return str(answer["choices"][0]["message"]["content"] or "").strip()
            except urllib.error.HTTPError as error:
                detail = f"HTTP {error.code}: {error.read()[:200].decode(errors='replace')}"
                error.close()
                if error.code not in RETRIED:
                    raise self._failure(detail) from error
            except (OSError, json.JSONDecodeError) as error:
                detail = f"{type(error).__name__}: {error}"
            except (KeyError, IndexError, TypeError) as error:
                raise self._failure(f"an answer without choices[0].message.content ({error})") from error
            if turn < self._retries:
                time.sleep(self._pause * 2**turn)
        raise self._failure(f"{detail}, after {self._retries + 1} tries")

    def _post(self, content: dict[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"}
        key = os.environ.get(self._key_variable)
        if key:
            headers["Authorization"] = f"Bearer {key}"
        asked = urllib.request.Request(self._url, json.dumps(content).encode(), headers)  # noqa: S310 - http(s) only
        with urllib.request.urlopen(asked, timeout=self._timeout) as answer:  # noqa: S310
            return json.loads(answer.read())

    def _failure(self, detail: str) -> HubError:
        return HubError(
            "the expander's endpoint does not answer",
            where=self._url,
            given=detail,
            expected="OpenAI's chat completions",
            fix=f"check expander.url, expander.model and the key in {self._key_variable}; what is done is kept",
        )


class LocalExpander:
    """A causal language model of transformers with a chat template, on this machine.

    Args:
        model: folder or hub id.
        max_tokens: longest critique.
        batch_size: requests that are written together.
        device: default: the first GPU, else the CPU.
    """

    def __init__(self, model: str, *, max_tokens: int = 512, batch_size: int = 8, device: str | None = None) -> None:
        self._path, self._max_tokens, self._batch_size = model, max_tokens, batch_size
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def name(self) -> str:
        return f"local: {Path(self._path).name}"

    def count_tokens(self, text: str) -> int:
        return len(self._tokenizer(text).input_ids)

    def expand(self, requests: Sequence[Request]) -> list[str]:
        texts: list[str] = []
        for start in range(0, len(requests), self._batch_size):
            texts += self._write([request.prompt for request in requests[start : start + self._batch_size]])
        return texts

    @torch.inference_mode()
    def _write(self, prompts: Sequence[str]) -> list[str]:
        tokenizer, model = self._tokenizer, self._model
        turns = [[{"role": "user", "content": prompt}] for prompt in prompts]
        inputs = tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", padding=True
        ).to(self._device)
        written = model.generate(**inputs, max_new_tokens=self._max_tokens, do_sample=False)
        answers = written[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in tokenizer.batch_decode(answers, skip_special_tokens=True)]

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
                given=str(error).splitlines()[0],
                expected="a folder or hub id of a causal language model",
            ) from error
