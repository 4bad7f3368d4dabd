"""Every renderer shows the same cells, and no name breaks a table, a page, a TeX run or a terminal."""

from __future__ import annotations

import csv
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from speceval.show.layouts.form import FIELDS, Cell, Column, Row, Table
from speceval.show.render import (
    FORMATS,
    LONGEST_FIELD,
    csv_text,
    html,
    json_text,
    latex,
    markdown,
)
from speceval.terminal import JOINER, LONGEST, clean

HOSTILE = {
    "latex": r"a_b%c$d#e&f{g}~h^\end{tabular}\input{/etc/passwd}",
    "html": "<script>alert('x')</script><td>&amp;",
    "markdown": "|`code`*bold*_x_[link](javascript:x)\\| $x$",
    "ansi": "\x1b[31mred\x1b[0m\x1b]0;title\x07\x9b1m\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\",
    "lines": "a\r\nb\tc\u2028d\x00e",
    "bidi": "\u202eright-to-left \u2066override\u2069",
    "scripts": "שלום مرحبا 你好 é",
    "emoji": f"fox 🦊 family 👩{JOINER}👧",
    "brackets": "[0.1] --- *x*",
    "surrogate": "broken \udcff name",
    "long": "x" * 1_000_000,
}


def table(name: str = "a", section: str = "s") -> Table:
    facts = {"target": name, "definition": "tau", "value": 1.25, "low": 1.0, "high": -2.5e-7}
    return Table(
        layout="summary",
        caption="Acceptance length tau.",
        columns=(
            Column(("", "drafter"), "left"),
            Column(("T = 0", "tau")),
            Column(("T = 0", "speed-up")),
            Column(("T = 1", "tau")),
        ),
        rows=(
            Row((Cell(name, notes=(f"note on {name}",)), Cell("1.25 ± 0.25", facts, bold=True), Cell(), Cell("-3.0 %", facts)), section),  # noqa: E501
            Row((Cell("b"), Cell("1.00", facts), Cell(), Cell(name, notes=("other", f"note on {name}"))), section),
            Row((Cell("c"), Cell("1.00", facts), Cell(), Cell()), f"{section} 2"),
        ),
        section_heading="target",
        notes=("A line about tau.",),
    )  # fmt: skip


def latex_rows(text: str) -> list[str]:
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    return [line for line in body.splitlines() if line.endswith(r"\\")]


def check_latex(text: str) -> None:
    """Braces balance, every row fills every column, and no special character stands without its backslash."""
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 1
    code = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    bare = re.sub(r"\\[\\%&#_${}]", "", code)
    depth = 0
    for character in bare:
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    assert depth == 0
    assert bare.count("$") % 2 == 0
    assert not re.search(r"[#~]", bare) and all("%" not in line or line.endswith("{%") for line in bare.splitlines())
    assert not re.search(r"[^\x00-\x7fÀ-ž]|[ĦħĸĿŀŉŦŧ]", code)  # what pdfLaTeX was seen to refuse
    columns = len(re.search(r"\\begin\{tabular\}\{([lr]+)\}", text).group(1))  # type: ignore[union-attr]
    for row in latex_rows(text):
        spans = sum(int(n) for n in re.findall(r"\\multicolumn\{(\d+)\}", row))
        cells = len(re.findall(r"(?<!\\)&", row)) + 1
        assert cells - len(re.findall(r"\\multicolumn", row)) + spans == columns, row
    outside_math = re.sub(r"\$[^$]*\$", "", bare)
    assert "^" not in outside_math and "_" not in outside_math


