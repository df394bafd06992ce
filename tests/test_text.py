"""A text of someone else's on one line: nothing that breaks it, commands a terminal, or is cut without a count."""

from __future__ import annotations

import html
import pickle
import re
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from stand_ins.little_work import little_work

from mmrlhf.errors import DataError, Lines, UserError
from mmrlhf.text import LONGEST, first_line, markdown_table, markdown_text, one_line

# every character that python, a terminal or a reader of right-to-left text does not show as itself
BREAKS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
HOSTILE = (
    "\x1b[31mred\x1b[0m",
    "\x1b]8;;http://x\x1b\\link",
    "a\u202eb",
    "\x9b2J",
    "\x07",
    "a\udc80b",
    "\u2066x",
    "\0",
)
hostile_text = st.text(max_size=60) | st.lists(st.sampled_from([*BREAKS, *HOSTILE, "[/INST]", "x"]), max_size=8).map(
    "".join
)


def shows_safely(text: str) -> bool:
    return len(text.splitlines()) <= 1 and not {
        sign
        for sign in text
        if unicodedata.category(sign) in ("Cc", "Cf", "Cs", "Zl", "Zp") and sign not in "\u200c\u200d"
    }


@given(hostile_text)
@example("0\r\r\x85\x850")
def test_any_text_is_one_safe_line(text: str) -> None:
    shown = one_line(text)
    assert shows_safely(shown) and one_line(shown) == shown
    shown.encode()


@pytest.mark.parametrize("sign", BREAKS)
def test_every_line_break_becomes_a_space(sign: str) -> None:
    assert one_line(f"a{sign}b") == "a b" and one_line(f"a{sign}{sign}b") == "a b"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred", "\\x1b[31mred"),
        ("gnp.\u202etxt", "gnp.\\u202etxt"),
        ("bad\udcff.png", "bad\\udcff.png"),
        ("[/INST] [b]x[/b] :smile:", "[/INST] [b]x[/b] :smile:"),
        ("日本語 ü 👩\u200d🔬", "日本語 ü 👩\u200d🔬"),
    ],
)
def test_what_is_seen(text: str, shown: str) -> None:
    assert one_line(text) == shown


@given(st.text(alphabet="ab", min_size=1, max_size=3000), st.integers(10, 500))
def test_a_long_text_keeps_its_ends_and_says_how_much_is_left_out(text: str, longest: int) -> None:
    shown = one_line(text, longest)
    if len(text) <= longest:
        assert shown == text
        return
    head, rest = shown.split(" … (")
    count, tail = rest.split(" characters left out) … ")
    assert text.startswith(head) and text.endswith(tail)
    assert len(head) + len(tail) == longest and int(count.replace(",", "")) == len(text) - longest


@given(hostile_text, hostile_text, hostile_text)
def test_an_error_has_as_many_lines_as_fields(problem: str, where: str, value: str) -> None:
    error = DataError(problem, where=where, given=value, expected="x", fix=Lines(("one", value)))
    lines = str(error).split("\n")
    assert len(lines) == 6 and all(map(shows_safely, lines))
    assert error.given == value, "the program still has the value itself"


def test_an_error_travels_between_processes() -> None:
    error = DataError("a\nb", where="c", given=Lines(("d", "e")))
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) == "a b\n  where: c\n  given: d\n    e" and isinstance(again, DataError)


def test_a_huge_value_is_cut() -> None:
    text = str(UserError("no such file", given="A" * 10_000_000))
    assert len(text) < LONGEST + 100 and "9,999,000 characters left out" in text


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError(""), "ValueError"),
        (OSError(" \n "), "OSError"),
        (ValueError("\na\rb"), "a"),
        ("x\u2028y", "x"),
        ("", ""),
    ],
)
def test_the_first_line_of_an_exception(error: BaseException | str, said: str) -> None:
    assert first_line(error) == said


def rendered(text: str) -> str:
    """What a reader of Markdown sees, by a parser that is not ours."""
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text)


@given(hostile_text | st.text(alphabet="ab [](){}<>|!`*_~$&#:/\\\n-", max_size=30))
@example("[x](javascript:alert)")
@example("![x](http://a/b.png)")
@example("<img src=x>")
@example("https://example.com/a_b")
@example("&lt;b&gt; `code` *a* _b_ a|b ]: ][")
def test_any_text_in_markdown_is_itself(text: str) -> None:
    """A cell of a table holds the words that were written, and no other element."""
    page = rendered(markdown_table([["heading", "other"], [text, "end"]]))
    assert set(re.findall(r"</?([a-z0-9]+)", page)) == {"table", "thead", "tbody", "tr", "th", "td"}
    cells = re.findall(r"<td>(.*?)</td>", page, re.DOTALL)
    assert html.unescape(cells[0]) == one_line(text).strip() and cells[1] == "end" and len(cells) == 2


def test_words_stay_as_they_are_in_markdown() -> None:
    for text in ("acc_plus", "CC-BY-4.0", "0.713 [0.690, 0.740]", "open images (v7), C#", "3.5%"):
        assert markdown_text(text) == text


def test_a_name_without_end_takes_no_longer_than_other_text() -> None:
    """Strangers write addresses: in a reply's header, in the key of a request."""
    with little_work():
        assert "characters left out" in one_line("http://host/?" + "key" * 100_000)
    assert one_line(f"https://host/?{'a' * 40}_key=hunter2&b=1") == f"https://host/?{'a' * 40}_key=***&b=1"
