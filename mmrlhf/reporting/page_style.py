"""What every page is laid out with: the templates' environment and the style sheet."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

TEMPLATES = Path(__file__).parent / "templates"
_INSIDE = re.compile(r"(?<=[\d.]) (?=->|\[[-+\d])|(?<=->) (?=[-+\d])|(?<=\d,) (?=[-+]?[\d.]+\])")


@cache
def environment() -> Environment:
    """The templates; all text is escaped, and an absent plot or table is left out, so undefined names are allowed."""
    found = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    found.filters["unbroken"] = unbroken
    return found


def unbroken(cell: str) -> str:
    """The text of a table's cell that wraps at no blank inside of a change `A -> B` or an interval `X [LOW, HIGH]`."""
    return _INSIDE.sub("\u00a0", cell)


def style() -> Markup:
    """The style sheet, to be put into a page."""
    return Markup((TEMPLATES / "page.css").read_text(encoding="utf-8"))  # noqa: S704 - our own file
