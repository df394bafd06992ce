"""The comparison with TRL: what its ratio is made of, and TRL scoring as on a GPU."""

from __future__ import annotations

from math import prod

import pytest
import torch

from benchmarks.measure import Timing
from benchmarks.vs_trl import STEPS, decomposition, ratios
from benchmarks.workload import SHAPES, make_query, single_pairs

WAYS = ("trl", "trl_matched", "trl_labels", "pairs", "rows", "ours_with_reference", "ours")


def test_the_factors_multiply_to_the_whole_ratio() -> None:
    """Each step's two ways are neighbours, from TRL's defaults to ours."""
    assert [slow for slow, _ in STEPS.values()] == list(WAYS[:-1])
    assert [fast for _, fast in STEPS.values()] == list(WAYS[1:])
    timings = {way: Timing([1.0], [2.0**number]) for number, way in enumerate(reversed(WAYS))}
    found = decomposition(timings)
    assert prod(found.values()) == ratios(timings)["trl_over_ours_cpu"] == 64


def test_pairs_are_queries_of_two_responses() -> None:
    query = make_query(3, 0, shape=SHAPES["tiny"])
    texts = [[response.text for response in pair.responses] for pair in single_pairs(query)]
    every = [response.text for response in query.responses]
    assert texts == [[every[i], every[j]] for i, j in ((0, 1), (0, 2), (1, 2))]


def test_trl_asks_where_it_is_told_and_nowhere_else() -> None:
    utils = pytest.importorskip("trl.trainer.utils")
    from trl.kernels import chunked_logprob  # pyright: ignore[reportMissingImports]

    from benchmarks.theirs import scoring_labels_only

    cpu = torch.device("cpu")
    with scoring_labels_only():
        assert utils._use_triton(cpu) and not chunked_logprob._use_triton(cpu)
    assert not utils._use_triton(cpu)
