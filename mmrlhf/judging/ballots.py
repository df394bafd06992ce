"""Ballots: how a judge is asked about the responses of a query, and how its words are read.

Follows: the forms, the places of the verdict and the parsers of VL-RewardBench (arXiv 2411.17451, `cal.py`), Multimodal
RewardBench (2502.14191, `2_get_accuracy.py`) and RewardBench 2 (2506.01937, `generative_v2.py`).
Differs in: the wording is ours; the official one is a file (`stages.rewardbench.polling.words`). Where those scripts
draw a verdict, or give a quarter of a point, because they can read none, there is none here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mmrlhf.errors import ConfigError
from mmrlhf.judging.verdict_words import NoVerdict, last_word
from mmrlhf.types import PreferenceGroup

Form = Literal["pair", "best", "rating"]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_PLACES = re.compile(r"\{(question|answers?|answer_[a-z]|answer_[0-9]+)\}")

_MERITS = """Judge how right each answer is about what is shown, how much of the question it answers, how helpful it is
and how clear. The order of the answers and their length are no merit."""

OWN = f"""Several assistants answered the same question.

Question: {{question}}

{{answers}}

{_MERITS}
Explain in a few sentences. Then end with one line `Verdict: X`, where X is the letter of the best answer."""

NUMBERED = f"""Two assistants answered the same question about what is shown.

Question: {{question}}

Answer 1: {{answer_1}}

Answer 2: {{answer_2}}

{_MERITS}
Explain in a few sentences. Then end with one line `Overall Judgment: Answer X is better.`, where X is 1 or 2."""

BRACKETED = f"""Several assistants answered the same question.

Question: {{question}}

{{answers}}

{_MERITS}
Explain in a few sentences. Then end with the letter of the best answer in two pairs of brackets, such as [[A]]."""

RATED = """An assistant answered a question.

Question: {question}

Answer: {answer}

Judge how right the answer is about what is shown, how much of the question it answers, how helpful it is and how clear.
Its length is no merit. Explain in a few sentences. Then end with one line `Rating: N`, N from 1 (worst) to 10."""

TRAILING = """An assistant answered a question.

Question: {question}

Answer: {answer}

Judge how helpful, relevant and right the answer is. Its length is no merit. Explain in a few sentences. Then rate it
from 1 (worst) to 10. End with the number alone."""


def _lettered(text: str, number: int) -> int:
    return LETTERS.index(last_word(text, "verdict", f"[{LETTERS[:number]}]").upper())


def _numbered(text: str, number: int) -> int:
    """The last `Answer N is better` behind the first `Overall Judgment` or `Therefore`, without stars and line ends."""
    said = text.replace("\n", "").replace("*", "")
    start = re.search(r"overall judgment|therefore", said, re.IGNORECASE)
    behind = said[start.end() :] if start else ""
    found = re.findall(r"answer\s*(\d+)\s*is\s*(?:the\s*)?(?:slightly\s*)?better", behind, re.IGNORECASE)
    if not found or not 1 <= int(found[-1]) <= number:
        raise NoVerdict(f"no answer is called better in {text[-60:]!r}")
    return int(found[-1]) - 1


def _bracketed(text: str, number: int) -> int:
    """The first letter of the alphabet that stands in brackets, wherever."""
    for place, letter in enumerate(LETTERS[:number]):
        if f"[[{letter}]]" in text:
            return place
    raise NoVerdict(f"no letter in brackets in {text[-60:]!r}")


def _rated(text: str, number: int) -> int:
    return int(last_word(text, "rating", r"10|[1-9]"))


def _trailing(text: str, number: int) -> int:
    """A number from 1 to 10 at the very end."""
    found = re.search(r"\b(10|[1-9])$", text.strip())
    if found is None:
        raise NoVerdict(f"no number from 1 to 10 ends {text[-60:]!r}")
    return int(found[1])


@dataclass(frozen=True)
class Ballot:
    """One way to ask.

    Args:
        form: `pair`: two responses, which is better; `best`: all responses, which is best; `rating`: one response.
        words: the request, with places `{question}`, and `{answer_a}`, `{answer_b}` or `{answer_1}`, `{answer_2}`, or
            `{answers}` for all of them with their letters; `{answer}` for one that is rated.
        read: (the judge's words, responses shown) -> place of the chosen one, or the rating; raises NoVerdict.
    """

    form: Form
    words: str
    read: Callable[[str, int], int]

    def request(self, question: str, answers: Sequence[str]) -> str:
        """The words about these answers, in this order."""
        shown = {"question": question, "answer": answers[0]}
        for place, answer in enumerate(answers):
            shown |= {f"answer_{place + 1}": answer, f"answer_{LETTERS[place].lower()}": answer}
        shown["answers"] = "\n\n".join(f"Answer {LETTERS[place]}: {answer}" for place, answer in enumerate(answers))
        # one pass, so that a place that a question or an answer spells stays as it is
        return _PLACES.sub(lambda found: shown.get(found[1], found[0]), self.words)


BALLOTS: Mapping[str, Ballot] = {
    "pair": Ballot("pair", OWN, _lettered),
    "best": Ballot("best", OWN, _lettered),
    "rating": Ballot("rating", RATED, _rated),
    "vl_rewardbench": Ballot("pair", NUMBERED, _numbered),
    "multimodal_rewardbench": Ballot("pair", BRACKETED, _bracketed),
    "rewardbench_2": Ballot("best", BRACKETED, _bracketed),
    "rewardbench_2_ties": Ballot("rating", TRAILING, _trailing),
}
# what `auto` is, by the source that a benchmark's records name
SOURCES: Mapping[str, str] = {
    "VL-RewardBench": "vl_rewardbench",
    "Multimodal RewardBench": "multimodal_rewardbench",
    "RewardBench 2": "rewardbench_2",
    "MR2Bench": "best",
}
AUTO = "auto"
TIES = "Ties"


def check_ballot(name: str, words: str | None) -> None:
    """Refuse a ballot that nobody knows, and words that lack what has to be asked (ConfigError)."""
    if name not in (AUTO, *BALLOTS):
        raise ConfigError(
            "no ballot of this name", argument="ballot", given=name, expected=f"{AUTO}, {', '.join(BALLOTS)}"
        )
    if words is None:
        return
    if name == AUTO:
        raise ConfigError(
            "words of one's own need a ballot that reads their verdict",
            argument="ballot", given=name, expected=", ".join(BALLOTS),
        )  # fmt: skip
    places = {found[1] for found in _PLACES.finditer(words)}
    two = [{"answer_a", "answer_b"}, {"answer_1", "answer_2"}, {"answers"}]
    needed = [{"answer"}] if BALLOTS[name].form == "rating" else two
    shown = [" ".join(f"{{{name}}}" for name in sorted(each)) for each in needed]
    if "question" not in places or not any(each <= places for each in needed):
        raise ConfigError(
            "the words for a judge lack a place",
            argument="words", given=", ".join(sorted(places)) or "no place",
            expected="{question}, and " + " or ".join(shown),
        )  # fmt: skip


def ballot_of(group: PreferenceGroup, name: str) -> str:
    """The name of the ballot for a query: the one that is set, or its benchmark's own, or `pair`."""
    chosen = SOURCES.get(group.source, "pair") if name == AUTO else name
    # of several right answers none is the best one
    return "rewardbench_2_ties" if chosen == "rewardbench_2" and group.category == TIES else chosen
