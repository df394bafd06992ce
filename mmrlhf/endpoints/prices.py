"""What a service takes for tokens, and the limit on what asking it may cost."""

from __future__ import annotations

from dataclasses import dataclass

from mmrlhf.errors import ConfigError


@dataclass(frozen=True)
class Prices:
    """Of a million tokens read and written, in any currency."""

    read: float
    written: float

    def cost(self, read: float, written: float) -> float:
        """Of so many tokens."""
        return (read * self.read + written * self.written) / 1e6


def prices_of(price_in: float | None, price_out: float | None) -> Prices | None:
    """Both prices, or none; raises ConfigError for one alone."""
    if (price_in is None) != (price_out is None):
        raise ConfigError(
            "a price is for reading and writing", argument="price_in",
            given=f"price_in={price_in}, price_out={price_out}", expected="both, or neither",
        )  # fmt: skip
    return None if price_in is None or price_out is None else Prices(price_in, price_out)


def require_prices(max_cost: float | None, prices: Prices | None, where: str) -> None:
    """Refuse a limit that nothing could be compared with (ConfigError)."""
    if max_cost is not None and prices is None:
        raise ConfigError(
            "a limit on the cost needs prices",
            where=where, given=f"{max_cost:g}", expected="price_in and price_out, for a million tokens",
        )  # fmt: skip


def check_cost(cost: float | None, max_cost: float | None, *, where: str, given: str, spent: float = 0.0) -> None:
    """Refuse what is expected to cost more than it may (ConfigError).

    Args:
        cost: of what is still to be asked.
        given: the estimate in words.
        spent: for what is there already.
    """
    if cost is not None and max_cost is not None and spent + cost > max_cost:
        raise ConfigError(
            "asking would cost more than it may",
            where=where, given=f"{given}, after {spent:.2f}" if spent else given, expected=f"at most {max_cost:g}",
            fix="raise it, or ask for less: fewer queries, fewer samples, shorter answers",
        )  # fmt: skip
