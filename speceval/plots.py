"""Figures of stored runs (matplotlib; colours that colour-blind readers tell apart, markers that print in grey)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from speceval.store import StoredRun
from speceval.tables import suite_summary

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe & Ito 2008
MARKERS = ("o", "s", "^", "D", "v", "P")


def positions(runs: Sequence[StoredRun], path: Path) -> None:
    """Acceptance by draft position of several runs' first suites: P(position j accepted) with 95 % intervals.

    Writes `path` (its suffix names the format).
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4.0), layout="constrained")
    offset = 0.06
    for index, run in enumerate(runs):
        spec = run.meta["spec"]
        summary = suite_summary(run, run.suites[0])
        rows = summary["positions"]
        rates = [row["unconditional"] for row in rows]
        below = [row["unconditional"] - row["unconditional_low"] for row in rows]
        above = [row["unconditional_high"] - row["unconditional"] for row in rows]
        axes.errorbar(
            [row["position"] + offset * (index - (len(runs) - 1) / 2) for row in rows],
            rates,
            yerr=[below, above],
            label=f"{spec['draft']}, {spec['drafting']} drafts: tau {summary['tau']['value']:.2f}",
            color=COLOURS[index % len(COLOURS)],
            marker=MARKERS[index % len(MARKERS)],
            linestyle="-" if spec["drafting"] == "probabilistic" else "--",
            capsize=2,
            markersize=5,
        )
    temperatures = sorted({run.meta["spec"]["temperature"] for run in runs})
    shown = ", ".join(f"T={temperature:g}" for temperature in temperatures)
    axes.set(xlabel="draft position j", ylabel="P(position j accepted)", ylim=(0, None))
    axes.set_title(f"{runs[0].meta['spec']['target']} · {runs[0].suites[0]} · {shown}", loc="left")
    axes.set_xticks([row["position"] for row in rows])
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)
    pyplot.close(figure)
