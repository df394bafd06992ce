import pytest
import torch
from stand_ins.fake_groups import FakeEncoder, make_dataset

from mmrlhf.errors import ConfigError, DataError
from mmrlhf.shards.sidecar import SideCar, SideCarWriter
from mmrlhf.types import response_hash


def make_table(folder, columns, num_groups, fingerprint="maker") -> SideCar:
    with SideCarWriter(folder, columns=columns, fingerprint={"from": fingerprint}) as writer:
        for i in range(num_groups):
            for j, text in enumerate("ab"):
                writer.add(f"g{i}", response_hash(text), {name: 10 * i + j for name in columns})
    return SideCar.load(folder)


def test_columns_are_joined_by_key_and_response(tmp_path):
    tables = make_table(tmp_path / "r", ["reward"], 4), make_table(tmp_path / "l", ["reference_logprob"], 4)
    columns = make_dataset(4, *tables)[3].columns
    assert set(columns) == {"rank", "reward", "reference_logprob"}
    assert columns["reward"].tolist() == [30, 31] and columns["reward"].dtype == torch.float32


def test_a_group_that_a_table_lacks_is_an_error_that_names_both(tmp_path):
    dataset = make_dataset(5, make_table(tmp_path / "rewards", ["reward"], 4))
    with pytest.raises(DataError, match=r"(?s)g4.*rewards.*maker"):
        dataset[4]


def test_two_tables_with_one_column_are_refused(tmp_path):
    tables = make_table(tmp_path / "a", ["reward"], 1), make_table(tmp_path / "b", ["reward"], 1)
    with pytest.raises(ConfigError, match="reward"):
        make_dataset(1, *tables)


@pytest.mark.parametrize(("cache_gib", "times"), [(1.0, 1), (0.0, 2)])
def test_a_row_is_encoded_once_if_it_fits_into_the_cache(tmp_path, monkeypatch, cache_gib, times):
    """The tables are joined each time, whether the row came from the cache or not."""
    asked = []
    encode = FakeEncoder.__call__
    monkeypatch.setattr(FakeEncoder, "__call__", lambda self, group: (asked.append(group.key), encode(self, group))[1])
    dataset = make_dataset(4, make_table(tmp_path, ["reward"], 4), cache_gib=cache_gib)
    first, again = dataset[2], dataset[2]
    assert asked == ["g2"] * times
    assert first.columns["reward"].tolist() == again.columns["reward"].tolist() == [20, 21]
    assert torch.equal(first.prefix_ids, again.prefix_ids)


def test_the_cache_keeps_to_its_size(monkeypatch):
    """Room for one group only: the first stays, the second is encoded every time."""
    asked = []
    encode = FakeEncoder.__call__
    monkeypatch.setattr(FakeEncoder, "__call__", lambda self, group: (asked.append(group.key), encode(self, group))[1])
    dataset = make_dataset(6, cache_gib=100 / 2**30)
    for row in (0, 5, 0, 5):  # 66 bytes each: 4 tokens and 3 positions' worth of int64, two label flags
        dataset[row]
    assert asked == ["g0", "g5", "g5"]
