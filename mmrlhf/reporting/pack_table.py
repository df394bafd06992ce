"""What was packed and what was left out: counted while packing, summed up after it, shown as a table."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from mmrlhf.chain.store import final_place
from mmrlhf.conversation import Conversation
from mmrlhf.errors import DataError
from mmrlhf.media.images import is_first_of_several
from mmrlhf.records.draft import Draft, Rejection
from mmrlhf.records.mm_rlhf import UNREAD_LINES
from mmrlhf.records.query_form import AS_TEXT, STRIPPED
from mmrlhf.shards.index import Index
from mmrlhf.summaries.datasets import PackSummary
from mmrlhf.terminal.words import add_row, new_table
from mmrlhf.types import Media, PreferenceGroup

logger = logging.getLogger(__name__)

REPORT_FILE = "report.json"


@dataclass
class Tally:
    """What was seen since the last finished shard; it is stored with the shard and added up in the end.

    `queries` lists [hash of prompt, media and answers, id] of every group, to find the same query under two ids.
    """

    consumed: int = 0
    last_id: str = ""
    counts: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)
    categories: Counter[str] = field(default_factory=Counter)
    rejections: list[dict[str, str]] = field(default_factory=list)
    contradictions: list[dict[str, Any]] = field(default_factory=list)
    queries: list[list[str]] = field(default_factory=list)

    def add(self, item: Draft | Rejection, outcome: PreferenceGroup | Rejection) -> None:
        """Count one record and what became of it."""
        self.consumed += 1
        self.last_id = item.id
        if isinstance(item, Draft):
            self.notes.update(item.notes)
        if isinstance(outcome, Rejection):
            self.rejections.append(asdict(outcome))
            return
        if isinstance(item, Draft) and item.problems:
            self.contradictions.append({"id": item.id, "where": item.where, "problems": list(item.problems)})
        self.sizes[str(len(outcome.responses))] += 1
        self.categories[outcome.category] += 1
        self.counts.update(_group_counts(outcome))
        self.queries.append([content_hash(outcome), item.id])

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.consumed + other.consumed,
            other.last_id or self.last_id,
            self.counts + other.counts,
            self.notes + other.notes,
            self.sizes + other.sizes,
            self.categories + other.categories,
            self.rejections + other.rejections,
            self.contradictions + other.contradictions,
            self.queries + other.queries,
        )

    @staticmethod
    def of(note: dict[str, Any]) -> Tally:
        """Read a tally that was stored with a shard."""
        counted = {name: Counter(note[name]) for name in ("counts", "notes", "sizes", "categories")}
        return Tally(**{**note, **counted})

    def duplicates(self) -> list[dict[str, str]]:
        """Groups whose prompt, media and answers an earlier group has, too, under another id."""
        first: dict[str, str] = {}
        found = []
        for digest, record_id in self.queries:
            if first.setdefault(digest, record_id) != record_id:
                found.append({"id": record_id, "same_as": first[digest]})
        return found


def content_hash(group: PreferenceGroup) -> str:
    """Hash what a group asks and answers, whatever it is called and however it was annotated."""
    content = hashlib.blake2b(digest_size=8)
    asked = group.prompt.to_record()
    texts = [asked if isinstance(asked, str) else json.dumps(asked), *sorted(r.text for r in group.responses)]
    for part in (*(text.encode() for text in texts), *(data for media in _all_media(group) for data in media.data)):
        content.update(len(part).to_bytes(8, "little") + part)
    return content.hexdigest()


def _group_counts(group: PreferenceGroup) -> Counter[str]:
    shared = Counter(response.rank for response in group.responses if response.rank is not None)
    pairs, shown = len(group.ranked_pairs()), _all_media(group)
    return Counter(
        {
            "groups": 1,
            "responses": len(group.responses),
            "pairs": pairs,
            "ties": sum(count * (count - 1) // 2 for count in shared.values()),
            "images": sum(media.kind == "image" for media in shown),
            "videos": sum(media.kind != "image" for media in shown),
            "first_of_several": sum(
                media.kind == "image" and is_first_of_several(data) for media in shown for data in media.data
            ),
            "text_only_groups": not shown,
            "conversations": bool(group.prompt.form),
            "groups_with_media_of_responses": group.has_own_media,
            "groups_without_pairs": pairs == 0,
            "groups_with_explicit_pairs": group.pairs is not None,
        }
    )


def _all_media(group: PreferenceGroup) -> list[Media]:
    return [*group.media, *(media for response in group.responses for media in response.media)]


def require_groups(tally: Tally) -> None:
    """Raise DataError if nothing at all can be packed, with the reasons."""
    if tally.counts["groups"]:
        return
    reasons = Counter(item["reason"] for item in tally.rejections)
    raise DataError(
        "no record could be used",
        where=tally.rejections[0]["where"] if tally.rejections else None,
        given="; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(5)) or "no records",
        expected="records whose media lie below the data folder",
        fix="put the media there, say in which folder of data.root they lie (data.importer.media_folder=FOLDER), "
        "or read the records as text only with data.importer.media=false",
    )


def build_report(tally: Tally, index: Index) -> tuple[PackSummary, dict[str, Any]]:
    """Sum a tally up: counts, and the report with them and the `rejections`, `contradictions`, `duplicates` by id."""
    ignored = {name.removeprefix("ignored field: "): n for name, n in tally.notes.items() if name.startswith("ignored")}
    duplicates = tally.duplicates()
    summary = PackSummary(
        **{name: tally.counts[name] for name in _group_counts(PreferenceGroup("", Conversation.about(""), ()))},
        responses_per_group={size: tally.sizes[size] for size in sorted(tally.sizes, key=int)},
        categories=dict(sorted(tally.categories.items())),
        contradictions=len(tally.contradictions),
        duplicate_queries=len(duplicates),
        repeated_responses_merged=tally.notes["repeated responses merged"],
        repeated_pairs_merged=tally.notes["repeated pairs merged"],
        placeholders_stripped=tally.notes[STRIPPED],
        placeholders_in_answers=tally.notes[AS_TEXT],
        ignored_fields=ignored,
        lines_in_another_layout=tally.notes[UNREAD_LINES],
        rejected=len(tally.rejections),
        rejected_by_reason=dict(Counter(item["reason"] for item in tally.rejections).most_common()),
        shards=len(index.shards),
        bytes=sum(shard.bytes for shard in index.shards),
        digest=index.digest,
    )
    return summary, {
        "summary": summary.to_json(),
        "rejections": tally.rejections,
        "contradictions": tally.contradictions,
        "duplicates": duplicates,
    }


def warn(summary: PackSummary, out: Path) -> None:
    """Log what a user should know about, and where it is listed."""
    report = final_place(out / REPORT_FILE)
    if summary.rejected:
        reasons = ", ".join(f"{count} x {reason}" for reason, count in summary.rejected_by_reason.items())
        logger.warning("%d records were left out (%s); %s lists them", summary.rejected, reasons, report)
    if summary.contradictions:
        logger.warning("%d records contradict themselves; their pairs are kept as given", summary.contradictions)
    if summary.duplicate_queries:
        logger.warning("%d queries are there twice, under two ids; %s lists them", summary.duplicate_queries, report)
    if summary.ignored_fields:
        logger.warning("fields that nothing reads: %s", ", ".join(sorted(summary.ignored_fields)))


def pack_table(summary: PackSummary) -> Table:
    """Show what was packed on the terminal."""
    table = new_table("packed", "", title="data")
    sizes = ", ".join(f"{count} of {size}" for size, count in summary.responses_per_group.items())
    merged = summary.repeated_responses_merged + summary.repeated_pairs_merged
    rows = [
        ("groups", f"{summary.groups:,} in {summary.shards} shards, {summary.bytes / 1e6:,.1f} MB"),
        ("responses per group", sizes),
        ("pairs, ties", f"{summary.pairs:,}, {summary.ties:,}"),
        ("images, videos", f"{summary.images:,}, {summary.videos:,}"),
        ("text only", f"{summary.text_only_groups:,} groups without a picture or clip"),
        ("conversations", f"{summary.conversations:,} with several turns, a system turn, or media between words"),
        ("media of responses", f"{summary.groups_with_media_of_responses:,} groups"),
        (
            "placeholders",
            f"{summary.placeholders_stripped:,} stripped, {summary.placeholders_in_answers:,} in answers read as text",
        ),
        ("categories", ", ".join(f"{name} {count}" for name, count in summary.categories.items())),
        (
            "animations and pages",
            f"{summary.first_of_several:,} pictures, of which only the first frame or page is used",
        ),
        ("contradictions", f"{summary.contradictions:,}"),
        ("duplicates", f"{summary.duplicate_queries:,} queries under two ids, {merged:,} repetitions merged"),
        ("rejected records", f"{summary.rejected:,}"),
    ]
    rows += [(f"  {reason}", f"{count:,}") for reason, count in summary.rejected_by_reason.items()]
    rows += [("fields that nothing reads", f"{len(summary.ignored_fields):,}")] if summary.ignored_fields else []
    rows += [(f"  {name}", f"in {count:,} records") for name, count in sorted(summary.ignored_fields.items())]
    for row in rows:
        add_row(table, *row)
    return table
