"""The stage `query_features`: sets of queries and benchmarks, read once and encoded, for `curate` to choose from.

It takes hours where `curate` takes minutes, so they are two: thresholds and shares are tried without encoding again.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from mmrlhf.chain.runtime import Runtime
from mmrlhf.curation.encoders import Encoder, Precision
from mmrlhf.curation.encoding import NOT_FINITE, ZERO, FeatureSettings, Of
from mmrlhf.curation.feature_parts import Features, PartMaker, make_features
from mmrlhf.curation.query_rows import FACTS, Importer, Queries, QuerySet, write_queries
from mmrlhf.curation.ray_engine import check_ray, make_features_on_cluster
from mmrlhf.errors import ConfigError, Lines, ModelError
from mmrlhf.files import expanded
from mmrlhf.inference.sharing import share_pass
from mmrlhf.ranges import Count, whole
from mmrlhf.records.own import find_function, import_own
from mmrlhf.summaries.curations import QueryFeaturesSummary

log = logging.getLogger(__name__)

QUERIES, FEATURES = "queries", "features"
Engine = Literal["local", "ray"]
_NUM_EXAMPLES = 5

# another number builds the stage anew, whatever `code` says
VERSION = 2
# settings that no result depends on
LIMITS = ("engine",)
# what is in a finished artefact; checked before it is published
PROMISES = (
    "queries/queries.json",
    "queries/queries.parquet",
    "features/features.json",
    "features/features.f16",
    "metrics.json",
)


def run(
    out: Path,
    *,
    sets: Mapping[str, str | Path],
    encoder: str | Path,
    importer: Importer | str,
    importers: Mapping[str, Importer | str] | None = None,
    types: Mapping[str, str] | None = None,
    against: Mapping[str, str | Path] | None = None,
    of: Of = "both",
    frames: Count = 1,
    precision: Precision = "float32",
    batch: Count = 64,
    limit: Count | None = None,
    engine: Engine = "local",
    runtime: Runtime,
) -> dict[str, Any]:
    """Write `out/queries`, the rows of all sets, and `out/features`, their features; media stay where they are.

    Args:
        out: the folder to fill; finished parts of an interrupted run in it are kept.
        sets: name -> folder of records, or of a packed set (`stage:pack`, `stage:index` for foreign tars).
        encoder: folder or hub id of a model with features of pictures and texts (CLIP, SigLIP).
        importer: reads the records, as in stage `pack`; responses are optional where it allows that.
        importers: set or benchmark -> another importer.
        types: set -> type of all its queries, instead of each one's category.
        against: benchmark -> folder; nothing is chosen of it, and `curate` leaves out what is too close to it.
        of: "image", "text" or "both": what is encoded of a query.
        frames: pictures of a query at most, and frames of a clip.
        precision: of the encoder's products.
        batch: queries that are encoded at once.
        limit: the first so many queries of each set only.
        engine: `local`: the processes of this stage, one for each device; `ray`: a cluster, by Ray Data.
        runtime: `num_workers` threads read media on each device.

    Raises:
        ConfigError: names that two sets share, or that no set has; Ray, where it is wanted, is absent or has no room.
        DataError: a set that cannot be read, or without a usable query.
        ModelError: the encoder has no such features, or too many of them are NaN or zero.
    """
    chosen = _query_sets(sets, importer, importers or {}, types or {}, against or {})
    settings = FeatureSettings(of, frames, batch)
    if engine == "ray":
        check_ray()
    with share_pass(runtime) as ranks:
        if engine == "ray" and ranks.size > 1:
            raise ConfigError("Ray starts processes of its own", argument="engine", given=f"{ranks.size} processes",
                              expected="one: trainer.devices=1", fix="or engine=local")  # fmt: skip
        if ranks.leads and not (out / QUERIES / FACTS).is_file():
            write_queries(out / QUERIES, chosen, limit=limit)
        ranks.gather(None)
        queries = Queries(out / QUERIES)
        maker = PartMaker(out / FEATURES, queries, Encoder(encoder, ranks.device, precision), settings)
        threads = max(1, runtime.num_workers)
        if engine == "ray":
            make_features_on_cluster(maker, precision, accelerator=runtime.machine.get("accelerator", "auto"),
                                     threads=threads, progress=runtime.progress)  # fmt: skip
        else:
            make_features(maker, rank=ranks.rank, ranks=ranks.size, threads=threads, progress=runtime.progress)
        ranks.gather(None)
        if ranks.leads:
            maker.finish()
        ranks.gather(None)
    features = Features(out / FEATURES, queries)
    _check_broken(features, queries, runtime.max_damaged)
    summary = _summary(queries, features)
    return summary.write(out) if ranks.leads else summary.to_json()


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise ConfigError for what cannot be found (functions, Ray) and names that do not fit, before anything runs."""
    if settings.get("engine") == "ray":
        check_ray()
    for importer in (settings.get("importer"), *(settings.get("importers") or {}).values()):
        if isinstance(importer, str):
            find_function(importer)
    names = {name: settings.get(name) or {} for name in ("sets", "importers", "types", "against")}
    _check_names(names["sets"], names["importers"], names["types"], names["against"])


