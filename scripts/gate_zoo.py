"""Does `speceval check` say of damaged drafters what it should? The zoo's KL drafter against itself and damaged copies.

Copies of the checkpoint have their weights multiplied by 1 + eps * noise. Calibration runs tell how much of tau each
eps costs; those that cost about 1 %, 5 % and 20 % are then measured with seeds of their own and checked against the
baseline, as is the undamaged drafter with other seeds. Runs are kept in --work and not measured again.

    python scripts/gate_zoo.py --work results/gate-zoo       # half an hour on two cores
    python scripts/gate_zoo.py --counts                      # the verdicts again from the stored counts, no engine
"""

from __future__ import annotations

import argparse
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from speceval.estimate import acceptance, gate
from speceval.files import write_whole
from speceval.store import StoredRun, read_run

ROOT = Path(__file__).resolve().parent.parent
CSV = ROOT / "results" / "statistics" / "gate_zoo.csv"
COUNTS = ROOT / "results" / "statistics" / "gate_zoo_counts.csv"
DRAFT, SUITE, K = "kl-eagle3", "demo", 5
MARGIN = 0.02
SEEDS = range(200)
SAME_SEEDS = (range(1000, 1200), range(2000, 2200))
CALIBRATION = (-17, -16, -14, -13, -12, -10, -8)
"""Noise of the calibration runs: eps = 2^(i/4)."""
CALIBRATION_SEEDS = range(3000, 3100)
DAMAGED = {-17: range(5170, 5470), -16: range(5100, 5300), -12: range(5500, 5700), -8: range(5080, 5130)}
"""Noise of the checked copies and their seeds: twice about 1 %, then 5 % and 20 %; the larger the loss, the fewer."""
BASELINE, SAME = "baseline", "same weights, seed set"


def measure_all(work: Path) -> dict[str, StoredRun]:
    """Every run by what was done to the drafter; the first is the baseline."""
    runs = {BASELINE: measure(work, "baseline", DRAFT, SEEDS)}
    for repeat, seeds in enumerate(SAME_SEEDS, start=1):
        runs[f"{SAME} {repeat}"] = measure(work, f"same-{repeat}", DRAFT, seeds)
    for step in CALIBRATION:
        checkpoint = str(damaged(work, step))
        runs[f"calibration, eps {eps(step):.3f}"] = measure(work, f"tuning{step:+d}", checkpoint, CALIBRATION_SEEDS)
    for step, seeds in DAMAGED.items():
        runs[f"eps {eps(step):.3f}"] = measure(work, f"damaged{step:+d}", str(damaged(work, step)), seeds)
    return runs


def tau(run: StoredRun) -> float:
    """Acceptance length of a run."""
    found = acceptance.tau(run.steps)
    assert found is not None
    return found


def eps(step: int) -> float:
    """Noise of a grid point."""
    return math.exp2(step / 4)


def damaged(work: Path, step: int) -> Path:
    """A copy of the drafter with every floating-point weight times 1 + eps * a standard normal (seed 0)."""
    from safetensors import numpy as safetensors

    from speceval import zoo

    copy = work / "checkpoints" / f"noise{step:+d}"
    if not copy.exists():
        source, partial = zoo.ensure([DRAFT])[DRAFT], copy.with_suffix(".part")
        shutil.copytree(source, partial, dirs_exist_ok=True)
        tensors = safetensors.load_file(source / "model.safetensors")
        rng = np.random.default_rng(0)
        for name in sorted(tensors):
            draws = rng.standard_normal(tensors[name].shape).astype(np.float32)
            if np.issubdtype(tensors[name].dtype, np.floating):
                tensors[name] = tensors[name] * (1 + np.float32(eps(step)) * draws)
        safetensors.save_file(tensors, partial / "model.safetensors", {"format": "pt"})
        partial.replace(copy)
    return copy


def measure(work: Path, name: str, draft: str, seeds: range) -> StoredRun:
    """A run of the demo suite at T=1, in a process of its own; one that is there already is read."""
    if not (work / name / "steps.parquet").exists():
        command = [
            *(sys.executable, "-m", "speceval", "run", "--target", "zoo", "--draft", draft, "--k", str(K)),
            *("--suite", SUITE, "--temp", "1", "--seeds", f"{seeds[0]}-{seeds[-1]}"),
            *("--batch", "256", "--max-tokens", "64", "--out", str(work / name)),
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    run = read_run(work / name)
    print(f"{name}: tau {tau(run):.4f} in {len(run.steps):,} steps", flush=True)
    return run


def counts_table(runs: dict[str, StoredRun]) -> pd.DataFrame:
    """`gate.count` of every run, one below the other, with the run's name and its engine version."""
    parts = []
    for name, run in runs.items():
        counts = gate.count(run.steps, run.turns, K).rename_axis("conversation").reset_index()
        counts.insert(0, "run", name)
        counts.insert(1, "samples", len(run.meta.spec.seeds))
        counts.insert(2, "vllm", run.meta.fingerprint.engine.vllm)
        parts.append(counts)
    return pd.concat(parts, ignore_index=True)


def verdicts(counts: pd.DataFrame) -> pd.DataFrame:
    """`gate.check` of every run against the baseline, one row each."""
    tables = {
        name: rows.set_index("conversation").drop(columns=["run", "samples", "vllm"])
        for name, rows in counts.groupby("run", sort=False)
    }
    samples = counts.groupby("run")["samples"].first()
    rows: list[dict[str, Any]] = []
    for name, table in tables.items():
        if name == BASELINE:
            continue
        found = gate.check({SUITE: tables[BASELINE]}, {SUITE: table}, MARGIN)
        suite = found.suites[0]
        rows.append(
            {
                "drafter": name,
                "samples": samples[name],
                "steps": table["steps"].sum(),
                "base_tau": suite.base_tau,
                "tau": suite.new_tau,
                **{f"change_{key}_percent": value for key, value in suite.change_percent.items()},
                "margin_percent": found.margin_percent,
                "verdict": found.verdict.value,
                "failed_positions": " ".join(str(row.position) for row in suite.positions if row.failed),
                "needed": suite.needed,
            }
        )
    return pd.DataFrame(rows).astype({"needed": "Int64"})


def write(table: pd.DataFrame, path: Path) -> None:
    """Write a CSV file, whole or not at all."""
    write_whole(path, table.to_csv(index=False, float_format="%.5g"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("results/gate-zoo"), help="where runs and checkpoints go")
    parser.add_argument("--counts", action="store_true", help=f"read {COUNTS.name}, measure nothing")
    args = parser.parse_args()
    if not args.counts:
        write(counts_table(measure_all(args.work)), COUNTS)
    found = verdicts(pd.read_csv(COUNTS))
    write(found, CSV)
    print(found.to_string())


if __name__ == "__main__":
    main()
