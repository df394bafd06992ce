import json
import math
import multiprocessing
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stand_ins.little_work import little_work

from mmrlhf.errors import ConfigError, DataError
from mmrlhf.parts import ARTIFACT_FILE
from mmrlhf.shards.sidecar import SideCar, SideCarWriter
from mmrlhf.shards.sidecar_files import HASH, KEY, begin_table, require_tables, write_part

MADE_BY = {"model": {"path": "tiny", "digest": "abc"}, "template": "critique"}


def write(folder, rows, *, columns=("reward",), fingerprint=MADE_BY, **options):
    with SideCarWriter(folder, columns=columns, fingerprint=fingerprint, **options) as writer:
        for key, name, values in rows:
            writer.add(key, name, values)


@settings(deadline=None, max_examples=25)
@given(
    st.dictionaries(
        st.text("abcdef", min_size=1, max_size=3),
        st.dictionaries(st.text("0123456789abcdef", min_size=2, max_size=2), st.floats(-1e6, 1e6), min_size=1),
        min_size=1,
    ),
    st.integers(1, 5),
)
def test_what_goes_in_comes_out_in_the_order_asked_for(tmp_path_factory, groups, rows_per_part):
    folder = tmp_path_factory.mktemp("table")
    rows = [(key, name, {"reward": value}) for key, group in groups.items() for name, value in group.items()]
    write(folder, rows, rows_per_part=rows_per_part)
    table = SideCar.load(folder)
    assert len(table) == len(rows) and table.keys() == set(groups)
    assert all(key in table for key in groups) and "another" not in table
    for key, group in groups.items():
        names = sorted(group, reverse=True)
        found = table.lookup(key, names)["reward"]
        assert found.dtype == torch.float32 and found.shape == (len(names),)
        np.testing.assert_allclose(found, np.array([group[name] for name in names], np.float32))


def test_texts_and_numbers_live_side_by_side(tmp_path):
    rows = [("k", "h1", {"reward": 1, "critique": "good"}), ("k", "h2", {"reward": -2, "critique": ""})]
    write(tmp_path, rows, columns=("reward", "critique"))
    table = SideCar.load(tmp_path)
    assert table.texts("k", ["h2", "h1"], "critique") == ["", "good"]
    numbers = table.lookup("k", ["h1", "h2"])
    assert list(numbers) == ["reward"]
    assert numbers["reward"].tolist() == [1, -2]
    assert SideCar.load(tmp_path, columns=["critique"]).lookup("k", ["h1"]) == {}
    assert table.fingerprint == MADE_BY


def test_a_missing_response_is_an_error_that_names_key_table_and_fingerprint(tmp_path):
    write(tmp_path, [("k1", "h1", {"reward": 1.0})])
    table = SideCar.load(tmp_path)
    for key, name in (("k2", "h1"), ("k1", "h2")):
        with pytest.raises(DataError) as error:
            table.lookup(key, [name])
        for part in (key, name, str(tmp_path), "abc"):
            assert part in str(error.value)


def test_a_cut_off_pass_goes_on_where_parts_end(tmp_path):
    """Group b is added but never flushed; group c raises. Only a is done, and the same rows complete the table."""
    writer = SideCarWriter(tmp_path, columns=["reward"], fingerprint=MADE_BY)
    writer.add("a", "h", {"reward": 1})
    writer.flush()
    writer.add("b", "h", {"reward": 2})
    assert writer.done_keys() == {"a", "b"}
    again = SideCarWriter(tmp_path, columns=["reward"], fingerprint=MADE_BY)
    assert again.done_keys() == {"a"}
    with pytest.raises(RuntimeError), again:
        again.add("c", "h", {"reward": 3})
        raise RuntimeError("the machine went away")
    write(tmp_path, [(key, "h", {"reward": value}) for key, value in (("b", 2), ("c", 3))])
    table = SideCar.load(tmp_path)
    assert {key: float(table.lookup(key, ["h"])["reward"]) for key in table.keys()} == {"a": 1, "b": 2, "c": 3}


