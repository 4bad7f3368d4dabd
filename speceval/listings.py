"""What `speceval ls` prints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from speceval.paths import DATA, data_directory


def targets() -> Table:
    """The catalog's targets."""
    from speceval import catalog

    return table(catalog.listing("targets"))


def drafters() -> Table:
    """The catalog's drafters, by target."""
    from speceval import catalog

    return table(catalog.listing("drafters"))


def suites() -> Table:
    """The built-in suites."""
    from speceval.suites.load import listing

    return table(listing())


def patches() -> Group:
    """The ledger: the patches, each with its state in this process, and the defects that nothing is replaced for."""
    import vllm_patches
    from vllm_patches import unpatched

    installed = vllm_patches.vllm_version() or "not installed"
    blocks: list[RenderableType] = [Text(f"vLLM: {installed}")]
    for status in vllm_patches.status():
        reason = f": {status.reason}" if status.reason else ""
        blocks += _ledger_row(
            status.id,
            what=status.title,
            replaces=status.target,
            vLLM=status.versions,
            state=status.state + reason,
            upstream=_links(status.upstream.split()),
        )
    for row in unpatched.ROWS:
        blocks += _ledger_row(
            row.id,
            what=row.title,
            place=row.target,
            vLLM=f"{row.versions}, {row.runner} runner",
            state=f"{row.state}: {row.answer}",
            upstream=_links(row.upstream),
        )
    return Group(*blocks)


def _links(upstream: Iterable[str]) -> str:
    """Web addresses as they are; our own reports by the file that this installation has of them."""
    return " ".join(_file(link) if link.startswith(f"{DATA['upstream']}/") else link for link in upstream)


def _file(report: str) -> str:
    path = data_directory("upstream") / Path(report).name
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _ledger_row(name: str, **facts: str) -> list[RenderableType]:
    block = Table.grid(padding=(0, 2))
    for label, value in facts.items():
        block.add_row(f"  {label}", Text(value))
    return [Text(name, style="bold"), block]


def runs(root: Path) -> Table:
    """The runs stored below `root`, newest first."""
    from speceval.store import list_runs

    return table(
        {
            "run": str(directory),
            "target": meta["spec"]["target"],
            "draft": meta["spec"]["draft"],
            "T": f"{meta['spec']['temperature']:g}",
            "drafting": meta["spec"]["drafting"],
            "suites": ", ".join(meta["spec"]["suites"]),
            "status": meta["status"],
            "created": meta["created"],
        }
        for directory, meta in list_runs(root)
    )


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
