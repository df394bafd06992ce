"""A reward model that reads responses in turn: its laws, every way of asking it, and what its card remembers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mmrlhf.chain.runtime import Runtime
from mmrlhf.errors import ConfigError, DataError, ModelError
from mmrlhf.feed.preflight import look_ahead
from mmrlhf.inference.reward_model import RewardModel
from mmrlhf.inference.scoring import Scoring
from mmrlhf.inference.settings import CritiqueSettings, PassSettings
from mmrlhf.models.promises import CARD_FILE
from mmrlhf.models.settings import ModelSettings
from mmrlhf.records.quarantine import Quarantine
from mmrlhf.shards.index import Index
from mmrlhf.shards.sidecar import SideCar
from mmrlhf.shards.writer import write_shards
from mmrlhf.stages import score
from mmrlhf.tokens.in_turn import in_order, reading_orders
from mmrlhf.tokens.packing import pack_groups
from mmrlhf.types import PreferenceGroup, Response

SHORT = CritiqueSettings(max_tokens=6)


def turned(folder: Path, out: Path, reading: object = "in_turn") -> Path:
    """The same model, as one that was trained to read responses in another way."""
    out.mkdir(parents=True)
    for file in folder.iterdir():
        (out / file.name).symlink_to(file)
    card = json.loads((folder / CARD_FILE).read_text())
    (out / CARD_FILE).unlink()
    (out / CARD_FILE).write_text(json.dumps({**card, "reading": reading}))
    return out


@pytest.fixture(scope="module")
def scalar_folder(scalar_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return turned(scalar_model, tmp_path_factory.mktemp("in-turn") / "scalar")


@pytest.fixture(scope="module")
def critic_folder(critic: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return turned(critic, tmp_path_factory.mktemp("in-turn") / "critic")


@pytest.fixture(scope="module", params=["scalar", "critic"])
def folders(request: Any, scalar_folder: Path, critic_folder: Path, scalar_model: Path, critic: Path) -> list[Path]:
    """A model's folder, read in turn and apart."""
    return [scalar_folder, scalar_model] if request.param == "scalar" else [critic_folder, critic]


def load(folder: Path, **settings: Any) -> RewardModel:
    return RewardModel.from_pretrained(folder, critiques=replace(SHORT, **settings), device="cpu")


def rewards(judge: RewardModel, group: PreferenceGroup, **options: Any) -> list[float]:
    return [verdict.reward for verdict in judge.score_groups([group], **options)[0]]


def test_neither_the_order_of_responses_nor_the_querys_name_changes_anything(
    folders: list[Path], small_groups: list[PreferenceGroup]
) -> None:
    for orders in ("all", "drawn"):
        judge, group = load(folders[0], orders=orders), small_groups[1]
        found = judge.score_groups([group])[0]
        other = replace(group, key="other", responses=group.responses[::-1])
        back = judge.score_groups([other])[0][::-1]
        assert [v.critique for v in back] == [v.critique for v in found]
        assert [v.reward for v in back] == pytest.approx([v.reward for v in found], abs=1e-5)


def test_one_response_is_scored_as_it_always_was(folders: list[Path], small_groups: list[PreferenceGroup]) -> None:
    """To the digit; and so is the first in a drawn order, within rounding, critique included."""
    judge, usual = load(folders[0], orders="drawn"), load(folders[1])
    alone = replace(small_groups[1], responses=small_groups[1].responses[:1])
    assert judge.score_groups([alone]) == usual.score_groups([alone])
    group = small_groups[3]
    ((first, *_),) = reading_orders(judge.encoder.context(group), "drawn")
    found, apart = (each.score_groups([group])[0] for each in (judge, usual))
    assert found[first].critique == apart[first].critique
    assert found[first].reward == pytest.approx(apart[first].reward, abs=1e-5)
    others = [n for n in range(len(group.responses)) if n != first]
    assert all(abs(found[n].reward - apart[n].reward) > 1e-4 for n in others)


def test_a_reward_is_the_mean_over_orders_of_the_forward_of_training(
    critic_folder: Path, scalar_folder: Path, small_groups: list[PreferenceGroup]
) -> None:
    group = small_groups[2]
    for folder in (critic_folder, scalar_folder):
        judge = load(folder)
        encoded, expected = judge.encoder(group), torch.zeros(len(group.responses))
        orders = reading_orders(encoded, "all")
        assert len(orders) == len(group.responses)
        for order in orders:
            with torch.inference_mode():
                scores = judge.model.score(judge.model(pack_groups([in_order(encoded, order)])))
            expected[list(order)] += scores / len(orders)
        assert rewards(judge, group, critique_source="given") == pytest.approx(expected.tolist(), abs=1e-5)
        again = judge.score_groups([group], [encoded], critique_source="given")[0]
        assert [v.reward for v in again] == pytest.approx(expected.tolist(), abs=1e-5), "encoded ahead"


