"""Regenerates the known-bad matrix: `python scripts/known_bad.py SOURCE...` (wheels, source trees, "installed").

Runs `speceval verify --kernels` on every source, as it is and with the patches, and writes results/verify/kernels.csv
and kernels.json (versions, seeds, command), the table in docs/trust/which-vllm-is-exact.md and the picture
docs/images/known_bad.png.
Without sources it only redraws table and picture from the stored results.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import math
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from packaging.version import Version

from speceval.errors import UserError
from speceval.exactness.kernels import CHECKED, COLUMNS, REQUESTS, judge, run_kernels
from speceval.files import write_whole
from speceval.show.plots import style

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "verify"
PAGE = ROOT / "docs" / "trust" / "which-vllm-is-exact.md"
PICTURE = ROOT / "docs" / "images" / "known_bad.png"
BEGIN, END = "<!-- table: scripts/known_bad.py -->", "<!-- end of table -->"

Row = dict[str, Any]

ENGINES = {"simt": "Triton", "compiled": "Triton", "extension": "CPU extension"}
LINE = ("runner", "kernels", "rejection", "drafting")
ORDER = ["V1", "V2", "Triton", "CPU extension", "standard", "block", "probabilistic", "greedy", "padded"]
COLOURS = "Oranges"
"""Light to dark, so that it reads without colour vision and in print."""
ROW_HEIGHT = 0.2


def main() -> int:
    """Measure if there is anything to measure, then write the page's table and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="*")
    parser.add_argument("--n", type=int, default=REQUESTS, help="requests per cell")
    parser.add_argument("--seed", type=int, default=0, help="of the stock runs; the patched ones take the next")
    options = parser.parse_args()
    try:
        if options.sources:
            measure(options.sources, options.n, options.seed)
    except UserError as error:
        print(error, file=sys.stderr)
        return 4
    rows = read_rows(RESULTS)
    write_table(rows)
    style.save(draw(rows).figure, PICTURE)
    return 0


def measure(sources: list[str], n: int, seed: int) -> None:
    """Stock and patched, written to results/verify/ when all of it is known."""
    started = time.monotonic()

    def show(source: str, row: Row) -> None:
        cell = f"{row['version']} {row['runner']} {row['engine']} {row['drafting']} {row['rejection']}"
        state = "patched" if row["patched"] else "stock"
        print(f"[{time.monotonic() - started:5.0f} s] {cell} {state}: {row['verdict']}", flush=True)

    frames = [run_kernels(sources, patched, n, seed + patched, progress=show) for patched in (False, True)]
    frame = pd.concat(frames, ignore_index=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    provenance = {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": [
            "python",
            "scripts/known_bad.py",
            *[Path(name).name for name in sources],
            f"--n={n}",
            f"--seed={seed}",
        ],
        "vllm": sorted(set(frame["version"])),
        "seeds": {"stock": seed, "patched": seed + 1},
        "requests": n,
        "checked_by_triton": CHECKED,
        "alarm": judge.ALARM,
        "family": judge.FAMILY,
        "python": platform.python_version(),
        "packages": {p: importlib.metadata.version(p) for p in ("torch", "triton", "numpy", "scipy")},
    }
    write_whole(RESULTS / "kernels.csv", frame.to_csv(index=False))
    write_whole(RESULTS / "kernels.json", json.dumps(provenance, indent=1) + "\n")


def write_table(rows: list[Row]) -> None:
    """Put the Markdown table between the markers of the page."""
    lines = ["| vLLM | runner | kernels | rejection | drafting | stock | TV | p | acceptance | patched | TV | p |"]
    lines.append("|---" * lines[0].count(" | ") + "|---|")
    patched = {key(row): row for row in rows if row["patched"]}
    for row in rows:
        if not row["patched"]:
            other = patched[key(row)]
            cells = [*key(row), shown(row), *numbers(row), acceptance(row), shown(other), *numbers(other)]
            lines.append("| " + " | ".join(cells) + " |")
    head, _, rest = PAGE.read_text().partition(BEGIN)
    tail = rest.partition(END)[2]
    write_whole(PAGE, f"{head}{BEGIN}\n\n" + "\n".join(lines) + f"\n\n{END}{tail}")


def shown(row: Row) -> str:
    """The verdict; what is wrong stands out."""
    verdict = str(row["verdict"])
    return {"biased": "**biased**", "not available": "–"}.get(verdict, verdict)


def numbers(row: Row) -> list[str]:
    """TV with its noise level, p-value."""
    if math.isnan(row["tv"]):
        return ["", ""]
    p = "< 1e-300" if row["p"] == 0 else f"{row['p']:.0e}" if row["p"] < 0.001 else f"{row['p']:.2f}"
    return [f"{row['tv']:.4f} ({row['noise']:.4f})", p]


def acceptance(row: Row) -> str:
    """Measured (expected)."""
    if math.isnan(row["tv"]):
        return ""
    expected = "" if math.isnan(row["expected"]) else f" ({row['expected']:.3f})"
    return f"{row['acceptance']:.3f}{expected}"


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
    frame["kernels"] = frame["engine"].map(ENGINES)
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def key(row: Row) -> tuple[str, ...]:
    """What a row of the matrix is about: version, then `LINE`."""
    return tuple(str(row[name]) for name in ("version", *LINE))


def draw(rows: Sequence[Row]) -> style.Drawn:
    """Heat map of the TV distance of three tokens in units of its noise: version by cell, stock above patched."""
    with matplotlib.rc_context(style.RC):
        return _draw(rows)


def _draw(rows: Sequence[Row]) -> style.Drawn:
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


if __name__ == "__main__":
    sys.exit(main())
