"""What `speceval ls` prints."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from speceval import engines
from speceval.fitting import Fitting
from speceval.measure.fingerprint import versions

HEADS = {"targets": 1, "drafters": 2}
"""Listings with long cells -> the columns that name a row."""


def show(what: str, root: Path) -> RenderableType:
    """A listing for people; `root` is where runs are looked for."""
    listed = rows(what, root)
    if what == "patches":
        return _blocks(listed)
    return Fitting(table(listed), "rows", heads=HEADS[what]) if what in HEADS else Fitting(table(listed), "lines")


def rows(what: str, root: Path) -> list[dict[str, str]]:
    """A listing as plain rows of equal keys; of patches, each has keys of its own."""
    return LISTINGS[what](root)


def _suites(_: Path) -> list[dict[str, str]]:
    from speceval.suites.load import listing

    return listing()


def _catalog(what: Literal["targets", "drafters"]) -> list[dict[str, str]]:
    from speceval import catalog

    return catalog.listing(what)


def _blocks(patches: list[dict[str, str]]) -> Group:
    installed = versions(engines.find("vllm").packages).items()
    known = ", ".join(f"{name} {version}" for name, version in installed)
    parts: list[RenderableType] = [Text(known or "vLLM: not installed")]
    for facts in patches:
        block = Table.grid(padding=(0, 2))
        for label, value in list(facts.items())[1:]:
            block.add_row(f"  {label}", Text(value))
        parts += [Text(facts["id"], style="bold"), block]
    return Group(*parts)


def _runs(root: Path) -> list[dict[str, str]]:
    """The runs stored below `root`, newest first, then those that cannot be read."""
    from speceval.store.read import runs_below

    runs, unreadable = runs_below(root)
    runs.sort(key=lambda run: run[1].created, reverse=True)
    broken = dict.fromkeys(("target", "draft", "T", "drafting", "suites"), "")
    return [
        {
            "run": str(directory),
            "target": meta.spec.target,
            "draft": meta.spec.draft,
            "T": f"{meta.spec.temperature:g}",
            "drafting": meta.spec.drafting,
            "suites": ", ".join(meta.spec.suites),
            "status": f"{meta.status}, replay" if meta.spec.replay else meta.status,
            "created": meta.created[:16].replace("T", " "),
        }
        for directory, meta in runs
    ] + [
        {"run": str(directory), **broken, "status": f"unreadable: {reason}", "created": ""}
        for directory, reason in unreadable.items()
    ]


def table(rows: Iterable[Mapping[str, Any]]) -> Table:
    """Rows of equal keys as a table; words and lists wrap, names do not. Cells are shown as they are, no markup."""
    shown, rows = Table(box=box.SIMPLE_HEAD, pad_edge=False), list(rows)
    headings = list(rows[0]) if rows else ["nothing here"]
    for heading in headings:
        wraps = heading == headings[-1] or any(" " in str(row[heading]) for row in rows)
        shown.add_column(heading, no_wrap=not wraps, overflow="fold")
    for row in rows:
        shown.add_row(*(Text(str(value)) for value in row.values()))
    return shown


LISTINGS: dict[str, Callable[[Path], list[dict[str, str]]]] = {
    "targets": lambda _: _catalog("targets"),
    "drafters": lambda _: _catalog("drafters"),
    "suites": _suites,
    "patches": lambda _: engines.find("vllm").ledger(),
    "runs": _runs,
}
"""What can be listed -> its rows; of runs: those below a folder."""
