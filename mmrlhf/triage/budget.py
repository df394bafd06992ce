"""How many queries people can be asked about: a budget in queries, minutes or money, whichever ends first."""

from __future__ import annotations

from dataclasses import dataclass

from mmrlhf.errors import ConfigError
from mmrlhf.ranges import Natural, NonNegative, Positive, check_fields, whole


@dataclass(frozen=True)
class Budget:
    """What may be spent on people in this round; None: no limit of that kind.

    Args:
        queries: that people are asked about.
        minutes: of their time.
        money: that they are paid.
        per_hour: what an hour costs, for `money`.
        seconds: that a query takes; None: the median of the audit's forms.

    Raises:
        ConfigError: money without what an hour costs.
    """

    queries: Natural | None = None
    minutes: NonNegative | None = None
    money: NonNegative | None = None
    per_hour: Positive | None = None
    seconds: Positive | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.money is not None and self.per_hour is None:
            raise ConfigError(
                "a budget in money needs to know what an hour costs", where="stages.triage.budget",
                given=f"money={self.money}", expected="per_hour, in the same currency",
                fix="stages.triage.budget.per_hour=30",
            )  # fmt: skip

    def affordable(self, measured: float | None) -> int | None:
        """Queries that it pays for; None: as many as there are.

        measured: median seconds of a query so far. Raises: ConfigError where time is limited and none is known.
        """
        limits = [] if self.queries is None else [self.queries]
        if self.minutes is not None or self.money is not None:
            seconds = self.seconds or measured
            if not seconds:
                raise ConfigError(
                    "nobody knows how long a query takes", where="stages.triage.budget.seconds", given="null",
                    expected="seconds, for the audit's forms do not say", fix="stages.triage.budget.seconds=180",
                )  # fmt: skip
            if self.minutes is not None:
                limits.append(whole(60 * self.minutes / seconds))
            if self.money is not None and self.per_hour is not None:
                limits.append(whole(3600 * self.money / self.per_hour / seconds))
        return min(limits) if limits else None