def test_what_it_writes_gives_its_rewards_back(critic_folder: Path, small_groups: list[PreferenceGroup]) -> None:
    judge = load(critic_folder, orders="drawn")
    group = small_groups[1]
    written = judge.score_groups([group], [judge.encoder.context(group)])[0]
    given = tuple(replace(r, critiques={"full": v.critique}) for r, v in zip(group.responses, written, strict=True))
    again = judge.score_groups([replace(group, responses=given)], critique_source="given")[0]
    assert [v.reward for v in again] == pytest.approx([v.reward for v in written], abs=1e-5)
    assert [v.critique_tokens for v in again] == [v.critique_tokens for v in written]


def test_a_query_alone_or_in_a_batch_with_several_critiques(
    critic_folder: Path, small_groups: list[PreferenceGroup]
) -> None:
    """Two sampled critiques in each order: a verdict has the likeliest of all, and a vote shares out one half each."""
    asked, drawn = small_groups[:4], {"temperature": 1.0, "num_samples": 2}
    judge = load(critic_folder, **drawn)
    together = judge.score_groups(asked)
    for group, verdicts in zip(asked, together, strict=True):
        alone = judge.score_groups([group])[0]
        assert [v.critique for v in alone] == [v.critique for v in verdicts]
        assert [v.reward for v in alone] == pytest.approx([v.reward for v in verdicts], abs=1e-4)
    voting = load(critic_folder, **drawn, combine="vote")
    assert sum(rewards(voting, asked[1])) == pytest.approx(len(asked[1].responses) / 2)


def test_equal_responses_get_equal_verdicts(folders: list[Path]) -> None:
    judge = load(folders[0])
    mixed = judge.score(None, "say yes", ["yes", "no", "yes"])
    assert mixed[0] == mixed[2]
    for found, expected in zip(mixed, judge.score(None, "say yes", ["yes", "no"]), strict=False):
        assert found[0] == pytest.approx(expected[0], abs=1e-5) and found[1] == expected[1]
    twice = judge.score(None, "say yes", ["yes", "yes"])
    assert twice[0] == twice[1]


def test_alone_no_other_response_counts(folders: list[Path], small_groups: list[PreferenceGroup]) -> None:
    judge, usual = (load(folder) for folder in folders)
    asked = small_groups[:3]
    found = judge.score_alone(asked)
    for own, theirs in zip(found, usual.score_groups(asked), strict=True):
        assert [v.reward for v in own] == pytest.approx([v.reward for v in theirs], abs=1e-5)
    long = replace(asked[0], responses=(asked[0].responses[0], Response("red " * 5000)))
    strict = RewardModel.from_pretrained(
        folders[0], PassSettings(ModelSettings(too_long="refuse", max_tokens=400)), SHORT, device="cpu"
    )
    left_out = Quarantine(2, max_damaged=1.0)
    assert [len(own) for own in strict.score_alone([long, asked[1]], quarantine=left_out)] == [0, len(found[1])]


def test_media_of_their_own_are_read_apart(folders: list[Path], small_groups: list[PreferenceGroup]) -> None:
    """Beside a query that is read in turn, with its own number of critiques."""
    judge, usual = (load(folder, temperature=1.0, num_samples=2) for folder in folders)
    group, (medium,) = small_groups[2], small_groups[2].media
    own = [replace(r, media=(replace(medium, names=(f"{n}.0.png",)),)) for n, r in enumerate(group.responses)]
    shown = replace(group, key="own", responses=tuple(own), media=())
    found, beside = judge.score_groups([shown, small_groups[1]])
    (expected,) = usual.score_groups([shown])
    assert [v.critique for v in found] == [v.critique for v in expected]
    assert [v.reward for v in found] == pytest.approx([v.reward for v in expected], abs=1e-4)
    assert [v.reward for v in beside] == pytest.approx(rewards(judge, small_groups[1]), abs=1e-4)


