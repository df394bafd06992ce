"""Labels against the share of queries that people label, by whom people are asked about.

    python experiments/06_fewer_people/labels.py [--judge drawn] [--seeds 0,1,2] [OVERRIDE ...]

Makes a judge and answers for each seed (`run.py stage=proposals`), then redraws the simulated people many times; with
`--judge drawn` nothing is trained: the judge is the truth plus noise, on responses of the world. What is done is not
done again. Writes labels.csv, labels.md and labels.png.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from mmrlhf.annotation.pair_orders import Ranks, orders
from mmrlhf.annotation.simulated_people import simulated_form
from mmrlhf.records.draft import Draft
from mmrlhf.records.mm_rlhf import import_released
from mmrlhf.shapes.judge import check
from mmrlhf.shapes.world import write_world
from mmrlhf.shards.index import Index
from mmrlhf.shards.sidecar import SideCar
from mmrlhf.sweeps.study_tables import write_csv, write_markdown
from mmrlhf.triage.certificate import certify
from mmrlhf.triage.decisions import Decision, decide
from mmrlhf.triage.model_proposals import Proposal, fitted_temperature, place_of, reward_scale, usual_excess
from mmrlhf.types import PreferenceGroup

HERE = Path(__file__).resolve().parent
ORDERS = ("random", "unsure", "surest")
SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
CERTIFIED, AUDIT, LIMIT, FIT_SHARE, LEAST = "certified", 120, 0.35, 0.25, 20
FRESH = 5  # further people, by whom the disagreement with certified labels is measured


@dataclass(frozen=True)
class Pool:
    """Unseen queries with the judge's proposals and the true quality of every answer."""

    groups: Sequence[PreferenceGroup]
    proposals: Mapping[str, Proposal]
    truth: Mapping[str, Sequence[float]]

    @property
    def keys(self) -> list[str]:
        """Of all queries."""
        return [group.key for group in self.groups]

    def people(self, draw: int, sigma: float) -> dict[str, Ranks]:
        """One drawn person's ranking of every query."""
        forms = (simulated_form(group, 0, sigma=sigma, seed=draw) for group in self.groups)
        return {form.key: form.ranks for form in forms}

    def errors(self, labels: Mapping[str, Ranks]) -> tuple[float, float]:
        """Shares of the pairs of different quality that labels order the wrong way, and that they tie."""
        wrong = tied = pairs = 0
        for key, ranks in labels.items():
            said, true = orders(ranks), orders([-quality for quality in self.truth[key]])  # type: ignore[misc]
            differing = np.triu(true != 0, 1)
            pairs += int(differing.sum())
            wrong += int((differing & (said == -true)).sum())
            tied += int((differing & (said == 0)).sum())
        return wrong / pairs, tied / pairs


def main(arguments: Sequence[str] | None = None) -> None:
    """Label by every arm, for each seed and each drawing of the people."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2", help="seeds of everything, data included (default: %(default)s)")
    parser.add_argument("--judge", choices=("trained", "drawn"), default="trained", help="(default: %(default)s)")
    parser.add_argument("--noise", type=float, default=0.9, help="of the drawn judge, in claims (default: %(default)s)")
    parser.add_argument("--pool", type=int, default=334, help="queries of the drawn judge (default: %(default)s)")
    parser.add_argument("--redraws", type=int, default=40, help="of the people (default: %(default)s)")
    parser.add_argument("--sigma", type=float, default=1.2, help="people's noise, in levels (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("outputs/06_fewer_people"), help="the runs' folders")
    parser.add_argument("--results", type=Path, default=HERE, help="where tables and pictures go")
    options, overrides = parser.parse_known_args(arguments)
    rows: list[dict[str, object]] = []
    for seed in map(int, options.seeds.split(",")):
        if options.judge == "drawn":
            pool = drawn_pool(seed, options.pool, options.noise)
        else:
            pool = trained_pool(seed, options.out.resolve(), overrides)
        print(f"seed {seed}: {len(pool.groups)} queries, judge's wrong pairs {pool.errors(judged(pool))[0]:.3f}")
        rows += [
            {"judge": options.judge, "seed": seed, "draw": draw, **row}
            for draw in range(options.redraws)
            for row in arms(pool, draw, options.sigma)
        ]
    write_labels(options.results, rows)


def arms(pool: Pool, draw: int, sigma: float) -> Iterator[dict[str, object]]:
    """What every arm's labels are worth with one drawing of the people."""
    people = pool.people(draw, sigma)
    unsure = uncertainties(pool, reward_scale(list(pool.proposals.values())))
    for order in ORDERS:
        for share in SHARES:
            found = decide(
                pool.keys, pool.proposals, unsure, audit=(), known=(), always=(), threshold=None,
                affordable=round(share * len(pool.keys)), order=order, beyond="model", seed=draw,
            )  # fmt: skip
            wrong, tied = pool.errors(labels(found, people))
            yield {"arm": order, "wanted": share, "share": share, "wrong": wrong, "tied": tied}
    yield certified(pool, people, draw, sigma)


