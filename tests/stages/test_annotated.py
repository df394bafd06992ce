"""The stages `annotate` and `annotated`: forms of people become ranked queries; what is wrong with them is counted."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stand_ins.annotators import annotation, exported_tasks, filled, ranking, rating, texts, unranked
from stand_ins.sample_groups import make_group

from mmrlhf.annotation.filled_forms import DIMENSIONS, Form, write_forms
from mmrlhf.annotation.form_store import FormStore
from mmrlhf.chain.runtime import Runtime
from mmrlhf.errors import ConfigError, DataError
from mmrlhf.metrics.agreement import rater_agreement
from mmrlhf.records.mm_rlhf import import_released
from mmrlhf.shards.index import Index
from mmrlhf.shards.sidecar import SideCar, SideCarWriter
from mmrlhf.shards.writer import write_shards
from mmrlhf.stages import annotate, annotated, annotations, pack
from mmrlhf.summaries.people import AnnotatedSummary, AnnotateSummary
from mmrlhf.types import PreferenceGroup

GROUPS = [unranked(f"q{number}", 4 if number == 0 else 3) for number in range(6)]


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("asked")
    write_shards(GROUPS, folder)
    return folder


@pytest.fixture(scope="module")
def world_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from functools import partial

    import lightning as L

    from mmrlhf.stages import world

    folder, runtime = tmp_path_factory.mktemp("world"), Runtime(partial(L.Trainer, accelerator="cpu"), progress=False)
    world.run(folder / "drawn", num_groups=60, num_warmup=0, seed=3, runtime=runtime)
    pack.run(folder / "shards", root=folder / "drawn/preference", importer=import_released, runtime=runtime)
    return folder / "shards"


Run = Callable[..., tuple[AnnotatedSummary, dict[str, PreferenceGroup]]]


@pytest.fixture
def run(tmp_path: Path, asked: Path, runtime: Runtime) -> Run:
    def run_annotated(forms: Sequence[Form] | Path, **more: Any) -> tuple[AnnotatedSummary, dict[str, PreferenceGroup]]:
        place = forms if isinstance(forms, Path) else tmp_path / "forms.jsonl"
        if not isinstance(forms, Path):
            write_forms(place, forms)
        out = tmp_path / "out"
        found = annotated.run(out, **{"shards": asked, "annotations": place, "runtime": runtime, **more})
        groups = {group.key: group for group in Index.load(out / "shards")}
        assert found == json.loads((out / "metrics.json").read_text())
        return AnnotatedSummary.from_json(found, where=""), groups

    return run_annotated


def ranks(group: PreferenceGroup) -> list[int | None]:
    return [response.rank for response in group.responses]


def test_ranks_scores_reasons_and_origins(run: Run, tmp_path: Path) -> None:
    reasons = {"helpfulness": ("short", "", ""), "ethics": ("fine", "rude", "")}
    forms = [
        filled(GROUPS[1], "bob", (1, 3, 3), reasons=reasons, at=10.0, seconds=30.0, origin="first"),
        filled(GROUPS[1], "ann", (2, 2, 1), at=11.0, reasons={"helpfulness": ("x", "y", "z")}),
        filled(GROUPS[1], "cem", (1, 2, 3), at=12.0),
        filled(GROUPS[2], "ann", (2, None, 1), at=13.0),
    ]
    summary, groups = run(forms)
    assert (summary.groups, summary.forms, summary.several, summary.gaps, summary.unranked) == (2, 4, 1, 1, 1)
    assert summary.left_out == {"nobody annotated it": 4} and not summary.refused
    first, second = groups["q1"], groups["q2"]
    assert ranks(first) == [1, 2, 2] and ranks(second) == [2, None, 1]
    assert first.ranked_pairs() == ((0, 1), (0, 2)) and second.ranked_pairs() == ((2, 0),)
    assert (summary.pairs, summary.ties) == (3, 1)
    # bob gave 5, 3, 3, ann 4, 4, 5, cem 5, 4, 3
    means = [14 / 3, 11 / 3, 11 / 3]
    assert [response.scores["ethics"] for response in first.responses] == pytest.approx(means, abs=1e-5)
    # cem is nearest to the means and says nothing, bob comes next, ann last
    assert first.responses[0].critiques == {"short": "helpfulness: short\nethics: fine"}
    assert first.responses[1].reasons == {"ethics": "rude"} and first.responses[1].critiques["short"] == "rude"
    assert first.responses[2].reasons == {"helpfulness": "z"}
    assert summary.with_reasons == 3
    assert first.meta["annotations"]["ranking"] == [[2, 2, 1], [1, 2, 2], [1, 2, 3]]
    assert first.meta["annotators"][1] == {
        "annotator": "bob", "kind": "person", "tool": "page", "origin": "first", "at": 10.0, "seconds": 30.0,
        "problem": "",
    }  # fmt: skip
    assert first.meta["labels"] == {"by": "person", "forms": 3}
    assert [media.data for media in first.media] == [media.data for media in GROUPS[1].media]
    left = [json.loads(line)["key"] for line in (tmp_path / "out/left_out.jsonl").read_text().splitlines()]
    assert left == ["q0", "q3", "q4", "q5"]


def test_what_people_wrote_is_the_margin(run: Run, tmp_path: Path, runtime: Runtime) -> None:
    run([filled(group, "ann", tuple(range(1, len(group.responses) + 1))) for group in GROUPS])
    weights = {"helpfulness": 1.0, "faithfulness": 1.0, "ethics": 1.0}
    annotations.run(tmp_path / "rewards", shards=tmp_path / "out/shards", weights=weights, holdout=0.3, runtime=runtime)
    table = SideCar.load(tmp_path / "rewards/rewards")
    found = table.lookup("q0", [response.hash for response in GROUPS[0].responses])["reward"]
    assert found.tolist() == [5, 4, 3, 2]


def test_forms_that_cannot_be_used_are_counted_by_reason(run: Run, tmp_path: Path) -> None:
    fit = filled(GROUPS[0], "ann", (1, 2, 3, 4), at=5.0)
    forms = [
        fit,
        replace(fit, ranks=(4, 3, 2, 1), at=4.0),  # earlier, though it comes later
        filled(unranked("elsewhere"), "ann", (1, 2, 3)),
        replace(filled(GROUPS[1], "ann", (1, 2, 3)), hashes=("a", "b", "c")),
        replace(filled(GROUPS[2], "ann", (None,) * 3), scores={}),
        filled(GROUPS[3], "ann", (1, 2, 3), problem="the picture is black"),
        filled(GROUPS[4], "spam", (1, 2, 3)),
        filled(GROUPS[5], "ann", (1, 2, 3), kind="model"),
    ]
    path = tmp_path / "mixed.jsonl"
    write_forms(path, forms)
    path.write_text(
        path.read_text()
        + 'not json\n{"key": 3}\n\n[1]\n'
        + json.dumps({**fit.to_json(), "ranks": [0, 1, 2, 3]})
        + "\n"
        + json.dumps({**fit.to_json(), "seconds": 10**400})
    )
    summary, groups = run(path, exclude=["spam"])
    assert set(groups) == {"q0"} and ranks(groups["q0"]) == [1, 2, 3, 4]
    assert summary.refused == {
        "not a filled form: no JSON": 1, "not a filled form: expected one value for each answer": 1,
        "not a filled form: expected an object": 1,
        "not a filled form: expected one value for each answer, 4 in all": 1,
        "not a filled form: expected a number, or null": 1,
        "the query is not among these": 1, "filled in for other answers of this query": 1, "an empty form": 1,
        "filled in again later by the same annotator": 1,
    }  # fmt: skip
    assert summary.left_out == {
        "nobody annotated it": 2, "annotators flag a problem": 1, "only excluded annotators": 1, "only a model": 1,
    }  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "out/refused.jsonl").read_text().splitlines()]
    assert len(rows) == sum(summary.refused.values()) and any("query elsewhere: ann" in row["where"] for row in rows)


def test_experts_decide_and_disputes_are_theirs(run: Run, tmp_path: Path) -> None:
    forms = [
        filled(GROUPS[1], "ann", (1, 2, 3)), filled(GROUPS[1], "bob", (3, 2, 1)),
        filled(GROUPS[2], "ann", (1, 2, 3)), filled(GROUPS[2], "bob", (1, 3, 2)),
        filled(GROUPS[3], "ann", (1, 2, 3)), filled(GROUPS[3], "bob", (1, 2, 3), problem="cut off"),
        filled(GROUPS[4], "ann", (1, 2, 3)), filled(GROUPS[4], "bob", (3, 2, 1)), filled(GROUPS[4], "eva", (2, 1, 3)),
    ]  # fmt: skip
    summary, groups = run(forms, experts=["eva"])
    assert ranks(groups["q4"]) == [2, 1, 3] and groups["q4"].meta["labels"] == {"by": "expert", "forms": 1}
    assert len(groups["q4"].meta["annotations"]["ranking"]) == 1 and len(groups["q4"].meta["annotators"]) == 3
    assert (tmp_path / "out/expert_queue.txt").read_text().split() == ["q1", "q3"] and summary.disputed == 2
    assert ranks(groups["q1"]) == [1, 1, 1]
    page = (tmp_path / "out/report.html").read_text()
    assert "100% of the pairs reversed" in page and "cut off" in page and "question q4" not in page
    with pytest.raises(ConfigError, match="no annotator has this name") as caught:
        run(forms, exclude=["bop"])
    assert caught.value.argument == "exclude" and "ann, bob, eva" in str(caught.value)


def test_gold_questions_measure_and_become_no_data(run: Run, tmp_path: Path, asked: Path) -> None:
    gold = [make_group(f"g{number}") for number in range(3)]
    write_shards(gold, tmp_path / "gold")
    forms = [
        *(filled(group, "ann", (1, 2, 3)) for group in (*gold, *GROUPS[1:])),
        *(filled(group, "bob", ranks) for group, ranks in zip(gold, [(3, 2, 1), (1, 1, 2), (1, 2, 3)], strict=True)),
        replace(filled(gold[0], "cem", (1, 2, 3)), hashes=("x", "y", "z")),
    ]
    summary, groups = run(forms, gold=tmp_path / "gold")
    assert set(groups) == {group.key for group in GROUPS[1:]}
    ann, bob = summary.annotators["ann"], summary.annotators["bob"]
    assert (
        ann.gold is not None and bob.gold is not None and ann.gold.mean == 1 and (ann.forms, ann.gold_forms) == (5, 3)
    )
    assert bob.gold.mean == pytest.approx((0 + 2.5 + 3) / 9) and bob.forms == 0
    assert summary.refused == {"filled in for other answers of this query": 1}
    with pytest.raises(DataError, match="a gold query has no ranking"):
        run(forms, gold=asked)


def test_agreement_and_each_annotator_over_time(tmp_path: Path, runtime: Runtime) -> None:
    """Against `rater_agreement` itself; and somebody who gets tired is seen to."""
    rng = np.random.default_rng(0)
    queries = [unranked(f"q{number}", num_images=0) for number in range(60)]
    write_shards(queries, tmp_path / "asked")
    forms, tables = [], []
    for number, group in enumerate(queries):
        true = rng.permutation(3) + 1
        tired = true if number < 30 else rng.permutation(3) + 1
        said = {"ann": true, "bob": true, "cem": tired}
        forms += [filled(group, name, tuple(map(int, ranks)), at=float(number)) for name, ranks in said.items()]
        tables.append(np.stack(list(said.values())))
    write_forms(tmp_path / "forms.jsonl", forms)
    found = annotated.run(
        tmp_path / "out", shards=tmp_path / "asked", annotations=tmp_path / "forms.jsonl", runtime=runtime
    )
    summary = AnnotatedSummary.from_json(found, where="")
    expected = rater_agreement(tables)
    ranked = summary.agreement["ranking"]
    assert ranked.alpha is not None and ranked.kappa is not None and expected.alpha and expected.kappa
    assert (ranked.alpha.mean, ranked.kappa.mean) == (expected.alpha.mean, expected.kappa.mean) and ranked.queries == 60
    cem = summary.annotators["cem"]
    means = [window.agreement.mean for window in cem.over_time]
    assert len(means) == 6 and means[:3] == [1, 1, 1] and max(means[3:]) < 0.85
    assert cem.agreement is not None and cem.agreement.mean == pytest.approx(np.mean(means))
    page = (tmp_path / "out/report.html").read_text()
    assert page.count("<svg") == 2 and page.index("<td>cem") < page.index("<td>ann")


def test_a_model_against_people(run: Run, asked: Path, tmp_path: Path) -> None:
    index = Index.load(asked)
    with SideCarWriter(tmp_path / "rewards", columns=["reward"], fingerprint={"reward_model": "rm-9"}) as writer:
        for group in index:
            for place, response in enumerate(group.responses):
                writer.add(group.key, response.hash, {"reward": -float(min(place, 1))})
    forms = [
        filled(GROUPS[1], "ann", (1, 2, 3)),
        filled(GROUPS[2], "ann", (2, 1, 2)),
        filled(GROUPS[3], "ann", (1, 3, 2)),
    ]
    summary, groups = run(forms, rewards=tmp_path / "rewards")
    # the model prefers the first answer to both others, which it finds equal
    assert summary.models["rm-9"].counts == [[4, 1, 1], [2, 0, 1]]
    agreement = summary.models["rm-9"].agreement
    assert agreement is not None and agreement.mean == pytest.approx((4 + 0.5 + 3 * 0.5) / 9)
    assert groups["q1"].meta["model_annotations"] == {"ranking": [[1, 2, 2]]}
    assert "People against rm-9" in (tmp_path / "out/report.html").read_text()


def test_an_export_of_label_studio_and_the_pages_database_together(run: Run, tmp_path: Path, asked: Path) -> None:
    tasks = exported_tasks(tmp_path / "projects", GROUPS[1:])
    for task in tasks[:2]:
        letters = dict(zip(task["data"]["order"], "ABC", strict=True))
        said = ranking({f"rank_{place + 1}": [letters[place]] for place in range(3)})
        task["annotations"] = [
            annotation(
                1, said, *(rating(name, 0, 3) for name in DIMENSIONS), texts("ethics_reason_0", "response_0", "ok")
            )
        ]
    (tmp_path / "forms").mkdir()
    (tmp_path / "forms/project-1.json").write_text(json.dumps(tasks))
    store = FormStore(tmp_path / "forms/page.sqlite", Index.load(asked).digest)
    store.keep_draft(filled(GROUPS[4], "ann", (3, 2, 1)))
    store.submit(filled(GROUPS[3], "ann", (3, 2, 1)))
    store.submit(filled(GROUPS[3], "ann", (2, 1, 1)))
    summary, groups = run(tmp_path / "forms")
    assert {key: ranks(group) for key, group in groups.items()} == {"q1": [1, 2, 3], "q2": [1, 2, 3], "q3": [2, 1, 1]}
    assert {group.meta["annotators"][0]["tool"] for group in groups.values()} == {"label_studio", "page"}
    assert summary.annotators["user 1"].seconds == 61.5
    store.close()
    with pytest.raises(DataError, match="these annotations are of other queries"):
        FormStore(store.path, "another digest")


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("none.jsonl", "", "nothing is annotated"),
        ("x.json", "{", "annotations cannot be read"),
        ("x.sqlite", "no database", "the database of annotations cannot be read"),
        ("folder/notes.txt", "", "no annotations in this folder"),
        ("folder/label_studio/README.txt", "", "nothing is annotated yet"),
        ("other.jsonl", json.dumps(filled(unranked("z"), "ann", (1, 2, 3)).to_json()), "annotations of other queries"),
    ],
)
def test_annotations_that_are_none(run: Run, tmp_path: Path, name: str, content: str, match: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    with pytest.raises(DataError, match=match):
        run(path if path.parent == tmp_path else tmp_path / "folder")
    with pytest.raises(DataError, match="cannot be read"):
        run(tmp_path / "absent.jsonl")


def test_simulated_annotators_of_the_world(tmp_path: Path, world_shards: Path, runtime: Runtime) -> None:
    """Careful ones give the truth, with ties where answers are equally good; noisy ones agree less."""
    asked = {"shards": world_shards, "annotator": "simulated", "doubly": 0.5, "runtime": runtime}
    alphas = {}
    for sigma in (0.0, 1.2, 2.5):
        folder = tmp_path / str(sigma)
        found = AnnotateSummary.from_json(annotate.run(folder / "asked", sigma=sigma, **asked), where="")
        assert found.queries == 60 and 15 < found.twice < 45 and found.forms == found.queries + found.twice
        assert found.annotators == ["simulated-1", "simulated-2", "simulated-3"]
        run = annotated.run(folder / "out", shards=world_shards, annotations=folder / "asked", runtime=runtime)
        summary = AnnotatedSummary.from_json(run, where="")
        assert summary.groups == 60 and summary.several == found.twice and summary.replaced == 60
        alpha = summary.agreement["ranking"].alpha
        assert alpha is not None
        alphas[sigma] = alpha.mean
    assert alphas[0.0] == 1 and alphas[0.0] > alphas[1.2] > alphas[2.5]
    for group in Index.load(tmp_path / "0.0/out/shards"):
        true = group.meta["quality"]
        assert ranks(group) == [1 + len({q for q in true if q > own}) for own in true]
        assert set(group.responses[0].scores) == set(DIMENSIONS) and group.meta["labels"]["by"] == "simulated"
        assert re.fullmatch(r"all ok \.|all bad \.|bad .* rest ok \.", group.responses[0].critiques["short"])


def test_queries_that_cannot_be_asked_about(tmp_path: Path, runtime: Runtime) -> None:
    lone = [unranked("one", 1), make_group("none", num_responses=0)]
    write_shards(lone, tmp_path / "lone")
    with pytest.raises(DataError, match="no query has answers to compare"):
        annotate.run(tmp_path / "out", shards=tmp_path / "lone", tool="label_studio", runtime=runtime)
    write_shards([*lone, *GROUPS], tmp_path / "some")
    out = tmp_path / "out"
    found = annotate.run(out, shards=tmp_path / "some", tool="label_studio", runtime=runtime)
    assert found["refused"] == {"fewer than two answers, so there is nothing to compare": 2}
    assert found["projects"] == {"1-images-3-answers": 5, "1-images-4-answers": 1}
    with pytest.raises(DataError, match="simulated annotators do not know the truth"):
        annotate.run(tmp_path / "s", shards=tmp_path / "some", annotator="simulated", runtime=runtime)
    (tmp_path / "keys.txt").write_text("q3\nq9\n")
    with pytest.raises(DataError, match="queries that are not there") as caught:
        annotate.run(tmp_path / "k", shards=tmp_path / "some", only=tmp_path / "keys.txt", runtime=runtime)
    assert "q9" in str(caught.value)
    for other in ({"tool": "page"}, {"annotator": "simulated"}):
        with pytest.raises(ConfigError, match="proposals are only shown in Label Studio"):
            annotate.run(tmp_path / "p", shards=tmp_path / "some", proposals=tmp_path, runtime=runtime, **other)
    with pytest.raises(DataError, match="gold queries are among those"):
        annotate.run(tmp_path / "g", shards=tmp_path / "some", gold=tmp_path / "some", runtime=runtime)