def test_parts_hold_whole_groups(tmp_path):
    rows = [(f"k{i // 3}", f"h{i % 3}", {"reward": i}) for i in range(30)]
    write(tmp_path, rows, rows_per_part=4)
    parts = [pq.read_table(path).column("key").to_pylist() for path in tmp_path.glob("part-*.parquet")]
    assert len(parts) == 5 and sum(len(set(keys)) for keys in parts) == 10


def test_a_half_written_part_is_ignored(tmp_path):
    write(tmp_path, [("a", "h", {"reward": 1})])
    (tmp_path / ".part-r0000-12345678-000001.parquet.tmp").write_bytes(b"PAR1 half")
    assert SideCar.load(tmp_path).keys() == {"a"}
    write(tmp_path, [("b", "h", {"reward": 2})])
    assert SideCar.load(tmp_path).keys() == {"a", "b"}


def test_a_damaged_part_is_an_error_that_names_it(tmp_path):
    write(tmp_path, [("a", "h", {"reward": 1})])
    part = next(tmp_path.glob("part-*.parquet"))
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(DataError, match=part.name) as caught:
        SideCar.load(tmp_path)
    assert "delete this part" in str(caught.value.fix)
    (tmp_path / ARTIFACT_FILE).touch()
    with pytest.raises(DataError, match=part.name) as caught:
        SideCar.load(tmp_path)
    assert f"delete {tmp_path}, " in str(caught.value.fix), "the pass is finished: nothing fills in what is deleted"


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_never_read_as_a_value(tmp_path_factory, place, bit):
    """Wherever it is, in a page or in the footer: the part is named."""
    folder = tmp_path_factory.mktemp("table")
    rows = [(f"k{i}", "h", {"reward": i / 7}) for i in range(50)]
    write(folder, rows)
    part = next(folder.glob("part-*.parquet"))
    data = bytearray(part.read_bytes())
    data[int(place * len(data))] ^= 1 << bit
    part.write_bytes(data)
    with pytest.raises(DataError, match=part.name):
        SideCar.load(folder)


def test_going_on_beside_a_damaged_part_names_it_and_deleting_it_is_enough(tmp_path):
    for key in "ab":
        write(tmp_path, [(key, "h", {"reward": 1})])
    part = sorted(tmp_path.glob("part-*.parquet"))[0]
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.raises(DataError, match=part.name):
        SideCarWriter(tmp_path, columns=["reward"], fingerprint=MADE_BY)
    part.unlink()
    assert len(SideCarWriter(tmp_path, columns=["reward"], fingerprint=MADE_BY).done_keys()) == 1


def _write_many(folder, name, start, count):
    with SideCarWriter(folder, columns=["reward"], fingerprint=MADE_BY, rows_per_part=1) as writer:
        for number in range(start, start + count):
            writer.add(f"{name}{number}", "h", {"reward": number})


