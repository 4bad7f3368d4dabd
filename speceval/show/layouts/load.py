"""`load`: acceptance and speed of runs with `--rate`, side by side: how both change with load."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from speceval.errors import UserError
from speceval.show.cells import plus_minus
from speceval.show.layouts.cells import INTERVALS, NONE, number
from speceval.show.layouts.entries import Entry
from speceval.show.layouts.form import Cell, Column, Row, Table
from speceval.show.tables import LOAD, load_of, servers

TIMES = tuple((kind, name) for kind in LOAD for name in ("mean", "p99") if (kind, name) != ("itl_ms", "p99"))
"""Columns of times: of pauses there is the mean alone."""
NO_TIMES = "Measured without --rate: no times were taken."


def load(entries: Sequence[Entry]) -> Table:
    """A row for each run and suite, those of a drafter by rate and concurrency."""
    rows = [(entry, load_of(entry.run)) for entry in entries if entry.run is not None]
    if not rows:
        raise UserError("--layout load: published figures say nothing of load: name a run")
    rows.sort(key=lambda row: (row[0].target, row[0].drafter, row[0].suite, row[0].k, *_pressure(row[0])))
    shown = Counter(_facts(entry) for entry, _ in rows)
    return Table(
        layout="load",
        caption="Acceptance and speed under load.",
        columns=(
            *(Column(("", name), "left") for name in ("drafter", "suite")),
            *(Column(("", name)) for name in ("K", "T", "rate", "at most", "in flight", "tau", "output tokens/s")),
            *(Column((f"{LOAD[kind]} (ms)", name.upper() if name == "p99" else name)) for kind, name in TIMES),
        ),
        rows=tuple(
            Row((Cell(_name(entry, shown[_facts(entry)])), *_cells(entry, found)), entry.target)
            for entry, found in rows
        ),
        section_heading="target",
        notes=(
            "Rate: conversations that begin in a second, at random; inf: each as soon as there is room. In flight and "
            "output tokens a second are of the whole run, of all its suites.",
            "TTFT, TPOT, ITL, E2EL: as `vllm bench serve` defines them (docs/measure/under-load.md).",
            INTERVALS,
        ),
    )


def _pressure(entry: Entry) -> tuple[float, int]:
    """What rows are sorted by; runs without times first."""
    assert entry.run is not None
    spec = entry.run.meta.spec
    return -math.inf if spec.rate is None else float(spec.rate), spec.batch


def _facts(entry: Entry) -> tuple[Any, ...]:
    """What a row says of a run beside its numbers."""
    return entry.target, entry.drafter, entry.drafting, entry.suite, entry.k, entry.temperature, *_pressure(entry)


def _name(entry: Entry, bearers: int) -> str:
    """What a row is called; with its run where others say the same."""
    drafting = "" if entry.usual_drafting else f", {entry.drafting} drafts"
    return f"{entry.label if bearers > 1 else entry.drafter}{drafting}"


def _cells(entry: Entry, found: dict[str, Any] | None) -> tuple[Cell, ...]:
    assert entry.run is not None
    spec = entry.run.meta.spec
    facts = entry.facts | {"batch": spec.batch}

    def cell(name: str, interval: dict[str, Any], digits: int, n: int | None = None) -> Cell:
        return Cell(plus_minus(interval, digits), number(facts, name, interval, n))

    suite = found["suites"][entry.name] if found else None
    whole = found["throughput"] if found else None
    rate = Cell("", notes=(NO_TIMES,)) if spec.rate is None else Cell(f"{float(spec.rate):g}", notes=entry.times_notes)
    return (
        *(Cell(text) for text in (entry.suite, str(entry.k), f"{entry.temperature:g}")),
        rate,
        Cell(str(spec.batch * servers(entry.run))),
        Cell(f"{whole['concurrency']:.1f}") if whole else NONE,
        cell("tau", dict(entry.tau("tau")), 3, entry.summary["conversations"]),
        cell("output_throughput", whole["output_throughput"], 1) if whole else NONE,
        *(cell(f"{name}_{kind}", suite[kind][name], 1, suite["requests"]) if suite else NONE for kind, name in TIMES),
    )
