"""The gate on replays, on real vLLM: does it ever fail the same weights, and which losses does it catch?

    python scripts/gate_texts.py --work DIR [--dtype bfloat16]   # half an hour; results/statistics/gate_texts.csv

`kl-eagle3` on the demo's 24 prompts, T=1, K=5. The baseline is a replay of its own texts, with two more in batches of
other sizes as `baseline --again` takes them. Then 200 replays of the same weights, in engines of other batch sizes with
the conversations in other orders, each judged as `speceval check` does: r is what it says that rounding can make.
Damaged copies have their weights multiplied by 1 + eps * noise; a capture tells how much each eps costs exactly, so
that eps is found for losses of a stated size, and these copies are replayed live. Rows of other dtypes are kept.
"""

from __future__ import annotations

import argparse
import random
import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import speceval
from speceval import Run, zoo
from speceval.engines.base import Engine
from speceval.estimate import texts
from speceval.estimate.gate import Verdict
from speceval.files import write_whole
from speceval.measure import launch, runner
from speceval.measure.job import Job, prepare
from speceval.measure.kept import Kept
from speceval.measure.output import output_to, unwatched
from speceval.measure.replay import inherited
from speceval.store import read_run

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "results" / "statistics" / "gate_texts.csv"
DRAFT, K = "kl-eagle3", 5
BATCHES = (4, 8, 12, 16, 20, 24, 28, 32, 48, 64)
"""Of the engines, one after another."""
ORDERS = 20
"""Of the conversations in each."""
AGAIN = (6, 40)
"""Batches of the replays that tell rounding."""
MARGIN = 0.0005
LOSSES = {"float32": (0.0006, 0.001, 0.002, 0.005), "bfloat16": (0.001, 0.002, 0.005, 0.01, 0.02)}
"""Of tau on these texts, which the damaged copies are to have."""


def main() -> None:
    """Measure and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("results/gate-texts"), help="where runs and checkpoints go")
    parser.add_argument("--dtype", choices=LOSSES, default="float32", help="what the engine computes in")
    options = parser.parse_args()
    found = pd.DataFrame(measured(options.work / options.dtype, options.dtype))
    before = pd.read_csv(OUT) if OUT.exists() else found.head(0)
    rows = pd.concat([before[before["dtype"] != options.dtype], found]).sort_values(
        "dtype", ascending=False, kind="stable"
    )
    write_whole(OUT, rows.to_csv(index=False, float_format="%.4g"))
    print(rows.to_string())


def measured(work: Path, dtype: str) -> list[dict[str, Any]]:
    """The rows: rounding, the same weights, damaged copies."""
    asked: dict[str, Any] = {"temperature": 1, "k": K, "suites": ["demo"], "max_tokens": 48}
    free = speceval.run("zoo", DRAFT, out=work / "free", engine_args={"dtype": dtype}, **asked)
    capture = speceval.capture(free, work / "capture")
    with Engines(free, work, dtype) as replayed:
        base = replayed(DRAFT, 32, "base").steps
        again = [replayed(DRAFT, batch, f"again-{batch}").steps for batch in AGAIN]
        spread = {"demo": max(abs(texts.change(base, steps)) for steps in again)}

        def judged(steps: pd.DataFrame) -> texts.SuiteTexts:
            """As `speceval check` against a baseline with --again."""
            return texts.check({"demo": base}, {"demo": steps}, MARGIN, spread).suites[0]

        print("rounding", spread, flush=True)
        checks = []
        for batch in BATCHES:
            for order in range(ORDERS):
                checks.append(judged(replayed(DRAFT, batch, f"same-{batch}-{order}", order=order).steps))
            print(batch, max(abs(check.change_percent) for check in checks), flush=True)
        rows = [
            row("rounding", dtype, [judged(steps) for steps in again], len(AGAIN)),
            row("same weights", dtype, checks, len(BATCHES)),
        ]
        for loss in LOSSES[dtype]:
            copy = damaged(work, capture, loss)
            live = [judged(replayed(str(copy), batch, f"{copy.name}-{batch}").steps) for batch in (32, 8)]
            rows.append(row(f"damaged by {loss:.2%}", dtype, live, len(live)))
    return rows


def row(name: str, dtype: str, checks: list[texts.SuiteTexts], engines: int) -> dict[str, Any]:
    """What is stored of some replays."""
    changes = [check.change_percent for check in checks]
    return {
        "dtype": dtype,
        "drafter": name,
        "engines": engines,
        "replays": len(checks),
        "least_change_percent": min(changes),
        "largest_change_percent": max(changes),
        "log_p_moves": max(check.rounding.mean for check in checks if check.rounding is not None),
        "rounding_percent": max(check.tolerance_percent or 0.0 for check in checks),
        "margin_percent": 100 * MARGIN,
        "failed": sum(check.verdict is Verdict.fail for check in checks),
    }


class Engines:
    """Replays of a run's texts, on one engine for as long as the batch stays the same."""

    def __init__(self, free: Run, work: Path, dtype: str) -> None:
        self._free, self._work, self._dtype, self._kept = free, work, dtype, Kept()

    def __enter__(self) -> Engines:
        return self

    def __exit__(self, *_: object) -> None:
        self._kept.close()

    def __call__(self, draft: str, batch: int, name: str, order: int | None = None) -> Run:
        """A replay; one that is there already is read. `order`: seed of the order of the conversations."""
        out = self._work / name
        if not (out / "steps.parquet").exists():
            asked = inherited(self._free.directory, "zoo", draft, {})
            method = None if draft == DRAFT else "eagle3"
            suites = list(asked.pop("suites"))
            job = prepare(
                target="zoo",
                draft=draft,
                suite_names=suites,
                k=K,
                batch=batch,
                out=out,
                method=method,
                engine_args={"dtype": self._dtype},
                **asked,
            )
            with Shuffled(order):
                launch.run(job, unwatched, output_to, self._engine)
        return Run.of(read_run(out))

    def _engine(self, job: Job) -> AbstractContextManager[Engine]:
        return self._kept.use(job)


