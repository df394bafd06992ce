"""Near duplicates: nearly all that comparing every two would find, and which of them fall for which."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stand_ins.little_work import little_work
from stand_ins.sample_groups import write_records
from torch import Tensor
from torch.nn.functional import normalize

from mmrlhf.curation import neighbours
from mmrlhf.curation.duplicates import (
    BENCHMARK,
    CROWDED,
    DUPLICATE,
    KEPT,
    NO_FEATURES,
    DuplicateSettings,
    KeptRows,
    decide,
)
from mmrlhf.curation.encoding import text_digest
from mmrlhf.curation.neighbours import Sameness, first_of_each, near_pairs
from mmrlhf.curation.query_rows import Queries, QuerySet, write_queries
from mmrlhf.records.query_sets import import_queries


def unit(count: int, dim: int = 24, seed: int = 0) -> Tensor:
    return normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def copies(rows: Tensor, noise: float, seed: int = 1) -> Tensor:
    return normalize(rows + noise * unit(len(rows), rows.shape[1], seed), dim=1)


def test_cells_find_what_comparing_every_two_finds() -> None:
    themes = unit(40, seed=5).repeat(75, 1)
    rows = copies(themes, 1.0, seed=6)
    rows = torch.cat([rows, copies(rows[:600], 0.2)])
    same = Sameness(0.97)
    found = near_pairs(lambda wanted: rows[wanted], np.zeros(3600, np.uint64), same)
    wanted = {(a, b) for a, b in ((rows @ rows.T).triu(1) >= 0.97).nonzero().tolist()}
    pairs = set(zip(found.first.tolist(), found.second.tolist(), strict=True))
    assert pairs <= wanted and len(pairs) >= 0.99 * len(wanted) > 500
    assert np.allclose(found.cosine, (rows[found.first] * rows[found.second]).sum(1), atol=1e-5)


def test_hashes_lower_the_cosine_that_is_asked_for_and_say_nothing_where_there_are_none() -> None:
    rows = torch.cat([unit(200), copies(unit(200), 0.4)])  # cosine about .93
    hashes = np.arange(1, 401, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    hashes[200:260] = hashes[:60] ^ np.uint64(0b101)  # two bits
    hashes[[10, 210]] = 0
    same = Sameness(0.99, 0.85, 4)
    found = near_pairs(lambda wanted: rows[wanted], hashes, same, cells=1)
    assert set(zip(found.first.tolist(), found.second.tolist(), strict=True)) == {
        (n, 200 + n) for n in range(60) if n != 10
    }
    assert set(found.bits.tolist()) == {2}


def test_equal_hashes_are_compared_whatever_their_cells() -> None:
    rows = unit(400)
    hashes = np.arange(1, 401, dtype=np.uint64)
    hashes[[5, 100, 399]] = 7_000
    found = near_pairs(lambda wanted: rows[wanted], hashes, Sameness(1.1, -1.1, 0))
    assert {(5, 100), (5, 399)} <= set(zip(found.first.tolist(), found.second.tolist(), strict=True))


def test_a_crowd_is_counted_and_its_pairs_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "MOST", 3)
    rows = unit(1).expand(50, -1)
    found = near_pairs(lambda wanted: rows[wanted], np.zeros(50, np.uint64), Sameness(0.97))
    assert found.crowded >= 46 and len(found.first) <= 50 * 3
    leader = first_of_each(50, found.first, found.second)
    assert not leader.any()


def test_of_a_chain_the_ends_are_kept() -> None:
    leader = first_of_each(4, np.array([0, 1, 2]), np.array([1, 2, 3]))
    assert leader.tolist() == [0, 0, 2, 2]


@given(st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.tuples(*[st.integers(0, n - 1)] * 2)))))
def test_whoever_falls_has_a_kept_twin_and_no_two_kept_are_twins(given_: tuple[int, set[tuple[int, int]]]) -> None:
    n, drawn = given_
    pairs = sorted({(min(a, b), max(a, b)) for a, b in drawn if a != b})
    first, second = (np.array([pair[side] for pair in pairs], dtype=np.int64) for side in (0, 1))
    leader = first_of_each(n, first, second)
    kept = leader == np.arange(n)
    assert not any(kept[a] and kept[b] for a, b in pairs)
    assert all(kept[leader[row]] and (leader[row], row) in pairs for row in np.flatnonzero(~kept))


@dataclass
class PlainFeatures:
    """Features that are given: `rows` (N, D), the first half of pictures."""

    rows: Tensor
    media: np.ndarray
    hashes: np.ndarray
    texts: np.ndarray
    left_out: dict[int, str] = field(default_factory=dict)
    of_texts: bool = False

    @property
    def picture_dim(self) -> int:
        return 0 if self.of_texts else self.rows.shape[1] // 2

    def take(self, rows: np.ndarray, columns: slice) -> Tensor:
        half = self.rows.shape[1] // 2
        return self.rows[rows, half:] if self.of_texts else self.rows[rows, columns]


# set, question, picture (None: none); a picture x' is nearly x
ROWS = [
    ("pool", "what is the red thing here", "x"),
    ("pool", "what is the red thing here", "x'"),
    ("pool", "how many birds are there", "x"),
    ("pool", "what is the red thing here", "y"),
    ("pool", "who stands on the left", "y"),
    ("pool", "where does this street lead", "y'"),
    ("pool", "name the capital of france please", None),
    ("pool", "please name the capital of france", None),
    ("pool", "name the second planet", None),
    ("pool", "is that a boat", "z'"),
    ("pool", "nothing to see", "w"),
    ("bench", "describe", "z"),
    ("bench", "what is two plus two", None),
    ("pool", "what is two plus two", None),
]


def a_pool(root: Path) -> tuple[Queries, PlainFeatures]:
    sets = {}
    for name in ("pool", "bench"):
        rows = [{"id": n, "prompt": text} for n, (owner, text, _) in enumerate(ROWS) if owner == name]
        write_records(root / name, "s.jsonl", rows)
        sets[name] = QuerySet(root / name, import_queries, against=name == "bench")
    write_queries(root / "q", sets)
    order = sorted(ROWS, key=lambda row: row[0] == "bench")
    pictures = {name: row for name, row in zip("xyzw", unit(4), strict=True)}
    pictures |= {f"{name}'": copies(row[None], 0.1)[0] for name, row in pictures.items()}
    nothing = torch.zeros(24)
    texts = dict.fromkeys((row[1] for row in order if "capital" in row[1]), unit(1, seed=9)[0])
    halves = [
        torch.cat([pictures[shown] if shown else nothing, texts.get(text, unit(1, seed=len(text))[0])])
        for _, text, shown in order
    ]
    media = np.array([hash_of(shown) for _, _, shown in order], dtype=np.uint64)
    texts_of = np.array([text_digest(text) for _, text, _ in order], dtype=np.uint64)
    return Queries(root / "q"), PlainFeatures(torch.stack(halves), media, np.zeros(len(ROWS), np.uint64), texts_of)


def hash_of(name: str | None) -> int:
    return 0 if name is None else int.from_bytes(name.encode().ljust(8, b"."))


def test_which_query_falls_and_why(tmp_path: Path) -> None:
    queries, features = a_pool(tmp_path)
    features.left_out[10] = "features are zero"
    found = decide(queries, features, DuplicateSettings(per_picture=2))  # type: ignore[arg-type]
    texts = [queries.text(row) for row in range(len(queries))]
    fates = dict(enumerate(found.fate.tolist()))
    assert fates == {
        0: KEPT,
        1: DUPLICATE,  # the same question about nearly the same picture
        2: KEPT,  # another question about it
        3: KEPT,  # the same question about another picture
        4: KEPT,
        5: CROWDED,  # a third question about that picture
        6: KEPT,
        7: DUPLICATE,  # the same words
        8: KEPT,
        9: BENCHMARK,  # nearly a benchmark's picture, whatever is asked
        10: NO_FEATURES,
        11: BENCHMARK,  # a benchmark's question
        12: KEPT,
        13: KEPT,  # the benchmark itself
    }, texts
    because = found.because
    assert because[1] == 0 and because[5] == 3 and because[7] == 6 and because[9] == 12 and because[11] == 13
    assert (because[[0, 2, 3]] == -1).all() and len(found.pairs.first) >= 3


def test_texts_alone_are_compared_where_they_are_about_the_same_bytes(tmp_path: Path) -> None:
    """Of queries whose pictures have no features the same question about two pictures was a duplicate."""
    queries, features = a_pool(tmp_path)
    features.of_texts = True
    found = decide(queries, features, DuplicateSettings())  # type: ignore[arg-type]
    fell = {row: (fate, found.because[row]) for row, fate in enumerate(found.fate.tolist()) if fate != KEPT}
    assert fell == {7: (DUPLICATE, 6), 11: (BENCHMARK, 13)}
    features.media[3] = features.media[0]
    found = decide(queries, features, DuplicateSettings())  # type: ignore[arg-type]
    assert found.fate[3] == DUPLICATE and found.because[3] == 0


def test_a_large_cell_is_compared_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the blocks, the same pairs, and of a crowd the earliest partners of each row."""
    rows = copies(unit(30, seed=5).repeat(10, 1), 0.3, seed=6)
    rows[100:180] = copies(unit(1, seed=8).repeat(80, 1), 0.05)

    def pairs() -> tuple[set[tuple[int, int]], int]:
        found = near_pairs(lambda wanted: rows[wanted], np.zeros(300, np.uint64), Sameness(0.9), cells=1)
        return set(zip(found.first.tolist(), found.second.tolist(), strict=True)), found.crowded

    wanted = pairs()
    assert wanted[1] == 80 and len(wanted[0]) > 80 * 64 // 2
    for at_once in (1, 7, 299):
        monkeypatch.setattr(neighbours, "_KEYS_AT_ONCE", at_once)
        assert pairs() == wanted


