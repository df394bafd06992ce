"""A reward model's scores of a benchmark, in the file that the benchmark's own scoring script reads.

Of MM-RLHF-RewardBench (arXiv 2502.10391), VL-RewardBench (2411.17451) and Multimodal RewardBench (2502.14191); which of
them a packed set is, `source` of its records says. Everything that the scripts read is there: pairs, categories, which
response is better; of a picture's path that is the folder alone. A line is a pair, `position` its number: ids repeat.
A tie is written as a wrong answer, as everywhere here; the scripts would leave it out, or draw.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmrlhf.shards.index import Index
from mmrlhf.shards.sidecar import SideCar

# a source of each of VL-RewardBench's categories, as its script sorts them
_VL_SOURCE = {"general": "vlfeedback", "hallucination": "povid", "reasoning": "reasoning_tasks"}


@dataclass(frozen=True)
class ScoredPair:
    """One pair with its scores and, where the model wrote them, its critiques: each of (chosen, rejected)."""

    position: int
    key: str
    category: str
    prompt: str
    texts: tuple[str, str]
    rewards: tuple[float, float]
    critiques: tuple[str, ...]

    @property
    def is_right(self) -> bool:
        """Whether the chosen response scores strictly higher."""
        return self.rewards[0] > self.rewards[1]


def _mm_rlhf(pair: ScoredPair) -> dict[str, Any]:
    return {
        "id": pair.key,
        "image": f"{pair.category}/{pair.position}",
        "prompt": pair.prompt,
        "chosen": pair.texts[0],
        "rejected": pair.texts[1],
        "rewards": list(pair.rewards),
        "critic": list(pair.critiques),
    }


def _vl_rewardbench(pair: ScoredPair) -> dict[str, Any]:
    """The chosen response stands first at even positions, second at odd ones; `ranking` has 0 for the better one."""
    first, folder = pair.position % 2, _VL_SOURCE.get(pair.category, "vlfeedback")
    texts, ranking = (pair.texts, [0, 1]) if first == 0 else (pair.texts[::-1], [1, 0])
    said = f"Overall Judgment: Answer {(first if pair.is_right else 1 - first) + 1} is better."
    meta = {"random_number": 0, "filter_choice": said, "flag_status": "agree" if pair.is_right else "reject"}
    return {
        "id": pair.key,
        "query": pair.prompt,
        "response": list(texts),
        "image_path": f"images/{folder}/{pair.key}",
        "human_ranking": ranking,
        "ranking": ranking,
        "meta": meta,
        "rewards": list(pair.rewards),
    }


def _multimodal(pair: ScoredPair) -> dict[str, Any]:
    """Answer A is the better one at even positions, B at odd ones."""
    label, other = ("A", "B") if pair.position % 2 == 0 else ("B", "A")
    better = "Output1" if label == "A" else "Output2"
    area = pair.category.split("/")[0]
    category = area if area in ("safety", "reasoning") else pair.category  # the ids say which half
    return {
        "ID": pair.key,
        "Label": label,
        "output": f"[[{label if pair.is_right else other}]]",
        "Meta": {"ID": pair.key, "Text": pair.prompt, "Category": category, "Better": better},
        "rewards": list(pair.rewards),
    }


FORMS: dict[str, tuple[str, Callable[[ScoredPair], dict[str, Any]]]] = {
    "MM-RLHF-RewardBench": ("mm_reward_bench_result.jsonl", _mm_rlhf),
    "VL-RewardBench": ("vl_rewardbench_result.jsonl", _vl_rewardbench),
    "Multimodal RewardBench": ("multimodal_rewardbench_result.jsonl", _multimodal),
}


def scored_pairs(index: Index, rows: np.ndarray, table: SideCar) -> Iterator[tuple[str, ScoredPair]]:
    """Yield (source, pair) for all pairs of the published benchmarks, numbered in the order of the set."""
    position = 0
    for row in rows:
        group = index.read(int(row), media=False)
        if group.source not in FORMS:
            continue
        hashes, said = [response.hash for response in group.responses], group.responses
        rewards = table.lookup(group.key, hashes)["reward"].tolist()
        critiques = table.texts(group.key, hashes, "critique") if "critique" in table.columns else None
        for i, j in group.ranked_pairs():
            written = (critiques[i], critiques[j]) if critiques is not None else ()
            facts = position, group.key, group.category, group.prompt.question
            yield group.source, ScoredPair(*facts, (said[i].text, said[j].text), (rewards[i], rewards[j]), written)
            position += 1


def write_official(out: Path, index: Index, rows: np.ndarray, table: SideCar) -> list[Path]:
    """Write the file of every benchmark that is among the rows into `out`; returns them, none for other data."""
    lines: dict[str, list[str]] = {}
    for source, pair in scored_pairs(index, rows, table):
        name, form = FORMS[source]
        content = {"position": pair.position, **form(pair)}
        lines.setdefault(name, []).append(json.dumps(content, ensure_ascii=False) + "\n")
    for name, own in lines.items():
        (out / name).write_text("".join(own), encoding="utf-8", errors="backslashreplace")
    return [out / name for name in lines]
