"""A check of the regression gate on the terminal, as JSON, as JUnit XML for CI, as Markdown for a pull request."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from speceval.estimate.baseline import Baseline, TextBaseline
from speceval.estimate.gate import EXIT_CODES, LEVEL, Check, PositionCheck, SuiteCheck, Verdict
from speceval.estimate.texts import Place, SuiteTexts, TextsCheck
from speceval.fitting import Fitting
from speceval.terminal import LONGEST_LINE as WHOLE
from speceval.terminal import clean

STYLES = {Verdict.ok: "bold green", Verdict.fail: "bold red", Verdict.inconclusive: "bold yellow"}
SYMBOLS = {Verdict.ok: "✅", Verdict.fail: "❌", Verdict.inconclusive: "❔"}

HEADINGS = ("suite", "verdict", "tau, baseline", "tau, run", "change, %", "bounds, %", "conversations")
POSITION_HEADINGS = ("suite", "position", "baseline", "run", "change, %", "in % of tau", "may lose, %", "adjusted p")

NOTE = (
    f"Bounds: one-sided {100 * (1 - LEVEL):g} % each, paired by conversation, over new prompts like these and new "
    "samples. Positions: rate among the steps that reach them; one fails where its share of all steps fell too; "
    "p-values for all tests together."
)


@dataclass(frozen=True, repr=False)
class Report:
    """A check with what was compared. A terminal (rich) and a notebook show its tables."""

    check: Check
    base: Baseline | TextBaseline
    new: Baseline | TextBaseline
    allowed: list[str]
    """Differences between the protocols that were let through."""
    texts: TextsCheck | None = None
    """Of two replays of the same texts: the answer on these, which is exact. `check` is then on prompts like these."""
    around: dict[tuple[str, Place], str] = field(default_factory=dict)
    """The text near each place that `texts` names."""
    notes: list[str] = field(default_factory=list)
    """What a reader must know of the run beside."""
    only: str | None = None
    """The part of the answers that counted; None: all."""

    @property
    def same_weights(self) -> bool:
        """Whether both runs used the same drafter weights."""
        return self.base.weights.draft == self.new.weights.draft

    @property
    def verdict(self) -> Verdict:
        """The worst of the suites' verdicts; of replays never inconclusive: fail where either part does."""
        if self.texts is None:
            return self.check.verdict
        return Verdict.fail if Verdict.fail in (self.texts.verdict, self.check.verdict) else Verdict.ok

    @property
    def exit_code(self) -> int:
        """0 pass, 1 fail, 2 inconclusive."""
        return EXIT_CODES[self.verdict]

    @property
    def suites(self) -> list[SuiteCheck]:
        """The verdict on each suite, and what it rests on."""
        return self.check.suites

    def markdown(self) -> str:
        """A summary for a pull request."""
        return markdown(self)

    def __repr__(self) -> str:
        return f"<check: {self.verdict} at a margin of {self.check.margin_percent:g} %>"

    def __rich__(self) -> RenderableType:
        return terminal(self)

    def _repr_markdown_(self) -> str:
        return markdown(self)

    def as_json(self) -> dict[str, Any]:
        """One JSON-ready object."""
        return {
            **self.check.as_json(),
            "verdict": str(self.verdict),
            **({} if self.texts is None else {"on_these_texts": self.texts.as_json()}),
            **({} if self.only is None else {"only": self.only}),
            "exit_code": self.exit_code,
            "run": _source(self.new),
            "baseline": _source(self.base),
            "same_draft_weights": self.same_weights,
            "allowed_differences": self.allowed,
            "notes": self.notes,
        }


def terminal(report: Report) -> RenderableType:
    """Tables, the reason of each verdict, and what a reader must know to trust it."""
    tables = []
    for headings, heads, rows in (
        (HEADINGS, 2, [_suite_cells(suite) for suite in report.check.suites]),
        (POSITION_HEADINGS, 2, list(_position_rows(report.check))),
    ):
        table = Table()
        for number, heading in enumerate(headings):
            table.add_column(heading, justify="left" if number == 0 else "right", no_wrap=True)
        for row in rows:
            table.add_row(*(Text(clean(cell)) for cell in row))
        tables.append(Fitting(table, heads=heads))
    verdict = report.verdict
    title = Text.assemble((str(verdict).upper(), STYLES[verdict]), f" at a margin of {report.check.margin_percent:g} %")
    return Group(title, *tables, *(Text(line) for line in (*_reasons(report), *_notes(report))))


