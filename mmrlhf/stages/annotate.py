"""Stage `annotate`: queries with unranked answers are put before people: on a page of this program, or in Label Studio.

Follows: MM-RLHF (arXiv 2502.10391), section 2: each answer gets three scores with reasons, and all get a ranking with
ties.
Differs in: answers stand in an order that tells nothing; gold questions and doubly annotated queries are among the
others.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from mmrlhf.annotation.assignments import Plan, make_plan, shown_order
from mmrlhf.annotation.filled_forms import Form, write_forms
from mmrlhf.annotation.form_files import FORMS, PROJECTS
from mmrlhf.annotation.form_store import SUFFIX, FormStore
from mmrlhf.annotation.label_studio_project import write_projects
from mmrlhf.annotation.model_forms import reward_forms
from mmrlhf.annotation.queries_to_ask import QueriesToAsk
from mmrlhf.annotation.simulated_people import SECONDS, simulated_form
from mmrlhf.chain.runtime import Runtime
from mmrlhf.errors import ConfigError, DataError
from mmrlhf.processes import TrainingInterrupted
from mmrlhf.ranges import Count, Natural, NonNegative, Share
from mmrlhf.shards.index import Index
from mmrlhf.summaries.people import AnnotateSummary
from mmrlhf.terminal.progress import track

log = logging.getLogger(__name__)

# another number builds the stage anew, whatever `code` says
VERSION = 1
# what is in a finished artefact; checked before it is published
PROMISES = ("metrics.json",)


def run(
    out: Path,
    *,
    shards: Path,
    tool: Literal["page", "label_studio"] = "page",
    annotator: Literal["people", "simulated"] = "people",
    doubly: Share = 0.1,
    gold: Path | None = None,
    gold_every: Count = 10,
    only: Path | None = None,
    by: Sequence[str] = (),
    proposals: Path | None = None,
    limit: Count | None = None,
    num_simulated: Count = 3,
    sigma: NonNegative = 1.2,
    seed: Natural = 0,
    runtime: Runtime,
) -> dict[str, Any]:
    """Write `out/annotations.jsonl`, or `out/label_studio`, projects that are annotated there.

    Args:
        out: the folder to fill.
        shards: queries with answers; ranks that these have already are shown to nobody.
        tool: `page` serves a page on this machine until everything is annotated; `label_studio` writes projects.
        annotator: `simulated` asks nobody: the truth of the embedded world plus noise.
        doubly: share of queries that two annotators are asked about (with Label Studio its settings decide).
        gold: shards of queries whose ranking is known, mixed among the others for everybody.
        gold_every: one query in so many is a gold one.
        only: file with a key on each line: only these queries, in its order (an experts' queue).
        by: annotators of this round on the page, whose forms alone count in it: experts, for queries that others have
            annotated already; empty: everybody.
        proposals: table of a reward model's rewards, filled in as its proposals; null: annotators see none.
        limit: queries at most.
        num_simulated: simulated annotators.
        sigma: standard deviation of their noise, in levels of 1 to 5.
        seed: of their noise.

    Raises:
        DataError: no query with two answers, or a list of others; gold queries among the others.
        ConfigError: a port that cannot be listened on.
        TrainingInterrupted: the page was stopped before everything was annotated; nothing is lost.
    """
    check_settings({"tool": tool, "annotator": annotator, "proposals": proposals})
    out.mkdir(parents=True, exist_ok=True)
    queries = QueriesToAsk(Index.load(shards), Index.load(gold) if gold else None)
    plan = make_plan(queries.keys, doubly=doubly, gold=queries.gold, gold_every=gold_every, only=only, limit=limit)
    projects: dict[str, int] = {}
    forms: list[Form] = []
    if annotator == "simulated":
        forms = list(_simulated(queries, plan, num_simulated, sigma, seed, runtime.progress))
        write_forms(out / FORMS, forms)
    elif tool == "label_studio":
        proposed = {form.key: form for form in reward_forms(queries.index, proposals, set(plan.keys))}
        mixed = [(*plan.keys, *plan.gold)[place] for place in shown_order("", (*plan.keys, *plan.gold))]
        groups = (queries.read(key) for key in track(mixed, "writing projects", enabled=runtime.progress))
        projects = write_projects(out / PROJECTS, groups, queries.refuse, proposed)
        log.info("annotate %s, see README.txt there; then stage=annotated inputs.annotations=FOLDER_OF_EXPORTS",
                 out / PROJECTS)  # fmt: skip
    else:
        forms = _asked_on_the_page(queries, plan, frozenset(by), runtime)
        write_forms(out / FORMS, forms)
    refused = dict(Counter(queries.refused.values()).most_common())
    if refused:
        log.warning("%d queries could not be asked about: %s", sum(refused.values()), refused)
    return AnnotateSummary(
        tool="simulated" if annotator == "simulated" else tool, queries=len(plan.keys), twice=len(plan.twice),
        gold=len(plan.gold), forms=len(forms), annotators=sorted({form.annotator for form in forms}), projects=projects,
        refused=refused, digest=queries.index.digest,
    ).write(out)  # fmt: skip


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse proposals where nobody would see them (ConfigError)."""
    tool, annotator = settings.get("tool", "page"), settings.get("annotator", "people")
    if settings.get("proposals") is not None and (tool != "label_studio" or annotator != "people"):
        raise ConfigError(
            "a model's proposals are only shown in Label Studio", where="inputs.proposals",
            given=f"tool={tool}, annotator={annotator}", expected="tool=label_studio, or inputs.proposals=null",
        )  # fmt: skip


def _asked_on_the_page(queries: QueriesToAsk, plan: Plan, by: frozenset[str], runtime: Runtime) -> list[Form]:
    """Everything that people have submitted once somebody says that it is finished.

    Raises:
        TrainingInterrupted: the server was stopped before.
    """
    absent = [name for name in ("prometheus_client", "starlette", "uvicorn") if find_spec(name) is None]
    if absent:
        raise ConfigError("packages of the annotation page are not installed", given=", ".join(absent),
                          fix='pip install "mmrlhf[serve]"')  # fmt: skip
    from mmrlhf.annotation.page_desk import Desk
    from mmrlhf.annotation.page_server import serve_page

    digest = queries.index.digest
    with closing(FormStore(Path(runtime.annotations) / f"{digest[:16]}{SUFFIX}", digest)) as store:
        desk = Desk(queries, plan, store, by)
        if not serve_page(desk, runtime.annotation_port):
            raise TrainingInterrupted(
                f"the annotation page was stopped; {len(store.forms())} forms are in {store.path}, {desk.left()} are "
                f"still wanted (stage=annotated inputs.annotations={store.path} takes what is there)", None,
            )  # fmt: skip
        return store.forms()


def _simulated(
    queries: QueriesToAsk, plan: Plan, number: int, sigma: float, seed: int, progress: bool
) -> Iterator[Form]:
    """Forms of simulated annotators in turn, a second one where two are wanted; everybody's of gold queries."""
    if number < 2 and plan.twice:
        raise DataError("one annotator cannot annotate a query twice", given="num_simulated=1", expected="2 or more",
                        fix="stages.annotate.doubly=0, or more of them")  # fmt: skip
    for place, key in enumerate(track([*plan.keys, *plan.gold], "simulated annotators", enabled=progress)):
        group = queries.read(key, media=False)
        asked = range(number) if key in plan.gold else [(place + more) % number for more in range(plan.wanted(key))]
        for each in asked:
            yield simulated_form(group, each, sigma=sigma, seed=seed, at=place * SECONDS)
