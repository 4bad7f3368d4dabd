"""The motivating figure, recomputed: writes results/statistics/gaussian.json and docs/images/gaussian.png.

One Gaussian is fitted to the mixture of three in `speceval.show.plots.gaussian` under KL, reverse KL and TV by
numerical optimisation. The file holds the mixture, each fit and its overlap beside the paper's. `python
scripts/gaussian.py`
"""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

from speceval.files import write_whole
from speceval.show import plots
from speceval.show.plots import gaussian

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "results" / "statistics" / "gaussian.json"
FIGURE = ROOT / "docs" / "images" / "gaussian.png"


def main() -> None:
    """Fit, store, draw."""
    content = {
        "command": ["python", "scripts/gaussian.py"],
        "packages": {name: importlib.metadata.version(name) for name in ("numpy", "scipy")},
        "mixture": gaussian.MIXTURE,
        "mixture_source": "ours, not the paper's: chosen to have the overlaps that arXiv 2602.23881 states",
        "published_overlap_percent": gaussian.PUBLISHED,
        "fits": {name: {key: round(value, 6) for key, value in fit.items()} for name, fit in gaussian.fits().items()},
    }
    write_whole(OUT, json.dumps(content, indent=1) + "\n")
    plots.save(plots.draw_gaussian().figure, FIGURE)


if __name__ == "__main__":
    main()