def kept_of(texts: list[frozenset[str]], share: float) -> list[int | None]:
    """For each row the first kept one that is the same; the others are kept."""
    kept = KeptRows(lambda row: texts[row], share, Counter(word for words in texts for word in words))
    found = []
    for row in range(len(texts)):
        found.append(kept.twin(row))
        if found[-1] is None:
            kept.add(row)
    return found


@given(
    st.lists(st.frozensets(st.sampled_from("abcdefg"), max_size=6), max_size=12),
    st.sampled_from([0.0, 0.2, 1 / 3, 0.5, 0.6, 0.75, 0.8, 1.0]),
)
def test_rows_that_share_words_are_found_as_by_comparing_every_two(texts: list[frozenset[str]], share: float) -> None:
    kept: list[int] = []
    for row, found in enumerate(kept_of(texts, share)):
        both = [(len(texts[row] & texts[other]), len(texts[row] | texts[other])) for other in kept]
        same = [
            other for other, (common, all_) in zip(kept, both, strict=True) if (common / all_ if all_ else 1) >= share
        ]
        assert found == (same[0] if same else None)
        kept += [] if same else [row]


def test_questions_of_one_template_are_not_compared_with_every_other() -> None:
    """4,000 of them would be eight million comparisons."""
    with little_work():
        texts = [frozenset(f"what is {number} plus {7 * number + 1}".split()) for number in range(4000)]
        assert kept_of(texts, 0.8) == [None] * 4000
