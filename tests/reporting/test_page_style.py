"""Cells of tables: which blanks a line may end at."""

from __future__ import annotations

import pytest

from mmrlhf.reporting.page_style import unbroken


@pytest.mark.parametrize(
    ("cell", "wanted"),
    [
        ("0.600 -> 0.000", "0.600~->~0.000"),
        ("+0.150 [+0.082, +0.218]", "+0.150~[+0.082,~+0.218]"),
        ("50.6 -> 60.1 (other prompt, of 0.7)", "50.6~->~60.1 (other prompt, of 0.7)"),
        ("3 (no answer, no verdict)", "3 (no answer, no verdict)"),
        ("not compared: [a, b] -> none", "not compared: [a, b] -> none"),
        ("", ""),
    ],
)
def test_numbers_that_belong_together_stay_on_one_line(cell: str, wanted: str) -> None:
    assert unbroken(cell) == wanted.replace("~", "\u00a0")