class Shuffled:
    """The runner takes the conversations in another order meanwhile."""

    def __init__(self, seed: int | None) -> None:
        self._seed, self._plan = seed, runner.plan

    def __enter__(self) -> None:
        def plan(*args: Any, **kwargs: Any) -> Any:
            found = self._plan(*args, **kwargs)
            random.Random(self._seed).shuffle(found)
            return found

        if self._seed is not None:
            runner.plan = plan

    def __exit__(self, *_: object) -> None:
        runner.plan = self._plan


def damaged(work: Path, capture: Any, loss: float) -> Path:
    """A copy of the drafter that loses this share of tau on the captured texts, to a hundredth of it."""
    place, note = work / f"copy-{loss:g}", work / f"copy-{loss:g}.txt"
    if note.exists():
        return place
    whole = exact(capture, write_copy(work / "copy-0", 0.0))
    low, high = 0.0, 0.2
    for _ in range(24):
        eps = (low + high) / 2
        lost = 1 - exact(capture, write_copy(place, eps)) / whole
        if abs(lost / loss - 1) < 0.01:
            break
        low, high = (eps, high) if lost < loss else (low, eps)
    note.write_text(f"eps {eps:.5f} loses {lost:.4%}\n")
    print(note.read_text(), end="", flush=True)
    return place


def exact(capture: Any, checkpoint: Path) -> float:
    """tau_committed of a checkpoint on the captured texts."""
    shutil.rmtree(out := checkpoint.with_name(f"{checkpoint.name}-exact"), ignore_errors=True)
    value = (
        speceval.replay(capture, str(checkpoint), method="eagle3", k=K, out=out).tau(definition="tau_committed").value
    )
    assert value is not None
    return value


def write_copy(place: Path, eps: float) -> Path:
    """The drafter with every floating-point weight times 1 + eps * a standard normal (seed 0)."""
    from safetensors import numpy as safetensors

    source = zoo.ensure([DRAFT])[DRAFT]
    shutil.copytree(source, place, dirs_exist_ok=True)
    tensors, rng = safetensors.load_file(source / "model.safetensors"), np.random.default_rng(0)
    for name in sorted(tensors):
        draws = rng.standard_normal(tensors[name].shape).astype(np.float32)
        if np.issubdtype(tensors[name].dtype, np.floating):
            tensors[name] = tensors[name] * (1 + np.float32(eps) * draws)
    safetensors.save_file(tensors, place / "model.safetensors", {"format": "pt"})
    return place


if __name__ == "__main__":
    main()
