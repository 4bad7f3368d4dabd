"""`make demo`: the zoo's two EAGLE-3 drafters at T=0 and T=1, with sampled and with greedy drafts, in one table."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

import speceval
from speceval import Estimate, Run

DRAFTERS = ("kl-eagle3", "lk-eagle3")
SUITE = "demo"
BATCH = 256
MAX_TOKENS = 64

CONDITIONS: tuple[tuple[str, float, Literal["probabilistic", "greedy"], tuple[int, ...]], ...] = (
    ("T=0", 0.0, "greedy", (0,)),
    ("T=1", 1.0, "probabilistic", tuple(range(100))),
    ("T=1, greedy drafts", 1.0, "greedy", tuple(range(25))),
)
"""Heading, temperature, drafting and seeds of each column; at T=0 every seed gives the same text.

The sampled runs are the ones that compare the losses: 100 samples of each prompt make their difference visible.
"""


def main(out: Path, console: Console) -> None:
    """Measure every drafter under every condition below `out`, print the tables, draw the figure."""
    speceval.train_zoo(DRAFTERS)  # both at once: they train side by side
    runs: dict[tuple[str, str], Run] = {}
    for heading, temperature, drafting, seeds in CONDITIONS:
        for draft in DRAFTERS:
            runs[draft, heading] = speceval.run(
                "zoo",
                draft,
                temperature=temperature,
                drafting=drafting,
                suites=[SUITE],
                seeds=seeds,
                batch=BATCH,
                max_tokens=MAX_TOKENS,
                out=out / run_name(draft, temperature, drafting),
                progress=True,
            )
    console.print(lengths_table(runs))
    console.print(positions_table(runs))
    print_problems(runs.values(), console)
    console.print(
        "tau = 1 + accepted draft tokens per verify step, ± half a 95 % interval (unit: the conversation). Δ% and its "
        "interval are paired by conversation. Sampled drafts are accepted with Σ min(p, q), greedy drafts at T=1 with "
        "p(argmax q): two quantities."
    )
    figure = out / "positions.png"
    speceval.plot([runs[draft, heading] for draft in DRAFTERS for heading, *_ in CONDITIONS[1:]], path=figure)
    console.print(f"figure: {figure}; every run: speceval show {out}/<run>", markup=False)


def print_problems(runs: Iterable[Run], console: Console) -> None:
    """One line for each thing that does not balance in a run's books."""
    for run in runs:
        for problem in run.meta.problems:
            console.print(f"PROBLEM in {run.directory}: {problem}", markup=False)


def lengths_table(runs: dict[tuple[str, str], Run]) -> Table:
    """tau of each drafter under each condition, and the paired relative difference."""
    table = Table(title="Acceptance length tau on the demo prompts (target: zoo)", title_justify="left")
    table.add_column("drafter")
    for heading, *_ in CONDITIONS:
        table.add_column(heading, justify="right")
    for draft in DRAFTERS:
        table.add_row(draft, *(str(runs[draft, heading].tau()) for heading, *_ in CONDITIONS))
    table.add_section()
    pairs = ([runs[draft, heading] for draft in DRAFTERS] for heading, *_ in CONDITIONS)
    table.add_row("Δ% of lk over kl", *(change(speceval.compare(*pair)[0].relative_percent) for pair in pairs))
    return table


def positions_table(runs: dict[tuple[str, str], Run]) -> Table:
    """P(position j accepted) of each run."""
    table = Table(title="P(draft position j accepted), unconditional", title_justify="left")
    table.add_column("drafter")
    table.add_column("condition")
    k = max(run.meta.spec.k for run in runs.values())
    for position in range(1, k + 1):
        table.add_column(str(position), justify="right")
    for heading, *_ in CONDITIONS:
        for draft in DRAFTERS:
            rows = runs[draft, heading].summary()["positions"]
            table.add_row(draft, heading, *(f"{row['unconditional']:.3f}" for row in rows))
    return table


def run_name(draft: str, temperature: float, drafting: str) -> str:
    """Directory of one of the demo's runs."""
    return f"{draft}-T{temperature:g}-{drafting}"


def change(relative: Estimate) -> str:
    """A relative difference with its interval: "+3.1 % [+1.6, +4.6]"."""
    return f"{relative.value:+.1f} % [{relative.low:+.1f}, {relative.high:+.1f}]"
