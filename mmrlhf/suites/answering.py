"""A policy's answers to documents: all questions about the same pictures are branches of one prefix.

So every picture is encoded once and every clip is decoded once, whatever number of questions is asked about it, and
what the policy reads is encoded as in training.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

from PIL import Image
from torch.utils.data import DataLoader, Dataset

from mmrlhf.conversation import Conversation
from mmrlhf.errors import DataError
from mmrlhf.inference.passes import CACHE_PER_BUDGET, decode_text
from mmrlhf.inference.policy import Policy
from mmrlhf.inference.probes import encoder_of
from mmrlhf.inference.settings import PassSettings
from mmrlhf.models.decoding import generate
from mmrlhf.records.quarantine import reason_of
from mmrlhf.suites.documents import Document, DocumentStore
from mmrlhf.tensors import EncodedGroup
from mmrlhf.tokens.encode import Encoder
from mmrlhf.types import PreferenceGroup, Response

# questions about one picture that are answered side by side
MOST_QUESTIONS = 32
# MME-RealWorld has pictures above the 89 million pixels at which Pillow suspects an attack; 400 million are 1.2 GB
MAX_PIXELS = 400_000_000


@dataclass(frozen=True)
class Said:
    """What became of a question: the answer and whether it ended at the longest length; or why there is none."""

    text: str = ""
    cut: bool = False
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return dict(vars(self))


class Answerer(Protocol):
    """Anything that answers documents without a model (`mmrlhf.suites.known_policies`)."""

    def answer(self, document: Document) -> str:
        """The answer to one document."""
        ...


@dataclass(frozen=True)
class QuestionTemplate:
    """The user turn is the response's text: each question about the same media is one branch."""

    name: str = "question"
    closing: str = ""

    @property
    def shown(self) -> str:
        """The question: it is what differs between branches."""
        return "question"

    def conversation(self, group: PreferenceGroup, response: Response) -> Conversation:
        """The question, behind the media."""
        return Conversation.about(response.text, group.prompt.slots)

    def assistant(self, group: PreferenceGroup, response: Response) -> str | None:
        """Nothing: the policy answers."""
        return None


def contexts_of(documents: Sequence[Document]) -> list[list[Document]]:
    """Documents of one benchmark that share pictures and answer length, together; in the order of their first one."""
    together: dict[tuple[str, int], list[list[Document]]] = {}
    order: list[list[Document]] = []
    for document in documents:
        # a question without a picture shares nothing with others
        shared = document.picture if document.media else document.key
        rows = together.setdefault((shared, document.max_new_tokens), [])
        if not rows or len(rows[-1]) == MOST_QUESTIONS:
            rows.append([])
            order.append(rows[-1])
        rows[-1].append(document)
    return order


def windows_of(documents: Sequence[Document], size: int) -> list[list[list[Document]]]:
    """Contexts in windows of `size` or so questions of one benchmark each."""
    windows: list[list[list[Document]]] = []
    for task in dict.fromkeys(document.task for document in documents):
        held = size
        for context in contexts_of([document for document in documents if document.task == task]):
            if held >= size:
                windows.append([])
                held = 0
            windows[-1].append(context)
            held += len(context)
    return windows


