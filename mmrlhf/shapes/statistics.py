"""What a written world looks like in numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import combinations
from typing import Any


class WorldStatistics:
    """Counts over rows of data.jsonl; `add` each, then read `summary`."""

    def __init__(self) -> None:
        self._categories: Counter[str] = Counter()
        self._num_responses: Counter[int] = Counter()
        self._pairs: Counter[str] = Counter()
        self._quality: Counter[int] = Counter()
        self._words: dict[str, Counter[int]] = {"prompt": Counter(), "response": Counter(), "critique": Counter()}
        self._vocabulary: set[str] = set()

    def add(self, row: Mapping[str, Any]) -> None:
        """Count one row."""
        responses, quality = row["responses"], row["meta"].get("quality", [])
        self._categories[row["category"]] += 1
        self._num_responses[len(responses)] += 1
        self._quality.update(quality)
        asked = row["prompt"]
        self._add_words("prompt", asked if isinstance(asked, str) else asked[-1]["content"])
        for response in responses:
            self._add_words("response", response["text"])
            if "full" in response["critiques"]:
                self._add_words("critique", response["critiques"]["full"])
        ranks = [response["rank"] for response in responses]
        self._pairs.update(
            pair_outcome(ranks[i], ranks[j], quality[i], quality[j]) for i, j in combinations(range(len(ranks)), 2)
        )

    def _add_words(self, name: str, text: str) -> None:
        words = text.split()
        self._words[name][len(words)] += 1
        self._vocabulary.update(words)

    def summary(self) -> dict[str, Any]:
        """JSON-able numbers.

        `tied` is the share of all pairs with equal ranks; `tied_unequal` and `reversed` are shares of the pairs whose
        true qualities differ; quality counts true claims, 0 to 3.
        """
        pairs = self._pairs
        unequal = pairs["right"] + pairs["reversed"] + pairs["tied_unequal"]
        judged = self._quality.total()
        return {
            "groups": self._categories.total(),
            "categories": dict(self._categories.most_common()),
            "responses_per_group": {str(k): self._num_responses[k] for k in sorted(self._num_responses)},
            "pairs": pairs.total(),
            "tied": _share(pairs["tied_unequal"] + pairs["tied_equal"], pairs.total()),
            "tied_unequal": _share(pairs["tied_unequal"], unequal),
            "reversed": _share(pairs["reversed"], unequal),
            "mean_quality": _share(sum(q * n for q, n in self._quality.items()), judged),
            "quality": {str(q): self._quality[q] for q in sorted(self._quality)},
            "words": {
                name: {"mean": round(sum(n * c for n, c in counts.items()) / counts.total(), 2), "max": max(counts)}
                for name, counts in self._words.items()
                if counts
            },
            "vocabulary": len(self._vocabulary),
        }


def pair_outcome(rank: int, other_rank: int, quality: int, other_quality: int) -> str:
    """How a labelled pair stands to the truth: right, reversed, tied_unequal, tied_equal, or broken_tie."""
    if rank == other_rank:
        return "tied_equal" if quality == other_quality else "tied_unequal"
    if quality == other_quality:
        return "broken_tie"
    return "right" if (rank < other_rank) == (quality > other_quality) else "reversed"


def _share(count: float, total: float) -> float | None:
    return round(count / total, 4) if total else None
