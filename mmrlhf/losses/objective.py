"""The frame that every pairwise objective fills in: from log-probabilities of pairs to un-reduced losses.

With z the gap between the chosen and the rejected response's reference-adjusted log-probability,

    loss = a * [ q * l(b z - m) + (1 - q) * l(-(b z - m)) ]  +  sft_weight * NLL(chosen) per token

and an objective says what b, m, a, q and the link l are. All tensors are (P,), one entry per pair; nothing here
reduces, and nothing broadcasts: a (P, 1) against a (P,) is an error, not a (P, P).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor

from mmrlhf.errors import ConfigError
from mmrlhf.losses.links import logistic
from mmrlhf.ranges import NonNegative, Positive, check_fields


@dataclass(frozen=True, eq=False)
class PairInputs:
    """What is known about each pair; every tensor is (P,).

    *_logprob: sum of the policy's token log-probabilities, in nats; reference_*: the same under the reference model,
    or None where no reference was run; margin: reward of the chosen minus reward of the rejected response, or None;
    *_tokens: how many tokens were summed; chosen_reward: the chosen response's own reward, or None; *_shared: the
    same sums over the first tokens alone, as many as the pair's shorter response has, or None.
    """

    chosen_logprob: Tensor
    rejected_logprob: Tensor
    reference_chosen: Tensor | None = None
    reference_rejected: Tensor | None = None
    margin: Tensor | None = None
    chosen_tokens: Tensor | None = None
    rejected_tokens: Tensor | None = None
    chosen_reward: Tensor | None = None
    chosen_shared: Tensor | None = None
    rejected_shared: Tensor | None = None
    reference_chosen_shared: Tensor | None = None
    reference_rejected_shared: Tensor | None = None

    def __post_init__(self) -> None:
        check_shapes({item.name: getattr(self, item.name) for item in fields(self)})


@dataclass(frozen=True, eq=False)
class PairScale:
    """An objective's say on each pair, all (P,) and without gradient.

    b: slope on the gap z (the pair's beta); m: offset that b z has to reach; a: weight outside the link;
    q: weight of the pair as labelled, 1 - q of the pair turned round.
    """

    b: Tensor
    m: Tensor
    a: Tensor
    q: Tensor

    @classmethod
    def fill(
        cls,
        inputs: PairInputs,
        *,
        b: Tensor | float,
        m: Tensor | float = 0.0,
        a: Tensor | float = 1.0,
        q: Tensor | float = 1.0,
    ) -> PairScale:
        """Write numbers out to the (P,) float32 tensors that the loss asks for; tensors pass as they are."""

        def written_out(value: Tensor | float) -> Tensor:
            if isinstance(value, Tensor):
                return value
            return torch.full_like(inputs.chosen_logprob, value, dtype=torch.float32, requires_grad=False)

        return cls(written_out(b), written_out(m), written_out(a), written_out(q))


@dataclass(frozen=True, eq=False)
class PairTerms:
    """What an objective says about each pair, all (P,) float32.

    loss carries the gradient; the rest is detached and for logging. reward_chosen and reward_rejected are the implicit
    rewards b * (log-probability, reference-adjusted); logit = reward_chosen - reward_rejected = b z, without the
    offset m, so a pair counts as right where logit > 0; beta is b.
    """

    loss: Tensor
    logit: Tensor
    beta: Tensor
    reward_chosen: Tensor
    reward_rejected: Tensor


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A pairwise preference objective: call it with PairInputs, get un-reduced PairTerms.

    What an objective does not say otherwise is DPO's. `needs_reference`, `needs_margin` and `needs_shared_lengths` say
    which optional inputs must be there.

    Args:
        beta: > 0, slope on the gap.
        sft_weight: >= 0, weight of the chosen response's negative log-likelihood per token (the MM-DPO paper's gamma).

    Raises: ConfigError for settings outside their ranges.
    """

    beta: Positive = 0.1
    sft_weight: NonNegative = 0.0

    needs_reference: ClassVar[bool] = True
    needs_margin: ClassVar[bool] = False
    needs_shared_lengths: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def uses_call_statistics(self) -> bool:
        """Whether a pair's loss depends on the other pairs of the call.

        To be independent of micro-batching, such a scale has to be found from all pairs of a step at once, without
        pairs of weight 0.
        """
        return False

    @property
    def jumps_at_equal_rewards(self) -> str | None:
        """The setting that makes the loss jump where all margins are 0 up to rounding; None where it does not.

        So they are at the first step with margins of the policy's own, which is the reference there.
        """
        return None

    def scale(self, inputs: PairInputs) -> PairScale:
        """Give b, m, a, q of every pair; called without gradient."""
        return PairScale.fill(inputs, b=self.beta)

    def link(self, logit: Tensor) -> Tensor:
        """The link l, (P,) -> (P,); logistic unless an objective says otherwise."""
        return logistic(logit)

    def scores(self, inputs: PairInputs) -> tuple[Tensor, Tensor]:
        """What z is the difference of, chosen and rejected, (P,) each: here log policy - log reference."""
        return (
            inputs.chosen_logprob.float() - given(inputs.reference_chosen, "reference_chosen").float(),
            inputs.rejected_logprob.float() - given(inputs.reference_rejected, "reference_rejected").float(),
        )

    def gap(self, inputs: PairInputs) -> Tensor:
        """z: (P,), the chosen response's score minus the rejected one's."""
        chosen, rejected = self.scores(inputs)
        return chosen - rejected

    def pair_loss(self, chosen: Tensor, rejected: Tensor, scale: PairScale) -> Tensor:
        """The loss without the NLL term, (P,), from the two scores of each pair."""
        logit = scale.b * (chosen - rejected) - scale.m
        return scale.a * (scale.q * self.link(logit) + (1 - scale.q) * self.link(-logit))

    def sft_term(self, inputs: PairInputs) -> Tensor:
        """What `sft_weight` weighs, (P,): the chosen response's negative log-likelihood per token."""
        return token_nll(inputs)

    def __call__(self, inputs: PairInputs, scale: PairScale | None = None) -> PairTerms:
        """Score every pair, with a scale that was found before (over more pairs than this call's) or its own.

        Raises: ConfigError where a needed input is None; ValueError where a shape is not (P,).
        """
        if self.needs_margin:
            given(inputs.margin, "margin")
        chosen, rejected = self.scores(inputs)
        if scale is None:
            with torch.no_grad():
                scale = self.scale(inputs)
        check_shapes({"chosen score": chosen, "b": scale.b, "m": scale.m, "a": scale.a, "q": scale.q})
        loss = self.pair_loss(chosen, rejected, scale)
        if self.sft_weight > 0:
            loss = loss + self.sft_weight * self.sft_term(inputs)
        reward_chosen, reward_rejected = scale.b * chosen.detach(), scale.b * rejected.detach()
        logit = scale.b * (chosen - rejected).detach()
        return PairTerms(loss, logit, scale.b, reward_chosen, reward_rejected)


def token_nll(inputs: PairInputs) -> Tensor:
    """Negative log-likelihood of the chosen response per token, (P,) nats: the SFT term of the same forward."""
    return -inputs.chosen_logprob.float() / given(inputs.chosen_tokens, "chosen_tokens").clamp(min=1)


def given(value: Tensor | None, name: str) -> Tensor:
    """Return an optional input that this objective needs. Raises: ConfigError where it is None."""
    if value is None:
        raise ConfigError(
            f"this objective needs {name}, and none was given",
            expected=f"a (P,) tensor {name}",
            fix="run the stage that writes it (margin: score; reference_*: reference), or choose another method",
        )
    return value


def check_shapes(named: dict[str, Tensor | None]) -> None:
    """Refuse anything but (P,) tensors of one length; None passes. Raises: ValueError naming the shapes."""
    shapes = {name: tuple(value.shape) for name, value in named.items() if value is not None}
    if len(set(shapes.values())) > 1 or any(len(shape) != 1 for shape in shapes.values()):
        raise ValueError(f"pair tensors must all be (P,) with one P, got {shapes}")