def test_asked_without_critiques_it_still_reads_in_turn(
    critic_folder: Path, scalar_folder: Path, small_groups: list[PreferenceGroup]
) -> None:
    at_once = load(critic_folder, temperature=1.0, num_samples=2).without_critiques()
    assert rewards(at_once, small_groups[1]) == pytest.approx(rewards(load(scalar_folder), small_groups[1]), abs=1e-5)


def test_a_query_that_does_not_fit_is_left_out_whole(critic_folder: Path, small_groups: list[PreferenceGroup]) -> None:
    judge = RewardModel.from_pretrained(
        critic_folder, PassSettings(ModelSettings(too_long="refuse", max_tokens=300)), SHORT, device="cpu"
    )
    long = replace(small_groups[0], key="long", responses=tuple(Response(f"{n} " + "red " * 60) for n in range(3)))
    left_out = Quarantine(2, max_damaged=1.0)
    found = judge.score_groups([long, small_groups[1]], quarantine=left_out)
    assert found[0] == [] and len(found[1]) == len(small_groups[1].responses) and "long" in left_out.reasons
    with pytest.raises(DataError, match="for all responses together"):
        judge.score_groups([long])
    alone = replace(long, responses=long.responses[:1])
    assert len(judge.score_groups([alone])[0]) == 1, "one of them fits"


def test_what_will_not_fit_together_is_foreseen(tmp_path: Path, scalar_folder: Path) -> None:
    texts = [f"{n} " + "red circle " * 40 for n in range(4)]
    write_shards([PreferenceGroup("long", "what ?", tuple(map(Response, texts)))], tmp_path)
    index = Index.load(tmp_path)
    for too_long in ("shorten", "refuse"):
        settings = ModelSettings(max_tokens=500, too_long=too_long)
        encoder = RewardModel.from_pretrained(scalar_folder, PassSettings(settings), device="cpu").encoder
        ahead = look_ahead(index, [0], encoder)
        if too_long == "refuse":
            assert ahead.too_long == ["long"]
        else:
            lost = sum(branch.truncated for branch in encoder(index.read(0)).branches)
            assert ahead.cut == {"long": lost} and lost > 0


def test_the_stage_keeps_tables_of_other_readings_apart(
    tmp_path: Path, small_shards: Path, small_groups: list[PreferenceGroup], scalar_folder: Path, scalar_model: Path,
    runtime: Runtime,
) -> None:  # fmt: skip
    asked: dict[str, Any] = {"shards": small_shards, "holdout": 0.4, "runtime": runtime}
    asked |= {"passes": PassSettings(groups_per_batch=4), "critiques": SHORT}
    found = score.run(tmp_path, reward_model=scalar_folder, **asked)
    table, judge = SideCar.load(tmp_path / "rewards"), load(scalar_folder)
    assert (table.fingerprint["reading"], table.fingerprint["orders"]) == ("in_turn", "all")
    assert found["responses_scored"] == sum(len(group.responses) for group in small_groups)
    group = small_groups[5]
    kept = table.lookup(group.key, [response.hash for response in group.responses])["reward"].tolist()
    assert kept == pytest.approx(rewards(judge, group), abs=1e-4)
    with pytest.raises(DataError, match="made by something else"):
        score.run(tmp_path, reward_model=scalar_folder, **{**asked, "critiques": replace(SHORT, orders="drawn")})
    index = Index.load(small_shards)
    apart = Scoring(index, load(scalar_model), scalar_model, 4, runtime).fingerprint("generate")
    assert not {"reading", "orders"} & set(apart), "tables of other models are named as they were"


def test_a_card_says_how_responses_are_read(
    tmp_path: Path, scalar_model: Path, scalar_folder: Path, small_groups: list[PreferenceGroup]
) -> None:
    assert load(scalar_model).reading == "apart" and load(scalar_folder).reading == "in_turn"
    with pytest.raises(ModelError, match="does not say how it is asked") as caught:
        load(turned(scalar_model, tmp_path / "odd", "sideways"))
    assert "sideways" in str(caught.value)
    with pytest.raises(ConfigError, match="cascade computes branches apart"):
        RewardModel.from_pretrained(scalar_folder, PassSettings(ModelSettings(attention="cascade")), device="cpu")
    rows = RewardModel.from_pretrained(scalar_folder, PassSettings(ModelSettings(layout="rows")), device="cpu")
    assert rewards(rows, small_groups[1]) == pytest.approx(rewards(load(scalar_folder), small_groups[1]), abs=1e-4)
