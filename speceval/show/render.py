"""`layouts.form.Table` on a terminal, and as Markdown, CSV, LaTeX (booktabs), HTML and JSON.

Names come from users: every renderer escapes them, and strips what could steer a terminal or reorder a line.
"""

from __future__ import annotations

import csv
import html as html_escapes
import io
import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

from rich import box
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table as Drawn
from rich.text import Text

from speceval.fitting import Fitting
from speceval.show.layouts.form import FIELDS, Cell, Column, Row, Table
from speceval.store.schema import versioned
from speceval.terminal import LONGEST, clean

LONGEST_NOTE = 1000
"""Characters of a line below a table that are shown."""
LONGEST_FIELD = 10_000
"""Characters of a field in csv, whose readers have limits; json keeps the whole."""

# ---------------------------------------------------------------------------------------------------- Markdown


def markdown(table: Table) -> str:
    """A GitHub table, padded so that its source reads too; sections are the first column."""
    columns, rows = _with_sections(table)
    marks = table.footnotes
    headings = [" ".join(part for part in column.headings if part) for column in columns]
    lines = [[_markdown_text(heading) for heading in headings]]
    lines += [[_markdown_cell(cell, marks) for cell in row] for row in rows]
    widths = [max(3, *(cell_len(line[index]) for line in lines)) for index in range(len(columns))]

    def padded(line: Sequence[str]) -> str:
        cells = []
        for column, text, width in zip(columns, line, widths, strict=True):
            space = " " * (width - cell_len(text))
            cells.append(text + space if column.align == "left" else space + text)
        return f"| {' | '.join(cells)} |"

    rule = [
        "-" * width if column.align == "left" else "-" * (width - 1) + ":"
        for column, width in zip(columns, widths, strict=True)
    ]
    below = [_markdown_text(note, LONGEST_NOTE) for note in table.notes]
    below += [f"({mark}) {_markdown_text(text, LONGEST_NOTE)}" for text, mark in marks.items()]
    parts = [f"**{_markdown_text(table.caption, LONGEST_NOTE)}**", "\n".join([padded(lines[0]), padded(rule)])]
    parts[-1] += "".join("\n" + padded(line) for line in lines[1:])
    return "\n\n".join([*parts, *below]) + "\n"


def _markdown_text(text: str, longest: int = LONGEST) -> str:
    return re.sub(r"([\\`*_{}\[\]<>|#~&$])", r"\\\1", clean(text, longest))


def _markdown_cell(cell: Cell, marks: dict[str, str]) -> str:
    # Numbers need no escapes, and their brackets read better without.
    text = clean(cell.text) if cell.facts else _markdown_text(cell.text)
    text = f"**{text}**" if cell.bold and text else text
    return text + "".join(f" ({marks[note]})" for note in cell.notes)


# ---------------------------------------------------------------------------------------------------- terminal


