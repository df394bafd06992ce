"""The stages `audit`, `triage`, `labelled`: a model and people share the work, and every label says whose it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from stand_ins.annotators import filled, unranked

from mmrlhf.annotation.filled_forms import write_forms
from mmrlhf.chain.runtime import Runtime
from mmrlhf.errors import DataError
from mmrlhf.reporting.accuracy import ranking_summary
from mmrlhf.reporting.cuts import cut_line
from mmrlhf.reporting.inputs import read_pairs
from mmrlhf.shards.index import Index
from mmrlhf.shards.sidecar import SideCar, SideCarWriter
from mmrlhf.shards.writer import write_shards
from mmrlhf.stages import annotate as annotate_stage
from mmrlhf.stages import annotated, audit, labelled, triage
from mmrlhf.summaries.triages import AuditSummary, LabelledSummary, TriageSummary
from mmrlhf.triage.decisions import read_decisions
from mmrlhf.types import PreferenceGroup

# people order answers as the model does where it is sure (a large distance), and the other way round where it is not
NUMBER, SAFE = 120, 6


def distance(number: int) -> float:
    return (number % 60 + 1) / 10


def order(number: int) -> tuple[int, int]:
    return (1, 2) if number % 60 >= 15 else (2, 1)


@dataclass(frozen=True)
class Round:
    shards: Path
    rewards: Path
    groups: Mapping[str, PreferenceGroup]


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Round:
    folder = tmp_path_factory.mktemp("asked")
    groups = [
        unranked(f"q{number}", 2, category="safety" if number >= NUMBER else "long") for number in range(NUMBER + SAFE)
    ]
    write_shards(groups, folder / "shards")
    with SideCarWriter(folder / "rewards", columns=["reward"], fingerprint={"reward_model": "judge"}) as writer:
        for number, group in enumerate(groups):
            for place, response in enumerate(group.responses):
                writer.add(group.key, response.hash, {"reward": distance(number) * (1 - place)})
    return Round(folder / "shards", folder / "rewards", {group.key: group for group in groups})


def annotate(asked: Round, keys: list[str], out: Path, runtime: Runtime) -> Path:
    forms = [filled(asked.groups[key], "ann", order(int(key[1:])), seconds=30.0) for key in keys]
    write_forms(out.with_suffix(".jsonl"), forms)
    annotated.run(out, shards=asked.shards, annotations=out.with_suffix(".jsonl"), runtime=runtime)
    return out / "shards"


def lines(path: Path) -> list[str]:
    return path.read_text().split()


@pytest.fixture
def audited(asked: Round, tmp_path: Path, runtime: Runtime) -> Path:
    found = audit.run(tmp_path / "audit", shards=asked.shards, size=60, runtime=runtime)
    summary = AuditSummary.from_json(found, where="")
    assert (summary.drawn, summary.pool, summary.always) == (60, NUMBER, {"safety": SAFE})
    keys = lines(tmp_path / "audit/audit.txt")
    assert len(set(keys)) == 60 and all(int(key[1:]) < NUMBER for key in keys), "what people get anyway is not drawn"
    return annotate(asked, keys, tmp_path / "audited", runtime)


def decide(asked: Round, audited: Path, out: Path, runtime: Runtime, **more: Any) -> TriageSummary:
    drawn = next(parent for parent in audited.parents if (parent / "audit").is_dir()) / "audit" / "audit.txt"
    settings = {"limit": 0.25, "fit_share": 0.25, "least": 10, "drawn": drawn, **more}
    found = triage.run(
        out, shards=asked.shards, rewards=asked.rewards, audit=audited, runtime=runtime, **settings
    )  # fmt: skip
    return TriageSummary.from_json(found, where="")


def test_people_are_asked_where_the_model_is_unsure(
    asked: Round, audited: Path, tmp_path: Path, runtime: Runtime
) -> None:
    summary = decide(asked, audited, tmp_path / "out", runtime)
    assert summary.model == "judge" and (summary.audited, summary.fitted) == (60, 15)
    assert summary.disagreement is not None and 0.1 < summary.disagreement.mean < 0.4
    assert summary.seconds == 30.0 and 0.4 < summary.certified < 0.95 and summary.always == SAFE
    decisions = {each.key: each for each in read_decisions(tmp_path / "out")}
    automatic = [key for key, each in decisions.items() if each.fate == "automatic"]
    wanted = lines(tmp_path / "out/ask.txt")
    assert all(int(key[1:]) >= NUMBER for key in wanted[:SAFE]) and len(wanted) == summary.asked
    unsure = [distance(int(key[1:])) for key in wanted[SAFE:]]
    assert unsure == sorted(unsure), "the most unsure first"
    assert max(unsure) < min(distance(int(key[1:])) for key in automatic)
    assert sum(summary.left_out.values()) == 0
    assert summary.asked + summary.automatic + summary.audited == NUMBER + SAFE

    people = {
        "audit": audited,
        "asked": annotate(asked, wanted[:-1], tmp_path / "said", runtime),
    }
    found = labelled.run(
        tmp_path / "labelled", shards=asked.shards, people=people, triage=tmp_path / "out", runtime=runtime
    )
    result = LabelledSummary.from_json(found, where="")
    assert result.by == {"model": summary.automatic, "person": summary.asked - 1} and result.audit == 60
    assert result.left_out == {"asked, and nobody has annotated it": 1}
    trained = {group.key: group for group in Index.load(tmp_path / "labelled/shards")}
    apart = {group.key for group in Index.load(tmp_path / "labelled/audit")}
    assert apart == {key for key, each in decisions.items() if each.fate == "audit"} and not apart & set(trained)
    for key, group in trained.items():
        assert group.labelled_by_model == (key in automatic)
        wrote = order(int(key[1:])) if key not in automatic else (1, 2)
        assert tuple(response.rank for response in group.responses) == wrote
        if group.labelled_by_model:
            assert group.meta["labels"] == {
                "by": "model", "model": "judge", "certified": True, "uncertainty": decisions[key].uncertainty,
            }  # fmt: skip
            assert not any(response.scores for response in group.responses)
    _nobody_is_judged_by_its_own_labels(tmp_path / "labelled/shards", asked.rewards, result)

    again = decide(asked, audited, tmp_path / "again", runtime, known=tmp_path / "labelled/shards")
    assert again.known == summary.asked - 1 and again.asked == 1, "a model's labels are decided anew, people's are not"


def _nobody_is_judged_by_its_own_labels(shards: Path, rewards: Path, result: LabelledSummary) -> None:
    index, table = Index.load(shards), SideCar.load(rewards)
    found = ranking_summary(index, index.split("all", 0.0), {"judge": table})
    assert found.labelled_by_model == result.by["model"] and found.queries == result.by["person"]
    assert found.accuracy["annotators"]["judge"].num_queries == result.by["person"]
    assert f"{result.by['model']} queries whose labels a model made" in cut_line({"heldout": found.to_json()})
    pairs = read_pairs(index, table, None, limit=1000)
    assert pairs is not None and len(pairs.margins) == pairs.num_groups == result.by["person"]


def test_a_budget_is_kept_and_what_it_leaves_is_counted(
    asked: Round, audited: Path, tmp_path: Path, runtime: Runtime
) -> None:
    from mmrlhf.triage.budget import Budget

    summary = decide(asked, audited, tmp_path / "few", runtime, budget=Budget(minutes=4))
    assert summary.affordable == summary.asked == 8 and summary.always == SAFE
    assert summary.left_out["beyond the budget"] > 0 and summary.uncertified == 0
    model = decide(asked, audited, tmp_path / "model", runtime, budget=Budget(queries=2), beyond="model")
    assert model.uncertified == summary.left_out["beyond the budget"] + 2, "safety beyond the budget has no labels"
    assert model.left_out == {"beyond the budget": SAFE - 2}


def test_a_round_in_which_nobody_has_to_be_asked(asked: Round, audited: Path, tmp_path: Path, runtime: Runtime) -> None:
    """The list is empty: annotate says how to go on, and that gives the model's labels and the audit."""
    summary = decide(asked, audited, tmp_path / "out", runtime, limit=0.9, always=())
    assert summary.asked == 0 and lines(tmp_path / "out/ask.txt") == []
    with pytest.raises(DataError, match="nobody has to be asked") as caught:
        annotate_stage.run(tmp_path / "annotate", shards=asked.shards, only=tmp_path / "out/ask.txt", runtime=runtime)
    assert "stage=labelled ~stages.labelled.people.asked" in str(caught.value)
    found = labelled.run(
        tmp_path / "labelled", shards=asked.shards, people={"audit": audited}, triage=tmp_path / "out", runtime=runtime
    )
    assert found["by"] == {"model": NUMBER + SAFE - 60} and found["audit"] == 60


