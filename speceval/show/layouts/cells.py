"""Cells that several layouts share, and the lines that explain them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import sqrt
from typing import Any

from scipy.special import stdtrit

from speceval.catalog.schema import load_entries
from speceval.estimate.acceptance import variance
from speceval.show import published
from speceval.show.cells import plus_minus
from speceval.show.layouts.best import Best
from speceval.show.layouts.entries import Entry
from speceval.show.layouts.form import Cell

PAPER = "tau_paper"
"""The acceptance length that the published figures are: 1 + K · accepted / drafted."""

NONE = Cell()

OUTSIDE = "Differs from the published figure by more than sampling and rounding do on the same prompts."
ONE_SEED = "Whether this repeats the published figure cannot be judged with one seed: it needs --seeds 0-3, say."
ON_A_PART = "Whether this repeats the published figure cannot be judged on a part of the prompts."
OTHER_ANSWERS = (
    "Whether this repeats the published figure cannot be judged on answers of another length (--max-tokens) or to "
    "prompts in another form (--template-arg)."
)

INTERVALS = (
    "± and brackets are 95 % intervals over new prompts like these and new samples; the unit is the conversation."
)
BOLD_MEASURED = (
    "Bold: the best of the runs with the same {}, and every one that is not significantly worse (tau, paired by "
    "conversation, two-sided 5 % for all pairs together, Holm)."
)
GROUP = "target, suite, temperature, drafting and K"
BOLD_PUBLISHED = "Published figures come without errors: bold is the highest alone."
GREEDY = (
    "Greedy drafts above temperature 0 are accepted with p(argmax q), another quantity than that of sampled drafts; "
    "the two are never compared."
)


def tau_cell(entry: Entry, definition: str, best: Best | None, decimals: int) -> Cell:
    """An acceptance length with its interval and, in its facts, what was published for it."""
    interval = entry.tau(definition)
    figure = entry.published if entry.measured else None
    inside = repeats(entry) if figure and definition == PAPER else None
    notes = published.load().notes(entry.figure) if entry.figure else ()
    return Cell(
        text=plus_minus(dict(interval), decimals),
        facts=number(
            entry.facts,
            PAPER if entry.figure else definition,
            interval,
            entry.summary["conversations"] if entry.measured else None,
            published=figure.tau if figure else None,
            contains_published=inside,
        ),
        bold=best is not None and id(entry) in best.bold,
        notes=notes,
    )


def number(
    facts: Mapping[str, Any], definition: str, interval: Mapping[str, float | None], n: int | None = None, **more: Any
) -> dict[str, Any]:
    """The facts of a cell: what it belongs to, its definition, value, low and high, and `more` of `form.FIELDS`."""
    bounds = {name: interval[name] for name in ("value", "low", "high")}
    return {**facts, "definition": definition, **bounds, "n": n, **more}


def repeats(entry: Entry) -> bool | None:
    """Whether a measured entry repeats the published figure, on the same prompts; None where that cannot be judged.

    Both are of the same conversations, so that what differs is sampling: ours, of the mean over S seeds, by the
    standard error for new seeds of these prompts, and the figure's, taken for one sample of each prompt, by √S times
    that; at 95 %, two-sided. A printed figure stands for all values that round to it. Where several seeds gave one
    value (temperature 0), only rounding is left.
    """
    figure, value = entry.published, entry.tau(PAPER)["value"]
    if figure is None or value is None or not_judged(entry):
        return None
    assert entry.run is not None
    seeds = len(entry.run.meta.spec.seeds)
    rounding, reach = 0.5 * 10.0 ** -published.load().decimals, 0.0
    if (parts := variance(entry.run.suite(entry.name)[0], entry.k)) is not None:
        reach = float(stdtrit(max(parts["df_samples"], 1), 0.975)) * parts["se_samples"] * sqrt(1 + seeds)
    return bool(abs(value - figure.tau) <= rounding + reach)


def not_judged(entry: Entry) -> str | None:
    """Why it cannot be judged whether a measured entry repeats the published figure; None where it can."""
    if entry.run is None or entry.published is None:
        return None
    spec, planned = entry.run.meta.spec, entry.run.meta.fingerprint.suites[entry.name].conversations
    if spec.limit is not None or spec.shard is not None or not entry.run.complete:
        return ON_A_PART
    if entry.summary["conversations"] < planned:  # --until stopped it
        return ON_A_PART
    if spec.max_tokens is not None or spec.chat_template_kwargs != load_entries()[spec.target].chat_template_kwargs:
        return OTHER_ANSWERS
    if entry.temperature > 0 and len(spec.seeds) < 2:
        return ONE_SEED
    return None


def row_notes(entry: Entry) -> tuple[str, ...]:
    """Footnotes of a row's name."""
    return published.load().row_notes(entry.figure) if entry.figure else entry.run_notes


def drafter_cell(entries: Sequence[Entry], also: str = "") -> Cell:
    """The name of a row's drafter, with the footnotes of all its entries."""
    entry = entries[0]
    notes = dict.fromkeys(note for other in entries for note in row_notes(other))
    return Cell(text=entry.label + also, notes=tuple(notes))


def explain(entries: Iterable[Entry], best: Best, group: str = GROUP) -> list[str]:
    """The lines below a table of acceptance lengths; group: what the candidates for the same bold have in common."""
    entries = list(entries)
    measured = [entry for entry in entries if entry.measured]
    lines = [INTERVALS] if measured else []
    if any(id(entry) in best.bold for entry in measured):
        lines.append(BOLD_MEASURED.format(group))
    figures = [entry for entry in entries if entry.figure]
    if any(id(entry) in best.bold for entry in figures):
        lines.append(BOLD_PUBLISHED)
    if figures:
        lines.append(source_line())
    if any(not entry.usual_drafting for entry in measured):
        lines.append(GREEDY)
    return lines + best.notes


def source_line() -> str:
    """Where the published figures come from, and what they are."""
    publication = published.load()
    return (
        f"Published: {publication.title}, {publication.source}; "
        "its tau is 1 + K · accepted / drafted (tau paper), measured on another vLLM with prompts that may differ."
    )


def percent(interval: Mapping[str, float | None]) -> str:
    """ "+3.1 % [+1.6, +4.6]"."""
    if interval["value"] is None:
        return "n/a"
    if interval["low"] is None:
        return f"{interval['value']:+.1f} %"
    return f"{interval['value']:+.1f} % [{interval['low']:+.1f}, {interval['high']:+.1f}]"


def unique(names: Iterable[Any]) -> list[Any]:
    """Each once, in order of first appearance."""
    return list(dict.fromkeys(names))
