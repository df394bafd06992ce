"""How often an epoch sees each part of a data set: weights of shard sets, and balance of categories or modalities.

The rows fall into cells (one for every shard set, category and modality that is told apart). A cell has a fixed number
of places in every epoch; it fills them from an endless series of permutations of its rows, going on in the next epoch
where it stopped. So a cell with half as many places as rows is seen whole in two epochs, and one with twice as many
twice in each: no row is drawn again before all others of its cell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from mmrlhf.errors import ConfigError
from mmrlhf.feed.plan import Quotas
from mmrlhf.ranges import Count, Positive, Share, check_fields
from mmrlhf.shards.index import Index

Balance = Literal["set", "category", "modality"]


@dataclass(frozen=True)
class Mixing:
    """What an epoch is made of; the defaults see every query once.

    Args:
        weights: passes over a shard set in one epoch, by the set's name in the mixture; 1 for those not named. 0.5
            sees the set once in two epochs, 3 three times in each.
        balance: any of set, category, modality: what is to be balanced; empty for nothing.
        strength: 0 leaves the shares as they are, 1 makes them equal; in between, a share goes with size ** (1 -
            strength). The number of queries in an epoch stays.
        shuffle_window: so many shards are shuffled together, for stores that fetch whole shards; None shuffles all
            rows together.

    Raises:
        ConfigError: weights that are not positive, an unknown balance, a strength outside [0, 1].
    """

    weights: Mapping[str, Positive] = field(default_factory=dict)
    balance: Sequence[Balance] = ()
    strength: Share = 1.0
    shuffle_window: Count | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def quotas(self, index: Index, rows: np.ndarray) -> Quotas | None:
        """Divide rows (N,) into cells with places; None where every row has one place, in one cell.

        Raises:
            ConfigError: a weight for a set that the index does not have.
        """
        if not self.weights and not self.balance:
            return None
        sets = index.set_names()[rows]
        self._check_sets(sorted(set(sets.tolist())))
        parts = {"set": sets}
        if "category" in self.balance:
            parts["category"] = index.column("category")[rows]
        if "modality" in self.balance:
            parts["modality"] = index.modality()[rows]
        codes = [np.unique(part.astype(str), return_inverse=True) for part in parts.values()]
        cells, cell_of_row = np.unique(np.stack([code for _, code in codes]), axis=1, return_inverse=True)
        names = [
            tuple(str(values[code]) for (values, _), code in zip(codes, cell, strict=True)) for cell in cells.T
        ]  # fmt: skip
        cell_of_row = cell_of_row.reshape(-1)
        sizes = np.bincount(cell_of_row)
        mass = sizes * np.array([self.weights.get(name[0], 1.0) for name in names])
        kept = [number for number, part in enumerate(parts) if part in self.balance]
        mass = self._balanced(mass, [tuple(name[i] for i in kept) for name in names])
        labels = tuple(" ".join(filter(None, name)) or "all" for name in names)
        return Quotas(cell_of_row, _round(mass), labels)

    def _balanced(self, mass: np.ndarray, group_of_cell: list[tuple[str, ...]]) -> np.ndarray:
        """Scale cells so that their groups' shares go with size ** (1 - strength); the total stays."""
        if not self.balance:
            return mass
        numbers = {name: number for number, name in enumerate(dict.fromkeys(group_of_cell))}
        group = np.array([numbers[name] for name in group_of_cell])
        total = np.bincount(group, weights=mass)
        wanted = total ** (1 - self.strength)
        return mass * (wanted * mass.sum() / wanted.sum() / total)[group]

    def _check_sets(self, known: list[str]) -> None:
        unknown = sorted(set(self.weights) - set(known))
        if unknown:
            raise ConfigError(
                "there is no such shard set",
                where="data.mixing.weights",
                given=unknown,
                expected="some of " + ", ".join(known) if any(known) else "no weights: the shards are no mixture",
                fix="name several sets in inputs.mixture and read them with inputs.shards=stage:mix",
            )


def _round(mass: np.ndarray) -> np.ndarray:
    """Round to whole places, at least one each; the sum stays (largest remainders), as far as that allows."""
    whole = np.floor(mass).astype(np.int64)
    missing = round(float(mass.sum())) - int(whole.sum())
    whole[np.argsort(whole - mass, kind="stable")[:missing]] += 1
    return np.maximum(whole, 1)