def test_more_rounds_certify_less_and_too_small_an_audit_says_so(
    asked: Round, audited: Path, tmp_path: Path, runtime: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    one, many = (decide(asked, audited, tmp_path / str(rounds), runtime, rounds=rounds) for rounds in (1, 20))
    assert many.level > one.level and many.certified <= one.certified
    strict = decide(asked, audited, tmp_path / "strict", runtime, limit=0.01)
    assert strict.certified == 0 and strict.automatic == 0 and "needs 299 of them" in caplog.text


def test_only_what_was_drawn_measures(asked: Round, audited: Path, tmp_path: Path, runtime: Runtime) -> None:
    """Forms of other queries, which people were asked about for a reason, may lie beside the audit's."""
    keys = lines(tmp_path / "audit/audit.txt")
    more = [key for key in asked.groups if key not in keys][:20]
    both = annotate(asked, [*keys, *more], tmp_path / "both", runtime)
    one = decide(asked, audited, tmp_path / "one", runtime)
    assert decide(asked, both, tmp_path / "two", runtime) == one and one.audited == 60


def test_an_audit_that_measures_nothing_is_refused(
    asked: Round, audited: Path, tmp_path: Path, runtime: Runtime
) -> None:
    groups = list(Index.load(audited))

    def refused(change: PreferenceGroup, match: str) -> None:
        folder = tmp_path / match.replace(" ", "_")
        write_shards([change, *groups[1:]], folder)
        with pytest.raises(DataError, match=match):
            decide(asked, folder, tmp_path / "out", runtime)

    first = groups[0]
    drawn = tmp_path / "audit/audit.txt"
    drawn.write_text(drawn.read_text() + "other\n")
    refused(replace(first, meta={**first.meta, "labels": {"by": "model"}}), "labels by a model")
    refused(replace(first, meta={}), "nobody that is known")
    refused(replace(first, key="other"), "no such query among")
    refused(replace(first, category="safety"), "a query of safety")
    changed = replace(first.responses[0], text="something else")
    refused(replace(first, responses=(changed, *first.responses[1:])), "other answers")
