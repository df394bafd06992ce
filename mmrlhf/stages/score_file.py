"""Stage `score_file`: rewards and critiques of responses that a user has in a file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from mmrlhf.chain.fingerprint import path_token
from mmrlhf.chain.runtime import Runtime
from mmrlhf.errors import DataError
from mmrlhf.files import expanded
from mmrlhf.inference.reward_model import RewardModel
from mmrlhf.inference.scoring import describe_judge, verdict_columns
from mmrlhf.inference.settings import CritiqueSettings, PassSettings
from mmrlhf.inference.sharing import share_pass
from mmrlhf.inference.tables import TablePass
from mmrlhf.records.draft import Draft
from mmrlhf.records.quarantine import Quarantine
from mmrlhf.records.questions import read_questions
from mmrlhf.shards.sidecar import SideCar
from mmrlhf.summaries.scores import ScoreFileSummary
from mmrlhf.terminal.words import add_row, literal, new_table, show
from mmrlhf.types import PreferenceGroup

RESULTS, REWARDS = "results.jsonl", "rewards"
_SHOWN, _SIGNS = 20, 60

# another number builds the stage anew, whatever `code` says
VERSION = 1
# what is in a finished artefact; checked before it is published
PROMISES = ("results.jsonl", "rewards/_meta.json", "metrics.json")


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
    ones the first; `best` is the number of the one with the highest reward. A line that cannot be scored has the reason
    as `left_out` in their place.

    Args:
        responses: file of `{image | images | video, prompt, responses}`, one object per line.
        reward_model: folder that the reward stage wrote.
        passes: how the model is asked.
        critiques: how it writes critiques.

    Raises:
        DataError: a line that cannot be read, named by file and line; more lines left out than the budget.
    """
    drafts, passes = read_questions(responses), passes or PassSettings()
    with share_pass(runtime) as ranks:
        judge = RewardModel.from_pretrained(reward_model, passes, critiques, device=ranks.device)
        fingerprint = {"made_by": "score_file", "responses": path_token(responses)}
        fingerprint |= describe_judge(judge, reward_model, writes=True)
        quarantine = Quarantine(len(drafts), runtime.max_damaged)
        asked = TablePass(
            verdict_columns(judge),
            fingerprint,
            [draft.group.key for draft in drafts],
            batches=lambda places: _batches([drafts[place] for place in places], passes.groups_per_batch),
            measure=lambda batch: _measure(judge, batch, quarantine),
            size=passes.groups_per_batch,
            title="scoring (batches)",
        )
        rates = asked.fill(out / REWARDS, quarantine, ranks, runtime)
    if not ranks.leads:
        return rates
    rows = _results(drafts, SideCar.load(out / REWARDS))
    with (out / RESULTS).open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    show(_table(rows))
    verdicts = [verdict for row in rows for verdict in row.get("responses", ())]
    summary = ScoreFileSummary(
        queries=len(drafts),
        responses=len(verdicts),
        responses_scored=rates["responses_asked"],
        responses_per_second=rates["responses_per_second"],
        responses_shortened=sum(verdict["response_cut"] > 0 for verdict in verdicts),
        critiques_cut=sum(verdict["critique_cut"] > 0 for verdict in verdicts),
        quarantined=quarantine.summary(),
    )
    return summary.write(out)


def check_settings(settings: Mapping[str, Any]) -> None:
    """Read the whole file (DataError names a bad line) before a reward model is trained for it."""
    read_questions(expanded(settings["responses"]))


def _batches(drafts: Sequence[Draft], size: int) -> Iterator[Sequence[Draft]]:
    for start in range(0, len(drafts), size):
        yield drafts[start : start + size]


def _measure(
    judge: RewardModel, drafts: Sequence[Draft], quarantine: Quarantine
) -> Iterator[tuple[PreferenceGroup, list[Mapping[str, Any]]]]:
    """Each line's query with the table's values of its responses."""
    groups = []
    for draft in drafts:
        try:
            groups.append(draft.load())
        except DataError as error:
            quarantine.add(draft.group.key, error)
            quarantine.check("the file of responses")
    for group, verdicts in zip(groups, judge.score_groups(groups, quarantine=quarantine), strict=True):
        if verdicts:
            yield group, [verdict.columns() for verdict in verdicts]


def _results(drafts: list[Draft], table: SideCar) -> list[dict[str, Any]]:
    rows = []
    for draft in drafts:
        group = draft.group
        if group.key in table.left_out:
            rows.append({"id": draft.id, "prompt": group.prompt.question, "left_out": table.left_out[group.key]})
            continue
        hashes = [response.hash for response in group.responses]
        numbers = {name: values.tolist() for name, values in table.lookup(group.key, hashes).items()}
        critiques = table.texts(group.key, hashes, "critique")
        found = [
            {"text": response.text, "critique": critiques[i], **{name: each[i] for name, each in numbers.items()}}
            for i, response in enumerate(group.responses)
        ]
        best = max(range(len(found)), key=lambda i, found=found: found[i]["reward"])
        rows.append({"id": draft.id, "prompt": group.prompt.question, "responses": found, "best": best})
    return rows


def _table(rows: list[dict[str, Any]]) -> Table:
    """The first queries with their best response."""
    title = f"best responses of the first {min(_SHOWN, len(rows))} of {len(rows)}"
    numbers = ("reward", "ahead by")
    table = new_table("id", "prompt", "best response", *numbers, title=title, right=numbers, fold=True)
    for row in rows[:_SHOWN]:
        if "left_out" in row:
            add_row(table, row["id"], row["prompt"][:60], f"left out: {row['left_out']}", "", "")
            continue
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