class Page(HTMLParser):
    """Collects tags, which must nest, and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


KNOWN_TAGS = {"table", "caption", "thead", "tbody", "tfoot", "tr", "th", "td", "b", "sup", "br", "bdi"}


def check_html(text: str) -> Page:
    page = Page()
    page.feed(text)
    page.close()
    assert not page.open and set(page.tags) <= KNOWN_TAGS and text.isascii()
    return page


def check_markdown(text: str) -> None:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 5
    assert {len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in lines} == {6}


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE.keys())
def test_no_name_breaks_a_format(name: str) -> None:
    shown = table(name, name[:100])
    check_latex(latex(shown))
    check_html(html(shown))
    check_markdown(markdown(shown))
    for text in (render(shown) for render in (latex, html, markdown)):
        assert len(text) < 20_000
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028]", text)
        text.encode("utf-8")
    [record, *_] = json.loads(json_text(shown))["numbers"]
    assert record["target"] == name
    rows = list(csv.DictReader(io.StringIO(csv_text(shown))))
    assert len(rows) == 4 and rows[0]["target"] == clean(name, LONGEST_FIELD)


def test_no_text_at_all_breaks_a_format() -> None:
    draw = np.random.default_rng(0)
    alphabets = [range(0x110000), range(0x300), [ord(c) for c in "\\{}$&#%_^~<>|\"'`*[]-!?, \x1b\x07a\u202e±"]]
    for alphabet in alphabets:
        for _ in range(200):
            name = "".join(chr(alphabet[n]) for n in draw.integers(len(alphabet), size=draw.integers(1, 60)))
            shown = table(name, "s")
            check_latex(latex(shown))
            check_html(html(shown))
            check_markdown(markdown(shown))


def test_letters_stay_and_orders_to_a_terminal_go() -> None:
    assert clean(HOSTILE["ansi"]) == "redlink"
    assert clean(HOSTILE["lines"]) == "a b c de"
    assert clean(HOSTILE["bidi"]) == "right-to-left override"
    assert clean(HOSTILE["scripts"]) == HOSTILE["scripts"] and clean(HOSTILE["emoji"]) == HOSTILE["emoji"]
    assert clean(HOSTILE["long"]) == "x" * (LONGEST - 1) + "…"
    assert clean("\x1b[") == "" and clean("\x1b]no end") == ""


def test_html_shows_the_text_as_it_was_typed() -> None:
    page = check_html(html(table(HOSTILE["html"])))
    assert HOSTILE["html"] in page.text and "1.25 ± 0.25" in page.text
    assert "<bdi>" in html(table(HOSTILE["scripts"]))


def test_bold_marks_and_headings_are_in_every_format() -> None:
    shown = table()
    assert "**1.25 ± 0.25**" in markdown(shown) and "a (a)" in markdown(shown) and "(b) other" in markdown(shown)
    assert "| T = 0 speed-up |" in markdown(shown)
    assert r"\textbf{1.25 $\pm$ 0.25}" in latex(shown) and r"a$^{\mathrm{a}}$" in latex(shown)
    assert r"\multicolumn{2}{c}{T = 0}" in latex(shown) and r"\cmidrule(lr){2-3}" in latex(shown)
    assert r"\cmidrule(lr){1" not in latex(shown)
    assert r"\caption{Acceptance length $\tau$.}" in latex(shown)
    assert r"$-$3.0 \%" in latex(shown)
    same = Table("x", "", (Column(("T = 0", "tau")), Column(("T = 0", "tau"))), (Row((Cell("1"), Cell("2"))),))
    assert html(same).count("<th>tau</th>") == 2  # a column's own heading spans nothing
    assert '<th colspan="2">T = 0</th>' in html(shown) and "<b>1.25 &#177; 0.25</b>" in html(shown)
    assert "<sup>b,a</sup>" in html(shown)


def test_a_footnote_is_explained_once_and_marks_run_past_z() -> None:
    shown = table()
    assert list(shown.footnotes.values()) == ["a", "b"]
    many = Table("x", "", (Column(("h",)),), tuple(Row((Cell("c", notes=(str(n),)),)) for n in range(29)))
    assert list(many.footnotes.values())[24:] == ["y", "z", "aa", "ab", "ac"]


def test_csv_and_json_carry_the_numbers_under_fixed_names() -> None:
    shown = table()
    rows = list(csv.DictReader(io.StringIO(csv_text(shown))))
    assert tuple(rows[0]) == FIELDS and len(rows) == 4
    assert (rows[0]["value"], rows[0]["high"], rows[0]["best"]) == ("1.25", "-2.5e-07", "True")
    parsed = json.loads(json_text(shown))
    assert set(parsed) == {"schema", "layout", "caption", "notes", "numbers"}
    assert all(tuple(record) == FIELDS for record in parsed["numbers"])
    assert (parsed["numbers"][0]["value"], parsed["numbers"][0]["footnotes"]) == (1.25, [])


def test_a_table_without_sections_or_notes_renders() -> None:
    bare = Table("x", "c", (Column(("h",)),), (Row((Cell("1"),)),))
    assert all(render(bare) for render in FORMATS.values())
    check_html(html(bare))
    check_latex(latex(bare))
