"""Who is asked about what, in which order, and in which order answers stand: all of it follows from hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmrlhf.errors import ConfigError, DataError

# what makes labels of the audit's people and of the model alone
WITHOUT_THIS_ROUND = "stage=labelled ~stages.labelled.people.asked"


@dataclass(frozen=True)
class Plan:
    """Which queries are asked about, in which order, and how often each.

    keys: of all queries, the most wanted first; twice: those that two annotators are asked about; gold: queries whose
    right ranking is known, which every annotator gets among the others, one in `gold_every`.
    """

    keys: tuple[str, ...]
    twice: frozenset[str] = frozenset()
    gold: tuple[str, ...] = ()
    gold_every: int = 10

    def wanted(self, key: str) -> int:
        """How many annotators are asked about a query."""
        return 2 if key in self.twice else 1

    def next_key(
        self,
        annotator: str,
        done: Mapping[str, Collection[str]],
        reserved: Mapping[str, Collection[str]],
        closed: Collection[str] = (),
    ) -> str | None:
        """What an annotator is asked next; None when nothing is left for this one.

        Args:
            done: key -> who has submitted a form for it.
            reserved: key -> who has it before them now.
            closed: queries that nobody can be asked about.
        """
        mine = {key for key, names in done.items() if annotator in names}
        golden = [key for key in self.gold if key not in mine and key not in closed]
        if golden and (len(mine) + 1) % self.gold_every == 0:
            return min(golden, key=lambda key: _place(annotator, key))
        for key in self.keys:
            if key in mine or key in closed:
                continue
            if len({*done.get(key, ()), *reserved.get(key, ())} - {annotator}) < self.wanted(key):
                return key
        return None

    def left(self, done: Mapping[str, Collection[str]], closed: Collection[str] = ()) -> int:
        """How many forms are still wanted."""
        open_keys = (key for key in self.keys if key not in closed)
        return sum(max(0, self.wanted(key) - len(done.get(key, ()))) for key in open_keys)


def make_plan(
    keys: Sequence[str], *, doubly: float, gold: Sequence[str] = (), gold_every: int = 10, only: Path | None = None,
    limit: int | None = None,
) -> Plan:  # fmt: skip
    """Plan a round of annotation.

    Args:
        keys: of all queries, in any order.
        doubly: share of queries that two annotators are asked about.
        gold: keys of the queries whose ranking is known; none of them may be among the others.
        gold_every: one query in so many is a gold one.
        only: file with one key on each line: only these are asked about, in its order.
        limit: queries at most.

    Raises:
        DataError: a key of the file that no query has, or gold queries among the others.
    """
    both = sorted(set(keys) & set(gold))
    if both:
        raise DataError(
            "gold queries are among those that are asked about", given=", ".join(both[:5]),
            expected="queries of their own, whose ranking is known already", fix="leave them out of one of the two",
        )  # fmt: skip
    if gold_every < 2:
        raise ConfigError(
            "not every query can be a gold one", argument="gold_every", given=gold_every, expected="2 or more"
        )
    chosen = _listed(only, set(keys)) if only else sorted(keys, key=lambda key: _place("", key))
    chosen = chosen[:limit]
    twice = frozenset(key for key in chosen if _place("twice", key) < doubly)
    return Plan(tuple(chosen), twice, tuple(gold), gold_every)


def shown_order(key: str, hashes: Sequence[str], annotator: str = "") -> tuple[int, ...]:
    """The places of responses in the order in which they are shown: it tells nothing of who wrote them."""
    return tuple(sorted(range(len(hashes)), key=lambda place: (_place(annotator, key, hashes[place], place), place)))


def _listed(only: Path, known: set[str]) -> list[str]:
    try:
        lines = only.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError("the list of queries cannot be read", where=only, given=error) from error
    keys = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not keys:
        raise DataError(
            "the list names no query, so nobody has to be asked", where=only, given="an empty list",
            expected="one key of a query on each line",
            fix=f"go on without this round: {WITHOUT_THIS_ROUND} goes on from an empty list of stage=triage",
        )  # fmt: skip
    unknown = [key for key in keys if key not in known]
    if unknown:
        raise DataError(
            "the list names queries that are not there", where=only,
            given=", ".join(unknown[:5]) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""),
            expected="one key of a query on each line",
        )  # fmt: skip
    return keys


def _place(*parts: object) -> float:
    """A number in [0, 1) that looks drawn, and is the same for the same parts."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode("utf-8", errors="surrogatepass")).digest()
    return int.from_bytes(digest[:7], "big") / 2**56
