"""The whole matrix: family x modality x way of running, K = 1 to 6, against the stock model row by row."""

from __future__ import annotations

from pathlib import Path

import pytest
from stand_ins.tiny_models import AVAILABLE

from benchmarks.equivalence import MASKLESS, MODALITIES, WAYS, Cell, measure, table


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("family", AVAILABLE)
def test_cell(family: str, modality: str, way: str, tiny_folders: dict[str, Path]) -> None:
    cell = measure(tiny_folders[family], family, modality, way)
    if cell is None:
        assert family == "gemma3" and way in MASKLESS
        return
    assert cell.logprob < 1e-5
    assert cell.gradient is None if way == "flex" else cell.gradient is not None and cell.gradient < 1e-5


def test_table_shows_the_worst_way() -> None:
    errors = {"full": 1e-6, "lora": 3e-6}
    found = [Cell("a", modality, way, errors[way], errors[way] / 10) for modality in MODALITIES for way in errors]
    found += [Cell("a", modality, "flex", 2e-6, None) for modality in MODALITIES]
    packed, flex, cascade, rows = table(found).splitlines()[-4:]
    assert packed == "| a | packed, sdpa | " + " | ".join(["3e-06 / 3e-07"] * len(MODALITIES)) + " |"
    assert flex == "| a | packed, flex | " + " | ".join(["2e-06 / -"] * len(MODALITIES)) + " |"
    assert cascade == "| a | packed, cascade | " + " | ".join(["cannot"] * len(MODALITIES)) + " |"
    assert rows == "| a | rows, sdpa | " + " | ".join(["cannot"] * len(MODALITIES)) + " |"