def certified(pool: Pool, people: Mapping[str, Ranks], draw: int, sigma: float) -> dict[str, object]:
    """People label an audit (not counted among the labels) and all that is not certified."""
    audit = sorted(pool.keys, key=lambda key: place_of("audit", draw, key))[:AUDIT]
    fitted, tested = audit[: round(FIT_SHARE * AUDIT)], audit[round(FIT_SHARE * AUDIT) :]
    measured, ranked = [pool.proposals[key] for key in fitted], [people[key] for key in fitted]
    temperature = fitted_temperature(measured, ranked)
    unsure, excess = uncertainties(pool, temperature), usual_excess(measured, ranked, temperature)
    coins = [place_of("coin", draw, key) < (pool.proposals[key].disagreement(people[key]) or 0) for key in tested]
    certificate = certify(
        list(unsure.values()), [unsure[key] for key in tested], coins, limit=LIMIT, least=LEAST,
        expected=[unsure[key] + excess for key in tested],
    )  # fmt: skip
    found = decide(
        pool.keys, pool.proposals, unsure, audit=audit, known=(), always=(), threshold=certificate.threshold,
        affordable=None, seed=draw,
    )  # fmt: skip
    wrong, tied = pool.errors(labels(found, people))
    automatic = [each.key for each in found if each.fate == "automatic"]
    others = [pool.people(100_000 + FRESH * draw + more, sigma) for more in range(FRESH)] if automatic else []
    apart = [pool.proposals[key].disagreement(other[key]) for other in others for key in automatic]
    known = [each for each in apart if each is not None]
    return {
        "arm": CERTIFIED, "wanted": LIMIT, "share": 1 - len(automatic) / (len(pool.keys) - len(audit)), "wrong": wrong,
        "tied": tied, "disagreement": float(np.mean(known)) if known else "",
    }  # fmt: skip


def labels(decisions: Sequence[Decision], people: Mapping[str, Ranks]) -> dict[str, Ranks]:
    """Key -> the ranking that is trained on: people's where they were asked, the model's elsewhere."""
    asked = {each.key: people[each.key] for each in decisions if each.fate == "asked"}
    return asked | {each.key: each.ranks for each in decisions if each.fate in ("automatic", "uncertified")}


def judged(pool: Pool) -> dict[str, Ranks]:
    """Everything as the judge says."""
    return {key: proposal.ranks for key, proposal in pool.proposals.items()}


def uncertainties(pool: Pool, temperature: float) -> dict[str, float]:
    """Key -> how unsure the judge is."""
    return {key: proposal.uncertainty(temperature) for key, proposal in pool.proposals.items()}


def drawn_pool(seed: int, size: int, noise: float) -> Pool:
    """Responses of the world, and a judge that is the number of true claims plus normal noise."""
    with tempfile.TemporaryDirectory() as folder:
        write_world(Path(folder), num_groups=size, seed=seed)
        groups = [draft.load() for draft in import_released(Path(folder)) if isinstance(draft, Draft)]
    rng = np.random.default_rng([seed, 6])
    truth = {group.key: [float(sum(check(group.meta, each.text))) for each in group.responses] for group in groups}
    scores = {key: np.array(true) + noise * rng.normal(size=len(true)) for key, true in truth.items()}
    return Pool(groups, {group.key: proposal(group, scores[group.key]) for group in groups}, truth)


