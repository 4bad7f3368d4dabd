"""`speceval tune`, as its reader sees it: a row for each drafter and K, a column for each batch size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from speceval.estimate.tuning import ALONE, Rate, Setting
from speceval.show.notes import INTERPRETED, interpreted

TICKS = (0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.0, 10.0)
"""Of the colours, those that are used."""


def table(rates: Sequence[Rate]) -> Table:
    """Tokens per second; * the best of its batch size and every one that is not significantly worse."""
    shown = Table(box=box.SIMPLE_HEAD, title="Tokens per second", title_justify="left")
    batches = sorted({rate.batch for rate in rates})
    for heading in ("drafter", "K", "tau committed", *(f"batch {batch}" for batch in batches)):
        shown.add_column(heading, justify="left" if heading == "drafter" else "right", no_wrap=True)
    for setting in _settings(rates):
        row = {rate.batch: rate for rate in rates if rate.setting == setting}
        tau = next(iter(row.values())).tau
        cells = (_cell(row[batch]) if batch in row else "" for batch in batches)
        name = "the target alone" if setting == ALONE else setting.draft
        shown.add_row(name, str(setting.k), f"{tau:.3f}", *cells)
    return shown


def _settings(rates: Sequence[Rate]) -> list[Setting]:
    """Drafters in the order in which they were named, each by its K; the target alone last."""
    settings = dict.fromkeys(rate.setting for rate in rates)
    drafts = list(dict.fromkeys(setting.draft for setting in settings))
    return sorted(settings, key=lambda one: (one == ALONE, drafts.index(one.draft), one.k))


def _cell(rate: Rate) -> str:
    return f"{rate.value:,.0f} ± {(rate.high - rate.low) / 2:,.0f}{' *' if rate.as_good else '  '}"


def lines(content: dict[str, Any]) -> list[str]:
    """What is said below the table."""
    said = [
        "* the best of its batch size, and every one that is not significantly worse (5 % for all together, Holm). "
        "± half a 95 % interval: of tau over conversations like these, of the step time over bursts, of the machine's "
        "drift over the whole measurement."
    ]
    said += [INTERPRETED] * interpreted(content["device"], content["runner"])
    said += [f"acceptance of {draft}: {_source(source)}" for draft, source in content["acceptance"].items()]
    stops = content["stops_paying_at_batch"]
    said.append(
        "speculation pays at every batch size that was tried"
        if stops is None
        else f"from batch {stops} on no drafter is significantly faster than the target alone"
    )
    for row in content["confirmed"]:
        timed, told = row["speedup"], row["predicted"]["speedup"]
        said.append(
            f"batch {row['batch']}: {row['draft']} K={row['k']}, timed end to end in turns with the target alone: "
            f"{row['drafted_tokens_per_second']:,.0f} tokens/s, {_times(timed)} times the target's; predicted "
            f"{_times(told)}"
        )
    said += [f"not confirmed: {line}" for line in content["unconfirmed"]]
    for draft, arguments in content["by_batch_size"].items():
        ranges = arguments["speculative_config"]["num_speculative_tokens_per_batch_size"]
        told = ", ".join(f"{first}-{last}: {k}" for first, last, k in ranges)
        said.append(f"{draft}: one engine's K by batch size, in vLLM's own words ({told}), is in tune.json")
    return said


def _times(interval: dict[str, float]) -> str:
    return f"{interval['value']:.2f} [{interval['low']:.2f}, {interval['high']:.2f}]"


def _source(source: dict[str, Any]) -> str:
    return f"{source['how']}, {source['tokens']:,} tokens, {source['steps']:,} verify steps"


def heat_map(rates: Sequence[Rate], device: str | None = None, runner: str | None = None) -> Figure:
    """Speed of every drafter and K over the target alone, by batch size: blue is faster, red slower, * as good as the
    best of its batch size. `device`, `runner`: of the engines.
    """
    batches = sorted({rate.batch for rate in rates})
    settings = [setting for setting in _settings(rates) if setting != ALONE]
    by = {(rate.setting, rate.batch): rate for rate in rates}
    figure = Figure(figsize=(2.6 + 0.7 * len(batches), 1.2 + 0.26 * len(settings)), layout="constrained")
    axis = figure.subplots()
    values = [[by[setting, batch].speedup[0] for batch in batches] for setting in settings]
    most = max(abs(math.log(value)) for row in values for value in row) or 1.0
    image = axis.imshow(values, aspect="auto", cmap="RdBu", norm=LogNorm(math.exp(-most), math.exp(most)))
    axis.set_xticks(range(len(batches)), [str(batch) for batch in batches])
    axis.set_yticks(range(len(settings)), [f"{setting.draft} K={setting.k}" for setting in settings])
    axis.set_xlabel("batch")
    title = ["* as good as the best of its batch size", *[INTERPRETED] * interpreted(device, runner)]
    axis.set_title("\n".join(title), fontsize=8)
    for row, setting in enumerate(settings):
        for column, batch in enumerate(batches):
            mark = "*" if by[setting, batch].as_good else ""
            far = abs(math.log(values[row][column])) > 0.6 * most
            look: dict[str, Any] = {"color": "white" if far else "black", "fontsize": 7}
            axis.text(column, row, f"{values[row][column]:.2f}{mark}", ha="center", va="center", **look)
    for place in range(1, len(settings)):
        if settings[place].draft != settings[place - 1].draft:
            axis.axhline(place - 0.5, color="black", linewidth=0.8)
    bar = figure.colorbar(image, label="times the target alone")
    ticks = [tick for tick in TICKS if abs(math.log(tick)) <= most * 1.001] or [1.0]
    bar.ax.minorticks_off()
    bar.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    return figure
