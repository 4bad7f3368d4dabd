"""Make the stored results again: `make results`, or `python scripts/make_results.py NAME…` for some of them.

Each entry is a command with what it writes. `make docs-figures` then writes every table and figure of README and docs.
The runs are new samples: numbers move within their errors; at one batch size on one machine they come out the same.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Entry:
    """One stored result."""

    name: str
    command: tuple[str, ...]
    writes: tuple[str, ...]
    minutes: int
    """About how long it takes on two quiet cores."""
    fresh: bool = False
    """The command would resume what is there: remove it first."""
    usual: bool = True
    """Part of `make results`; the others are made when they are named."""


def speceval(*arguments: str) -> tuple[str, ...]:
    """A `speceval` command."""
    return ("-m", "speceval", *arguments)


def data_dir() -> tuple[str, ...]:
    """Where the benchmark files are, if SPECEVAL_DATA_DIR says so; else they come from the dataset hub."""
    directory = os.environ.get("SPECEVAL_DATA_DIR")
    return ("--data-dir", directory) if directory else ()


ENTRIES = (
    Entry("demo", speceval("demo", "--out", "results/reference/demo"), ("results/reference/demo",), 3, fresh=True),
    Entry(
        "demo-all",
        speceval("demo", "--all", "--out", "results/reference/demo-all"),
        ("results/reference/demo-all",),
        14,
        fresh=True,
    ),
    Entry("rao-blackwell", ("scripts/rao_blackwell.py",), ("results/statistics/rao_blackwell.csv",), 2),
    Entry("replay", ("scripts/replay_gain.py", *data_dir()), ("results/statistics/replay.csv",), 6),
    Entry("capture", ("scripts/capture_zoo.py", *data_dir()), ("results/statistics/capture.csv",), 6),
    Entry("loss-steps", ("scripts/loss_steps.py",), ("results/statistics/loss_steps.csv",), 1),
    Entry("coverage", ("scripts/coverage.py",), ("results/statistics/coverage.csv",), 10),
    Entry("gate", ("scripts/gate_power.py",), ("results/statistics/gate.csv",), 30),
    Entry("gate-zoo", ("scripts/gate_zoo.py",), ("results/statistics/gate_zoo.csv",), 10),
    Entry("gate-texts", ("scripts/gate_texts.py",), ("results/statistics/gate_texts.csv",), 15),
    Entry("load", ("scripts/load_coverage.py",), ("results/statistics/load.csv",), 5),
    Entry("until", ("scripts/until_coverage.py",), ("results/statistics/until.csv",), 3),
    Entry("tau-k", ("scripts/tau_k.py",), ("results/statistics/tau_k.csv",), 5),
    Entry("gaussian", ("scripts/gaussian.py",), ("results/statistics/gaussian.json",), 1),
    Entry("selftest", speceval("selftest", "--out", "results/selftest/zoo.json"), ("results/selftest",), 1),
    Entry("bench", ("scripts/bench.py",), ("results/bench/harness.json",), 3),
    Entry("bench-patches", ("scripts/bench_patches.py",), ("results/bench/patches.json",), 6),
    Entry("bench-recorder", ("scripts/bench_recorder.py",), ("results/bench/recorder.json",), 5),
    Entry("bench-recorder-v2", ("scripts/bench_recorder.py", "--runner", "v2"), ("results/bench/recorder_v2.json",), 5),
    Entry("bench-scale", ("scripts/bench_scale.py",), ("results/bench/scale.json",), 2),
    Entry("verify", ("scripts/verify_matrix.py",), ("results/verify/engine.csv",), 90, usual=False),
    Entry("known-bad", ("scripts/known_bad.py", "installed"), ("results/verify/kernels.csv",), 10, usual=False),
)


def main() -> None:
    """Run what was asked for; stops at the first command that fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(entry.name for entry in ENTRIES))
    names = parser.parse_args().names
    known = {entry.name: entry for entry in ENTRIES}
    if unknown := [name for name in names if name not in known]:
        parser.error(f"no such result: {', '.join(unknown)}; there are {', '.join(known)}")
    chosen = [known[name] for name in names] or [entry for entry in ENTRIES if entry.usual]
    print(f"about {sum(entry.minutes for entry in chosen)} minutes on two quiet cores", flush=True)
    for entry in chosen:
        make(entry)


def make(entry: Entry) -> None:
    """Run one entry's command in the repository's root."""
    for path in entry.writes if entry.fresh else ():
        shutil.rmtree(ROOT / path, ignore_errors=True)
    began = time.monotonic()
    print(f"{entry.name}: python {' '.join(entry.command)}", flush=True)
    subprocess.run([sys.executable, *entry.command], cwd=ROOT, check=True)
    print(f"{entry.name}: {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
