"""The stage `pack`: raw records of any layout to checked shards, and a report of everything that was left out.

Continues after a crash: finished shards stay, and their records are not read again. A record belongs to the shard that
was open when it came up, so a shard's done record knows how far in the input it got.
"""

from __future__ import annotations

import itertools
import json
import logging
import operator
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from mmrlhf.chain.runtime import Runtime
from mmrlhf.errors import ConfigError
from mmrlhf.media.isolation import ProcessDied, map_isolated
from mmrlhf.media.video import Sampling
from mmrlhf.ranges import Count, Positive
from mmrlhf.records.draft import Draft, Rejection, VideoForm, load_or_reject
from mmrlhf.records.own import find_function, import_own
from mmrlhf.reporting.pack_table import REPORT_FILE, Tally, build_report, require_groups, warn
from mmrlhf.shards.index import Index
from mmrlhf.shards.writer import ShardSink
from mmrlhf.terminal.progress import track
from mmrlhf.types import PreferenceGroup

logger = logging.getLogger(__name__)

Importer = Callable[[Path], Iterator[Draft | Rejection]]

# another number builds the stage anew, whatever `code` says
VERSION = 4
# what is in a finished artefact; checked before it is published
PROMISES = ("manifest.json", "index.parquet", "report.json")


def run(
    out: Path,
    *,
    root: Path,
    importer: Importer | str,
    video: VideoForm = "keep",
    num_frames: Count = 16,
    sampling: Sampling = "uniform",
    fps: Positive | None = None,
    max_groups_per_shard: Count = 1000,
    max_megabytes: Positive = 1024,
    seconds_per_record: Positive = 300,
    limit: Count | None = None,
    runtime: Runtime,
) -> dict[str, Any]:
    """Import records, check their media, and write shards, index, manifest and `report.json` into `out`.

    Args:
        out: the folder to fill; finished shards of an interrupted run in it are kept.
        root: the folder (or file) with the records.
        importer: called with the root, e.g. a partial of `import_released`; or the name of a function of the user's,
            `my_module.my_function` (see `mmrlhf.records.own`).
        video: "keep" stores video files as they are, "frames" as JPEGs (faster to read in training, but the choice of
            frames is made here).
        num_frames, sampling, fps: the frames of a video that "frames" stores, and "keep" decodes as a check.
        max_groups_per_shard, max_megabytes: a shard is finished when it reaches either.
        seconds_per_record: a record whose media take longer to read is rejected (only with worker processes).
        limit: take only the first so many records of the input.
        runtime: `num_workers` processes decode media; a file that crashes or blocks one of them is a rejected record.
            With 0, that holds for videos, which are always decoded in a process of their own; images are decoded here.

    Returns:
        Counts of groups, responses, pairs, ties and media, of what was merged or stripped, and of rejections by reason.

    Raises:
        DataError: what the importer raises; or nothing usable was found.
    """
    numbers_fit = num_frames >= 1 and seconds_per_record > 0 and (limit is None or limit >= 1)
    if video not in ("keep", "frames") or not numbers_fit:
        raise ConfigError(
            "pack cannot work with these settings",
            given=f"video={video}, num_frames={num_frames}, seconds_per_record={seconds_per_record}, limit={limit}",
            expected="video keep or frames, num_frames >= 1, seconds above 0, limit >= 1 or none",
        )
    if isinstance(importer, str):
        importer = partial(import_own, function=importer)
    sink = ShardSink(out, max_groups_per_shard=max_groups_per_shard, max_megabytes=max_megabytes)
    total, items = _remaining(partial(importer, root), limit, sink)
    load = partial(load_or_reject, partial(Draft.load, video=video, num_frames=num_frames, sampling=sampling, fps=fps))
    with closing(_in_order(load, items, runtime.num_workers, seconds_per_record)) as outcomes, closing(sink):
        everything = _fill(sink, track(outcomes, "pack", total, enabled=runtime.progress))
    summary, report = build_report(everything, Index.load(out))
    (out / REPORT_FILE).write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    sink.clear_records()
    warn(summary, out)
    return summary.to_json()


def _fill(sink: ShardSink, outcomes: Iterable[tuple[Draft | Rejection, PreferenceGroup | Rejection]]) -> Tally:
    """Write what was loaded, shard by shard; returns the tally of all shards, finished earlier or now."""
    tally = Tally()
    for item, outcome in outcomes:
        tally.add(item, outcome)
        if isinstance(outcome, PreferenceGroup):
            sink.add(outcome)
            if sink.full:
                sink.close_shard(vars(tally))
                tally = Tally()
    everything = sum((Tally.of(note) for note in sink.notes), start=Tally()) + tally
    require_groups(everything)
    if sink.pending:
        sink.close_shard(vars(tally))
    sink.finish()
    return everything


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise ConfigError for a function of the user's that cannot be found, before anything runs."""
    importer = settings.get("importer")
    if isinstance(importer, str):
        find_function(importer)
    elif isinstance(importer, partial) and "convert" in importer.keywords:
        find_function(importer.keywords["convert"], setting="importer.convert")


def _remaining(
    importer: Callable[[], Iterator[Draft | Rejection]], limit: int | None, sink: ShardSink
) -> tuple[int | None, Iterator[Draft | Rejection]]:
    """Start the import and skip what finished shards hold; start over if the input is not what it was."""
    source = importer()
    total = operator.length_hint(source)
    items = _first(source, limit)
    for note in sink.notes:
        skipped = deque(itertools.islice(items, note["consumed"]), maxlen=1)
        if not skipped or skipped[0].id != note["last_id"]:
            logger.warning("the records have changed since the interrupted run, so packing starts over")
            sink.start_over()
            return _remaining(importer, limit, sink)
    if total:
        total = min(total, limit or total) - sum(note["consumed"] for note in sink.notes)
    return total or None, items


def _first(items: Iterable[Draft | Rejection], limit: int | None) -> Iterator[Draft | Rejection]:
    """Pass on items up to and including the draft number `limit`; rejections do not count."""
    drafts = 0
    for item in items:
        yield item
        drafts += isinstance(item, Draft)
        if drafts == limit:
            return


def _in_order(
    load: Callable[[Draft | Rejection], PreferenceGroup | Rejection],
    items: Iterable[Draft | Rejection],
    num_workers: int,
    seconds: float,
) -> Generator[tuple[Draft | Rejection, PreferenceGroup | Rejection], None, None]:
    """Yield (item, what it became) in the order of the items, loading a few ahead in processes of their own."""
    if num_workers == 0:
        for item in items:
            yield item, load(item)
        return
    with closing(map_isolated(load, items, num_processes=num_workers, timeout=seconds)) as outcomes:
        for item, outcome in outcomes:
            if isinstance(outcome, ProcessDied):
                outcome = Rejection(item.id, "media ended the process that read them", f"{_place(item)} ({outcome})")
            yield item, outcome


def _place(item: Draft | Rejection) -> str:
    media = [*item.media, *(own for items in item.own_media for own in items)] if isinstance(item, Draft) else []
    return ": ".join([item.where, *(str(each.ref) for each in media)])