def test_two_processes_under_one_rank_lose_nothing(tmp_path):
    """Both write to a fresh folder at the same time, a part for every group."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_write_many, args=(tmp_path, name, 0, 20)) for name in "ab"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert SideCar.load(tmp_path).keys() == {f"{name}{number}" for name in "ab" for number in range(20)}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"fingerprint": {**MADE_BY, "model": {"path": "tiny", "digest": "xyz"}}}, "model.digest: before 'abc'"),
        ({"fingerprint": {**MADE_BY, "extra": 1}}, "extra: before 'nothing', now 1"),
        ({"columns": ("margin",)}, "columns"),
    ],
)
def test_reopening_with_another_fingerprint_is_refused(tmp_path, change, named):
    write(tmp_path, [("a", "h", {"reward": 1})])
    with pytest.raises(DataError, match=named):
        SideCarWriter(tmp_path, **{"columns": ("reward",), "fingerprint": MADE_BY, **change})


def test_ranks_write_side_by_side(tmp_path):
    for rank in range(3):
        write(tmp_path, [(f"k{rank}", "h", {"reward": rank})], rank=rank)
    assert SideCar.load(tmp_path).keys() == {"k0", "k1", "k2"}
    assert SideCarWriter(tmp_path, columns=["reward"], fingerprint=MADE_BY).done_keys() == {"k0", "k1", "k2"}


def test_equal_duplicates_are_fine_and_contradictions_are_not(tmp_path):
    write(tmp_path, [("a", "h", {"reward": 1.0}), ("a", "h", {"reward": 1.0 + 1e-7})])
    write(tmp_path, [("a", "h", {"reward": 1.0 + 1e-6}), ("b", "h", {"reward": 2.0})])
    assert len(SideCar.load(tmp_path)) == 2
    write(tmp_path, [("b", "h", {"reward": 2.5})])
    with pytest.raises(DataError, match=r"key b.*2\.0 and 2\.5"):
        SideCar.load(tmp_path)


def test_no_table_and_unknown_columns_are_errors(tmp_path):
    with pytest.raises(DataError, match="no side-car table"):
        SideCar.load(tmp_path / "nowhere")
    write(tmp_path, [("a", "h", {"reward": 1})])
    with pytest.raises(DataError, match="margin"):
        SideCar.load(tmp_path, columns=["margin"])


def test_parts_of_different_types_are_an_error(tmp_path):
    write(tmp_path, [("a", "h", {"reward": 1})])
    write(tmp_path, [("b", "h", {"reward": "much"})])
    with pytest.raises(DataError, match="type"):
        SideCar.load(tmp_path)


def test_an_empty_table_loads(tmp_path):
    write(tmp_path, [])
    table = SideCar.load(tmp_path)
    assert len(table) == 0
    with pytest.raises(DataError, match="no values for group a"):
        table.lookup("a", ["h"])


def test_the_meta_file_is_plain_json_and_parts_plain_parquet(tmp_path):
    write(tmp_path, [("a", "h", {"reward": 1})])
    assert json.loads((tmp_path / "_meta.json").read_text()) == {"columns": ["reward"], "fingerprint": MADE_BY}
    schema = pq.read_schema(next(tmp_path.glob("part-*.parquet")))
    assert schema.types == [pa.string(), pa.string(), pa.float64()]


def test_wrong_columns_are_a_programming_error(tmp_path):
    writer = SideCarWriter(tmp_path, columns=["reward"], fingerprint=MADE_BY)
    with pytest.raises(ValueError, match="reward"):
        writer.add("a", "h", {"margin": 1})
    with pytest.raises(ValueError, match="distinct"):
        SideCarWriter(tmp_path, columns=["key"], fingerprint=MADE_BY)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_not_written(tmp_path, value):
    with pytest.raises(DataError, match="not finite") as caught:
        write(tmp_path, [("k1", "h1", {"reward": 1.0}), ("k2", "h2", {"reward": value})])
    assert "key k2, response hash h2" in str(caught.value) and "'reward'" in str(caught.value)


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("reward", pa.array([1.0, math.nan, 2.0])),
        ("reward", pa.array([1.0, -math.inf, 2.0])),
        ("reward", pa.array([1.0, None, 2.0])),
        ("reward", pa.array([1, None, 2], pa.int64())),
        ("critique", pa.array(["a", None, "b"])),
    ],
)
def test_a_table_of_another_program_with_such_a_value_is_refused(tmp_path, column, values):
    """The middle row's; a column that is not asked for may hold anything."""
    other = {"reward": pa.array([1.0, 2.0, 3.0]), "critique": pa.array(["", "", ""])} | {column: values}
    begin_table(tmp_path, {"columns": ["reward", "critique"], "fingerprint": {}})
    rows = {"key": ["k1", "k2", "k3"], "response_hash": ["h1", "h2", "h3"], **other}
    write_part(tmp_path, "other", pa.table(rows))
    with pytest.raises(DataError, match="key k2, response hash h2") as caught:
        SideCar.load(tmp_path)
    assert f"'{column}'" in str(caught.value)
    wanted = "critique" if column == "reward" else "reward"
    assert len(SideCar.load(tmp_path, columns=[wanted])) == 3


