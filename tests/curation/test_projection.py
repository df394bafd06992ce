"""Maps of rows: UMAP where it is there and there are enough of them, else principal components, and it says which."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from mmrlhf.curation import projection
from mmrlhf.curation.projection import FEWEST, NOT_INSTALLED, flat_map


def two_groups(count: int, dim: int = 12) -> torch.Tensor:
    """Rows around two directions, in turn."""
    generator = torch.Generator().manual_seed(0)
    themes = normalize(torch.randn(2, dim, generator=generator), dim=1).repeat(count // 2, 1)
    return normalize(themes + 0.3 * normalize(torch.randn(count, dim, generator=generator), dim=1), dim=1)


def test_principal_components_are_those_of_a_decomposition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection, "find_spec", lambda name: None)
    rows = two_groups(FEWEST)
    found = flat_map(rows, seed=0)
    assert found.method == "principal components" and found.why == NOT_INSTALLED and "mmrlhf[curate]" in found.why
    centred = rows.double().numpy() - rows.double().numpy().mean(0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    wanted = left[:, :2] * sizes[:2]
    assert np.allclose(np.abs(found.points), np.abs(wanted), atol=1e-4)
    assert np.array_equal(flat_map(rows, seed=1).points, found.points)


def test_few_rows_are_no_map_of_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection, "find_spec", lambda name: name)
    found = flat_map(two_groups(FEWEST - 2), seed=0)
    assert found.method == "principal components" and str(FEWEST) in found.why


@pytest.mark.slow
@pytest.mark.skipif(find_spec("umap") is None, reason="umap-learn is not installed")
def test_umap_gives_the_same_again_and_keeps_neighbours_together() -> None:
    rows = two_groups(FEWEST)
    found = flat_map(rows, seed=3)
    assert found.method == "UMAP" and not found.why and found.points.shape == (FEWEST, 2)
    assert np.array_equal(flat_map(rows, seed=3).points, found.points)
    assert not np.array_equal(flat_map(rows, seed=4).points, found.points)
    distance = ((found.points[:, None] - found.points) ** 2).sum(-1)
    np.fill_diagonal(distance, np.inf)
    nearest = distance.argmin(1)
    assert (nearest % 2 == np.arange(FEWEST) % 2).mean() > 0.98