def terminal(table: Table) -> RenderableType:
    """As a terminal of any width shows it."""
    columns, rows = _with_sections(table)
    marks = table.footnotes
    shown = Drawn(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        heading = " ".join(part for part in column.headings if part)
        shown.add_column(Text(clean(heading)), justify=column.align, no_wrap=True)
    for row in rows:
        shown.add_row(*(_terminal_cell(cell, marks) for cell in row))
    heads = next((number for number, column in enumerate(columns) if column.align == "right"), len(columns))
    below = [clean(note, LONGEST_NOTE) for note in table.notes]
    below += [f"({mark}) {clean(text, LONGEST_NOTE)}" for text, mark in marks.items()]
    title = Text(clean(table.caption, LONGEST_NOTE), style="bold")
    return Group(title, Fitting(shown, heads=max(heads, 1)), *(Text(line) for line in below))


def _terminal_cell(cell: Cell, marks: dict[str, str]) -> Text:
    text = clean(cell.text) + "".join(f" ({marks[note]})" for note in cell.notes)
    return Text(text, style="bold" if cell.bold else "")


# -------------------------------------------------------------------------------------------------------- HTML


def html(table: Table) -> str:
    """A <table> with its notes in the footer, to be put into a page. ASCII only: any page's encoding will do."""
    marks = table.footnotes
    width = len(table.columns)
    lines = ['<table class="speceval">', f"<caption>{_html_text(table.caption, LONGEST_NOTE)}</caption>", "<thead>"]
    for level in range(_depth(table)):
        cells = (
            f'<th colspan="{span}">{_html_text(heading)}</th>' if span > 1 else f"<th>{_html_text(heading)}</th>"
            for heading, span in _headings(table, level)
        )
        lines.append(f"<tr>{''.join(cells)}</tr>")
    lines.append("</thead>")
    for section, rows in groupby(table.rows, key=lambda row: row.section):
        lines.append("<tbody>")
        if table.section_heading:
            lines.append(f'<tr><th colspan="{width}" scope="rowgroup">{_html_text(section)}</th></tr>')
        lines += [f"<tr>{''.join(_html_cells(row, table.columns, marks))}</tr>" for row in rows]
        lines.append("</tbody>")
    notes = [_html_text(note, LONGEST_NOTE) for note in table.notes]
    notes += [f"<sup>{mark}</sup> {_html_text(text, LONGEST_NOTE)}" for text, mark in marks.items()]
    if notes:
        lines.append(f'<tfoot><tr><td colspan="{width}">{"<br>".join(notes)}</td></tr></tfoot>')
    lines.append("</table>")
    return "\n".join(lines).encode("ascii", "xmlcharrefreplace").decode() + "\n"


def _html_text(text: str, longest: int = LONGEST) -> str:
    """Escaped; text that runs from right to left is kept from reordering what is around it."""
    text = clean(text, longest)
    escaped = html_escapes.escape(text)
    return f"<bdi>{escaped}</bdi>" if any(unicodedata.bidirectional(c) in ("R", "AL", "AN") for c in text) else escaped


def _html_cells(row: Row, columns: Sequence[Column], marks: dict[str, str]) -> Iterator[str]:
    for column, cell in zip(columns, row.cells, strict=True):
        text = _html_text(cell.text)
        text = f"<b>{text}</b>" if cell.bold and text else text
        found = ",".join(marks[note] for note in cell.notes)
        yield f'<td style="text-align:{column.align}">{text}{f"<sup>{found}</sup>" if found else ""}</td>'


# ------------------------------------------------------------------------------------------------------- LaTeX

LATEX_SPECIALS = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"$<$", ">": r"$>$", "|": r"$|$",
    "`": r"\textasciigrave{}", "'": r"\textquotesingle{}", '"': r"\textquotedbl{}", "±": r"$\pm$",
    "−": r"$-$", "×": r"$\times$", "·": r"$\cdot$", "Δ": r"$\Delta$",
    "τ": r"$\tau$", "α": r"$\alpha$", "λ": r"$\lambda$", "η": r"$\eta$", "–": "--", "—": "---", "…": r"\dots{}",
}  # fmt: skip
"""Characters with a meaning in LaTeX, and the signs that tables use."""

NOT_IN_T1 = "ĦħĸĿŀŉŦŧ"
"""The letters between À and ž that pdfLaTeX's T1 fonts lack."""

LATEX_HEAD = r"% \input{} this file; it needs \usepackage[T1]{fontenc} and \usepackage{booktabs,graphicx,textcomp}."


def latex(table: Table) -> str:
    r"""A booktabs table to be \input: a float that shrinks to the line where it is wider.

    Characters that pdfLaTeX has no glyph for (emoji, other scripts) are shown by their code, as [U+1F600].
    """
    marks = table.footnotes
    width = len(table.columns)
    lines = [
        LATEX_HEAD,
        r"\begin{table}[tp]",
        r"\centering",
        rf"\caption{{{_latex_words(table.caption)}}}",
        rf"\label{{tab:speceval-{table.layout}}}",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{{''.join(column.align[0] for column in table.columns)}}}",
        r"\toprule",
    ]
    for level in range(_depth(table)):
        lines += _latex_headings(table, level)
    for section, rows in groupby(table.rows, key=lambda row: row.section):
        lines.append(r"\midrule")
        if table.section_heading:
            lines.append(rf"\multicolumn{{{width}}}{{l}}{{\textit{{{_latex_text(section)}}}}} \\")
        lines += [" & ".join(_latex_cell(cell, marks) for cell in row.cells) + r" \\" for row in rows]
    lines += [r"\bottomrule", r"\end{tabular}}", ""]
    notes = [_latex_words(note) for note in table.notes]
    notes += [rf"$^{{\mathrm{{{mark}}}}}$ {_latex_text(text, LONGEST_NOTE)}" for text, mark in marks.items()]
    if notes:
        lines += [r"\smallskip", r"\begin{minipage}{\linewidth}\footnotesize\raggedright"]
        lines += [" \\par\n".join(notes), r"\end{minipage}"]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def _latex_text(text: str, longest: int = LONGEST) -> str:
    escaped = "".join(map(_latex_character, clean(text, longest)))
    escaped = re.sub("-(?=-)", "-{}", escaped)  # two hyphens are no dash
    return re.sub(r"^([\[*])", r"{\1}", escaped)  # at a row's start they would be arguments of the row before


