"""Short reasons to full critiques: what a larger model is asked, and whether its answer may be used.

Follows: MM-RLHF (arXiv 2502.10391), section 3: annotators write short reasons, a larger model makes critiques of them.
Differs in: the larger model never sees the picture and may only spell out what the annotator wrote, and every answer is
checked: one that adds facts or changes the verdict is refused, and the annotator's own words are kept.

The checks read words, not meanings. They are strict, because a refused expansion costs little, and an invented fact
teaches the reward model to invent. Judging words are English; a reason without any of them is checked for facts alone.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from mmrlhf.types import PreferenceGroup, Response

INSTRUCTION = (
    "An annotator judged an answer of a multimodal assistant in a few words. Write the annotator's judgement out as a "
    "critique: full sentences, one point after the other. Use only what annotator, question and answer say. "
    "You cannot see the picture: add no observation, number, name or judgement of your own, and keep every verdict as "
    "it is. Write the critique alone, in the language of the annotator."
)
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?|\d+(?:[.,]\d+)*|[^\W\d_a-z]")
_CLAUSE = re.compile(r"[.;!?\n]+|,|\bbut\b|\bhowever\b|\bwhile\b|\bthough\b|\balthough\b|\bwhereas\b")
# white space within a line: from each of many empty lines on, all that follow would be looked at
_POINT = re.compile(r"(?:^|(?<=[.;:\n]))[^\S\n]*\(?\d{1,2}[.):]?(?=\s)")
_STEM = 5  # letters that two forms of a word share

_GOOD = frozenset(
    "accurate accurately adequate appropriate clear clearly coherent complete comprehensive concise correct correctly "
    "detailed excellent faithful fine good helpful logical ok okay perfect precise proper properly reasonable "
    "relevant right safe satisfactory thorough true useful valid well".split()
)
_BAD = frozenset(
    "absent bad confusing contradictory contradicts defect deficient error errors fabricated fabricates fail fails "
    "false flawed hallucinated hallucinates hallucination hallucinations harmful illogical inaccurate inaccuracies "
    "inadequate inappropriate incomplete incorrect incorrectly insufficient invalid irrelevant lacks lacking "
    "misidentified misidentifies misleading misread misreads missed misses missing mistake mistaken mistakes omits "
    "poor redundant unclear unhelpful unreasonable unsafe vague wrong wrongly".split()
)
_NEGATIONS = frozenset(
    "not no never without isn't doesn't aren't wasn't don't didn't cannot can't nor nothing none free".split()
)
# Words of judging and of grammar: they say nothing about the picture.
_NEUTRAL = frozenset(
    "a about above after all also although an and annotator answer answered answers any are as aspect aspects assess "
    "assessed assessment at based be because been being below both but by call called calls can check checked claim "
    "claims compared consider contains content could critique criticism describe described describes description "
    "detail details did do does each either else even every explain explained explains explanation fact facts first "
    "for from full fully further furthermore gives given good has have hence here how however identification "
    "identified identifies identify if image in including information instead into is it its itself judge judged "
    "judgement judgment just kind mainly makes means mention mentioned mentions more moreover most much name named "
    "names of on one only or other otherwise out over overall part picture point points problem problems provide "
    "provided provides quality question rather reading reason reasoning reasons regard regarding remaining reply "
    "respect respond response responses rest result says second seem seems shows since so some specifically stand "
    "stands state stated statement statements states still such task than that the their them then there therefore "
    "these they third this those though thus to together too under user verdict very video was way were what when "
    "where whether which while who whole will with within would".split()
)


@dataclass(frozen=True)
class Request:
    """One reason to expand: the query's key, the response's hash, what is asked, and what the annotator wrote."""

    key: str
    response_hash: str
    prompt: str
    reason: str
    sources: tuple[str, ...]

    @property
    def digest(self) -> str:
        """16 hex digits of the SHA-256 of what is asked: the name of a recorded answer."""
        return hashlib.sha256(self.prompt.encode()).hexdigest()[:16]


def make_request(group: PreferenceGroup, response: Response, reason: str, instruction: str = INSTRUCTION) -> Request:
    """Ask for the expansion of one reason; the larger model reads question, answer and reason, and no picture."""
    question = group.prompt.transcript
    prompt = f"{instruction}\n\n[Question]: {question}\n[Answer]: {response.text}\n[Annotator]: {reason}\n[Critique]:"
    return Request(group.key, response.hash, prompt, reason, (question, response.text, reason))


def refusals(request: Request, expansion: str, *, max_new_words: float = 0.15, max_growth: float = 20.0) -> list[str]:
    """Say why an expansion may not be used; empty where it may.

    Args:
        max_new_words: share of its words that neither the question, the answer, the reason nor judging needs; above it
            the expansion adds facts. A number that no source has is a fact by itself.
        max_growth: words that it may have for each word of the reason (20 at least).

    Returns: any of `empty`, `too long`, `added facts`, `changed verdict`.
    """
    words = _words(expansion)
    if not words:
        return ["empty"]
    found = []
    if len(words) > max_growth * max(len(_words(request.reason)), 20 / max_growth):
        found.append("too long")
    if _adds_facts(expansion, request.sources, max_new_words):
        found.append("added facts")
    if changes_verdict(request.reason, expansion):
        found.append("changed verdict")
    return found


def new_words(words: Iterable[str], sources: Iterable[str]) -> list[str]:
    """The words that no source has and that judging does not need, a word's forms counting as one."""
    known = {word[:_STEM] for source in sources for word in _words(source)}
    judging = _GOOD | _BAD | _NEGATIONS | _NEUTRAL
    return [word for word in words if word[:_STEM] not in known and word not in judging]


