"""A benchmark of reward models as rows of text: every scorer with intervals, and what there is to know of judges."""

from __future__ import annotations

from mmrlhf.summaries.judges import JudgeFindings
from mmrlhf.summaries.rankings import ANNOTATORS, Estimate
from mmrlhf.summaries.scores import RewardBenchSummary

# of a generative judge: share of comparisons whose orders agree; of verdicts for what stood first; verdicts that are
# none; pairs without a number because of them, and queries that ACC+ leaves out; what all verdicts cost, or their
# tokens where no price is known
JUDGE_COLUMNS = ["same in all orders", "for the first place", "no verdict", "pairs / queries left out", "cost"]


def benchmark_table(summary: RewardBenchSummary) -> list[list[str]]:
    """Rows of text, heading first: scorer, ACC and ACC+ with 95% intervals, the mean ACC of categories, by how much the
    first scorer is ahead in ACC on the same pairs, log loss and Brier score of the first one, where there is a judge
    what there is to know of it, ACC / ACC+ by category.
    """
    reports, differences = summary.accuracy[ANNOTATORS], summary.difference.get(ANNOTATORS, {})
    first, details, judges = next(iter(reports)), summary.judge, summary.judges or {}
    categories = sorted({name for report in reports.values() for name in report.categories})
    of_judges = JUDGE_COLUMNS if judges else []
    rows = [["scorer", "ACC", "ACC+", "macro ACC", "first ahead by", "NLL, nats", "Brier", *of_judges, *categories]]
    for scorer, report in reports.items():
        own = [report.categories.get(name) for name in categories]
        cells = [f"{part.acc.mean:.3f} / {part.acc_plus.mean:.3f}" if part else "" for part in own]
        ahead = differences.get(scorer)
        sure = [details.calibration.nll, details.calibration.brier] if details is not None and scorer == first else []
        rows.append([
            scorer, _with_interval(report.acc), _with_interval(report.acc_plus), f"{summary.macro[scorer]:.3f}",
            _with_interval(ahead.acc, sign="+") if ahead else "",
            *([_with_interval(found) for found in sure] or ["", ""]),
            *(judge_cells(judges[scorer]) if scorer in judges else [""] * len(of_judges)), *cells,
        ])  # fmt: skip
    return rows


def judge_cells(found: JudgeFindings) -> list[str]:
    """What the table says of a generative judge, under `JUDGE_COLUMNS`."""
    places = [f"{shares[0]:.3f} of 1/{number}" for number, shares in found.places.items()]
    missing = sum(found.no_verdict.values())
    tokens = f"{found.tokens_read + found.tokens_written} tokens"
    return [
        _with_interval(found.consistent) if found.consistent is not None else "",
        ", ".join(places),
        f"{missing} of {found.verdicts}",
        f"{found.excluded_pairs} / {found.excluded}",
        tokens if found.cost is None else f"{found.cost:.2f}",
    ]


def _with_interval(found: Estimate, *, sign: str = "") -> str:
    if found.low is None or found.high is None:
        return format(found.mean, f"{sign}.3f")
    mean, low, high = (format(value, f"{sign}.3f") for value in (found.mean, found.low, found.high))
    return f"{mean} [{low}, {high}]"


def official_table(summary: RewardBenchSummary) -> list[list[str]]:
    """Rows of text, heading first: what the benchmark's own script reports of each scorer; none where it is ACC."""
    found = summary.official or {}
    names = list(dict.fromkeys(name for own in found.values() for name in own))
    rows = [[scorer, *(f"{own[name]:.3f}" if name in own else "" for name in names)] for scorer, own in found.items()]
    return [["as its own script counts", *names], *rows] if rows else []
