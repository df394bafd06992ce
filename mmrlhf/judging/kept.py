"""What a judge said of a benchmark, kept for other tables: margins by the responses' hashes, and what was found.

So judges that were asked in different runs stand in one table, whatever order a packed set has its responses in.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmrlhf.errors import DataError
from mmrlhf.files import write_json
from mmrlhf.judging.tally import Pair, Tally
from mmrlhf.summaries.judges import JudgeFindings
from mmrlhf.types import PreferenceGroup

KEPT = "judge.json"


@dataclass(frozen=True)
class Judged:
    """A judge's numbers for some queries.

    margins: key of a query -> pair -> by how much the first response is better; scores: key -> one number for each
    response, where all were compared at once or rated.
    """

    margins: Mapping[str, Mapping[Pair, float]]
    scores: Mapping[str, list[float]]
    findings: JudgeFindings


def write_judged(folder: Path, groups: Iterable[PreferenceGroup], tally: Tally, findings: JudgeFindings) -> None:
    """Write `folder/judge.json`."""
    margins: dict[str, list[Any]] = {}
    scores: dict[str, dict[str, float]] = {}
    for group in groups:
        names = [response.hash for response in group.responses]
        if group.key in tally.margins:
            margins[group.key] = [[names[i], names[j], margin] for (i, j), margin in tally.margins[group.key].items()]
        if group.key in tally.scores:
            scores[group.key] = dict(zip(names, tally.scores[group.key], strict=True))
    write_json(folder / KEPT, {"findings": findings.to_json(), "margins": margins, "scores": scores})


def read_judged(folder: Path, groups: Iterable[PreferenceGroup]) -> Judged:
    """Read what another run left, for these queries.

    Args:
        folder: of `stage=rewardbench`, or its `judge.json`.

    Raises:
        DataError: there is no such file, it is damaged, or it says nothing of these queries.
    """
    path = folder / KEPT if folder.is_dir() else folder
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        findings = JudgeFindings.from_json(content["findings"], where=path)
        margins: dict[str, dict[Pair, float]] = {}
        scores: dict[str, list[float]] = {}
        for group in groups:
            place = {response.hash: number for number, response in enumerate(group.responses)}
            known = [(i, j, float(m)) for i, j, m in content["margins"].get(group.key, ()) if i in place and j in place]
            if known:
                margins[group.key] = {(place[i], place[j]): margin for i, j, margin in known}
            own = content["scores"].get(group.key, {})
            if own.keys() >= place.keys():
                scores[group.key] = [float(own[name]) for name in place]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            "what another judge said cannot be read",
            where=path, given=str(error), expected=f"a folder of stage=rewardbench with a judge ({KEPT})",
        ) from error  # fmt: skip
    if not margins:
        raise DataError("another judge said nothing of these queries", where=path, expected="the same benchmark")
    return Judged(margins, scores, findings)
