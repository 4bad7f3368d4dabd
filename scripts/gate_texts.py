"""The gate on replays, on real vLLM: does it ever fail the same weights, and which losses does it catch?

    python scripts/gate_texts.py --work DIR     # half an hour; writes results/statistics/gate_texts.csv

`kl-eagle3` on the demo's 24 prompts, T=1, K=5. The baseline is a replay of its own texts; what rounding does to it (r)
is the largest change over replays of the same weights in batches of other sizes, as `baseline --again` takes it. Then
200 replays of the same weights, in engines of other batch sizes with the conversations in other orders. Damaged copies
have their weights multiplied by 1 + eps * noise; a capture tells how much each eps costs exactly, so that eps is found
for losses of a stated size, and these copies are replayed live.
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
LOSSES = (0.0006, 0.001, 0.002, 0.005)
"""Of tau on these texts, which the damaged copies are to have."""


def main() -> None:
    """Measure and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("results/gate-texts"), help="where runs and checkpoints go")
    rows = measured(parser.parse_args().work)
    write_whole(OUT, pd.DataFrame(rows).to_csv(index=False, float_format="%.4g"))
    print(pd.DataFrame(rows).to_string())


def measured(work: Path) -> list[dict[str, Any]]:
    """The rows: rounding, the same weights, damaged copies."""
    free = speceval.run("zoo", DRAFT, temperature=1, k=K, suites=["demo"], max_tokens=48, out=work / "free")
    capture = speceval.capture(free, work / "capture")
    with Engines(free, work) as replayed:
        base = replayed(DRAFT, 32, "base")
        again = [texts.change(base.steps, replayed(DRAFT, batch, f"again-{batch}").steps) for batch in AGAIN]
        spread = max(map(abs, again))
        print("rounding", again, flush=True)
        changes = []
        for batch in BATCHES:
            for order in range(ORDERS):
                found = replayed(DRAFT, batch, f"same-{batch}-{order}", order=order)
                changes.append(texts.change(base.steps, found.steps))
            print(batch, max(map(abs, changes)), flush=True)
        rows = [row("rounding", again, spread, engines=len(AGAIN)), row("same weights", changes, spread, len(BATCHES))]
        copies = {loss: damaged(work, capture, loss) for loss in LOSSES}
        for loss, copy in copies.items():
            live = [replayed(str(copy), batch, f"{copy.name}-{batch}") for batch in (32, 8)]
            rows.append(row(f"damaged by {loss:.2%}", [texts.change(base.steps, run.steps) for run in live], spread, 2))
    return rows


def row(name: str, changes: list[float], spread: float, engines: int) -> dict[str, Any]:
    """What is stored of some replays."""
    return {
        "drafter": name,
        "engines": engines,
        "replays": len(changes),
        "least_change_percent": 100 * min(changes),
        "largest_change_percent": 100 * max(changes),
        "rounding_percent": 100 * spread,
        "margin_percent": 100 * MARGIN,
        "failed": sum(change < -(MARGIN + spread) for change in changes),
    }


class Engines:
    """Replays of a run's texts, on one engine for as long as the batch stays the same."""

    def __init__(self, free: Run, work: Path) -> None:
        self._free, self._work, self._kept = free, work, Kept()

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
                target="zoo", draft=draft, suite_names=suites, k=K, batch=batch, out=out, method=method, **asked
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
    place = work / f"copy-{loss:g}"
    whole = exact(capture, write_copy(work / "copy-0", 0.0))
    low, high = 0.0, 0.2
    for _ in range(24):
        eps = (low + high) / 2
        lost = 1 - exact(capture, write_copy(place, eps)) / whole
        if abs(lost / loss - 1) < 0.01:
            break
        low, high = (eps, high) if lost < loss else (low, eps)
    print(f"eps {eps:.5f} loses {lost:.4%}", flush=True)
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
