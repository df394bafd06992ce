"""Texts of others, made safe to show: one line, nothing that a terminal obeys, and not without end."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

LONGEST = 1000
_LONGEST_REASON = 300
# joiners belong to words of many scripts and to pictures of several signs; alone in their category they do no harm
_HARMLESS = "\u200c\u200d"
# everything that str.splitlines splits at, and the tabulator
_BREAKS = re.compile("[\t\n\v\f\r\x1c-\x1e\x85\u2028\u2029]+")
# an underscore inside a word marks nothing up; brackets do with what follows them, and a colon before two slashes
_MARKUP = re.compile(r"[\\`*<>|&~$]|(?<!\w)_|_(?!\w)|\](?=[(\[:])|:(?=//)")

_CREDENTIALS = re.compile(r"(?<=://)[^/@\s'\"]+(?=@)")
# names of some length only: in one without end every word could be the one that is looked for
_SECRET_PARAMETER = re.compile(
    r"(?i)(?<=[?&])([\w.-]{0,64}(?:token|signature|secret|password|key|sig)[\w.-]{0,64}=)[^&\s'\"]+"
)


def without_credentials(text: str) -> str:
    """Write `***` for user and password, and for secret parameters, of the addresses in a text."""
    return _SECRET_PARAMETER.sub(r"\1***", _CREDENTIALS.sub("***", text)) if "://" in text else text


def one_line(value: object, longest: int = LONGEST) -> str:
    """Write any value as one line of visible characters.

    Line breaks of every sort become a space. Control characters, signs that change the direction of writing, other
    invisible signs and what stands for undecodable bytes are written as Python writes them (`\\x1b`). What is longer
    than `longest` characters loses its middle, and says how many. Passwords in addresses are `***`.
    """
    text = without_credentials(value if isinstance(value, str) else str(value))
    if len(text) > longest:
        head = longest * 3 // 4
        tail = longest - head
        text = f"{text[:head]} … ({len(text) - longest:,} characters left out) … {text[-tail:]}"
    text = _BREAKS.sub(" ", text)
    return text if text.isascii() and text.isprintable() else "".join(map(_visible, text))


def markdown_text(value: object) -> str:
    """Write any value as `one_line`, so that Markdown shows it as it is: no table cell, link, picture, tag or code."""
    return _MARKUP.sub(r"\\\g<0>", one_line(value))


def markdown_table(rows: Sequence[Sequence[object]]) -> str:
    """Write rows of texts, heading first, as a Markdown table."""
    lines = ["| " + " | ".join(map(markdown_text, row)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]]) + "\n"


def _visible(sign: str) -> str:
    if unicodedata.category(sign) in ("Cc", "Cf", "Cs") and sign not in _HARMLESS:
        return sign.encode("unicode_escape").decode("ascii")
    return sign


def first_line(error: BaseException | str) -> str:
    """The first line of what an exception says, shown safely; the kind of exception where it says nothing."""
    lines = str(error).strip().splitlines()
    kind = type(error).__name__ if isinstance(error, BaseException) else ""
    return one_line(lines[0] if lines else kind, _LONGEST_REASON)
