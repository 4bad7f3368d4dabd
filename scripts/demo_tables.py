"""The tables of README and docs that are made of the reference runs of `speceval demo` and `demo --all`."""

from __future__ import annotations

from pathlib import Path

import speceval
from speceval import Difference, Estimate, Run

DRAFTERS = ("kl-eagle3", "lk-eagle3")
SUITE = "demo"
CONDITIONS = (
    ("T=0", 0.0, "greedy"),
    ("T=1", 1.0, "probabilistic"),
    ("T=1, greedy drafts", 1.0, "greedy"),
)
"""Heading, temperature and drafting of each column: of suites/sweeps/demo.yaml, and the first two of demo-all.yaml."""

ARCHITECTURES = ("eagle3", "medusa", "mlp", "mtp", "draft")
LOSSES = {"kl": "KL", "tv": "TV", "lk-alpha": "LK-α", "lk": "LK-λ"}
"""First part of a drafter's name -> what the table calls the loss."""
BASELINE, SAMPLED = "kl", "T=1"
SIGNIFICANT = 0.05

Runs = dict[tuple[str, str, str], Run]
"""(architecture, first part of the drafter's name, heading) -> run."""


def plan() -> list[tuple[str, str]]:
    """Architecture and first part of the name of every drafter, in the table's order."""
    return [(architecture, loss) for architecture in ARCHITECTURES for loss in LOSSES]


def every_run(folder: Path) -> Runs:
    """The runs of `demo --all` in a folder."""
    return {
        (architecture, loss, heading): speceval.read_run(
            folder / run_name(f"{loss}-{architecture}", temperature, drafting)
        )
        for architecture, loss in plan()
        for heading, temperature, drafting in CONDITIONS[:2]
    }


def lengths(runs: Runs) -> list[list[str]]:
    """Heading and rows: tau of each drafter under each condition, and the paired relative difference to KL."""
    headings = [heading for heading, *_ in CONDITIONS[:2]]
    over_kl = differences(runs)
    table = [["architecture", "K", "loss", *(f"tau {heading}" for heading in headings), f"Δ% over KL, {SAMPLED}"]]
    for architecture, loss in plan():
        run = runs[architecture, loss, SAMPLED]
        taus = [str(runs[architecture, loss, heading].tau()) for heading in headings]
        change = over_kl.get((architecture, loss), "")
        table.append([run.architecture, str(run.meta.spec.k), LOSSES[loss], *taus, change])
    return table


def differences(runs: Runs) -> dict[tuple[str, str], str]:
    """(architecture, loss) -> the difference of its tau to KL's at temperature 1, "*" if significant after Holm."""
    compared: dict[tuple[str, str], Difference] = {}
    for architecture, loss in plan():
        if loss != BASELINE:
            pair = (runs[architecture, name, SAMPLED] for name in (BASELINE, loss))
            compared[architecture, loss] = speceval.compare(*pair)[0]
    adjusted = speceval.holm([difference.p_value for difference in compared.values()])
    return {
        key: change(difference.relative_percent) + (" *" if p is not None and p < SIGNIFICANT else "  ")
        for (key, difference), p in zip(compared.items(), adjusted, strict=True)
    }


def run_name(draft: str, temperature: float, drafting: str) -> str:
    """Directory of one of the demo's runs."""
    return f"{draft}-T{temperature:g}-{drafting}"


def change(relative: Estimate) -> str:
    """A relative difference with its interval: "+3.1 % [+1.6, +4.6]"."""
    return f"{relative.value:+.1f} % [{relative.low:+.1f}, {relative.high:+.1f}]"
