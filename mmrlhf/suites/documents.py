"""Documents of benchmarks: what is asked about which pictures, and what the scoring needs to know; kept in a folder.

Pictures lie in `media/`, each once under its hash, whatever number of questions is asked about it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mmrlhf.errors import DataError
from mmrlhf.files import read_lines, read_regular, written
from mmrlhf.types import Media, MediaKind

DOCUMENTS, MEDIA = "documents.jsonl", "media"


@dataclass(frozen=True)
class StoredMedia:
    """One image, video, or video as frames: its kind, and name and SHA-256 of each file."""

    kind: MediaKind
    names: tuple[str, ...]
    digests: tuple[str, ...]


@dataclass(frozen=True)
class Document:
    """One question of a benchmark.

    Args:
        task, name: of the benchmark, and of the document in it.
        title, dimension: what the table calls the benchmark, and where it puts it.
        prompt: behind the pictures.
        media: as they are stored.
        truth: what scoring needs; `form` says how an answer is read (`mmrlhf.suites.answer_forms`).
        max_new_tokens: longest answer.
    """

    task: str
    name: str
    title: str
    dimension: str
    prompt: str
    media: tuple[StoredMedia, ...]
    truth: Mapping[str, Any]
    max_new_tokens: int

    @property
    def key(self) -> str:
        """The document among those of all benchmarks."""
        return f"{self.task}~{self.name}"

    @property
    def picture(self) -> str:
        """16 hex digits for its pictures; of a question without any, for its text."""
        seen = [digest for each in self.media for digest in each.digests]
        return _hash(seen or [self.prompt])[:16]

    @property
    def digest(self) -> str:
        """16 hex digits for all that the answer and its score depend on."""
        return _hash([[asdict(each) for each in self.media], self.prompt, dict(self.truth)])[:16]


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@dataclass
class DocumentStore:
    """A folder of documents with their media."""

    folder: Path
    _kept: set[str] = field(default_factory=set)

    def keep(self, media: Iterable[Media]) -> tuple[StoredMedia, ...]:
        """Store media, each file once."""
        return tuple(
            StoredMedia(each.kind, each.names, tuple(self._keep_file(data) for data in each.data)) for each in media
        )

    def _keep_file(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        path = self._path(digest)
        if digest not in self._kept:
            # each run writes all of them, so that none is left from a run that was cut off; flushed with the artefact
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            self._kept.add(digest)
        return digest

    def _path(self, digest: str) -> Path:
        return self.folder / MEDIA / digest[:2] / digest

    def write(self, documents: Iterable[Document]) -> None:
        """Write `documents.jsonl`.

        Raises:
            DataError: two documents of a benchmark have one name.
        """
        seen: set[str] = set()
        with written(self.folder / DOCUMENTS) as part, part.open("w", encoding="utf-8") as file:
            for document in documents:
                if document.key in seen:
                    raise DataError("two documents of a benchmark have one name", where=document.key)
                seen.add(document.key)
                file.write(json.dumps(asdict(document), ensure_ascii=False) + "\n")

    def read(self) -> list[Document]:
        """All documents, without their media; raises DataError where the folder has none or they are damaged."""
        path = self.folder / DOCUMENTS
        if not path.is_file():
            raise DataError("there are no documents of benchmarks here", where=self.folder, expected=DOCUMENTS)
        return [_document(line, f"{path}:{number}") for number, line in enumerate(read_lines(path), 1) if line]

    def media(self, document: Document) -> tuple[Media, ...]:
        """The media of a document; raises DataError where a file is missing or was changed."""
        return tuple(Media(each.kind, each.names, tuple(self._files(each))) for each in document.media)

    def _files(self, media: StoredMedia) -> Iterator[bytes]:
        for digest in media.digests:
            data = read_regular(self._path(digest), what="picture or clip of a benchmark")
            if hashlib.sha256(data).hexdigest() != digest:
                raise DataError("a picture or clip of a benchmark was changed", where=self._path(digest))
            yield data

    def num_media(self) -> int:
        """Different files."""
        return len(self._kept)


def _document(line: str, where: str) -> Document:
    try:
        row = json.loads(line)
        media = tuple(StoredMedia(m["kind"], tuple(m["names"]), tuple(m["digests"])) for m in row.pop("media"))
        return Document(**row, media=media)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError("a line is no document", where=where, given=f"{error}: {line[:80]}") from error