def markdown(report: Report) -> str:
    """A summary for a pull request or a job's page (GitHub's Markdown); everything from users is escaped."""
    check = report.check
    lines = [
        f"### {SYMBOLS[report.verdict]} Acceptance length: {report.verdict} at a margin of {check.margin_percent:g} %",
        "",
        *_markdown_table(HEADINGS, [_suite_cells(suite) for suite in check.suites]),
        "",
        *(f"- {_escape(line)}" for line in _reasons(report)),
        "",
        "<details><summary>Positions</summary>",
        "",
        *_markdown_table(POSITION_HEADINGS, list(_position_rows(check))),
        "",
        "</details>",
        "",
        *(f"{_escape(line)}  " for line in _notes(report)),
    ]
    return "\n".join(lines) + "\n"


def junit(report: Report) -> bytes:
    """JUnit XML: a test case for tau of every suite and one for every position.

    A fail is a `failure`; an inconclusive tau, and a position with too few drafts for a test, is `skipped`: neither
    passed nor failed.
    """
    root = ElementTree.Element("testsuites", name="speceval check")
    for suite in report.check.suites:
        cases = [_case(suite, "tau", suite.tau_verdict, suite.reason)]
        for on_texts in report.texts.suites if report.texts else ():
            if on_texts.suite == suite.suite:
                cases.append(_case(suite, "tau on these texts", on_texts.verdict, _on_texts(on_texts)))
        cases += [
            _case(suite, f"position {row.position}", _position_verdict(row), _said(row)) for row in suite.positions
        ]
        counts = {tag: str(sum(case.find(tag) is not None for case in cases)) for tag in ("failure", "skipped")}
        element = ElementTree.SubElement(
            root,
            "testsuite",
            name=clean(suite.suite),
            tests=str(len(cases)),
            failures=counts["failure"],
            errors="0",
            skipped=counts["skipped"],
        )
        properties = ElementTree.SubElement(element, "properties")
        for name, value in (
            ("run", report.new.run),
            ("baseline", report.base.run),
            ("margin_percent", f"{report.check.margin_percent:g}"),
            ("conversations", str(suite.conversations)),
        ):
            ElementTree.SubElement(properties, "property", name=name, value=clean(value, WHOLE))
        element.extend(cases)
    ElementTree.indent(root)
    text: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return text + b"\n"


def _case(suite: SuiteCheck, name: str, verdict: Verdict, message: str) -> ElementTree.Element:
    case = ElementTree.Element("testcase", classname=f"speceval.{clean(suite.suite)}", name=name)
    if verdict is not Verdict.ok:
        tag = "failure" if verdict is Verdict.fail else "skipped"
        ElementTree.SubElement(case, tag, message=clean(message, WHOLE))
    return case


def _position_verdict(row: PositionCheck) -> Verdict:
    if row.failed:
        return Verdict.fail
    return Verdict.inconclusive if row.p_value is None else Verdict.ok


def _said(row: PositionCheck) -> str:
    if row.p_value is None:
        return "not tested: too few drafts, or the position is worth less than the margin"
    return f"changed by {_signed(row.change_percent)} %, may lose {row.margin_percent:.1f} %"


def _suite_cells(suite: SuiteCheck) -> list[str]:
    change = suite.change_percent
    bounds = "n/a" if change["low"] is None else f"[{_signed(change['low'])}, {_signed(change['high'])}]"
    return [
        suite.suite,
        str(suite.verdict),
        _number(suite.base_tau),
        _number(suite.new_tau),
        _signed(change["value"]),
        bounds,
        f"{suite.conversations:,}",
    ]


