"""The tables of docs/measure/how-much-faster.md: what `tune` foretells beside what is measured.

`scripts/docs_numbers.py` writes them, of what `scripts/tune_study.py` stored.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

sys.path.append(str(Path(__file__).parent))
from study_tables import markdown

STATISTICS = Path(__file__).resolve().parent.parent / "results" / "statistics"


def block() -> str:
    """Both tables, each with what it is made of."""
    taus, cells = pd.read_csv(STATISTICS / "tune_tau.csv"), pd.read_csv(STATISTICS / "tune.csv")
    return f"{acceptance(taus)}\n\n{speedups(cells)}"


def acceptance(taus: pd.DataFrame) -> str:
    """tau at each K as one replay foretells it, beside a free run at that K, and what each cost."""
    rows = [["drafter", "K", "tau foretold", "free run at that K", "difference (z)"]]
    for row in taus.to_dict("records"):
        numbers = [f"{row[name]:.3f} ± {1.96 * row[f'{name}_se']:.3f}" for name in ("predicted", "run")]
        difference = f"{row['difference']:+.3f} ± {1.96 * row['difference_se']:.3f} ({row['z']:+.1f})"
        rows.append([f"`{row['draft']}`", str(row["k"]), *numbers, difference])
    costs = []
    for draft, of_draft in taus.groupby("draft"):
        once, each = of_draft.iloc[0], of_draft[["run_tokens", "run_steps"]].sum()
        costs.append(
            f"`{draft}`: {once['replay_tokens']:,} tokens of the target and {once['replay_steps']:,} verify steps in "
            f"one replay, {each['run_tokens']:,} and {each['run_steps']:,} in a run for each of {len(of_draft)} K"
        )
    note = f"The same number of answers each: {'; '.join(costs)}. ± half a 95 % interval; differences are paired."
    return f"{markdown(rows)}\n\n{note}"


def speedups(cells: pd.DataFrame) -> str:
    """The speed-up of every cell as foretold and as measured, and how often they agree."""
    rows = [["drafter", "K", "batch", "speed-up foretold", "measured end to end", "agree"]]
    for row in cells.to_dict("records"):
        foretold = f"{row['predicted']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
        measured = f"{row['measured']:.2f} [{row['measured_low']:.2f}, {row['measured_high']:.2f}]"
        mark = "*" if row["chosen"] else ""
        agree = "yes" if row["agree"] else "no"
        rows.append([f"`{row['draft']}`", f"{row['k']}{mark}", str(row["batch"]), foretold, measured, agree])
    chosen = cells[cells["chosen"]]
    missed = chosen[~chosen["measured_best"].astype(bool)]
    note = (
        f"{cells['agree'].sum()} of {len(cells)} agree within the errors of both (95 %); {cells['inside'].sum()} "
        "measured values lie within the interval that was foretold, their own error left out. * the K that was "
        f"foretold to be the drafter's fastest at this batch size: {len(chosen) - len(missed)} of {len(chosen)} are "
        f"the measured fastest; of the other {len(missed)}, {(missed['worse_p'] >= 0.05).sum()} is not significantly "
        f"slower than it (5 %), and in {(~missed['told_apart'].astype(bool)).sum()} the foretold intervals did not "
        f"tell the two apart. Zoo, demo, T=1, vLLM {cells['vllm'].iloc[0]} on two cores of a CPU that others used too; "
        "`python scripts/tune_study.py measure`, then `table`."
    )
    return f"{markdown(rows)}\n\n{note}"
