"""Laws that hold for every objective, and the frame's own shape checks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import Tensor

from mmrlhf.errors import ConfigError
from mmrlhf.losses.dpo import DPO
from mmrlhf.losses.objective import Objective, PairInputs, PairScale, check_shapes

METHODS = sorted((Path(__file__).parents[2] / "conf" / "method").glob("*.yaml"))
FIELDS = ("chosen_logprob", "rejected_logprob", "reference_chosen", "reference_rejected", "margin")
SHARED = ("chosen_shared", "rejected_shared", "reference_chosen_shared", "reference_rejected_shared")


def objective_of(path: Path) -> Objective:
    return instantiate(OmegaConf.load(path))


def pair_inputs(num_pairs: int, seed: int = 0, requires_grad: bool = False) -> PairInputs:
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, 40, (2, num_pairs), generator=draw)
    policy = -tokens * torch.rand(2, num_pairs, generator=draw)
    reference = policy + torch.randn(2, num_pairs, generator=draw)
    margin = 2 * torch.randn(num_pairs, generator=draw)
    chosen, rejected = (p.clone().requires_grad_(requires_grad) for p in policy)
    shared = torch.rand(2, num_pairs, generator=draw)
    parts = (shared[0] * chosen, shared[1] * rejected, *(shared * reference))
    return PairInputs(
        chosen,
        rejected,
        reference[0],
        reference[1],
        margin,
        tokens[0],
        tokens[1],
        **dict(zip(SHARED, parts, strict=True)),
    )


def swapped(inputs: PairInputs) -> PairInputs:
    """Chosen and rejected exchanged; the margin stays, so that only the direction of the pair changes."""
    return PairInputs(
        inputs.rejected_logprob,
        inputs.chosen_logprob,
        inputs.reference_rejected,
        inputs.reference_chosen,
        inputs.margin,
        inputs.rejected_tokens,
        inputs.chosen_tokens,
        chosen_shared=inputs.rejected_shared,
        rejected_shared=inputs.chosen_shared,
        reference_chosen_shared=inputs.reference_rejected_shared,
        reference_rejected_shared=inputs.reference_chosen_shared,
    )


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.stem)
def test_a_loss_jumps_where_margins_are_rounding_only_if_it_says_so(path: Path) -> None:
    objective = objective_of(path)
    variants = ({}, {"margin_scale": "standardise"}, {"negative_margin": "drop"}, {"negative_margin": "signed"})
    inputs = pair_inputs(16)
    rounding = 1e-7 * torch.randn(2, 16, generator=torch.Generator().manual_seed(1))
    # shuffling exchanges what rounding does not change there, so its order shows at other margins only
    centre = inputs.margin if path.stem == "shuffled_margin" else torch.zeros(16)
    for changes in (changes for changes in variants if set(changes) <= set(vars(objective))):
        changed = replace(objective, **changes)
        one, other = (changed.scale(replace(inputs, margin=centre + part)) for part in rounding)
        same = all(torch.allclose(getattr(one, name), getattr(other, name), atol=1e-5) for name in "bmaq")
        assert same == (changed.jumps_at_equal_rewards is None), changes


def test_there_is_one_config_per_objective() -> None:
    def final(cls: type) -> set[type]:
        below = [found for found in cls.__subclasses__() if found.__module__.startswith("mmrlhf.losses.")]
        return set().union(*(final(found) for found in below)) if below else {cls}

    targets = [type(objective_of(path)) for path in METHODS]
    assert targets and len(targets) == len(set(targets))
    assert set(targets) == final(Objective)


@pytest.mark.parametrize("path", METHODS, ids=lambda p: p.stem)
class TestEveryObjective:
    @pytest.mark.parametrize("num_pairs", [0, 1, 2, 7])
    def test_terms_are_finite_and_one_per_pair(self, path: Path, num_pairs: int) -> None:
        terms = objective_of(path)(pair_inputs(num_pairs))
        for name in ("loss", "logit", "beta", "reward_chosen", "reward_rejected"):
            value: Tensor = getattr(terms, name)
            assert value.shape == (num_pairs,) and value.dtype == torch.float32 and value.isfinite().all(), name
        assert (terms.beta > 0).all()

    def test_logit_is_the_difference_of_the_implicit_rewards(self, path: Path) -> None:
        terms = objective_of(path)(pair_inputs(9))
        torch.testing.assert_close(terms.logit, terms.reward_chosen - terms.reward_rejected, rtol=1e-5, atol=1e-6)

    def test_swapping_the_pair_turns_its_accuracy_round(self, path: Path) -> None:
        objective, inputs = objective_of(path), pair_inputs(200)
        terms, turned = objective(inputs), objective(swapped(inputs))
        assert torch.equal(terms.logit > 0, turned.logit < 0)
        accuracy, other = ((t.logit > 0).float().mean().item() for t in (terms, turned))
        assert accuracy == pytest.approx(1 - other)
        if "beta" not in path.stem or path.stem == "mean_beta_dpo":  # there, b depends on the gaps
            torch.testing.assert_close(terms.logit, -turned.logit)

    def test_gradient_flows_through_the_policy_only(self, path: Path) -> None:
        inputs = pair_inputs(6, requires_grad=True)
        margin = inputs.margin
        assert margin is not None
        inputs = replace(inputs, margin=margin.clone().requires_grad_())
        terms = objective_of(path)(inputs)
        terms.loss.sum().backward()
        assert inputs.margin is not None and inputs.margin.grad is None
        assert inputs.chosen_logprob.grad is not None and inputs.chosen_logprob.grad.isfinite().all()
        assert not any(t.requires_grad for t in (terms.logit, terms.beta, terms.reward_chosen, terms.reward_rejected))

    def test_gradient_is_that_of_the_loss_with_constant_scale(self, path: Path) -> None:
        inputs = pair_inputs(6, seed=3, requires_grad=True)
        objective = objective_of(path)
        objective(inputs).loss.sum().backward()
        again = pair_inputs(6, seed=3, requires_grad=True)
        with torch.no_grad():
            fixed = objective.scale(again)
        loss = objective.pair_loss(*objective.scores(again), fixed) + objective.sft_weight * objective.sft_term(again)
        loss.sum().backward()
        assert inputs.chosen_logprob.grad is not None and again.chosen_logprob.grad is not None
        torch.testing.assert_close(inputs.chosen_logprob.grad, again.chosen_logprob.grad)

    def test_only_declared_inputs_are_needed(self, path: Path) -> None:
        objective, inputs = objective_of(path), pair_inputs(4)
        spare: dict[str, None] = {}
        if not objective.needs_reference:
            spare |= {"reference_chosen": None, "reference_rejected": None}
        if not objective.needs_margin:
            spare |= {"margin": None}
        torch.testing.assert_close(objective(replace(inputs, **spare)).loss, objective(inputs).loss)
        for needed, name in ((objective.needs_reference, "reference_chosen"), (objective.needs_margin, "margin")):
            if needed:
                with pytest.raises(ConfigError, match=name):
                    objective(replace(inputs, **{name: None}))

    def test_call_statistics_are_declared(self, path: Path) -> None:
        """Where an objective says that pairs are independent, a call of one pair gives that pair's loss."""
        objective, inputs = objective_of(path), pair_inputs(8)
        together = objective(inputs).loss
        alone = torch.cat([objective(one_of(inputs, i)).loss for i in range(8)])
        assert torch.allclose(together, alone) is not objective.uses_call_statistics

    def test_a_longer_reference_free_shift_changes_nothing(self, path: Path) -> None:
        """Adding a constant to policy and reference alike leaves every reference-based implicit reward as it is."""
        objective, inputs = objective_of(path), pair_inputs(8)
        if not objective.needs_reference or path.stem == "wpo":  # WPO weights by the policy's own probability
            return
        assert inputs.reference_chosen is not None and inputs.reference_rejected is not None
        shifted = replace(
            inputs,
            chosen_logprob=inputs.chosen_logprob - 3,
            reference_chosen=inputs.reference_chosen - 3,
            rejected_logprob=inputs.rejected_logprob - 5,
            reference_rejected=inputs.reference_rejected - 5,
        )
        torch.testing.assert_close(objective(shifted).logit, objective(inputs).logit, rtol=1e-4, atol=1e-5)

    def test_extreme_log_probabilities_stay_finite(self, path: Path) -> None:
        inputs = pair_inputs(2)
        far = replace(inputs, chosen_logprob=torch.tensor([-1e4, -1.0]), rejected_logprob=torch.tensor([-1.0, -1e4]))
        assert objective_of(path)(far).loss.isfinite().all()

    def test_sft_term_adds_the_likelihood_per_token(self, path: Path) -> None:
        objective, inputs = objective_of(path), pair_inputs(5)
        without, with_sft = (replace(objective, sft_weight=w)(inputs).loss for w in (0.0, 0.25))  # pyright: ignore
        torch.testing.assert_close(with_sft - without, 0.25 * objective.sft_term(inputs))
        if path.stem != "uni_dpo":  # there, only of responses that have become less likely
            assert inputs.chosen_tokens is not None
            torch.testing.assert_close(with_sft - without, -0.25 * inputs.chosen_logprob / inputs.chosen_tokens)

    def test_repeats_itself(self, path: Path) -> None:
        assert torch.equal(objective_of(path)(pair_inputs(9)).loss, objective_of(path)(pair_inputs(9)).loss)

    def test_refuses_senseless_settings(self, path: Path) -> None:
        for bad in ({"beta": 0.0}, {"beta": float("nan")}, {"sft_weight": -1.0}):
            with pytest.raises(ConfigError, match=next(iter(bad))):
                replace(objective_of(path), **bad)  # pyright: ignore


