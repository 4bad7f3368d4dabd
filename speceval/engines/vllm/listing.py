"""vLLM's known defects, and what is done about each, as `speceval ls patches` lists them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import vllm_patches
from speceval.paths import DATA, data_directory
from speceval.store.schema import PatchState
from vllm_patches import unpatched
from vllm_patches.ledger import ANY, LEDGER
from vllm_patches.methods import HEADS, TRANSPORT

BOUND = frozenset(patch.id for patch in LEDGER if patch.methods)
"""Patches that only some drafting methods need."""


def concerns(patch: str, runner: str, method: str) -> bool:
    """Whether a row of the ledger is about what this model runner, "V1" or "V2", does in a run: none has a grammar.

    `method` is the drafting method: what V2 has for others concerns none (of V1 all rows are recorded always).
    """
    methods = {method, TRANSPORT} if method in HEADS else {method}
    rows = (row for row in LEDGER if row.id == patch and not row.grammar and row.runner in (ANY, runner))
    return any(row.runner != "V2" or not row.methods or methods & {*row.methods} for row in rows)


def as_state(status: vllm_patches.PatchStatus) -> PatchState:
    """A patch's status in the terms of a run's record."""
    return PatchState(**vars(status), bound=status.id in BOUND)


def ledger() -> list[dict[str, str]]:
    """The patches, each with its state in this process, and the defects that nothing is replaced for."""
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


def _links(upstream: Iterable[str]) -> str:
    """Web addresses as they are; our own reports by the file that this installation has of them."""
    return " ".join(_file(link) if link.startswith(f"{DATA['upstream']}/") else link for link in upstream)


def _file(report: str) -> str:
    path = data_directory("upstream") / Path(report).name
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
