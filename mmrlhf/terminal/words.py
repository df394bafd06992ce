"""Words and tables on the terminal: whatever a text holds is shown literally, never read as markup or as commands.

Nothing else of the package prints, or makes texts, tables and panels of rich's.
"""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from mmrlhf.errors import UserError
from mmrlhf.text import one_line


def literal(value: object, style: str = "", *, longest: int | None = None) -> Text:
    """Make one line of a value, as rich text without any markup."""
    return Text(one_line(value) if longest is None else one_line(value, longest), style=style)


def show(content: object, console: Console | None = None, *, style: str = "") -> None:
    """Print a table or a panel as it is, and everything else as one line that the terminal may wrap."""
    console = console or Console()
    if isinstance(content, Table | Panel):
        console.print(content)
    else:
        console.print(literal(content, style), soft_wrap=True)


def new_table(*headings: object, title: str | None = None, right: tuple[object, ...] = (), fold: bool = False) -> Table:
    """Start a table with these columns.

    Args:
        headings: one for each column.
        title: above the table, left.
        right: headings of the columns whose cells stand on the right.
        fold: break long cells instead of cutting them.
    """
    table = Table(title=None if title is None else literal(title, "bold"), title_justify="left")
    for heading in headings:
        justify = "right" if heading in right else "left"
        table.add_column(literal(heading), justify=justify, overflow="fold" if fold else "ellipsis")
    return table


def add_row(table: Table, *cells: object) -> None:
    """Add a row; what is no rich text yet is shown literally."""
    table.add_row(*(cell if isinstance(cell, Text) else literal(cell) for cell in cells))


def error_panel(error: Exception) -> Panel:
    """One screen for a mistake of the user's; other exceptions keep their lines."""
    if isinstance(error, UserError):
        lines: list[RenderableType] = [literal(error.problem, "bold")]
        for label, shown in error.fields():
            lines += [Text(f"{label if number == 0 else '':9} {line}") for number, line in enumerate(shown)]
        return Panel(Group(*lines), title=type(error).__name__, title_align="left")
    return Panel(Group(*map(literal, str(error).split("\n"))), title="failed", title_align="left")
