"""How an answer is read and scored, by the form that a benchmark asks for; and what a right and a wrong one look like.

Every form gives two scores: `strict`, as the benchmark's own code has it, and `score`, of what the answer says whatever
its spelling. A model that was taught to say "Yes." instead of "yes" loses the one and keeps the other.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mmrlhf.suites import parsing
from mmrlhf.suites.objects import absent_object, false_objects

Truth = Mapping[str, Any]


class Marks(NamedTuple):
    """Scores of one answer, and whether it has the form that was asked for (None where any has)."""

    score: float
    strict: float
    parsed: bool | None


@dataclass(frozen=True)
class Form:
    """One form: how it is marked, and texts that are right and wrong, for tests of the whole way."""

    mark: Callable[[Truth, str], Marks]
    right: Callable[[Truth], str]
    wrong: Callable[[Truth], str]


def _yes_no(truth: Truth, answer: str) -> Marks:
    """Strict: POPE wants the word alone (`exact`), MME one that begins the answer."""
    found, wanted, said = parsing.yes_or_no(answer), str(truth["answer"]).lower(), answer.lower().strip()
    strict = said == wanted if truth.get("strict") == "exact" else said[:4].startswith(wanted)
    return Marks(float(found == wanted), float(strict), found is not None)


def _letter(truth: Truth, answer: str) -> Marks:
    """Strict: the letter alone (`exact`), the first character whatever follows (`first`), else a reader like ours."""
    options, wanted = truth["options"], truth["answer"]
    found, said = parsing.letter(answer, options), answer.strip()
    first = said[:1].lower() == wanted.lower()
    strict = {"exact": said == wanted, "first": first}.get(truth.get("strict", ""), found == wanted)
    return Marks(float(found == wanted), float(strict), found is not None)


def _other_letter(truth: Truth) -> str:
    letters = string.ascii_uppercase[: len(truth["options"])]
    return letters[(letters.index(truth["answer"]) + 1) % len(letters)]


def relaxed(answer: str, wanted: str, tolerance: float = 0.05) -> float:
    """1 for a number within 5% of the right one, or the same text in any case (Masry et al. 2022, section 5.1)."""
    number, target = _number(answer), _number(wanted)
    if number is not None and target:
        return float(abs(number - target) / abs(target) <= tolerance)
    return float(answer.lower() == wanted.lower())


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def anls(answer: str, wanted: Sequence[str], threshold: float = 0.5) -> float:
    """1 - edit distance over the longer length to the nearest right answer, 0 below .5 (Biten et al. 2019)."""
    best = 0.0
    for each in wanted:
        one, other = " ".join(answer.lower().split()), " ".join(each.lower().split())
        longest = max(len(one), len(other))
        best = max(best, 1 - edit_distance(one, other) / longest if longest else 1.0)
    return best if best >= threshold else 0.0


def edit_distance(one: str, other: str) -> int:
    """Insertions, deletions and replacements between two texts."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        last, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (a != b))
    return row[-1]


def agreement(answer: str, wanted: Sequence[str]) -> float:
    """VQA accuracy: how many of the other annotators say the same, a third each, averaged (Antol et al. 2015)."""
    said, given = parsing.normal(answer), [parsing.normal(each) for each in wanted]
    marks = [min(1.0, sum(other == said for m, other in enumerate(given) if m != n) / 3) for n in range(len(given))]
    return sum(marks) / len(marks) if marks else 0.0


def word_f1(answer: str, wanted: str) -> float:
    """F1 of words, without articles and punctuation (Rajpurkar et al. 2016)."""
    said, right = _bag(answer), _bag(wanted)
    common = (Counter(said) & Counter(right)).total()
    if not said or not right or not common:
        return float(said == right)
    precision, recall = common / len(said), common / len(right)
    return 2 * precision * recall / (precision + recall)


def _bag(text: str) -> list[str]:
    plain = "".join(sign for sign in text.lower() if sign not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def _contained(answer: str, wanted: Sequence[str]) -> float:
    said = answer.lower().strip().replace("\n", " ")
    return float(any(each.lower().strip().replace("\n", " ") in said for each in wanted))


def _phrase(measure: Callable[[str, Truth], float]) -> Callable[[Truth, str], Marks]:
    """A form whose answers are a word or a phrase: strict on the text as it is, lenient on the phrase in it."""

    def mark(truth: Truth, answer: str) -> Marks:
        found, strict = parsing.phrase(answer), measure(answer.strip(), truth)
        return Marks(max(strict, measure(found, truth) if found is not None else 0.0), strict, found is not None)

    return mark


def _other_word(truth: Truth) -> str:
    right = str(truth["answers"][0] if "answers" in truth else truth["answer"])
    return "zebra" if right != "zebra" else "umbrella"


def _open(truth: Truth, answer: str) -> Marks:
    marks = _contained(answer, truth["answers"])
    return Marks(marks, marks, None)


def _objects(truth: Truth, answer: str) -> Marks:
    """1 for a caption without a false object (1 - CHAIR_s); whether it names any is its form."""
    named, false = false_objects(answer, truth["present"])
    return Marks(float(false == 0), float(false == 0), named > 0)


def _listed(names: Sequence[str]) -> str:
    return "There is " + " and ".join(f"a {name}" for name in names)


FORMS: Mapping[str, Form] = {
    "yes_no": Form(_yes_no, lambda t: t["answer"], lambda t: "no" if t["answer"].lower() == "yes" else "yes"),
    "letter": Form(_letter, lambda t: t["answer"], _other_letter),
    "relaxed": Form(_phrase(lambda a, t: relaxed(a, t["answer"])), lambda t: t["answer"], _other_word),
    "anls": Form(_phrase(lambda a, t: anls(a, t["answers"])), lambda t: t["answers"][0], _other_word),
    "vqa": Form(_phrase(lambda a, t: agreement(a, t["answers"])), lambda t: t["answers"][0], _other_word),
    "f1": Form(_phrase(lambda a, t: word_f1(a, t["answer"])), lambda t: t["answer"], _other_word),
    "exact": Form(
        _phrase(lambda a, t: float(a.lower().rstrip(".") == t["answer"].lower())), lambda t: t["answer"], _other_word
    ),
    "objects": Form(
        _objects, lambda t: _listed(t["present"]), lambda t: _listed([*t["present"], absent_object(t["present"])])
    ),
    "contains": Form(_open, lambda t: t["answers"][0], _other_word),
}
