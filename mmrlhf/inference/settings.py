"""How a model is asked in a pass without gradients, and how critiques are written."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from mmrlhf.errors import ConfigError
from mmrlhf.models.load import ModelSettings
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
    token_budget: int = 4096
    groups_per_batch: int = 16

    def __post_init__(self) -> None:
        if self.token_budget < 1 or self.groups_per_batch < 1:
            raise ConfigError(
                "a pass needs room for a query",
                where="model.token_budget, model.groups_per_batch",
                given=f"token_budget={self.token_budget}, groups_per_batch={self.groups_per_batch}",
                expected="1 or more",
            )


@dataclass(frozen=True)
class CritiqueSettings:
    """How a reward model writes its critiques.

    Args:
        max_tokens: longest critique.
        temperature: 0 takes the most likely token.
        num_samples: critiques of each response; several need a temperature above 0.
        combine: how their scores become one reward: their `mean`; the score behind the `best` (likeliest per token)
            critique; or a `vote`, the share of comparisons with the query's other responses that it wins, ties half.
        seed: draws critiques at a temperature above 0.
    """

    max_tokens: int = 512
    temperature: float = 0.0
    num_samples: int = 1
    combine: Combine = "mean"
    seed: int = 0

    def __post_init__(self) -> None:
        wrong = self.max_tokens < 1 or self.temperature < 0 or self.num_samples < 1
        if wrong or (self.num_samples > 1 and self.temperature == 0) or self.combine not in get_args(Combine):
            raise ConfigError(
                "critiques cannot be written like this",
                where="data.max_critique_tokens, stages.score.critiques",
                given=f"max_tokens={self.max_tokens}, temperature={self.temperature}, "
                f"num_samples={self.num_samples}, combine={self.combine}",
                expected="max_tokens and num_samples of 1 or more; a temperature above 0 for several samples; "
                "combine one of mean, best, vote",
            )
