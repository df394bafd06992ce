"""LLaVA-Critic: a judge is asked, in one text, which of two answers is better, and says so in another.

The questions come in a few templates, with the answers between marks; which is better stands at a fixed place of the
judgement.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from mmrlhf.errors import DataError
from mmrlhf.records.json_text import Row
from mmrlhf.records.messages import read_turns
from mmrlhf.records.pair_forms import ranked_pair


class _Template(NamedTuple):
    """How a judge is asked: a pattern with question, first and second; and how the answer says which is better."""

    asked: re.Pattern[str]
    verdict: Callable[[str], str | None]


def _named(text: str) -> str | None:
    """`The better response: [second]`, or words that neither is better."""
    found = re.findall(r"better response:\s*(?:\[\s*)?(?:Response\s+)?(first|second|1|2|A|B)\b", text, re.IGNORECASE)
    if found:
        return "a" if found[-1].lower() in ("first", "1", "a") else "b"
    return "tie" if re.search(r"equally (?:good|bad)", text[-400:], re.IGNORECASE) else None


def _arena(text: str) -> str | None:
    """`[[A>B]]`, as in the arena's hard questions."""
    found = re.findall(r"\[\[(A>>B|A>B|A=B|B>A|B>>A)\]\]", text)
    if not found:
        return None
    return "tie" if "=" in found[-1] else found[-1][0].lower()


def _scores(text: str) -> str | None:
    """`8 7` in the first line: a score for each."""
    found = re.match(r"\s*(\d+(?:\.\d+)?)\s+(\d+(?:\.\d+)?)\s*(?:\n|$)", text)
    if found is None:
        return None
    first, second = float(found[1]), float(found[2])
    return "tie" if first == second else ("a" if first > second else "b")


_TEMPLATES = (
    _Template(
        re.compile(
            r"Question:\s*\[(?P<question>.*?)\][^\S\n]*\n\s*"
            r"(?:Response 1|Response A|The first response):\s*\[(?P<first>.*?)\][^\S\n]*\n\s*"
            r"(?:Response 2|Response B|The second response):\s*\[(?P<second>.*)\]",
            re.DOTALL,
        ),
        _named,
    ),
    _Template(
        re.compile(
            r"<\|User Prompt\|>(?P<question>.*?)<\|The Start of Assistant A's Answer\|>(?P<first>.*?)"
            r"<\|The End of Assistant A's Answer\|>\s*<\|The Start of Assistant B's Answer\|>(?P<second>.*?)"
            r"<\|The End of Assistant B's Answer\|>",
            re.DOTALL,
        ),
        _arena,
    ),
    _Template(
        re.compile(
            r"\[Question\](?P<question>.*?)\[Assistant 1\](?P<first>.*?)\[End of Assistant 1\]\s*"
            r"\[Assistant 2\](?P<second>.*?)\[End of Assistant 2\]",
            re.DOTALL,
        ),
        _scores,
    ),
)


def llava_critic(row: Row, where: str) -> Row:
    """A comparison of two answers by a judge (arXiv 2410.02712); what the judge wrote is kept in `meta`.

    Single answers with a score (the configuration `pointwise`) compare nothing, and are refused.
    """
    turns = read_turns(row.get("conversations"), where, "conversations")
    if [turn.role for turn in turns] != ["user", "assistant"]:
        raise DataError(
            "a judgement is one question and one answer",
            where=f"{where}:conversations", given=[turn.role for turn in turns],
        )  # fmt: skip
    asked, judged = (turn.text for turn in turns)
    for template in _TEMPLATES:
        found = template.asked.search(asked)
        choice = template.verdict(judged) if found is not None else None
        if found is not None and choice is not None:
            break
    else:
        raise DataError(
            "no two answers are compared here, or not in a known way",
            where=f"{where}:conversations", given=judged[-80:],
            expected="a question, two responses, and which is better: the configuration `pairwise`",
        )  # fmt: skip
    first, second = found["first"].strip(), found["second"].strip()
    chosen, rejected = (second, first) if choice == "b" else (first, second)
    left = {name: value for name, value in row.items() if name not in ("conversations", "source")}
    return ranked_pair(
        {**left, "category": row.get("source"), "prompt": found["question"].strip(), "chosen": chosen,
         "rejected": rejected, "is_tie": choice == "tie", "meta": {"judgement": judged}}, where,
    )  # fmt: skip
