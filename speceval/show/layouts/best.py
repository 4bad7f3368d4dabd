"""Which drafter is best, which are not significantly worse, and by how many percent one differs from another."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import hypot
from typing import Any

from speceval.errors import UserError
from speceval.estimate import acceptance
from speceval.estimate.comparison import require_comparable
from speceval.estimate.statistics import holm
from speceval.show.layouts.entries import Entry

SIGNIFICANT = 0.05

Groups = Callable[[Entry], Hashable]
"""Entries with equal values are candidates for the same bold."""


def column_group(entry: Entry) -> Hashable:
    """Same target, suite, temperature, drafting and K: what a reader compares down a column."""
    return entry.target, entry.suite, entry.temperature, entry.drafting, entry.k


@dataclass
class Best:
    """Which entries are shown in bold."""

    bold: set[int] = field(default_factory=set)
    """`id` of each entry."""
    notes: list[str] = field(default_factory=list)
    """Why some were not compared."""


def find_best(entries: Sequence[Entry], definition: str, group: Groups = column_group) -> Best:
    """The best entry of each group and every one that is not significantly worse.

    Runs: the highest `definition`; each other one is compared with it by `acceptance.compare` (tau, paired by
    conversation), two-sided at 5 % for the whole group. Holm's correction is over all pairs of the group: the data
    chose the best, so any pair could have been tested. What cannot be compared (another protocol, no request in common,
    no spread) is not shown in bold, and `notes` says why. Nor is anything where tau leaves out many steps. Published
    figures have no errors: the highest alone. A group of one has none.
    """
    found = Best()
    for members in _grouped(entries, lambda entry: (entry.measured, group(entry))):
        known = [entry for entry in members if entry.tau(definition)["value"] is not None]
        if len(known) < 2:
            continue
        if any(entry.undrafted for entry in known):
            found.notes.append(
                f"Nothing is bold among {', '.join(entry.label for entry in known)} on {known[0].suite}: many steps "
                "had no drafts, and tau says nothing of how many; `speceval compare` compares all decode steps."
            )
            continue
        top = max(_value(entry, definition) for entry in known)
        highest = [entry for entry in known if _value(entry, definition) == top]
        if highest[0].measured:
            found.bold.add(id(highest[0]))
            _mark_equals(highest[0], [entry for entry in known if entry is not highest[0]], found)
        else:
            found.bold |= {id(entry) for entry in highest}
    found.notes = list(dict.fromkeys(found.notes))
    return found


def compare(a: Entry, b: Entry) -> dict[str, Any]:
    """`acceptance.compare` of two measured entries of one suite. Raises `UserError` when they cannot be compared."""
    assert a.run is not None and b.run is not None
    # Only requests that both have are compared: more seeds in one run do no harm.
    require_comparable([a.run.meta.fingerprint, b.run.meta.fingerprint], ignore=("seeds",))
    return acceptance.compare(*a.run.suite(a.name), *b.run.suite(a.name))


def compare_scaled(a: Entry, b: Entry, scale: float) -> dict[str, float | None]:
    """`acceptance.compare_scaled` of two entries that `compare` takes."""
    assert a.run is not None and b.run is not None
    return acceptance.compare_scaled(*a.run.suite(a.name), *b.run.suite(b.name), scale)


def mean_tau(entries: Sequence[Entry], definition: str) -> dict[str, float | None]:
    """Unweighted mean over suites of one drafter's tau: value, low, high (`combine`)."""
    return combine([entry.tau(definition) for entry in entries], [1 / len(entries)] * len(entries))


def mean_change(pairs: Sequence[tuple[Entry, Entry]]) -> dict[str, float | None]:
    """100 (mean of b's tau / mean of a's - 1) over suites, for pairs (a, b) of one suite each: value, low, high.

    With R the ratio of the two means, its error to first order is Σ (δb_i - R δa_i) / Σ a_i: the interval combines
    those of the suites' b_i - R a_i. Measured: tau over the requests that both runs have, paired by conversation; for
    one suite it is `acceptance.compare`'s `relative_percent`. Published: the value alone. Raises `UserError` when the
    runs cannot be compared.
    """
    if not pairs[0][0].measured:
        ratio = sum(_value(b, "tau") for _, b in pairs) / sum(_value(a, "tau") for a, _ in pairs)
        return {"value": 100 * (ratio - 1), "low": None, "high": None}
    compared = [compare(a, b) for a, b in pairs]
    if len(pairs) == 1:
        return {name: compared[0]["relative_percent"][name] for name in ("value", "low", "high")}
    base, changed = ([found[name]["value"] for found in compared] for name in ("tau_a", "tau_b"))
    if None in (*base, *changed):
        return combine([], [])
    ratio, total = sum(changed) / sum(base), sum(base)
    rests = combine([compare_scaled(a, b, ratio) for a, b in pairs], [1 / total] * len(pairs))  # around 0
    return {name: None if rest is None else 100 * (ratio - 1 + rest) for name, rest in rests.items()}


def combine(intervals: Sequence[Mapping[str, float | None]], weights: Sequence[float]) -> dict[str, float | None]:
    """Σ w_i v_i of independent estimates v_i in [l_i, u_i], with an interval of the same confidence; weights >= 0.

    low = value - √Σ (w_i (v_i - l_i))², high = value + √Σ (w_i (u_i - v_i))²: Zou and Donner 2008, Statistics in
    Medicine 27(10), 1693-1702, for intervals that need not be symmetric. What is not known is None.
    """
    found: dict[str, float | None] = {"value": None, "low": None, "high": None}
    if not intervals or any(interval["value"] is None for interval in intervals):
        return found
    value = sum(w * (i["value"] or 0.0) for w, i in zip(weights, intervals, strict=True))
    found["value"] = value
    for name, sign in (("low", -1), ("high", 1)):
        bounds = [interval[name] for interval in intervals]
        if None not in bounds:
            reaches = [(bound or 0.0) - (i["value"] or 0.0) for bound, i in zip(bounds, intervals, strict=True)]
            found[name] = value + sign * hypot(*(w * reach for w, reach in zip(weights, reaches, strict=True)))
    return found


def _mark_equals(best: Entry, others: Sequence[Entry], found: Best) -> None:
    """Mark those of `others` that are not significantly worse than `best`."""
    tested: list[tuple[Entry, float]] = []
    for other in others:
        who = f"{other.label} was not compared with {best.label} on {best.suite}"
        try:
            p_value = compare(best, other)["p_value"]
        except UserError as error:
            found.notes.append(f"{who}: {reason(error)}.")
            continue
        if p_value is None:
            found.notes.append(f"{who}: without a spread between conversations there is no test.")
        else:
            tested.append((other, p_value))
    members = len(others) + 1
    untested = [1.0] * (members * (members - 1) // 2 - len(others))  # pairs without the best: they reject nothing
    adjusted = holm([*(p_value for _, p_value in tested), *untested])[: len(tested)]
    found.bold |= {
        id(entry) for (entry, _), p in zip(tested, adjusted, strict=True) if p is not None and p >= SIGNIFICANT
    }


def reason(error: UserError) -> str:
    """Why two runs were not compared, without the advice for the command line that `speceval compare` gives."""
    return str(error).partition(": measure them under one protocol")[0]


def _grouped(entries: Iterable[Entry], group: Groups) -> list[list[Entry]]:
    groups: dict[Hashable, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(group(entry), []).append(entry)
    return list(groups.values())


def _value(entry: Entry, definition: str) -> float:
    value = entry.tau(definition)["value"]
    assert value is not None
    return value
