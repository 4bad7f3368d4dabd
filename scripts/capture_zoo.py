"""Drafters of the zoo on a capture, beside live replays and free runs: the same numbers, and what they cost.

    python scripts/capture_zoo.py --data-dir DIR     # a quarter of an hour; writes results/statistics/capture.csv

200 questions of GSM8K, T=1, K=5: a free run of `kl-eagle3`, a capture of its texts, and for each other drafter a free
run, a live replay and a replay of the capture. `texts_for_it`: how many times the texts a free run needs for the
half-width that the capture gives, of the difference to `kl-eagle3` (its square falls with the number of questions).
Seconds are of one processor, of all that a process does while it generates or replays; an engine's start is left out.
With --work runs that are there are read back and keep the seconds that were noted beside them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import speceval
from speceval import Run
from speceval.captures.folder import Capture
from speceval.estimate import acceptance, replay
from speceval.estimate.statistics import paired_ratio_difference
from speceval.files import write_whole
from speceval.measure import runner

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "results" / "statistics" / "capture.csv"
SOURCE, K = "kl-eagle3", 5
DRAFTERS: dict[str, dict[str, Any]] = {
    "lk-eagle3": {},
    "kl-mtp": {},
    "kl-draft": {},
    "kl-mlp": {},
    "kl-medusa": {},
    "ngram": {"draft_args": {"prompt_lookup_min": 2, "prompt_lookup_max": 4}},
}
SAME = 1e-4
"""Difference of kept_j that rounding explains."""


def main() -> None:
    """Measure and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--work", type=Path, help="Keep the runs here, and go on from those that are there.")
    arguments = parser.parse_args()
    sys.path.remove(str(Path(__file__).parent))  # numba, for n-grams, would take coverage.py there for the package
    with tempfile.TemporaryDirectory() as folder:
        rows = list(measured(arguments.work or Path(folder), arguments.data_dir, arguments.questions))
    lines = [",".join(rows[0])] + [",".join(str(value) for value in row.values()) for row in rows]
    write_whole(OUT, "\n".join(lines) + "\n")


def measured(work: Path, data: Path, questions: int) -> Iterator[dict[str, Any]]:
    """A row for the capture, then one for each drafter."""
    asked: dict[str, Any] = {
        "temperature": 1,
        "suites": ["gsm8k"],
        "limit": questions,
        "max_tokens": 64,
        "data_dir": data,
        "k": K,
    }
    source = speceval.run("zoo", SOURCE, out=work / "free" / SOURCE, **asked)
    capture = speceval.capture(source, work / "capture", layers=[1, 2, 3], data_dir=data)
    half = speceval.capture(source, work / "capture-bf16", layers=[1, 2, 3], data_dir=data, dtype="bfloat16")
    base = speceval.replay(capture, SOURCE, k=K, out=work / "captured" / SOURCE)
    print(capture, capture.manifest.seconds, capture.manifest.bytes, half.manifest.storage, flush=True)
    from transformers import AutoModelForCausalLM  # noqa: F401 (an engine's start, which is left out, has paid for it)

    for draft, options in DRAFTERS.items():
        same = {"k": K, "data_dir": data, **options}
        free = timed(work / "free" / draft, partial(speceval.run, "zoo", draft, **asked, **options))
        live = timed(work / "live" / draft, partial(speceval.run, "zoo", draft, temperature=1, replay=source, **same))
        found = timed(work / "captured" / draft, partial(speceval.replay, capture, draft, k=K, **options), whole=True)
        rounded = speceval.replay(half, draft, k=K, out=work / "captured-bf16" / draft, **options)
        yield row(draft, source, capture, base, free, live, found, rounded)


def timed(out: Path, measure: Callable[..., Run], whole: bool = False) -> Run:
    """The run below `out`, with the seconds it took noted beside it; `whole`: all of the call, else of generating."""
    note = out.with_suffix(".seconds")
    if note.exists():
        return measure(out=out)
    spent: list[float] = []

    def clocked(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            begin = time.process_time()
            result = function(*args, **kwargs)
            spent.append(time.process_time() - begin)
            return result

        return call

    inner = runner.measure
    runner.measure = inner if whole else clocked(inner)
    try:
        run: Run = clocked(measure)(out=out) if whole else measure(out=out)
    finally:
        runner.measure = inner
    note.write_text(json.dumps(sum(spent)))
    return run


def row(
    draft: str, source: Run, capture: Capture, base: Run, free: Run, live: Run, found: Run, rounded: Run
) -> dict[str, Any]:
    """What is stored of a drafter."""
    names = [f"kept_{j}" for j in range(1, K + 1)]
    kept = [run.steps[names].to_numpy() for run in (live, found, rounded)]
    inside = ~np.isnan(kept[0])
    differ = np.abs(kept[0] - kept[1])[inside]
    taus = [tau(run) for run in (live, found, rounded)]
    own = acceptance.conversation_totals(free.steps)
    expected = replay.conversation_totals(found.steps).reindex(own.index)
    change = paired_ratio_difference(own["committed"], own["steps"], expected["committed"], expected["steps"])
    assert change.difference.value is not None and change.difference.se is not None
    z = change.difference.value / change.difference.se
    seconds = [json.loads(run.directory.with_suffix(".seconds").read_text()) for run in (free, live, found)]
    allow = ["drafting"] if draft == "ngram" else []
    widths = [half_width(speceval.compare(a, b, allow=allow)) for a, b in ((source, free), (base, found))]
    texts = (widths[0] / widths[1]) ** 2
    values = {
        "drafter": draft,
        "places": int(inside.sum()),
        "differ": int((differ > SAME).sum()),
        "largest": f"{differ.max():.1e}",
        "tau_live": f"{taus[0]:.6f}",
        "tau_captured": f"{taus[1]:.6f}",
        "tau_bf16": f"{taus[2]:.6f}",
        "tau_free": f"{own['committed'].sum() / own['steps'].sum():.4f}",
        "z": f"{z:+.2f}",
        "half_width_free": f"{widths[0]:.4f}",
        "half_width_captured": f"{widths[1]:.4f}",
        "seconds_free": f"{seconds[0]:.2f}",
        "seconds_live": f"{seconds[1]:.2f}",
        "seconds_captured": f"{seconds[2]:.2f}",
        "texts_for_it": f"{texts:.1f}",
        "ratio": f"{seconds[0] * texts / seconds[2]:.0f}",
        "seconds_capture": f"{capture.manifest.seconds:.1f}",
        "bytes_capture": capture.manifest.bytes,
        "tokens_capture": sum(shard.rows for shard in capture.manifest.shards),
    }
    print(values, flush=True)
    return values


def tau(run: Run) -> float:
    """tau_committed of a replay."""
    totals = replay.conversation_totals(run.steps).sum()
    return float(totals["committed"] / totals["steps"])


def half_width(comparison: speceval.Comparison) -> float:
    """Of the difference."""
    found = comparison[0].difference
    assert found.high is not None and found.low is not None
    return (found.high - found.low) / 2


if __name__ == "__main__":
    main()