def changes_verdict(reason: str, expansion: str) -> bool:
    """Whether an expansion judges otherwise than the reason, as a whole or on something that both name.

    As a whole: praise alone, blame alone, or both have to stay what they are. On a thing: a word that the reason only
    praises may not be blamed, and the other way round. A reason without judging words cannot be contradicted, and what
    "the rest" stands for is not known here.
    """
    before, after = _verdicts(reason), _verdicts(expansion)
    if not before:
        return False
    if {sign for sign, _ in before} != {sign for sign, _ in after}:
        return True
    said, now = _signs_of_words(before), _signs_of_words(after)
    return any(len(said[word]) == 1 and now[word] == {-next(iter(said[word]))} for word in said.keys() & now.keys())


def _adds_facts(expansion: str, sources: tuple[str, ...], share: float) -> bool:
    words = _words(expansion)
    numbers = {word for source in sources for word in _words(source) if word[0].isdigit()}
    # a number in front of a point counts the points and is no observation
    invented = {word for word in _words(_POINT.sub(" ", expansion)) if word[0].isdigit()} - numbers
    fresh = [word for word in new_words(words, sources) if not word[0].isdigit()]
    return bool(invented) or len(fresh) > share * len(words)


def _verdicts(text: str) -> list[tuple[int, frozenset[str]]]:
    """Every clause that judges: +1 or -1, and the words it is about."""
    found = []
    for clause in _CLAUSE.split(text.lower()):
        words = _words(clause)
        signs = set()
        for place, word in enumerate(words):
            sign = (word in _GOOD) - (word in _BAD)
            if sign:
                negated = any(before in _NEGATIONS for before in words[max(0, place - 5) : place])
                signs.add(-sign if negated else sign)
        about = frozenset(word[:_STEM] for word in words if word not in _GOOD | _BAD | _NEGATIONS | _NEUTRAL)
        found += [(sign, about) for sign in sorted(signs)]
    return found


def _signs_of_words(verdicts: list[tuple[int, frozenset[str]]]) -> dict[str, set[int]]:
    signs: dict[str, set[int]] = {}
    for sign, about in verdicts:
        for word in about:
            signs.setdefault(word, set()).add(sign)
    return signs


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