def one_of(inputs: PairInputs, i: int) -> PairInputs:
    names = (*FIELDS, "chosen_tokens", "rejected_tokens", *SHARED)
    return PairInputs(**{name: getattr(inputs, name)[i : i + 1] for name in names})


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("shape", [(3, 1), (1, 3), (1,), (4,), ()])
def test_nothing_broadcasts(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="one P"):
        replace(pair_inputs(3), **{name: torch.zeros(shape)})


def test_an_objective_cannot_return_another_shape() -> None:
    class Column(DPO):
        def scale(self, inputs: PairInputs) -> PairScale:
            return PairScale.fill(inputs, b=torch.full((3, 1), 0.1))

    with pytest.raises(ValueError, match="one P"):
        Column()(pair_inputs(3))


def test_one_shape_everywhere_is_not_enough() -> None:
    with pytest.raises(ValueError, match="one P"):
        PairInputs(torch.zeros(3, 1), torch.zeros(3, 1))


def test_missing_tensors_pass_the_shape_check() -> None:
    check_shapes({"a": torch.zeros(2), "b": None})


@settings(max_examples=50, deadline=None)
@given(z=st.floats(-50, 50), b=st.floats(0.01, 5), m=st.floats(-3, 3), a=st.floats(0, 2), q=st.floats(0, 1))
def test_loss_is_the_formula(z: float, b: float, m: float, a: float, q: float) -> None:
    """a * [q * -log sigmoid(bz - m) + (1 - q) * -log sigmoid(m - bz)], checked in float64."""
    z64, scale = torch.tensor([z], dtype=torch.float64), PairScale(*(torch.tensor([x]) for x in (b, m, a, q)))
    u = b * z64 - m
    expected = a * (q * torch.log1p(torch.exp(-u)) + (1 - q) * torch.log1p(torch.exp(u)))
    loss = DPO().pair_loss(torch.tensor([z]), torch.tensor([0.0]), scale)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=1e-4)