def _latex_words(text: str) -> str:
    """The table's own words: with the sign for tau."""
    return _latex_text(re.sub(r"\btau\b", "τ", text), LONGEST_NOTE)


def _latex_character(character: str) -> str:
    if character in LATEX_SPECIALS:
        return LATEX_SPECIALS[character]
    if character.isascii() or ("À" <= character <= "ž" and character not in NOT_IN_T1):
        return character
    return f"[U+{ord(character):04X}]"


def _latex_cell(cell: Cell, marks: dict[str, str]) -> str:
    text = _latex_text(re.sub(r"-(?=\d)", "−", cell.text) if cell.facts else cell.text)
    text = rf"\textbf{{{text}}}" if cell.bold and text else text
    found = ",".join(marks[note] for note in cell.notes)
    return text + (rf"$^{{\mathrm{{{found}}}}}$" if found else "")


def _latex_headings(table: Table, level: int) -> list[str]:
    """One line of headings, and the rules under those that span several columns."""
    cells, rules, first = [], [], 1
    aligns = iter(table.columns)
    for heading, span in _headings(table, level):
        columns = [next(aligns) for _ in range(span)]
        align = columns[0].align[0] if span == 1 else "c"
        cells.append(rf"\multicolumn{{{span}}}{{{align}}}{{{_latex_words(heading)}}}")
        if span > 1 and heading:
            rules.append(rf"\cmidrule(lr){{{first}-{first + span - 1}}}")
        first += span
    return [" & ".join(cells) + r" \\", *rules]


# ------------------------------------------------------------------------------------------- for machines


def csv_text(table: Table) -> str:
    """One line per number, columns `layouts.form.FIELDS` in every layout; footnotes separated by " / "."""
    out = io.StringIO()
    writer = csv.DictWriter(out, FIELDS, lineterminator="\n")
    writer.writeheader()
    for record in table.records:
        shown = record | {"footnotes": " / ".join(record["footnotes"])}
        writer.writerow({name: _csv_text(v) if isinstance(v, str) else v for name, v in shown.items()})
    return out.getvalue()


FORMULAS = ("=", "+", "-", "@", "＝", "＋", "－", "＠")
"""What begins a formula in one spreadsheet or another."""


def _csv_text(text: str) -> str:
    """A text cell; an apostrophe before what a spreadsheet would compute has it shown instead."""
    text = clean(text, LONGEST_FIELD)
    return f"'{text}" if text.startswith(FORMULAS) else text


def json_text(table: Table) -> str:
    """One object: layout, caption, notes, and `numbers`, a record per number with `layouts.form.FIELDS`."""
    return (
        json.dumps(
            versioned(
                "table",
                {
                    "layout": table.layout,
                    "caption": table.caption,
                    "notes": list(table.notes),
                    "numbers": table.records,
                },
            ),
            allow_nan=False,
            indent=1,
        )
        + "\n"
    )


FORMATS: dict[str, Callable[[Table], str]] = {
    "md": markdown,
    "csv": csv_text,
    "latex": latex,
    "html": html,
    "json": json_text,
}


def _with_sections(table: Table) -> tuple[list[Column], list[list[Cell]]]:
    """Columns and rows with the section as first column, named in its first row only."""
    if not table.section_heading:
        return list(table.columns), [list(row.cells) for row in table.rows]
    rows = [
        [Cell(section if index == 0 else ""), *row.cells]
        for section, found in groupby(table.rows, key=lambda row: row.section)
        for index, row in enumerate(found)
    ]
    return [Column((table.section_heading,), "left"), *table.columns], rows


def _depth(table: Table) -> int:
    return len(table.columns[0].headings)


def _headings(table: Table, level: int) -> list[tuple[str, int]]:
    """Headings of one level with the number of columns each spans: equal neighbours under equal outer headings."""
    paths = [column.headings[: level + 1] for column in table.columns]
    last = level == _depth(table) - 1
    if last or not any(path[-1] for path in paths):
        return [(path[-1], 1) for path in paths]
    return [(path[-1], sum(1 for _ in group)) for path, group in groupby(paths)]
