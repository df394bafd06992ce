"""How a model is asked in a pass without gradients, and how critiques are written."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mmrlhf.models.settings import ModelSettings, untrained
from mmrlhf.models.storage import check_storage
from mmrlhf.ranges import Count, Natural, NonNegative, check_draws, check_fields
from mmrlhf.tokens.in_turn import Orders
from mmrlhf.tokens.processing import MediaSettings

Combine = Literal["mean", "best", "vote"]


@dataclass(frozen=True)
class PassSettings:
    """How a model is asked in a pass without gradients.

    Args:
        model: precision, layout and context length; which parts would train does not matter here.
        media: how videos become frames; None: as a reward model was trained, or the defaults.
        token_budget: tokens of one packed forward (its attention mask is dense: cost grows with the square).
        groups_per_batch: queries that are read, answered or criticised together.
    """

    model: ModelSettings = field(default_factory=ModelSettings)
    media: MediaSettings | None = None
    token_budget: Count = 4096
    groups_per_batch: Count = 16

    def __post_init__(self) -> None:
        check_fields(self)
        check_storage(untrained(self.model))


@dataclass(frozen=True)
class CritiqueSettings:
    """How a reward model writes its critiques, and in which orders it reads responses where it reads them in turn.

    Args:
        max_tokens: longest critique.
        temperature: 0 takes the most likely token.
        num_samples: critiques of each response; several need a temperature above 0.
        combine: how their scores become one reward: their `mean`; the score behind the `best` (likeliest per token)
            critique; or a `vote`, the share of comparisons with the query's other responses that it wins, ties half.
        seed: draws critiques at a temperature above 0.
        orders: of responses that are read in turn: `all`: each stands once at each place, and its scores are combined
            as those of several critiques; `drawn`: one order, at the cost of one forward. A model that reads them
            apart has none.
    """

    max_tokens: Count = 512
    temperature: NonNegative = 0.0
    num_samples: Count = 1
    combine: Combine = "mean"
    seed: Natural = 0
    orders: Orders = "all"

    def __post_init__(self) -> None:
        check_fields(self)
        check_draws("critiques of a response", self.num_samples, self.temperature)
