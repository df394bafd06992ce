"""What a reward model has to beat: chance, length, and the words of the human critiques alone.

Follows: the questions raised about MM-RLHF-RewardBench (arXiv 2502.10391): its "ground-truth critique" score gives the
model a human's verdict to read, so how far do the words of that verdict get without any model?
Differs in: the released evaluation has no baselines.

The critique baseline is a Bradley-Terry model on which words occur (not how often), with an l2 penalty, always scored
on queries that it was not fitted on. Words are runs of Latin letters, and single characters in other scripts: a tenth
of RewardBench's critiques is Chinese, which a word pattern for English drops without a trace.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from mmrlhf.types import PreferenceGroup

_WORD = re.compile(r"[a-z']+|[0-9]+|[^\W\d_a-z]")


@dataclass(frozen=True)
class RankedTexts:
    """Responses to rank, flat: keys, categories, texts and critiques (R,); pairs (chosen, rejected) indices."""

    keys: tuple[str, ...]
    categories: tuple[str, ...]
    texts: tuple[str, ...]
    critiques: tuple[str, ...]
    pairs: tuple[tuple[int, int], ...]

    @classmethod
    def from_groups(cls, groups: Iterable[PreferenceGroup], *, critique: str = "short") -> RankedTexts:
        """Read preference groups; `critique` names the kind of critique, and a missing one is read as no words."""
        columns: list[tuple[str, str, str, str]] = []
        pairs: list[tuple[int, int]] = []
        for group in groups:
            pairs += [(len(columns) + i, len(columns) + j) for i, j in group.ranked_pairs()]
            columns += [(group.key, group.category, r.text, r.critiques.get(critique, "")) for r in group.responses]
        return cls(*_columns(columns), pairs=tuple(pairs))


def random_scores(ranked: RankedTexts, *, seed: int = 0) -> NDArray[np.float64]:
    """One number in [0, 1) per response (R,), from seed, key and text alone: the same in every order and run."""

    def draw(key: str, text: str) -> float:
        digest = hashlib.sha256(f"{seed}\0{key}\0{text}".encode()).digest()
        return int.from_bytes(digest[:6], "big") / 2**48

    return np.array([draw(key, text) for key, text in zip(ranked.keys, ranked.texts, strict=True)])


def length_scores(ranked: RankedTexts) -> NDArray[np.float64]:
    """Each response's length in characters, (R,)."""
    return np.array([len(text) for text in ranked.texts], dtype=np.float64)


def critique_word_scores(ranked: RankedTexts, *, l2: float = 1.0, num_folds: int | None = None) -> NDArray[np.float64]:
    """Score responses (R,) by the words of their critiques, fitted on the pairs of other queries.

    Args:
        ranked: responses with critiques.
        l2: penalty 0.5 * l2 * |weights|^2 on the summed log-likelihood.
        num_folds: queries are dealt to folds in turn; None: one fold per query up to 50 queries, then 10 folds.
    """
    words = [set(_WORD.findall(critique.lower())) for critique in ranked.critiques]
    vocabulary = {word: i for i, word in enumerate(sorted(set().union(*words)))}
    occurs = np.zeros((len(words), len(vocabulary)))
    for row, own in enumerate(words):
        occurs[row, [vocabulary[word] for word in own]] = 1
    query_of = {key: i for i, key in enumerate(dict.fromkeys(ranked.keys))}
    folds = num_folds or (len(query_of) if len(query_of) <= 50 else 10)
    fold = np.array([query_of[key] % folds for key in ranked.keys], dtype=np.int64)
    pairs = np.array(ranked.pairs, dtype=np.int64).reshape(-1, 2)
    differences = occurs[pairs[:, 0]] - occurs[pairs[:, 1]]
    scores = np.zeros(len(words))
    for held_out in range(folds):
        weights = _fit(differences[fold[pairs[:, 0]] != held_out], l2)
        scores[fold == held_out] = occurs[fold == held_out] @ weights
    return scores


def _fit(differences: NDArray[np.float64], l2: float) -> NDArray[np.float64]:
    """Weights (V,) that maximise the penalised Bradley-Terry likelihood of pairs (P, V); convex, so one optimum."""
    seen = differences.any(axis=0)
    weights = np.zeros(differences.shape[1])
    if not seen.any():
        return weights
    pairs = differences[:, seen]
    # The optimum lies in the span of the pairs, so with few pairs and many words few unknowns do.
    basis = np.linalg.qr(pairs.T)[0]
    reduced = pairs @ basis

    def loss_and_gradient(mixture: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        gaps = reduced @ mixture
        loss = np.logaddexp(0, -gaps).sum() + 0.5 * l2 * mixture @ mixture
        return float(loss), l2 * mixture - expit(-gaps) @ reduced

    # A word that no pair tells apart keeps a weight of exactly 0, so that ties stay ties.
    weights[seen] = basis @ minimize(loss_and_gradient, np.zeros(basis.shape[1]), jac=True, method="L-BFGS-B").x
    return weights


def _columns(rows: Sequence[tuple[str, str, str, str]]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(row[i] for row in rows) for i in range(4))
