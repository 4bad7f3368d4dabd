"""The known-bad matrix of `speceval verify --kernels` as a heat map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from packaging.version import Version

from speceval.errors import UserError
from speceval.exactness.kernels import COLUMNS, judge
from speceval.show.plots import style

Row = dict[str, Any]

KERNELS = {"simt": "Triton", "compiled": "Triton", "extension": "CPU extension"}
LINE = ("runner", "kernels", "rejection", "drafting")
ORDER = ["V1", "V2", "Triton", "CPU extension", "standard", "block", "probabilistic", "greedy", "padded"]
COLOURS = "Oranges"
"""Light to dark, so that it reads without colour vision and in print."""
ROW_HEIGHT = 0.2


def read_rows(path: Path) -> list[Row]:
    """The rows of a matrix (`speceval.exactness.kernels.COLUMNS`) and their `kernels`; a missing number is NaN.

    `path` is a CSV file or the directory of kernels.csv. Raises `UserError` when it is none.
    """
    path = path / "kernels.csv" if path.is_dir() else path
    try:
        frame = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no table of `speceval verify --kernels` ({error}): name one") from None
    missing = [name for name in COLUMNS if name not in frame]
    if missing or frame.empty:
        raise UserError(f"{path}: no table of `speceval verify --kernels` (no {', '.join(missing) or 'row'}): name one")
    frame["kernels"] = frame["engine"].map(KERNELS)
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def key(row: Row) -> tuple[str, ...]:
    """What a row of the matrix is about: version, then `LINE`."""
    return tuple(str(row[name]) for name in ("version", *LINE))


def draw(rows: Sequence[Row]) -> style.Drawn:
    """Heat map of the TV distance of three tokens in units of its noise: version by cell, stock above patched."""
    versions = sorted({row["version"] for row in rows}, key=Version)
    lines = sorted({key(row)[1:] for row in rows}, key=lambda line: [ORDER.index(name) for name in line])
    states = [state for state in (False, True) if any(row["patched"] == state for row in rows)]
    figure = Figure(figsize=(style.PAGE, (0.5 + ROW_HEIGHT * len(lines)) * len(states) + 0.3), layout="constrained")
    axes = figure.subplots(len(states), 1, sharex=True, squeeze=False)[:, 0]
    for axis, state in zip(axes, states, strict=True):
        cells = {key(row): row for row in rows if row["patched"] == state}
        grid = [[cells.get((version, *line)) for version in versions] for line in lines]
        ratios = [[row["tv_joint"] / row["noise_joint"] if row else math.nan for row in line] for line in grid]
        image = axis.imshow(ratios, cmap=COLOURS, norm=LogNorm(1, 10), aspect="auto")
        for y, line in enumerate(grid):
            for x, row in enumerate(line):
                weight = "bold" if row is not None and row["verdict"] == "biased" else "normal"
                look = {"ha": "center", "va": "center", "size": 7, "weight": weight, "color": ink(ratios[y][x])}
                axis.text(x, y, label(row), **look)
        axis.set_xticks(range(len(versions)), [version.removesuffix(".0") for version in versions])
        axis.set_yticks(range(len(lines)), [row_title(*line) for line in lines])
        axis.set_title("with speceval's patches" if state else "as released", loc="left")
        axis.patch.set(facecolor="white", edgecolor="#d0d0d0", hatch="/////")  # no colour of the scale, in grey too
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        axis.hlines([y - 0.5 for y in range(1, len(lines))], -0.5, len(versions) - 0.5, color="white", linewidth=1.5)
        axis.vlines([x - 0.5 for x in range(1, len(versions))], -0.5, len(lines) - 0.5, color="white", linewidth=1.5)
    axes[-1].set_xlabel("vLLM   (✗ biased   – no such code, or not measured)")
    bar = figure.colorbar(image, ax=list(axes), extend="max", shrink=0.85, ticks=[1, 2, 5, 10])
    bar.minorticks_off()
    bar.ax.set_yticklabels(["1", "2", "5", "10"])
    bar.set_label("TV of three tokens ÷ expected if exact")
    alarm = f"{judge.ALARM:.0e}".replace("e-0", "e-")
    return style.Drawn(
        figure,
        "Does vLLM's speculative decoding sample the target above temperature 0? By vLLM version, model runner, "
        "rejection and drafting method. In each cell: total variation distance of one token from the target. Colour: "
        f"that of three tokens over its expectation for exact sampling. ✗: biased (p < {alarm}). –: no such code, or "
        "not measured. refused: not offered.",
    )


def row_title(runner: str, kernels: str, rejection: str, drafting: str) -> str:
    """What a line of the picture is about."""
    return f"{runner}{' CPU extension' if kernels == 'CPU extension' else ''}, {rejection}, {drafting}"


def label(row: Row | None) -> str:
    """What is written on a cell."""
    if row is None or math.isnan(row["tv"]):
        return "refused" if row is not None and row["verdict"] == "refused" else "–"
    return f"{row['tv']:.3f}" + (" ✗" if row["verdict"] == "biased" else "")


def ink(ratio: float) -> str:
    """Readable on the cell's colour."""
    return "#555555" if math.isnan(ratio) else "white" if ratio > 4 else "black"