def _query_sets(
    sets: Mapping[str, str | Path],
    importer: Importer | str,
    importers: Mapping[str, Importer | str],
    types: Mapping[str, str],
    against: Mapping[str, str | Path],
) -> dict[str, QuerySet]:
    _check_names(sets, importers, types, against)
    found = {}
    for name, root in {**sets, **against}.items():
        reads = importers.get(name, importer)
        reads = partial(import_own, function=reads) if isinstance(reads, str) else reads
        found[name] = QuerySet(expanded(root), reads, types.get(name), name in against)
    return found


def _check_names(
    sets: Mapping[str, Any], importers: Mapping[str, Any], types: Mapping[str, Any], against: Mapping[str, Any]
) -> None:
    twice = sorted(set(sets) & set(against))
    if twice:
        raise ConfigError("a set and a benchmark have one name", argument="against", given=", ".join(twice))
    for argument, given, known in (("importers", importers, {**sets, **against}), ("types", types, sets)):
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise ConfigError(
                "there is no set of this name", argument=argument, given=", ".join(unknown),
                expected=f"names of {', '.join(known)}",
            )  # fmt: skip


def _check_broken(features: Features, queries: Queries, max_damaged: float) -> None:
    """A few rows may have no direction; where many have none, the encoder is broken."""
    broken = [row for row, reason in features.left_out.items() if reason in (NOT_FINITE, ZERO)]
    budget = max(1, whole(max_damaged * len(queries)))
    if len(broken) > budget:
        reasons = Counter(features.left_out[row] for row in broken)
        raise ModelError(
            "the encoder gives features that are no direction",
            where=features.made_by["encoder"],
            given=Lines([*(f"{count} x {reason}" for reason, count in reasons.items()),
                         *(queries.where(row) for row in broken[:_NUM_EXAMPLES])]),
            expected=f"at most {budget} of {len(queries)} rows (runtime.max_damaged)",
            fix="encode in float32 (stages.query_features.precision=float32), or take another checkpoint",
        )  # fmt: skip


def _summary(queries: Queries, features: Features) -> QueryFeaturesSummary:
    reasons = Counter(features.left_out.values())
    if reasons:
        log.warning("%d queries have no features: %s", reasons.total(), dict(reasons.most_common(3)))
    return QueryFeaturesSummary(
        queries=len(queries),
        sets={name: each["queries"] for name, each in queries.facts["sets"].items()},
        types=dict(Counter(queries.types.tolist()).most_common()),
        rejected_by_reason=queries.facts["rejected_by_reason"],
        without_features=dict(reasons.most_common()),
        texts_cut=features.texts_cut,
        dim=features.dim,
        encoder=str(features.made_by["encoder"]),
        digest=queries.digest,
    )
