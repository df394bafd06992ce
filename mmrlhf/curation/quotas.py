"""How many queries of each type and of each cluster: shares of types, and water filling over clusters."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from mmrlhf.errors import ConfigError

ANY = "any type"


def type_quotas(
    size: int, available: Mapping[str, int], mix: Mapping[str, float] | None, fixed: Mapping[str, float]
) -> dict[str, int]:
    """How many queries of each type are wanted: fixed shares of `size`, the rest in the proportions of `mix`.

    Without either, one quota for all types together, under `ANY`. A type may have fewer than are wanted of it: that is
    a shortfall, which no other type fills.

    Raises:
        ConfigError: a type that no query has, shares that are no shares, or nothing that the rest could be of.
    """
    mix = mix or {}
    if not mix and not fixed:
        return {ANY: size}
    for argument, shares in (("mix", mix), ("fixed", fixed)):
        unknown = [name for name in shares if name not in available]
        if unknown:
            raise ConfigError(
                "no query is of this type", argument=argument, given=", ".join(unknown),
                expected=", ".join(f"{name} ({count})" for name, count in sorted(available.items())),
                fix="name types of the queries, or give a set a type: stages.query_features.types={NAME: TYPE}",
            )  # fmt: skip
        if any(not math.isfinite(share) or share < 0 for share in shares.values()):
            raise ConfigError("shares are numbers of 0 or more", argument=argument, given=dict(shares))
    twice = sorted(set(mix) & set(fixed))
    if twice:
        raise ConfigError("a type has a fixed share and one in the mix", argument="fixed", given=", ".join(twice))
    taken = sum(fixed.values())
    if taken > 1 + 1e-9 or (not sum(mix.values()) and abs(taken - 1) > 1e-9):
        raise ConfigError(
            "fixed shares leave too much or too little", argument="fixed", given=f"together {taken:g}",
            expected="at most 1 beside a mix, and 1 without one",
        )  # fmt: skip
    rest = sum(mix.values())
    shares = {**fixed, **{name: (1 - taken) * share / rest for name, share in mix.items() if rest}}
    return _rounded(size, shares)


def _rounded(size: int, shares: Mapping[str, float]) -> dict[str, int]:
    """Whole numbers that sum to `size`, by largest remainders."""
    exact = {name: size * share for name, share in shares.items()}
    found = {name: math.floor(value + 1e-9) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: found[name] - exact[name])
    for name in by_remainder[: size - sum(found.values())]:
        found[name] += 1
    return found


def water_fill(sizes: np.ndarray, total: int) -> np.ndarray:
    """Equal shares (k,) of `total` over clusters of these sizes (k,): whoever has fewer gives all, the others the same.

    Shares sum to min(total, sum of sizes); those of clusters that are not emptied differ by at most 1, the larger
    cluster first.
    """
    shares = np.zeros(len(sizes), np.int64)
    left = min(int(total), int(sizes.sum()))
    order = np.argsort(sizes, kind="stable")
    for place, cluster in enumerate(order):
        shares[cluster] = min(int(sizes[cluster]), left // (len(order) - place))
        left -= shares[cluster]
    return shares
