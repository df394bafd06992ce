"""The paper's own numbers, from `published.yaml`, beside a comparison's rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from mmrlhf.summaries.suites import SuiteComparison

FILE = Path(__file__).parent / "published.yaml"


def published() -> Mapping[str, Any]:
    """The file's content."""
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))


def with_published(found: SuiteComparison) -> SuiteComparison:
    """The same with the paper's numbers where it has some, and what to think of them."""
    paper = published()
    rows = dict(found.benchmarks)
    for task, row in rows.items():
        if own := paper["benchmarks"].get(task):
            rows[task] = replace(
                row, published_before=own["before"], published_after=own["after"], published_note=paper["note"]
            )
    return replace(found, benchmarks=rows)