@pytest.mark.parametrize(
    "table",
    [
        pa.table({"key": ["k"], "response_hash": ["h"]}),
        pa.table({"key": [1], "response_hash": ["h"], "reward": [1.0]}),
        pa.table({"key": pa.array([None], pa.string()), "response_hash": ["h"], "reward": [1.0]}),
        pa.table({"key": ["k"], "response_hash": pa.array([None], pa.string()), "reward": [1.0]}),
        pa.table({"key": ["k"], "response_hash": ["h"], "reward": [[1.0]]}),
        pa.table({"key": ["k"], "response_hash": ["h"], "reward": [{"a": 1}]}),
        pa.table({"key": ["k"], "response_hash": ["h"], "reward": [True]}),
        pa.table({"key": ["k"], "response_hash": ["h"], "reward": [b"1"]}),
        pa.table({"key": ["k"], "response_hash": ["h"], "reward": [1e300]}),
        pa.table({"key": ["k"], "response_hash": ["h"], "reward": [-np.inf]}),
    ],
    ids=lambda table: str(table.to_pylist()),
)
def test_a_table_of_a_stranger_holds_what_a_writer_would_write(tmp_path, table):
    begin_table(tmp_path, {"columns": ["reward"], "fingerprint": {}})
    write_part(tmp_path, "r0000-00000000-000000", table)
    with pytest.raises(DataError, match=str(tmp_path)):
        SideCar.load(tmp_path)


@pytest.mark.parametrize(
    "content",
    ["[]", "{", "3", '{"columns": ["reward"]}', '{"columns": ["key"], "fingerprint": {}}', "[" * 100_000,
     '{"columns": ["reward", "reward"], "fingerprint": {}}', '{"columns": "reward", "fingerprint": {}}'],
    ids=lambda text: text[:40],
)  # fmt: skip
def test_what_a_stranger_says_of_a_table(tmp_path, content):
    write(tmp_path, [("a", "h", {"reward": 1})])
    (tmp_path / "_meta.json").write_text(content)
    with pytest.raises(DataError, match="no side-car table"):
        SideCar.load(tmp_path)


@pytest.mark.parametrize("content", ["[]", "{", '{"a": 1}', '{"a": ["b"]}', '[["a", "b"]]', "[" * 100_000, "\udcff"])
def test_what_a_stranger_says_of_queries_left_out(tmp_path, content):
    write(tmp_path, [("a", "h", {"reward": 1})])
    (tmp_path / "left-out-x.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match="left-out-x"):
        SideCar.load(tmp_path)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["_meta.json", "left-out-x.json"])
def test_a_pipe_is_no_part_of_a_table(tmp_path, name):
    write(tmp_path, [("a", "h", {"reward": 1})])
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError):
        SideCar.load(tmp_path)


def test_a_folder_in_place_of_a_stage_is_looked_at_first(tmp_path, monkeypatch) -> None:
    """What stages will write or lies elsewhere is not; the argument is named, of which composition knows the key."""
    require_tables({"rewards": None, "reference": "stage:reference/logprobs", "tables.far": "s3://bucket/rewards"})
    with pytest.raises(DataError, match="no side-car table") as caught:
        require_tables({"rewards": None, "tables.own": tmp_path})
    assert caught.value.argument == "tables.own" and str(tmp_path) in caught.value.given
    write(tmp_path / "table", [("a", "h", {"reward": 1})])
    monkeypatch.setenv("HOME", str(tmp_path))
    require_tables({"rewards": "~/table"})
    with pytest.raises(ConfigError, match="home folder") as nobody:
        require_tables({"rewards": "~no-such-user/table"})
    assert nobody.value.argument == "rewards" and nobody.value.given == "~no-such-user/table"


def test_asking_whether_a_group_is_there_does_not_walk_through_the_table(tmp_path):
    """Every query of a data set asks: best of n of 100,000 took hours, as each made a set of all keys."""
    rows = pa.table({"key": [f"k{n}" for n in range(50_000)], "hash": ["h"] * 50_000, "reward": [0.0] * 50_000})
    table = SideCar(tmp_path, {}, rows.rename_columns([KEY, HASH, "reward"]))
    with little_work():
        assert sum(f"k{n}" in table for n in range(60_000)) == 50_000
