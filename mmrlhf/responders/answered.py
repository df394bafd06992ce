"""Answers of several responders as a query's responses: the same texts once, in an order that says nothing of whose.

Who said what is in the record: `Response.model` has the responders' names, `meta["answered_by"]` for each response who
said it, with model, sample, finish reason and tokens, and `meta["unanswered"]` whose answers are of no use, and why.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmrlhf.endpoints.completions import Answer
from mmrlhf.responders.asking import text_of
from mmrlhf.types import PreferenceGroup, Response

# in the meta of an answered query; `drawn`: how often each of its responses was said
ANSWERED_BY, UNANSWERED, DRAWN = "answered_by", "unanswered", "drawn"
# what is said of the responses: by whom, and whatever was said about them
_OF_RESPONSES = frozenset(
    {"quality", DRAWN, ANSWERED_BY, UNANSWERED, "annotations", "model_annotations", "annotators", "labels"}
)


def about_the_query(meta: Mapping[str, Any]) -> dict[str, Any]:
    """What a query's meta data say whatever its responses are: what stays where it gets others."""
    return {name: value for name, value in meta.items() if name not in _OF_RESPONSES}


@dataclass(frozen=True)
class Said:
    """One answer to a query, and whose it is."""

    responder: str
    sample: int
    answer: Answer

    def record(self) -> dict[str, Any]:
        """What the query's meta data say of it."""
        use = self.answer.use
        return {
            "responder": self.responder, "model": use.model, "sample": self.sample, "finish": use.finish,
            "tokens_in": use.tokens_in, "tokens_out": use.tokens_out,
        }  # fmt: skip


def with_answers(group: PreferenceGroup, said: Sequence[Said], *, keep_cut: bool, seed: int) -> PreferenceGroup:
    """The same query with these answers as unranked responses, in place of those that it had."""
    by_text: dict[str, list[Said]] = {}
    without: list[dict[str, Any]] = []
    for one in said:
        text = text_of(one.answer, keep_cut=keep_cut).strip()
        if text:
            by_text.setdefault(text, []).append(one)
        else:
            without.append({"responder": one.responder, "sample": one.sample, "why": one.answer.reason})
    texts = sorted(by_text, key=lambda text: hashlib.sha256(f"{seed}\0{group.key}\0{text}".encode()).digest())
    meta = about_the_query(group.meta)
    meta[ANSWERED_BY] = [[one.record() for one in by_text[text]] for text in texts]
    meta[DRAWN] = [len(by_text[text]) for text in texts]
    if without:
        meta[UNANSWERED] = without
    responses = tuple(
        Response(text, model=" + ".join(dict.fromkeys(one.responder for one in by_text[text]))) for text in texts
    )
    return replace(group, responses=responses, pairs=None, meta=meta, shard="")


def counted(answers: Mapping[str, Sequence[Answer]], *, keep_cut: bool) -> tuple[int, Counter[str], Counter[str]]:
    """(answers of use, the others by reason, tries that brought nothing by reason) of one responder."""
    usable, without, tries = 0, Counter[str](), Counter[str]()
    for each in answers.values():
        for answer in each:
            tries.update(answer.use.tries)
            if text_of(answer, keep_cut=keep_cut).strip():
                usable += 1
            else:
                without[answer.reason] += 1
    return usable, without, tries
