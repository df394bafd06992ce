"""The command `artifacts`: what the store holds, and `artifacts prune`, which takes away what no run refers to."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.prompt import Confirm
from rich.table import Table

from mmrlhf.chain.inventory import Holding, remove, take_stock
from mmrlhf.composition.compose import compose, with_search_path
from mmrlhf.composition.config import read_folder
from mmrlhf.errors import ConfigError
from mmrlhf.files import short_path
from mmrlhf.terminal.lines import duration
from mmrlhf.terminal.words import add_row, literal, new_table, show

WORD = "artifacts"
_USAGE = f"{WORD}, or {WORD} prune [--yes]; paths.artifacts=DIR and paths.outputs=DIR say where"
_WITHOUT_RUNS = {
    "exchange": "of processes that have ended",
    "leftover": "left by a removal that was stopped",
    "other": "any run may use it; delete it by hand",
}
_MULTIRUN = Path("multirun")  # where Hydra puts sweeps by default


def show_or_prune(words: Sequence[str], console: Console | None = None) -> None:
    """List the store's folders, or remove what pruning takes after saying what it is and asking.

    Args:
        words: of the command line, behind `artifacts`.

    Raises: ConfigError for other words, and for pruning that nobody can be asked about.
    """
    console, words = console or Console(), with_search_path(words)
    unknown = [word for word in words if "=" not in word and word not in ("prune", "--yes")]
    if unknown or ("--yes" in words and "prune" not in words):
        raise ConfigError("not a command of the store", given=" ".join([WORD, *words]), expected=_USAGE)
    root, outputs = _places([word for word in words if "=" in word])
    holdings = take_stock(root, [outputs, _MULTIRUN])
    if "prune" not in words:
        show(inventory_table(holdings, root), console)
        return
    doomed = [holding for holding in holdings if holding.removable]
    if not doomed:
        show(f"nothing to remove: runs refer to everything in {short_path(root)}, or it is at work", console)
        return
    show(inventory_table(doomed, root), console)
    question = f"remove these {len(doomed)} folders, {_size(sum(holding.bytes for holding in doomed))}?"
    if "--yes" not in words:
        if not sys.stdin.isatty():
            raise ConfigError(
                "nobody can be asked whether to remove artefacts", given=question, fix=f"add --yes: {WORD} prune --yes"
            )
        if not _agrees(question, console):
            return
    gone = remove(doomed)
    show(f"removed {len(gone)} folders, {_size(sum(holding.bytes for holding in gone))}", console)


def _agrees(question: str, console: Console) -> bool:
    try:
        return Confirm.ask(literal(question), console=console, default=False)
    except EOFError:  # Ctrl-D
        return False


def _places(overrides: Sequence[str]) -> tuple[Path, Path]:
    config = compose(overrides)
    return read_folder(config, "paths.artifacts"), read_folder(config, "paths.outputs")


def inventory_table(holdings: Sequence[Holding], root: Path) -> Table:
    """Show a store's folders: stage, name, size, last use, and the runs that refer to each."""
    title = f"{short_path(root)}: {len(holdings)} folders, {_size(sum(holding.bytes for holding in holdings))}"
    table = new_table("stage", "artefact", "size", "used", "runs", title=title, right=("size", "used"), fold=True)
    for holding in holdings:
        size, used = _size(holding.bytes), f"{duration(holding.age)} ago"
        add_row(table, holding.stage, holding.folder.name, size, used, _runs(holding))
    return table


def _runs(holding: Holding) -> str:
    if holding.locked:
        return "being built"
    if holding.kind in _WITHOUT_RUNS:
        return _WITHOUT_RUNS[holding.kind]
    if holding.kind == "unfinished" and not holding.runs:
        return "unfinished" + (", of an earlier day" if holding.removable else "")
    if not holding.runs:
        return "none, but others are made from it" if holding.kept else "none"
    more = [f"{len(holding.runs) - 3} more"] if len(holding.runs) > 3 else []
    state = "unfinished: " if holding.kind == "unfinished" else ""
    return state + ", ".join([*(short_path(Path(run)) for run in holding.runs[:3]), *more])


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
