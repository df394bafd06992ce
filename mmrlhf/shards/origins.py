"""Where the queries of a set come from and under which licences, as all its records say: for cards."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from mmrlhf.errors import DataError
from mmrlhf.shards.index import Index
from mmrlhf.terminal.progress import track
from mmrlhf.text import markdown_text

MOST_NAMED = 40


@dataclass(frozen=True)
class Origins:
    """How many queries name each source and each licence; `num_queries` were read, `unreadable` others could not be."""

    num_queries: int = 0
    unreadable: int = 0
    sources: Counter[str] = field(default_factory=Counter)
    licences: Counter[str] = field(default_factory=Counter)

    def licence_names(self) -> str:
        """The licences in Markdown, each with its number of queries, and how many name none."""
        silent = self.num_queries - self.licences.total()
        named = counted(self.licences, self.num_queries)
        parts = [named] if named else []
        parts += [f"none in {silent:,}" if named else "none"] if silent or not named else []
        parts += [f"{self.unreadable:,} could not be read"] if self.unreadable else []
        return ", ".join(parts)


def counted(names: Counter[str], total: int) -> str:
    """Names of strangers in Markdown, most frequent first; with counts where one does not stand for all of `total`."""
    if len(names) == 1 and names.total() == total:
        return markdown_text(next(iter(names)))
    shown = [f"{markdown_text(name)} ({count:,})" for name, count in names.most_common(MOST_NAMED)]
    return ", ".join(shown + ([f"{len(names) - MOST_NAMED:,} more"] if len(names) > MOST_NAMED else []))


def read_origins(index: Index, *, damage: bool = False, progress: bool = True) -> Origins:
    """Read every record's source and licence; media are not read.

    Args:
        damage: count records that cannot be read, in place of raising what `Index.read` raises.
    """
    sources, licences, unreadable = Counter[str](), Counter[str](), 0
    for row in track(range(len(index)), "sources and licences", enabled=progress):
        try:
            group = index.read(row, media=False)
        except DataError:
            if not damage:
                raise
            unreadable += 1
            continue
        sources.update([group.source] if group.source else [])
        licences.update([group.licence] if group.licence else [])
    return Origins(len(index) - unreadable, unreadable, sources, licences)
