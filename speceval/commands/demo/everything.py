"""`make demo-all`: every architecture and loss of the zoo, in one table as LK Losses' Table 1 (arXiv 2602.23881)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

import speceval
from speceval import Difference, Run
from speceval.commands.demo.small import BATCH, MAX_TOKENS, SUITE, change, print_problems, run_name

PAPER_K = {"eagle3": 7, "medusa": 6, "mlp": 6, "mtp": 7, "draft": 7}
"""Architecture of the zoo -> K: the paper's. The draft model is not in the paper's table."""

LOSSES = {"kl": "KL", "tv": "TV", "lk-alpha": "LK-α", "lk": "LK-λ"}
"""First part of a drafter's name -> what the table calls the loss."""

BASELINE = "kl"

CONDITIONS: tuple[tuple[str, float, Literal["probabilistic", "greedy"], tuple[int, ...]], ...] = (
    ("T=0", 0.0, "greedy", (0,)),
    ("T=1", 1.0, "probabilistic", tuple(range(50))),
)
"""Heading, temperature, drafting and seeds of each column."""

SAMPLED = "T=1"

SIGNIFICANT = 0.05

Runs = dict[tuple[str, str, str], Run]
"""(architecture, first part of the drafter's name, heading) -> run."""


def main(out: Path, console: Console) -> None:
    """Train what is missing, measure every drafter under both conditions below `out`, print the tables."""
    speceval.train_zoo([drafter(*key) for key in plan()])  # all at once: they train two at a time
    runs: Runs = {}
    for architecture, loss in plan():
        for heading, temperature, drafting, seeds in CONDITIONS:
            runs[architecture, loss, heading] = speceval.run(
                "zoo",
                drafter(architecture, loss),
                k=PAPER_K[architecture],
                temperature=temperature,
                drafting=drafting,
                suites=[SUITE],
                seeds=seeds,
                batch=BATCH,
                max_tokens=MAX_TOKENS,
                record=False,  # forty runs: their tables compare counts, and are kept small
                out=out / run_name(drafter(architecture, loss), temperature, drafting),
                progress=True,
            )
    console.print(lengths_table(runs))
    console.print(positions_table(runs))
    print_problems(runs.values(), console)
    console.print(
        "tau = 1 + accepted draft tokens per verify step, ± half a 95 % interval over prompts like these. Δ% and its "
        "95 % interval are paired by conversation, each for itself; * = not zero at 5 % for all of them together "
        "(Holm). TV alone is trained without KL warm-up, to show what that is for."
    )
    console.print(f"every run: speceval show {out}/<run>", markup=False)


def plan() -> list[tuple[str, str]]:
    """Architecture and first part of the name of every drafter, in the table's order."""
    return [(architecture, loss) for architecture in PAPER_K for loss in LOSSES]


def drafter(architecture: str, loss: str) -> str:
    """Name of a drafter in the zoo."""
    return f"{loss}-{architecture}"


def lengths_rows(runs: Runs) -> list[list[str]]:
    """The cells of `lengths_table`, without heading."""
    over_kl = differences(runs)
    rows = []
    for architecture, loss in plan():
        taus = [runs[architecture, loss, heading].tau() for heading, *_ in CONDITIONS]
        rows.append(
            [
                runs[architecture, loss, SAMPLED].architecture,
                str(PAPER_K[architecture]),
                LOSSES[loss],
                *map(str, taus),
                over_kl.get((architecture, loss), ""),
            ],
        )
    return rows


def lengths_headings() -> list[str]:
    """The headings of `lengths_rows`."""
    return ["architecture", "K", "loss", *(f"tau {heading}" for heading, *_ in CONDITIONS), f"Δ% over KL, {SAMPLED}"]


def lengths_table(runs: Runs) -> Table:
    """tau of each drafter under each condition, and the paired relative difference to KL."""
    table = Table(title="Acceptance length tau on the demo prompts (target: zoo)", title_justify="left")
    for heading in lengths_headings():
        table.add_column(heading, justify="left" if heading in ("architecture", "loss") else "right")
    _fill(table, lengths_rows(runs))
    return table


def positions_table(runs: Runs) -> Table:
    """P(position j accepted) of each drafter at temperature 1."""
    table = Table(title=f"P(draft position j accepted), unconditional, {SAMPLED}", title_justify="left")
    table.add_column("architecture")
    table.add_column("loss")
    for position in range(1, max(PAPER_K.values()) + 1):
        table.add_column(str(position), justify="right")
    rows = []
    for architecture, loss in plan():
        run = runs[architecture, loss, SAMPLED]
        rates = (f"{row['unconditional']:.3f}" for row in run.summary()["positions"])
        rows.append([run.architecture, LOSSES[loss], *rates])
    _fill(table, rows)
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


def _fill(table: Table, rows: list[list[str]]) -> None:
    """Add rows, an architecture's name only in its first, a line between architectures."""
    name = ""
    for row in rows:
        if name and row[0] != name:
            table.add_section()
        table.add_row(*(["", *row[1:]] if row[0] == name else row))
        name = row[0]
