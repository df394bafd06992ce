"""Score heads: hidden state (R, D) -> reward, and scores on named dimensions, (R, 1 + number of dimensions)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from mmrlhf.errors import ConfigError
from mmrlhf.ranges import ShareBelowOne, check_fields

HEADS = ("linear", "tanh2", "silu2")


class ScoreHead(nn.Module):
    """Reads a reward off a hidden state.

    `linear`: one linear map. `tanh2`: linear, tanh, linear, as in the released MM-RLHF code. `silu2`: linear, SiLU,
    linear, the best head in BaseReward (arXiv 2509.16127). The last layer starts at zero, so training starts from
    equal scores whatever the scale of the hidden states. `dimensions` names further outputs beside the reward.
    """

    def __init__(self, kind: str, width: int, dropout: float = 0.0, dimensions: Sequence[str] = ()) -> None:
        super().__init__()
        _check_kind(kind)
        self.kind, self.dimensions = kind, tuple(dimensions)
        self.hidden = nn.Identity() if kind == "linear" else nn.Linear(width, width)
        self.activation = {"linear": nn.Identity(), "tanh2": nn.Tanh(), "silu2": nn.SiLU()}[kind]
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(width, 1 + len(self.dimensions))
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Score hidden states (R, D) float32 -> (R, 1 + dimensions), the reward first."""
        return self.out(self.dropout(self.activation(self.hidden(hidden))))


def build_head(kind: str, width: int, dropout: float = 0.0, dimensions: Sequence[str] = ()) -> ScoreHead:
    """Make a fresh score head of a kind in `HEADS` for hidden states of a width."""
    return ScoreHead(kind, width, dropout, dimensions)


@dataclass(frozen=True)
class HeadSettings:
    """What reads scores off a reward model's hidden states.

    Args:
        kind: `linear`, `tanh2` or `silu2`.
        dropout: inside it.
        dimensions: annotated scores that it learns beside the reward, such as helpfulness.
        fresh: start from a head that knows nothing, even where the checkpoint has a trained one.
    """

    kind: str = "tanh2"
    dropout: ShareBelowOne = 0.0
    dimensions: Sequence[str] = ()
    fresh: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        _check_kind(self.kind)

    def build(self, width: int) -> ScoreHead:
        """Make a fresh head for hidden states of a width."""
        return build_head(self.kind, width, self.dropout, self.dimensions)


def _check_kind(kind: str) -> None:
    if kind not in HEADS:
        raise ConfigError("unknown score head", where="head", given=kind, expected=f"one of {', '.join(HEADS)}")
