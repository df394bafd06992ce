"""Rows as points of a plane: UMAP where it is installed, principal components elsewhere.

Follows: UMAP (McInnes, Healy and Melville, arXiv 1802.03426), which the paper (MM-RLHF, arXiv 2502.10391) shows its
sample's diversity with. It keeps neighbours together; distances between groups, and sizes of groups, say nothing.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

# below so many points a map of neighbours shows its own settings more than the points
FEWEST, NEIGHBOURS = 500, 15
NOT_INSTALLED = 'umap-learn is not installed: pip install "mmrlhf[curate]"'


@dataclass(frozen=True)
class FlatMap:
    """Points (n, 2), the names of both axes, how they were found, and why in this way."""

    points: np.ndarray
    axes: tuple[str, str]
    method: str
    why: str = ""


def flat_map(rows: Tensor, *, seed: int) -> FlatMap:
    """A map of unit rows (n, D), the same for the same rows and seed on one machine."""
    if find_spec("umap") is None:
        return _pca(rows, NOT_INSTALLED)
    if len(rows) < FEWEST:
        return _pca(rows, f"UMAP takes {FEWEST} points or more")
    with warnings.catch_warnings():
        # it says that TensorFlow is absent, which only another class of it would want
        warnings.simplefilter("ignore", ImportWarning)
        import umap  # pyright: ignore[reportMissingImports]
    # cosines are what curation compares; one thread, because several would not give the same again
    reducer = umap.UMAP(
        n_components=2, n_neighbors=NEIGHBOURS, metric="cosine", init="pca", random_state=seed, n_jobs=1
    )
    points = np.asarray(reducer.fit_transform(rows.numpy()), dtype=np.float64)
    return FlatMap(points, ("UMAP, first axis", "second"), "UMAP")


def _pca(rows: Tensor, why: str) -> FlatMap:
    points = ((rows - rows.mean(0)) @ principal_axes(rows)).double().numpy()
    return FlatMap(points, ("first principal axis", "second"), "principal components", why)


def principal_axes(rows: Tensor) -> Tensor:
    """The two directions (D, 2) along which rows (n, D) differ most, each with its largest number positive."""
    centred = rows - rows.mean(0)
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    axes = vectors[:, -2:].flip(1)
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    return axes * torch.where(largest < 0, -1.0, 1.0)
