"""A sweep's page shows a suite's numbers: w x k against benchmarks, from what `stage=report_benchmarks` leaves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from stand_ins.sweep_jobs import make_job

from mmrlhf.chain.runtime import Runtime
from mmrlhf.composition.config import CONF
from mmrlhf.stages import report_benchmarks, suite_answers, suite_documents, suite_scores
from mmrlhf.suites.documents import DocumentStore
from mmrlhf.suites.known_policies import Oracle
from mmrlhf.sweeps.page import write_page
from mmrlhf.sweeps.results import Metric, Sweep, read_sweep

DOCUMENTS = 12
SKILL = {("0.1", "0.5"): 0.5, ("0.1", "1.0"): 0.6, ("1.0", "0.5"): 0.9, ("1.0", "1.0"): 0.7}
# as docs/benchmarks.md writes them, beside the one that conf/ has
POPE = Metric("POPE", "report_benchmarks/benchmarks/pope/difference/mean")
HALLUCINATION = Metric("hallucination", "report_benchmarks/dimensions/hallucination/standardised/mean")
SCORE = Metric("POPE after", "report_benchmarks/benchmarks/pope/after/mean")


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sweep, Path, list[float]]:
    """Four points of w and k whose policies know more and less; the sweep, its folder, and what each knows of POPE."""
    root = tmp_path_factory.mktemp("swept")
    runtime = Runtime(trainer=lambda: None, progress=False)  # type: ignore[arg-type]
    suite_documents.run(root / "documents", tasks=["pope", "mmstar"], limit=DOCUMENTS, drawn=True, runtime=runtime)
    before = _scores(root, Oracle(p=0.5), "before", runtime)
    knew: list[float] = []
    for number, ((w, k), p) in enumerate(SKILL.items()):
        after = _scores(root, Oracle(p=p), f"after {number}", runtime)
        out = root / f"report {number}"
        found = report_benchmarks.run(
            out, before=before, after=after, documents=root / "documents", num_examples=0, runtime=runtime
        )
        job = root / "sweep" / str(number)
        make_job(job, {"method.w": w, "method.k": k}, 0.5)
        # what a run writes when it ends: every stage's summary by its name
        (job / "metrics.json").write_text(json.dumps({"suite_scores": {"schema": 1}, "report_benchmarks": found}))
        pope = [d for d in DocumentStore(root / "documents").read() if d.task == "pope"]
        knew.append(float(np.mean([Oracle(p=p).knows(document) for document in pope])))
    return read_sweep(root / "sweep", [_of_conf(), POPE, HALLUCINATION, SCORE]), root / "sweep", knew


def _scores(root: Path, known: Oracle, name: str, runtime: Runtime) -> Path:
    own = replace(runtime, verdicts=root / "verdicts")
    suite_answers.run(root / f"{name} answers", documents=root / "documents", known=known, runtime=own)
    out = root / f"{name} scores"
    suite_scores.run(out, documents=root / "documents", answers=root / f"{name} answers", runtime=own)
    return out


def _of_conf() -> Metric:
    """The number of a suite that every sweep shows without being told."""
    text = (CONF / "paths" / "default.yaml").read_text(encoding="utf-8")
    return Metric("benchmarks", **yaml.safe_load(text)["sweep_metrics"]["benchmarks"])


def test_every_point_has_the_suites_numbers_with_their_intervals(swept: tuple[Sweep, Path, list[float]]) -> None:
    sweep, _, knew = swept
    assert [metric.name for metric in sweep.metrics] == ["benchmarks", "POPE", "hallucination", "POPE after"]
    assert [point.values for point in sweep.points] == list(SKILL), "w and k, in order"
    assert [point.estimates["POPE after"].mean for point in sweep.points] == pytest.approx(knew)
    for metric in (_of_conf(), POPE):
        best = sweep.best(metric)
        assert best is not None and best.values == ("1.0", "0.5"), metric
        found = best.estimates[metric.name]
        assert found.low is not None and found.high is not None and found.low < found.mean < found.high
    # two benchmarks, of which one is POPE's dimension: the dimension is that one's own standardised difference
    row = json.loads((swept[1] / "2" / "metrics.json").read_text())["report_benchmarks"]
    standardised = row["benchmarks"]["pope"]["standardised"]["mean"]
    assert sweep.points[2].estimates["hallucination"].mean == pytest.approx(standardised)


def test_the_page_has_a_map_of_w_and_k_for_each(swept: tuple[Sweep, Path, list[float]]) -> None:
    sweep, folder, knew = swept
    write_page(sweep, folder / "sweep.html")
    page = (folder / "sweep.html").read_text(encoding="utf-8")
    assert all(f"{metric.name} over w and k" in page for metric in sweep.metrics)
    assert (folder / "benchmarks.svg").is_file() and (folder / "POPE.svg").is_file()
    assert "highest POPE after" in page and f"{max(knew):.3f}" in page and "w=1.0 k=0.5" in page
