"""Drafters on a capture beside live replays of the same texts: how far kept_j and tau_committed are apart, and why.

    python scripts/capture_live.py --target zoo --dtype bfloat16 --drafts kl-eagle3:5,kl-medusa:5,ngram:5 \\
        --suite gsm8k --limit 100 --data-dir DIR [--temp 1 --top-k 0 --top-p 1] [--work DIR]

One free run of the first drafter, one capture of its texts, and a live replay and a replay of the capture for each
drafter. The engine computes in --dtype, drafters on a capture always in float32: with --dtype bfloat16 what is found is
the spread of bfloat16. Adds to results/statistics/capture_live.csv, in place of what it says of the same target, dtype
and sampling. With --work runs that are there are read back.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import speceval
from speceval import Run
from speceval.estimate import replay
from speceval.files import write_whole

OUT = Path(__file__).resolve().parent.parent / "results" / "statistics" / "capture_live.csv"
CONDITION = ("target", "dtype", "temperature", "top_k", "top_p")
SAME = 1e-4
"""Difference of kept_j that rounding explains in float32."""


def main() -> None:
    """Measure and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--target", required=True)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--drafts", required=True, help="name:K,…")
    parser.add_argument("--suite", required=True)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--temp", type=float, default=1.0)
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--work", type=Path)
    options = parser.parse_args()
    sys.path.remove(str(Path(__file__).parent))  # numba, for n-grams, would take coverage.py there for the package
    with tempfile.TemporaryDirectory() as folder:
        rows = list(measured(options, options.work or Path(folder)))
    before = list(csv.DictReader(OUT.open())) if OUT.exists() else []
    kept = [row for row in before if any(row[name] != str(rows[0][name]) for name in CONDITION)]
    table = io.StringIO()
    writer = csv.DictWriter(table, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows([*kept, *rows])
    write_whole(OUT, table.getvalue())


def measured(options: argparse.Namespace, work: Path) -> Iterator[dict[str, Any]]:
    """A row for each drafter."""
    drafts = {name: int(k) for name, k in (part.split(":") for part in options.drafts.split(","))}
    source, *_ = drafts
    law: dict[str, Any] = {"temperature": options.temp, "top_k": options.top_k, "top_p": options.top_p}
    engine: dict[str, Any] = {"batch": options.batch, "engine_args": {"dtype": options.dtype}}
    free = speceval.run(
        options.target,
        source,
        k=drafts[source],
        suites=options.suite.split(","),
        limit=options.limit,
        max_tokens=options.max_tokens,
        data_dir=options.data_dir,
        out=work / "free",
        **law,
        **engine,
    )
    layers = [1, 2, 3] if options.target == "zoo" else None
    capture = speceval.capture(free, work / "capture", layers=layers, data_dir=options.data_dir)
    for draft, k in drafts.items():
        arguments: dict[str, Any] = (
            {"draft_args": {"prompt_lookup_min": 2, "prompt_lookup_max": 4}} if draft == "ngram" else {}
        )
        live = speceval.run(
            options.target,
            draft,
            temperature=options.temp,
            k=k,
            replay=free,
            data_dir=options.data_dir,
            out=work / "live" / draft,
            **engine,
            **arguments,
        )
        found = speceval.replay(capture, draft, k=k, out=work / "captured" / draft, **arguments)
        condition = {"target": options.target, "dtype": options.dtype, **law}
        yield row(condition | {"drafter": draft, "k": k}, live, found)


def row(head: dict[str, Any], live: Run, found: Run) -> dict[str, Any]:
    """What is stored of a drafter."""
    a, b = (run.steps[[f"kept_{j}" for j in range(1, head["k"] + 1)]].to_numpy(float) for run in (live, found))
    assert (np.isnan(a) == np.isnan(b)).all()
    differ = np.abs(a - b)[~np.isnan(a)]
    sums = [replay.conversation_totals(run.steps).sum() for run in (live, found)]
    taus = [each["committed"] / each["steps"] for each in sums]
    values = head | {
        "texts": len(live.turns),
        "places": len(differ),
        "differ": int((differ > SAME).sum()),
        "mean": f"{differ.mean():.1e}",
        "most_of_99_percent": f"{np.quantile(differ, 0.99):.1e}",
        "largest": f"{differ.max():.1e}",
        "tau_live": f"{taus[0]:.6f}",
        "tau_captured": f"{taus[1]:.6f}",
    }
    print(values, flush=True)
    return values


if __name__ == "__main__":
    main()
