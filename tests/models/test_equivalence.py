"""The whole matrix: family x modality x way of training, K = 1 to 6, packed against the stock model row by row."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import AVAILABLE

from benchmarks.equivalence import MODALITIES, WAYS, Cell, measure, table


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("family", AVAILABLE)
def test_cell(family: str, modality: str, way: str, tiny_folders: dict[str, Path]) -> None:
    cell = measure(tiny_folders[family], family, modality, way)
    assert cell.logprob < 1e-5 and cell.gradient < 1e-5


def test_table_shows_the_worst_way() -> None:
    errors = {"full": 1e-6, "lora": 3e-6}
    found = [Cell("a", modality, way, errors[way], errors[way] / 10) for modality in MODALITIES for way in errors]
    assert table(found).splitlines()[-1] == "| a | " + " | ".join(["3e-06 / 3e-07"] * 4) + " |"
