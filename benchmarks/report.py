"""The numbers and the page of a run of many queries in many categories: seconds and megabytes.

    python -m benchmarks.report [--queries 10000] [--categories 300]

No model: rewards and answers are drawn. Timed apart: what the stages `score` and `evaluate` work out of their tables
(`ranking_summary`, `report_answers`), and the stage `report` on their folders.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np

from mmrlhf.chain.runtime import Runtime
from mmrlhf.conversation import Conversation
from mmrlhf.losses.mmdpo import MMDPO
from mmrlhf.reporting.accuracy import GENERATED, ranking_summary
from mmrlhf.reporting.answer_numbers import Answers, report_answers
from mmrlhf.shards.index import Index
from mmrlhf.shards.sidecar import SideCar, SideCarWriter
from mmrlhf.shards.writer import write_shards
from mmrlhf.stages import report
from mmrlhf.summaries.evaluations import EvaluateSummary
from mmrlhf.summaries.left_out import Quarantined
from mmrlhf.summaries.scores import AnnotationsSummary
from mmrlhf.types import PreferenceGroup, Response

NUM_RESPONSES = 4


def make_groups(queries: int, categories: int) -> list[PreferenceGroup]:
    """Ranked queries; a few categories are common and most are rare, as in collected data."""
    draw = np.random.default_rng(0)
    share = 1 / np.arange(1, categories + 1)
    names = draw.choice(categories, queries, p=share / share.sum())
    names[:categories] = np.arange(categories)
    return [
        PreferenceGroup(
            f"query-{number:05d}",
            Conversation.about("What is drawn here, and where?"),
            tuple(Response("word " * int(draw.integers(3, 40)) + str(k), rank=k + 1) for k in range(NUM_RESPONSES)),
            category=f"category {name:03d}",
            meta={"quality": [NUM_RESPONSES - 1 - k for k in range(NUM_RESPONSES)]},
        )
        for number, name in enumerate(names)
    ]


def make_rewards(folder: Path, groups: Sequence[PreferenceGroup]) -> SideCar:
    """Rewards that follow the ranks with noise."""
    draw = np.random.default_rng(1)
    with SideCarWriter(folder, columns=("reward",), fingerprint={"made_by": "benchmark"}) as writer:
        for group in groups:
            for response in group.responses:
                writer.add(group.key, response.hash, {"reward": float(draw.normal(-(response.rank or 0), 1.5))})
    return SideCar.load(folder)


def make_answers(groups: Sequence[PreferenceGroup], gain: float) -> list[Answers]:
    """One answer to each query, with all that `evaluate` asks about it."""
    draw = np.random.default_rng(2)
    none: list[float] = [-9.0] * NUM_RESPONSES
    return [
        Answers(
            group.key, group.category, group.prompt.question, ["an answer"], [int(draw.integers(5, 60))],
            [float(np.clip(draw.normal(0.5 + gain, 0.2), 0, 1))], [float(draw.normal(gain))], [""],
            [-8.0], [-8.0 - float(draw.gamma(2, 0.5)) * (gain > 0)], draw.normal(-9, 1, NUM_RESPONSES).tolist(), none,
            group,
        )
        for group in groups
    ]  # fmt: skip


def write_evaluation(folder: Path, answers: Sequence[Answers], *, is_reference: bool) -> None:
    """What the stage `evaluate` leaves."""
    folder.mkdir()
    found = report_answers(answers, max_new_tokens=64, is_reference=is_reference, is_sampled=True)
    nothing = Quarantined(0, len(answers), 1, [])
    EvaluateSummary(**vars(found), temperature=1.0, max_new_tokens=64, quarantined=nothing).write(folder)
    rows = (json.dumps(row) + "\n" for answer in answers for row in answer.rows())
    (folder / "samples.jsonl").write_text("".join(rows), encoding="utf-8")


def measure(root: Path, queries: int, categories: int) -> dict[str, Any]:
    """Make a run below root and its page; returns seconds and megabytes."""
    groups = make_groups(queries, categories)
    write_shards(groups, root / "shards")
    index = Index.load(root / "shards")
    rewards = make_rewards(root / "score" / "rewards", groups)
    start = time.perf_counter()
    found = ranking_summary(index, np.arange(len(index)), {GENERATED: rewards})
    AnnotationsSummary({}, heldout=found, train=found).write(root / "score")
    scored = time.perf_counter()
    for name, gain in (("before", 0.0), ("after", 0.1)):
        write_evaluation(root / name, make_answers(groups, gain), is_reference=gain == 0)
    evaluated = time.perf_counter()
    report.run(
        root / "report",
        shards=root / "shards",
        score=root / "score",
        before=root / "before",
        after=root / "after",
        objective=MMDPO(),
        runtime=Runtime(trainer=L.Trainer, progress=False),
    )
    done = time.perf_counter()
    return {
        "benchmark": "report",
        "queries": queries,
        "categories": categories,
        "score_seconds": round(scored - start, 2),
        "evaluate_seconds": round(evaluated - scored, 2),
        "report_seconds": round(done - evaluated, 2),
        "page_megabytes": round((root / "report" / report.PAGE).stat().st_size / 1e6, 3),
    }


def main(words: Sequence[str] | None = None) -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser(description="Seconds and megabytes of a report.")
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--categories", type=int, default=300)
    given = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(Path(folder), given.queries, given.categories)))


if __name__ == "__main__":
    main()
