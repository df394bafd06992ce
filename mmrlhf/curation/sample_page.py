"""The page of a curation: a map, clusters as pictures, sizes before and after, pairs around thresholds, what fell."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from markupsafe import Markup
from PIL import Image

from mmrlhf.curation.duplicates import KEPT, Decisions, picture_rows
from mmrlhf.curation.encoding import pictures_of
from mmrlhf.curation.feature_parts import Features
from mmrlhf.curation.projection import FlatMap, flat_map
from mmrlhf.curation.query_rows import Queries
from mmrlhf.errors import DataError
from mmrlhf.reporting.maps import PALETTE
from mmrlhf.reporting.page_style import environment, style
from mmrlhf.reporting.plots import SERIES, new_axes, styled, to_svg
from mmrlhf.summaries.curations import CurateSummary
from mmrlhf.text import one_line

PAGE = "report.html"
_SIDE, _QUALITY = 96, 70  # pixels and JPEG quality of a thumbnail
_CLUSTERS, _NEAR, _FAR, _PAIRS, _FALLEN = 24, 5, 3, 12, 8
_POINTS, _COMPARED = 4_000, 4_000
# on the map; up to 4,096 points UMAP compares every two, and compiles no search for neighbours
_OF_POOL, _OF_SAMPLE = 2_500, 1_500
_LONGEST = 160


@dataclass(frozen=True)
class Shown:
    """One query on the page: a small picture (a data address, or nothing) and what it asks."""

    key: str
    text: str
    picture: str = ""


@dataclass(frozen=True)
class Pair:
    """Two queries side by side, with what was measured between them and what became of it."""

    left: Shown
    right: Shown
    cosine: float
    bits: int
    verdict: str


def write_page(
    queries: Queries,
    features: Features,
    decided: Decisions,
    cluster: np.ndarray,
    kept: np.ndarray,
    chosen: np.ndarray,
    summary: CurateSummary,
    thresholds: Mapping[str, float],
    *,
    seed: int,
) -> str:
    """The page as HTML that needs no other file.

    Args:
        cluster: of each row (N,), -1 without one.
        kept, chosen: rows that are left of the pool, and those of the sample.
        thresholds: names and values that decided what the same picture is.
    """
    rng = np.random.default_rng(seed)
    flat, sampled = _flat(features, kept, chosen, seed)
    return (
        environment()
        .get_template("curation.html.j2")
        .render(
            css=style(),
            summary=summary,
            map=_map(flat, sampled, len(kept), len(chosen)),
            flat=flat,
            sizes=_sizes(cluster[kept], cluster[chosen]),
            clusters=_sheet(queries, features, cluster, kept, chosen),
            pairs=_pairs(queries, features, decided, kept, thresholds["cosine"], rng),
            fallen=_fallen(queries, decided, rng),
            thresholds=thresholds,
            rejected=queries.facts["rejected_by_reason"],
        )
    )


@styled
def _map(found: FlatMap, sampled: np.ndarray, pool: int, sample: int) -> Markup:
    """Points of the pool, and above them those of the sample (n,)."""
    figure, axes = new_axes(6.4, 4.2)
    for which, label, colour, size in ((~sampled, "pool", "#8a94a3", 12), (sampled, "sample", PALETTE[1], 18)):
        axes.scatter(*found.points[which].T, s=size, c=colour, label=label, alpha=0.7, linewidths=0, rasterized=True)
    axes.legend(loc="best")
    axes.set_xlabel(found.axes[0])
    axes.set_ylabel(found.axes[1])
    return to_svg(figure, f"map of {pool} queries and the {sample} of the sample")


def _flat(features: Features, kept: np.ndarray, chosen: np.ndarray, seed: int) -> tuple[FlatMap, np.ndarray]:
    """A map of some of the kept rows and of the sample, and which of its points (n,) are of the sample."""
    rng = np.random.default_rng(seed)
    rows = np.union1d(rng.permutation(kept)[:_OF_POOL], rng.permutation(chosen)[:_OF_SAMPLE])
    return flat_map(features.take(rows), seed=seed), np.isin(rows, chosen)


@styled
def _sizes(before: np.ndarray, after: np.ndarray) -> Markup:
    """Shares of clusters before and after, the largest first."""
    figure, axes = new_axes(4.8, 2.6)
    for series, labels, name in ((0, before, "pool"), (1, after, "sample")):
        counts = np.sort(np.unique(labels, return_counts=True)[1])[::-1]
        axes.plot(np.arange(1, len(counts) + 1), counts / counts.sum(), color=SERIES[series], label=name,
                  marker="o" if len(counts) < 3 else "")  # fmt: skip
    axes.set_xlabel("clusters, the largest first")
    axes.set_ylabel("share of queries")
    axes.set_ylim(bottom=0)
    axes.legend()
    return to_svg(figure, "shares of clusters before and after")


def _sheet(
    queries: Queries, features: Features, cluster: np.ndarray, kept: np.ndarray, chosen: np.ndarray
) -> list[dict[str, Any]]:
    """The largest clusters: the queries nearest to the middle, the farthest, and how many there are and are chosen."""
    names, counts = np.unique(cluster[kept], return_counts=True)
    sampled = dict(zip(*np.unique(cluster[chosen], return_counts=True), strict=True))
    found = []
    for place in np.argsort(-counts, kind="stable")[:_CLUSTERS]:
        members = kept[cluster[kept] == names[place]][:_POINTS]
        rows = features.take(members)
        order = members[torch.argsort(rows @ rows.mean(0), descending=True).numpy()]
        far = order[max(_NEAR, len(order) - _FAR) :]
        found.append(
            {
                "number": int(names[place]),
                "pool": int(counts[place]),
                "sample": int(sampled.get(names[place], 0)),
                "near": [_shown(queries, int(row)) for row in order[:_NEAR]],
                "far": [_shown(queries, int(row)) for row in far],
            }
        )
    return found


def _pairs(
    queries: Queries, features: Features, decided: Decisions, kept: np.ndarray, cosine: float, rng: np.random.Generator
) -> list[Pair]:
    """Pairs of pictures around the threshold: those found that are least alike, and kept ones that are most alike."""
    found = decided.pairs
    shown = (features.media[found.first] != 0) & (features.media[found.second] != 0)
    least = np.flatnonzero(shown)[np.argsort(np.abs(found.cosine[shown] - cosine), kind="stable")[:_PAIRS]]
    pairs = [
        Pair(_shown(queries, int(found.first[n])), _shown(queries, int(found.second[n])), float(found.cosine[n]),
             int(found.bits[n]), "the same picture")
        for n in least
    ]  # fmt: skip
    return sorted(pairs + _closest(queries, features, kept, rng), key=lambda pair: -pair.cosine)


def _closest(queries: Queries, features: Features, kept: np.ndarray, rng: np.random.Generator) -> list[Pair]:
    """Of some kept queries with different pictures, the pairs that are most alike."""
    some = rng.permutation(kept[features.media[kept] != 0])[:_COMPARED] if features.picture_dim else kept[:0]
    if len(some) < 2:
        return []
    rows = picture_rows(features)(some)
    cosines = (rows @ rows.T).triu(1)
    media = torch.from_numpy(features.media[some].astype(np.int64))
    cosines[media[:, None] == media] = -1
    best = cosines.flatten().topk(min(_PAIRS, cosines.numel())).indices.tolist()
    places = [divmod(place, len(some)) for place in best]
    return [
        Pair(_shown(queries, int(some[a])), _shown(queries, int(some[b])), float(cosines[a, b]),
             int(np.bitwise_count(features.hashes[some[a]] ^ features.hashes[some[b]])), "both kept")
        for a, b in places
        if cosines[a, b] > 0
    ]  # fmt: skip


def _fallen(queries: Queries, decided: Decisions, rng: np.random.Generator) -> dict[str, list[tuple[Shown, Shown]]]:
    """Of each reason some queries that fell, each with the one that it fell for."""
    found = {}
    for fate in sorted({*decided.fate.tolist()} - {KEPT}):
        rows = np.flatnonzero((decided.fate == fate) & (decided.because >= 0))
        if len(rows):
            found[fate] = [
                (_shown(queries, int(row)), _shown(queries, int(decided.because[row])))
                for row in rng.permutation(rows)[:_FALLEN]
            ]
    return found


def _shown(queries: Queries, row: int) -> Shown:
    text = one_line(queries.text(row))
    text = text if len(text) <= _LONGEST else text[:_LONGEST] + " ..."
    try:
        images: Sequence[Image.Image] = pictures_of(queries.read(row), 1)
    except DataError as error:
        return Shown(queries.key(row), f"{text} ({error.problem})")
    return Shown(queries.key(row), text, _thumbnail(images[0]) if images else "")


def _thumbnail(image: Image.Image) -> str:
    small = image.copy()
    small.thumbnail((_SIDE, _SIDE))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
