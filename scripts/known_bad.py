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
from pathlib import Path
from typing import Any

import pandas as pd

from speceval.errors import UserError
from speceval.exactness.kernels import CHECKED, REQUESTS, judge, run_kernels
from speceval.files import write_whole
from speceval.show import plots
from speceval.show.plots.known_bad import key, read_rows

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "verify"
PAGE = ROOT / "docs" / "trust" / "which-vllm-is-exact.md"
PICTURE = ROOT / "docs" / "images" / "known_bad.png"
BEGIN, END = "<!-- table: scripts/known_bad.py -->", "<!-- end of table -->"


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
    plots.save(plots.draw_known_bad(RESULTS).figure, PICTURE)
    return 0


def measure(sources: list[str], n: int, seed: int) -> None:
    """Stock and patched, written to results/verify/ when all of it is known."""
    started = time.monotonic()

    def show(source: str, row: dict[str, Any]) -> None:
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


def write_table(rows: list[dict[str, Any]]) -> None:
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


def shown(row: dict[str, Any]) -> str:
    """The verdict; what is wrong stands out."""
    verdict = str(row["verdict"])
    return {"biased": "**biased**", "not available": "–"}.get(verdict, verdict)


def numbers(row: dict[str, Any]) -> list[str]:
    """TV with its noise level, p-value."""
    if math.isnan(row["tv"]):
        return ["", ""]
    p = "< 1e-300" if row["p"] == 0 else f"{row['p']:.0e}" if row["p"] < 0.001 else f"{row['p']:.2f}"
    return [f"{row['tv']:.4f} ({row['noise']:.4f})", p]


def acceptance(row: dict[str, Any]) -> str:
    """Measured (expected)."""
    if math.isnan(row["tv"]):
        return ""
    expected = "" if math.isnan(row["expected"]) else f" ({row['expected']:.3f})"
    return f"{row['acceptance']:.3f}{expected}"


if __name__ == "__main__":
    sys.exit(main())