@contextmanager
def pictures_up_to(pixels: int) -> Iterator[None]:
    """Let pictures have at most so many pixels while the block lasts; above it they are refused as unreadable."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = pixels
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


class Asked:
    """A policy with the encoder of questions.

    Args:
        policy, passes: as in `Policy.from_pretrained`; a prompt that does not fit is refused, never shortened.
        room: tokens of the longest answer.
        num_workers: processes that read and encode ahead.
        max_pixels: largest picture.
    """

    def __init__(
        self,
        policy: str | Any,
        passes: PassSettings,
        room: int,
        device: Any,
        num_workers: int = 0,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        settings = replace(passes, model=replace(passes.model, too_long="refuse"))
        self.policy = Policy.from_pretrained(policy, settings, room=room + 1, device=device)
        encoder = self.policy.encoder
        self.encoder: Encoder = encoder_of(
            self.policy.model, encoder.processor, template=QuestionTemplate(), media=encoder.media, room=room + 1
        )
        self.passes, self.num_workers, self.max_pixels = passes, num_workers, max_pixels

    def answer(self, store: DocumentStore, contexts: Sequence[Sequence[Document]]) -> Iterator[dict[str, Said]]:
        """Yield what is said to a few contexts at a time: key -> answer, or why there is none."""
        size = self.passes.groups_per_batch
        loader = DataLoader(
            _Contexts(store, self.encoder, contexts, self.max_pixels),
            batch_size=size,
            collate_fn=list,
            num_workers=self.num_workers,
        )
        for batch in loader:
            said: dict[str, Said] = {}
            groups: list[tuple[Sequence[Document], EncodedGroup]] = []
            for encoded, refused in batch:
                groups += encoded
                said |= {key: Said(reason=reason) for key, reason in refused.items()}
            yield said | self._answered(groups)

    def _answered(self, groups: Sequence[tuple[Sequence[Document], EncodedGroup]]) -> dict[str, Said]:
        said: dict[str, Said] = {}
        for longest in {documents[0].max_new_tokens for documents, _ in groups}:
            own = [(documents, group) for documents, group in groups if documents[0].max_new_tokens == longest]
            written = generate(
                self.policy.model, [group for _, group in own], max_new_tokens=longest,
                end_tokens=self.encoder.end_tokens, cache_tokens=CACHE_PER_BUDGET * self.passes.token_budget,
            )  # fmt: skip
            for (documents, _), each in zip(own, written, strict=True):
                for prompt, one in zip(dict.fromkeys(document.prompt for document in documents), each, strict=True):
                    text = decode_text(self.encoder.processor, one.ids).strip()
                    said |= {d.key: Said(text, one.end is None) for d in documents if d.prompt == prompt}
        return said


class _Contexts(Dataset):
    """Contexts encoded: [(documents, group)], and the keys of documents that cannot be asked with why."""

    def __init__(
        self, store: DocumentStore, encoder: Encoder, contexts: Sequence[Sequence[Document]], max_pixels: int
    ) -> None:
        self.store, self.encoder, self.contexts, self.max_pixels = store, encoder, contexts, max_pixels

    def __len__(self) -> int:
        return len(self.contexts)

    def __getitem__(self, number: int) -> tuple[list[tuple[Sequence[Document], EncodedGroup]], dict[str, str]]:
        documents = self.contexts[number]
        try:
            return [(documents, self._encode(documents))], {}
        except DataError as error:
            if len(documents) == 1:
                return [], {documents[0].key: reason_of(error)}
        # one question that does not fit must not take the others with it
        found: list[tuple[Sequence[Document], EncodedGroup]] = []
        refused: dict[str, str] = {}
        for document in documents:
            try:
                found.append(([document], self._encode([document])))
            except DataError as error:
                refused[document.key] = reason_of(error)
        return found, refused

    def _encode(self, documents: Sequence[Document]) -> EncodedGroup:
        prompts = dict.fromkeys(document.prompt for document in documents)
        media = self.store.media(documents[0])
        group = PreferenceGroup(
            key=documents[0].key,
            prompt=Conversation.about("", [each.slot for each in media]),
            responses=tuple(Response(prompt) for prompt in prompts),
            media=media,
        )
        with pictures_up_to(self.max_pixels):
            return self.encoder.context(group)


def answer_window(
    asked: Asked | Answerer, store: DocumentStore, contexts: Sequence[Sequence[Document]]
) -> tuple[dict[str, Said], float]:
    """What is said to the documents of a window, and the seconds that it took."""
    started, said = time.monotonic(), dict[str, Said]()
    if isinstance(asked, Asked):
        for found in asked.answer(store, contexts):
            said |= found
    else:
        said = {document.key: Said(asked.answer(document)) for context in contexts for document in context}
    return said, time.monotonic() - started


def said_from(content: Mapping[str, Any]) -> Said:
    """Undo `Said.to_json`."""
    return Said(**content)