def _position_rows(check: Check) -> Iterator[list[str]]:
    for suite in check.suites:
        for row in suite.positions:
            yield [
                suite.suite,
                str(row.position),
                _number(row.base),
                _number(row.new),
                _signed(row.change_percent),
                _signed(row.tau_percent),
                f"{row.margin_percent:.1f}" if row.margin_percent < 100 else "all",
                "not tested" if row.p_adjusted is None else f"{row.p_adjusted:.2g}{' FAIL' if row.failed else ''}",
            ]


def _reasons(report: Report) -> list[str]:
    lines = []
    for on_texts in report.texts.suites if report.texts else ():
        lines.append(f"{clean(on_texts.suite)}, on these texts: {on_texts.verdict}: {_on_texts(on_texts)}.")
        if on_texts.verdict is Verdict.fail:
            lines += _lost(on_texts, report.around)
    where = ", on prompts like these" if report.texts else ""
    return [*lines, *(f"{clean(suite.suite)}{where}: {suite.verdict}: {suite.reason}." for suite in report.suites)]


def _on_texts(suite: SuiteTexts) -> str:
    if suite.tolerance_percent is None:
        tolerance = "rounding was not measured (`speceval baseline --again`)"
    else:
        tolerance = f"rounding can make {suite.tolerance_percent:.2g} %"
    if suite.rounding is not None:
        moved = suite.rounding
        tolerance += f" (the target's own log p differs by {moved.mean:.2g} on average, {moved.largest:.2g} at most)"
    tau = "tau of all decode steps" if suite.every_step else "tau committed"
    return (
        f"{tau} {suite.base_tau:.4f} became {suite.new_tau:.4f}, {suite.change_percent:+.4f} % on "
        f"{suite.texts:,} texts, exactly; {tolerance}"
    )


def _lost(suite: SuiteTexts, around: dict[tuple[str, Place], str]) -> Iterator[str]:
    """Where most was lost: conversations, then places with the text near them."""
    for conversation, percent in suite.conversations:
        yield clean(f"{suite.suite}, {conversation}: needs {percent:.2f} % more steps")
    for place in suite.places:
        near = around.get((suite.suite, place))
        yield clean(
            f"{suite.suite}, {place.conversation}, seed {place.seed}, turn {place.turn}, token {place.token}: "
            f"{place.lost:.2f} accepted tokens fewer{'' if near is None else f', near {near!r}'}"
        )


def _notes(report: Report) -> list[str]:
    same = "the same" if report.same_weights else "other"
    lines = [
        NOTE,
        *([] if report.only is None else [f"Only the steps of {report.only} count."]),
        f"run {report.new.run}, baseline {report.base.run} of {report.base.created}: {same} drafter weights.",
    ]
    for suite in report.check.suites:
        if suite.only_base or suite.only_new:
            lines.append(
                f"{suite.suite}: {suite.only_base} conversations of the baseline alone and {suite.only_new} of the run "
                "alone are left out."
            )
        lines += [f"{suite.suite}: {warning}." for warning in suite.warnings]
    lines += [f"allowed difference: {line}" for line in report.allowed]
    lines += report.notes
    return [clean(line, WHOLE) for line in lines]


def _source(baseline: Baseline | TextBaseline) -> dict[str, Any]:
    return {
        "name": baseline.run,
        "created": baseline.created,
        "draft": baseline.fingerprint.draft.name,
        "draft_weights": baseline.weights.draft,
    }


def _markdown_table(headings: tuple[str, ...], rows: list[list[str]]) -> list[str]:
    lines = [f"| {' | '.join(cells)} |" for cells in (headings, *([_escape(cell) for cell in row] for row in rows))]
    return [lines[0], "|---" + "|---:" * (len(headings) - 1) + "|", *lines[1:]]


def _escape(text: str) -> str:
    """Text that Markdown shows as it is: nothing in it starts a link, a tag, a table cell or a mention."""
    escaped = re.sub(r"([\\`*_{}\[\]()<>#|~!&])", r"\\\1", clean(text, WHOLE))
    return escaped.replace("@", "&#64;")


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"


def _signed(value: float | None) -> str:
    return "n/a" if value is None else f"{value:+.2f}"
