"""Stage `score_file`: rewards and critiques of responses that a user has in a file."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from mmrlhf.chain.fingerprint import path_token
from mmrlhf.chain.runtime import Runtime
from mmrlhf.files import write_json
from mmrlhf.inference.passes import describe_run, describe_source
from mmrlhf.inference.reward_model import RewardModel
from mmrlhf.inference.scoring import SECONDS_BETWEEN_WRITES, add_verdicts, verdict_columns
from mmrlhf.inference.settings import CritiqueSettings, PassSettings
from mmrlhf.inference.sharing import Ranks, share_pass
from mmrlhf.records.draft import Draft
from mmrlhf.records.questions import read_questions
from mmrlhf.shards.sidecar import SideCar, SideCarWriter
from mmrlhf.terminal.progress import track
from mmrlhf.terminal.words import add_row, literal, new_table, show

log = logging.getLogger(__name__)

RESULTS, REWARDS = "results.jsonl", "rewards"
_SHOWN, _SIGNS = 20, 60


def run(
    out: Path,
    *,
    responses: Path,
    reward_model: Path,
    passes: PassSettings | None = None,
    critiques: CritiqueSettings | None = None,
    runtime: Runtime,
) -> dict[str, Any]:
    """Write `out/results.jsonl`, a line for each line of the file: its id, prompt, and each response's verdict.

    A run that was stopped goes on with the lines that are missing. The responses are in the file's order, of equal
    ones the first; `best` is the number of the one with the highest reward.

    Args:
        responses: file of `{image | images | video, prompt, responses}`, one object per line.
        reward_model: folder that the reward stage wrote.
        passes: how the model is asked.
        critiques: how it writes critiques.

    Raises:
        DataError: a line or its media that cannot be read, named by file and line.
    """
    drafts, passes = read_questions(responses), passes or PassSettings()
    with share_pass(runtime) as ranks:
        judge = RewardModel.from_pretrained(reward_model, passes, critiques, device=ranks.device)
        fingerprint = {"made_by": "score_file", "reward_model": describe_source(reward_model)}
        fingerprint |= {"responses": path_token(responses), **describe_run(judge.model)}
        writer = SideCarWriter(out / REWARDS, columns=verdict_columns(judge), fingerprint=fingerprint, rank=ranks.rank)
        rates = _score(writer, drafts, judge, passes.groups_per_batch, ranks, runtime)
    if not ranks.leads:
        return rates
    rows = _results(drafts, SideCar.load(out / REWARDS))
    with (out / RESULTS).open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    show(_table(rows))
    log.info("all of them: %s", out / RESULTS)
    summary = {"queries": len(drafts), "responses": sum(len(row["responses"]) for row in rows), **rates}
    write_json(out / "metrics.json", summary)
    return summary


def check_settings(settings: Mapping[str, Any]) -> None:
    """Read the whole file (DataError names a bad line) before a reward model is trained for it."""
    read_questions(Path(settings["responses"]).expanduser())


def _score(
    writer: SideCarWriter, drafts: list[Draft], judge: RewardModel, size: int, ranks: Ranks, runtime: Runtime
) -> dict[str, float]:
    done = writer.done_keys()
    own = [drafts[row] for row in ranks.share(np.arange(len(drafts))) if drafts[row].group.key not in done]
    batches = [own[start : start + size] for start in range(0, len(own), size)]
    started = written = time.monotonic()
    scored = 0
    for batch in track(batches, "scoring (batches)", enabled=runtime.progress):
        groups = [draft.load() for draft in batch]
        for group, verdicts in zip(groups, judge.score_groups(groups), strict=True):
            add_verdicts(writer, group, verdicts)
            scored += len(verdicts)
        if time.monotonic() - written > SECONDS_BETWEEN_WRITES:
            writer.flush()
            written = time.monotonic()
    writer.flush()
    seconds = max(time.monotonic() - started, 1e-9)
    return ranks.total({"responses_scored": scored, "responses_per_second": round(scored / seconds, 2)})


def _results(drafts: list[Draft], table: SideCar) -> list[dict[str, Any]]:
    rows = []
    for draft in drafts:
        group = draft.group
        hashes = [response.hash for response in group.responses]
        numbers = {name: values.tolist() for name, values in table.lookup(group.key, hashes).items()}
        critiques = table.texts(group.key, hashes, "critique")
        found = [
            {"text": response.text, "critique": critiques[i], **{name: each[i] for name, each in numbers.items()}}
            for i, response in enumerate(group.responses)
        ]
        best = max(range(len(found)), key=lambda i, found=found: found[i]["reward"])
        rows.append({"id": draft.id, "prompt": group.prompt, "responses": found, "best": best})
    return rows


def _table(rows: list[dict[str, Any]]) -> Table:
    """The first queries with their best response."""
    title = f"best responses of the first {min(_SHOWN, len(rows))} of {len(rows)}"
    numbers = ("reward", "ahead by")
    table = new_table("id", "prompt", "best response", *numbers, title=title, right=numbers, fold=True)
    for row in rows[:_SHOWN]:
        rewards = sorted((response["reward"] for response in row["responses"]), reverse=True)
        lead = f"{rewards[0] - rewards[1]:.3f}" if len(rewards) > 1 else ""
        best = row["responses"][row["best"]]["text"]
        add_row(
            table,
            row["id"],
            *(literal(text, longest=_SIGNS) for text in (row["prompt"], best)),
            f"{rewards[0]:.3f}",
            lead,
        )
    return table
