"""Tables of strangers: a value that Python cannot hold costs its row, or nothing where it can be said in text."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmrlhf.errors import DataError
from mmrlhf.records.sources import file_source

TIMES = {
    "year 148,000,000": (pa.array([0, 2**62], pa.timestamp("ms")), "1970-01-01 00:00:00.000"),
    "before all years": (pa.array([0, -(2**62)], pa.timestamp("us")), "1970-01-01 00:00:00.000000"),
    "nanoseconds": (pa.array([1, 2**62 + 1], pa.timestamp("ns")), "1970-01-01 00:00:00.000000001"),
    "day of no calendar": (pa.array([0, 2**31 - 1], pa.int32()).view(pa.date32()), "1970-01-01"),
    "long time": (pa.array([5, 2**62], pa.duration("s")), "5"),
}


def rows_of(path: Path, **columns: pa.Array) -> list:
    pq.write_table(pa.table({"id": ["a", "b"], **columns}), path / "t.parquet")
    return [row for _, row in file_source(path / "t.parquet").rows("reject")]


@pytest.mark.parametrize("kind", TIMES)
def test_times_that_python_does_not_know_are_text(tmp_path: Path, kind: str) -> None:
    column, text = TIMES[kind]
    first, second = rows_of(tmp_path, made=column)
    assert first == {"id": "a", "made": text} and isinstance(second["made"], str)


def test_a_value_that_is_none_costs_its_row_alone(tmp_path: Path) -> None:
    first, second = rows_of(tmp_path, prompt=pa.array([b"p", b"\xff"], pa.binary()).view(pa.string()))
    assert first == {"id": "a", "prompt": "p"} and isinstance(second, DataError)
    assert second.where == "t.parquet:2" and "UnicodeDecodeError" in str(second.given)
    with pytest.raises(DataError, match="cannot be read"):
        list(file_source(tmp_path / "t.parquet").rows("error"))


def test_times_within_lists(tmp_path: Path) -> None:
    first, second = rows_of(tmp_path, made=pa.array([[0], [2**62]], pa.list_(pa.timestamp("ms"))))
    assert first["id"] == "a" and isinstance(second, DataError)
