"""What a training's validations left of its held-out answers and critiques: `step-N.jsonl`, one row a query."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmrlhf.files import read_lines

ANSWERS = "answers"  # folders in a stage's artefact
CRITIQUES = "critiques"


def read_steps(folder: Path) -> list[tuple[int, list[dict[str, Any]]]]:
    """Read such a folder: (step, rows) of every validation, in their order."""
    found = []
    for path in sorted(Path(folder).glob("step-*.jsonl")):
        rows = [json.loads(line) for line in read_lines(path) if line]
        found.append((int(path.stem.removeprefix("step-")), rows))
    return found
