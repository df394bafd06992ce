"""What becomes of every query of a round: asked, labelled by the model, part of the audit, known, or left out."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from mmrlhf.errors import DataError
from mmrlhf.files import read_lines, write_bytes
from mmrlhf.triage.model_proposals import Proposal, place_of

Order = Literal["unsure", "random", "surest"]
Beyond = Literal["leave_out", "model"]
Fate = Literal["audit", "known", "asked", "automatic", "uncertified", "left out"]
DECISIONS = "decisions.jsonl"
NO_PROPOSAL, NO_BUDGET = "no proposal of the model", "beyond the budget"


@dataclass(frozen=True)
class Decision:
    """One query's: ranks (K,) and hashes (K,) of the proposal, where there is one; reason where it is left out."""

    key: str
    fate: Fate
    uncertainty: float | None = None
    ranks: tuple[int, ...] = ()
    hashes: tuple[str, ...] = ()
    reason: str = ""


def decide(
    keys: Sequence[str],
    proposals: Mapping[str, Proposal],
    uncertainty: Mapping[str, float],
    *,
    audit: Collection[str],
    known: Collection[str],
    always: Collection[str],
    threshold: float | None,
    affordable: int | None,
    order: Order = "unsure",
    beyond: Beyond = "leave_out",
    seed: int = 0,
) -> list[Decision]:
    """Decide about every query; those that are asked come first, in the order in which they are.

    Queries in `always` go to people before all others and never to the model. Then come those without a proposal, then
    those above the threshold in the order that is wanted; whoever is beyond the budget is left out, or (`beyond`)
    labelled by the model without a certificate.

    Args:
        keys: of all queries.
        uncertainty: key -> of its proposal.
        threshold: up to which the model labels; None: nowhere.
        affordable: queries that people can be asked about; None: all.
    """
    fixed = {key: "known" for key in known} | {key: "audit" for key in audit}
    open_keys = [key for key in keys if key not in fixed]
    sure = [
        key for key in open_keys
        if key not in always and key in uncertainty and threshold is not None and uncertainty[key] <= threshold
    ]  # fmt: skip
    taken = set(sure)
    rest = sorted(
        (key for key in open_keys if key not in taken),
        key=lambda key: (key not in always, key in uncertainty, _place(key, uncertainty, order, seed), key),
    )
    asked, beyond_it = rest[:affordable], rest if affordable is None else rest[affordable:]
    if affordable is None:
        beyond_it = []

    def made(key: str, fate: Fate, reason: str = "") -> Decision:
        proposal = proposals.get(key)
        found = (proposal.ranks, proposal.hashes) if proposal else ((), ())
        return Decision(key, fate, uncertainty.get(key), *found, reason)

    decisions = [made(key, "asked") for key in asked] + [made(key, "automatic") for key in sure]
    for key in beyond_it:
        by_model = beyond == "model" and key in proposals and key not in always
        decisions.append(made(key, "uncertified") if by_model else made(key, "left out", NO_BUDGET))
    return decisions + [made(key, "audit" if fixed[key] == "audit" else "known") for key in keys if key in fixed]


def _place(key: str, uncertainty: Mapping[str, float], order: Order, seed: int) -> float:
    drawn = place_of("order", seed, key)
    if order == "random" or key not in uncertainty:
        return drawn
    return uncertainty[key] if order == "surest" else -uncertainty[key]


def write_decisions(folder: Path, decisions: Sequence[Decision]) -> None:
    """Write one line for each."""
    lines = "".join(json.dumps(asdict(each)) + "\n" for each in decisions)
    write_bytes(folder / DECISIONS, lines.encode())


def read_decisions(folder: Path) -> Iterator[Decision]:
    """Read what `write_decisions` wrote; raises DataError where it is not there or something else."""
    try:
        for line in filter(None, read_lines(folder / DECISIONS)):
            row = json.loads(line)
            yield Decision(**{**row, "ranks": tuple(row["ranks"]), "hashes": tuple(row["hashes"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(
            "no decisions of stage=triage", where=folder / DECISIONS, given=error, expected="a folder of stage=triage",
        ) from error  # fmt: skip