def trained_pool(seed: int, out: Path, overrides: Sequence[str]) -> Pool:
    """Answers of the policies to queries of another world, and a reward model that never saw them."""
    folder = out / f"labels-{seed}"
    if not (folder / "artifacts" / "proposals").exists():
        run_chain(folder, seed, ["stage=proposals"], overrides)
    made = folder / "artifacts"
    table = SideCar.load(made / "proposals" / "rewards", ["reward"])
    index = Index.load(made / "respond" / "shards")
    groups = [group for row in range(len(index)) if (group := index.read(row, media=False)).key in table.keys()]
    found = {
        g.key: proposal(g, table.lookup(g.key, [each.hash for each in g.responses])["reward"].numpy()) for g in groups
    }
    truth = {group.key: [float(sum(check(group.meta, each.text))) for each in group.responses] for group in groups}
    return Pool(groups, found, truth)


def proposal(group: PreferenceGroup, rewards: np.ndarray) -> Proposal:
    """What the judge says of a query."""
    hashes = tuple(response.hash for response in group.responses)
    return Proposal(group.key, group.category, hashes, tuple(map(float, rewards)))


def run_chain(folder: Path, seed: int, settings: Sequence[str], overrides: Sequence[str]) -> None:
    """Run the chain of experiment=fewer_people; its queries are of a world that the judge has never seen."""
    pool = f"+stages.pool={{_target_: mmrlhf.stages.world.run, num_groups: 1600, num_warmup: 0, seed: {1000 + seed}}}"
    words = ["experiment=fewer_people", f"seed={seed}", f"hydra.run.dir={folder}", "logger=none", pool]
    words += ["inputs.queries={main: 'stage:pool/preference'}", "stages.curate.size=1200"]
    command = [sys.executable, "run.py", *words, *settings, *overrides]
    print(" ".join(["python", *command[1:]]), flush=True)
    if subprocess.run(command, check=False, cwd=HERE.parents[1]).returncode != 0:
        print(f"failed: {folder.name}", flush=True)


def write_labels(folder: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write labels.csv (every redraw), labels.md (means) and labels.png."""
    folder.mkdir(parents=True, exist_ok=True)
    rounded = [{k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows]
    write_csv(folder / "labels.csv", rounded)
    points = summary(rows)
    write_markdown(folder / "labels.md", points)
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    for arm in (*ORDERS, CERTIFIED):
        own: list[Any] = [point for point in points if point["arm"] == arm]
        axes.plot([p["share"] for p in own], [p["wrong"] for p in own], "o-" if arm in ORDERS else "D", label=arm)
    axes.set_xlabel("share of queries that people label")
    axes.set_ylabel("wrong pairs among the labels")
    axes.grid(alpha=0.4)
    axes.legend()
    figure.savefig(folder / "labels.png", dpi=150)


def summary(rows: Sequence[Mapping[str, object]]) -> list[dict[str, object]]:
    """Means over seeds and redraws, and in how many of the redraws the limit was exceeded."""
    found: dict[tuple[str, object], list[Mapping[str, object]]] = defaultdict(list)
    for row in rows:
        found[str(row["arm"]), row["wanted"]].append(row)
    points: list[dict[str, object]] = []
    for (arm, _), own in found.items():
        mean = {
            name: round(float(np.mean([float(str(row[name])) for row in own])), 4)
            for name in ("share", "wrong", "tied")
        }
        seeds: dict[object, list[float]] = defaultdict(list)
        for row in own:
            seeds[row["seed"]].append(float(str(row["wrong"])))
        by_seed = " ".join(f"{seed}:{np.mean(values):.3f}" for seed, values in seeds.items())
        apart = [row.get("disagreement") for row in own]
        known = [each for each in apart if isinstance(each, float)]
        points.append({
            "arm": arm, **mean, "wrong by seed": by_seed,
            "disagreement": round(float(np.mean(known)), 4) if known else "",
            "limit exceeded": f"{sum(each > LIMIT for each in known)} of {len(own)}" if arm == CERTIFIED else "",
        })  # fmt: skip
    return points


if __name__ == "__main__":
    main()
