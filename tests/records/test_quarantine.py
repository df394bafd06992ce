"""The budget of queries that are left out: what a table says of others does not count, what it says of these does."""

from __future__ import annotations

import pytest

from mmrlhf.errors import DataError
from mmrlhf.records.quarantine import Quarantine


def test_what_a_table_left_out_counts_where_it_is_of_these_queries() -> None:
    found = Quarantine(3000)
    found.take_over({"a": "dark", "b": "dark", **dict.fromkeys(map(str, range(9)), "of others")}, {"a", "b"}, "table")
    assert found.reasons == {"a": "dark", "b": "dark"} and found.summary().queries == 2
    with pytest.raises(DataError, match=r"too many queries(?s:.)*table(?s:.)*4 of 3000"):
        found.take_over({"b": "loud", "c": "loud", "d": "loud"}, set("abcd"), "table")
    assert found.reasons["b"] == "dark", "the first reason stays"
