"""`speceval tune`, as its reader sees it: a row for each drafter and K, a column for each batch size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from speceval.estimate.tuning import Rate


def table(rates: Sequence[Rate]) -> Table:
    """Tokens per second; * the best of its batch size and every one that is not significantly worse."""
    shown = Table(box=box.SIMPLE_HEAD, title="Tokens per second", title_justify="left")
    batches = sorted({rate.batch for rate in rates})
    for heading in ("drafter", "K", "tau committed", *(f"batch {batch}" for batch in batches)):
        shown.add_column(heading, justify="left" if heading == "drafter" else "right", no_wrap=True)
    for setting in dict.fromkeys(rate.setting for rate in rates):
        row = {rate.batch: rate for rate in rates if rate.setting == setting}
        tau = next(iter(row.values())).tau
        cells = (_cell(row[batch]) if batch in row else "" for batch in batches)
        shown.add_row(setting.draft, str(setting.k), f"{tau:.3f}", *cells)
    return shown


def _cell(rate: Rate) -> str:
    return f"{rate.value:,.0f} ± {(rate.high - rate.low) / 2:,.0f}{' *' if rate.as_good else '  '}"


def lines(content: dict[str, Any]) -> list[str]:
    """What is said below the table."""
    said = [
        "* the best of its batch size, and every one that is not significantly worse (5 % for all together, Holm). "
        "± half a 95 % interval: of tau over conversations like these, of the step time over bursts."
    ]
    stops = content["stops_paying_at_batch"]
    said.append(
        "speculation pays at every batch size that was tried"
        if stops is None
        else f"from batch {stops} on no drafter is significantly faster than the target alone"
    )
    for row in content["confirmed"]:
        measured = row["drafted_tokens_per_second"]
        low, high = row["speedup"]["low"], row["speedup"]["high"]
        said.append(
            f"batch {row['batch']}: {row['draft']} K={row['k']}, timed beside the target alone: {measured:,.0f} "
            f"tokens/s, {row['speedup']['value']:.2f} [{low:.2f}, {high:.2f}] times the target's"
        )
    said += [f"not confirmed: {line}" for line in content["unconfirmed"]]
    return said


def heat_map(rates: Sequence[Rate]) -> Figure:
    """Speed of every drafter and K over the target alone, by batch size."""
    batches = sorted({rate.batch for rate in rates})
    settings = [setting for setting in dict.fromkeys(rate.setting for rate in rates) if setting.k]
    by = {(rate.setting, rate.batch): rate for rate in rates}
    alone = {rate.batch: rate.value for rate in rates if not rate.setting.k}
    figure = Figure(figsize=(1.6 + 0.9 * len(batches), 1.2 + 0.3 * len(settings)), layout="constrained")
    axis = figure.subplots()
    values = [[by[setting, batch].value / alone[batch] for batch in batches] for setting in settings]
    image = axis.imshow(values, aspect="auto", cmap="viridis")
    axis.set_xticks(range(len(batches)), [str(batch) for batch in batches])
    axis.set_yticks(range(len(settings)), [f"{setting.draft} K={setting.k}" for setting in settings])
    axis.set_xlabel("batch")
    for row, setting in enumerate(settings):
        for column, batch in enumerate(batches):
            mark = "*" if by[setting, batch].as_good else ""
            axis.text(
                column, row, f"{values[row][column]:.2f}{mark}", ha="center", va="center", color="white", fontsize=7
            )
    figure.colorbar(image, label="times the target alone")
    return figure
