"""Create the dashboard of a Weights & Biases project.

`python -m mmrlhf.reporting.dashboard --project mmrlhf --entity TEAM` does it. It
shows what a run's report and a sweep's page show from local files: results and w x k, beta, curves, samples. Needs the
package wandb-workspaces and a login.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from mmrlhf.callbacks.loggers import wandb_mode
from mmrlhf.errors import ConfigError, UserError
from mmrlhf.reporting.outcome import show_error
from mmrlhf.reporting.training_section import HISTOGRAMS, PANELS, Panel
from mmrlhf.terminal.words import show
from mmrlhf.text import first_line

NAME = "MM-RLHF"
# an optional package, so it is imported by name and its objects have no types here
WORKSPACES, PANEL_TYPES = "wandb_workspaces.workspaces", "wandb_workspaces.reports.v2"
# numbers that the stage `report` leaves in its run (name, title)
RESULTS = (
    ("quality_after", "true quality of answers"),
    ("quality_gain", "gain in true quality"),
    ("reward_after", "reward of answers"),
    ("kl_after", "KL to the reference, nats per answer"),
)
SETTINGS = ("method.w", "method.k", "seed")
BETA = ("beta", "reward model's margin")
# the report's samples, and held-out answers beside the reference's while training
TABLES = ("samples", "heldout/answers")


def main(words: Sequence[str] | None = None) -> None:
    """Create the dashboard and print its address; exit code 2 with a sentence where that cannot be."""
    name = "python -m mmrlhf.reporting.dashboard"
    parser = argparse.ArgumentParser(name, description="Create the project's W&B dashboard.")
    parser.add_argument("--project", default="mmrlhf", help="project in W&B (logger.project), default mmrlhf")
    parser.add_argument("--entity", default=None, help="team or user (logger.entity), default the account's own")
    given = parser.parse_args(words)
    try:
        url = create(given.project, given.entity)
    except UserError as error:
        show_error(error)
        sys.exit(2)
    show(f"dashboard {url}")


def create(project: str, entity: str | None) -> str:
    """Save the dashboard in W&B and return its address.

    Raises ConfigError if the package is missing, nobody is logged in, or W&B refuses.
    """
    if find_spec("wandb_workspaces") is None:
        raise ConfigError(
            "the package that makes dashboards is not installed",
            expected="wandb-workspaces",
            fix='pip install -c constraints.txt -e ".[sweeps]"; report.html and sweep.html show the same without it',
        )
    if wandb_mode("auto") != "online":
        raise ConfigError(
            "a dashboard is made in Weights & Biases, and this machine is offline or not logged in",
            fix="run `wandb login` (and unset WANDB_MODE); report.html and sweep.html show the same panels offline",
        )
    import wandb

    try:
        workspace = build_workspace(project, entity or str(wandb.Api().default_entity))
        workspace.save()
    except (wandb.Error, ValueError, OSError) as error:  # wandb.CommError and what its transport raises
        raise ConfigError(
            "Weights & Biases did not take the dashboard",
            where=f"project {project}, entity {entity or 'of the account'}",
            given=first_line(error),
            fix="the project must exist: run something with logger=wandb first, or name it with --project and --entity",
        ) from error
    return workspace.url


def build_workspace(project: str, entity: str) -> Any:
    """Describe the dashboard (a `wandb_workspaces.workspaces.Workspace`); nothing is sent."""
    ws = import_module(WORKSPACES)

    return ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=list(_sections()),
        settings=ws.WorkspaceSettings(x_axis="trainer/global_step", max_runs=30),
        runset_settings=ws.RunsetSettings(groupby=[ws.Metric("Group"), ws.Metric("JobType")]),
    )


def _sections() -> Iterator[Any]:
    ws, panels = import_module(WORKSPACES), import_module(PANEL_TYPES).panels

    def section(name: str, items: Sequence[Any], columns: int) -> Any:
        layout = ws.SectionLayoutSettings(columns=columns, rows=2)
        return ws.Section(name=name, panels=list(items), is_open=True, layout_settings=layout)

    beta = [panel for panel in PANELS if panel.title in BETA]
    curves = [panel for panel in PANELS if panel.title not in BETA]
    yield section("Results, w x k", _results(), 2)
    yield section("Beta and margin", [*map(_curve, beta), *_histograms()], 2)
    tables = [panels.WeavePanelSummaryTable(table_name=name) for name in TABLES]
    yield section("Samples", tables, 1)
    yield section("Curves", list(map(_curve, curves)), 3)


def _results() -> list[Any]:
    """Numbers over the settings; the pages' maps as points whose colour is the number."""
    kinds = import_module(PANEL_TYPES)
    panels = kinds.panels

    w, k = (kinds.Config(name) for name in SETTINGS[:2])
    columns = [_column(kinds.Config(name), name) for name in SETTINGS]
    columns += [_column(kinds.SummaryMetric(name), title) for name, title in RESULTS]
    maps = [panels.ScatterPlot(title=title, x=w, y=k, z=kinds.SummaryMetric(name)) for name, title in RESULTS]
    return [
        panels.ScatterPlot(
            title="quality against KL", x=kinds.SummaryMetric("kl_after"), y=kinds.SummaryMetric("quality_after")
        ),
        panels.ParallelCoordinatesPlot(title="settings and results", columns=columns),
        *maps,
    ]


def _column(metric: Any, title: str) -> Any:
    """One axis of the parallel coordinates."""
    return import_module(f"{PANEL_TYPES}.interface").ParallelCoordinatesPlotColumn(metric=metric, display_name=title)


def _curve(panel: Panel) -> Any:
    """The report's panel of the same title."""
    panels = import_module(PANEL_TYPES).panels

    y = [f"{part}/{name}" for name in panel.names for part in panel.parts]
    return panels.LinePlot(title=panel.title, x="trainer/global_step", y=list(y))


def _histograms() -> list[Any]:
    panels = import_module(PANEL_TYPES).panels

    return [panels.LinePlot(title=title, x="trainer/global_step", y=[name]) for title, name in HISTOGRAMS]


if __name__ == "__main__":
    main()
