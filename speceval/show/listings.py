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


def show(what: str, root: Path) -> RenderableType:
    """A listing for people; `root` is where runs are looked for."""
    listed = rows(what, root)
    return _blocks(listed) if what == "patches" else table(listed)


def rows(what: str, root: Path) -> list[dict[str, str]]:
    """A listing as plain rows of equal keys; of patches, each has keys of its own."""
    if what == "runs":
        return _runs(root)
    if what == "patches":
        return _patches()
    if what == "suites":
        from speceval.suites.load import listing

        return listing()
    from speceval import catalog

    return catalog.listing("targets" if what == "targets" else "drafters")


def _patches() -> list[dict[str, str]]:
    """The ledger: the patches, each with its state in this process, and the defects that nothing is replaced for."""
    import vllm_patches
    from vllm_patches import unpatched

    replaced = [
        {
            "id": status.id,
            "what": status.title,
            "replaces": status.target,
            "vLLM": status.versions,
            "state": f"{status.state}: {status.reason}" if status.reason else status.state,
            "upstream": _links(status.upstream.split()),
        }
        for status in vllm_patches.status()
    ]
    accounted = [
        {
            "id": row.id,
            "what": row.title,
            "place": row.target,
            "vLLM": f"{row.versions}, {row.runner} runner",
            "state": f"{row.state}: {row.answer}",
            "upstream": _links(row.upstream),
        }
        for row in unpatched.ROWS
    ]
    return replaced + accounted


def _blocks(patches: list[dict[str, str]]) -> Group:
    import vllm_patches

    parts: list[RenderableType] = [Text(f"vLLM: {vllm_patches.vllm_version() or 'not installed'}")]
    for facts in patches:
        block = Table.grid(padding=(0, 2))
        for label, value in list(facts.items())[1:]:
            block.add_row(f"  {label}", Text(value))
        parts += [Text(facts["id"], style="bold"), block]
    return Group(*parts)


def _links(upstream: Iterable[str]) -> str:
    """Web addresses as they are; our own reports by the file that this installation has of them."""
    return " ".join(_file(link) if link.startswith(f"{DATA['upstream']}/") else link for link in upstream)


def _file(report: str) -> str:
    path = data_directory("upstream") / Path(report).name
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


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
            "status": meta.status,
            "created": meta.created,
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
