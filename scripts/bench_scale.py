"""Time and memory of the commands that read stored runs, for 10^4, 10^5 and 10^6 verify steps, or as many as asked for.

Two synthetic runs of 1,319 conversations, K = 7, with the recorder's columns are written to a temporary folder; each
command is started as its own process, several times. Time is the least wall-clock time, memory the largest peak.

    python scripts/bench_scale.py [--rounds 3] [--out results/bench/scale.json]
    python scripts/bench_scale.py --conversations 100000 --steps 10000000 --rounds 1 --out large.json
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from speceval.files import write_whole
from speceval.measure.fingerprint import environment
from speceval.store import (
    STEP_COLUMNS,
    STEPS,
    TURN_COLUMNS,
    TURNS,
    read_meta,
    recorded_columns,
    write_meta,
)
from speceval.store.schema import Counters, Segment

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE = ROOT / "results" / "reference" / "demo" / "lk-eagle3-T1-probabilistic"
CONVERSATIONS, K, SUITE = 1319, 7, "synthetic"
INCONCLUSIVE = 2
"""Exit code of `check` where the runs are too small to tell."""
SIZES = (10_000, 100_000, 1_000_000)


def hardness(conversations: int) -> NDArray[np.float64]:
    """Chance of each conversation that a draft is accepted, the same in every run."""
    return np.random.default_rng(0).beta(6, 4, conversations)


def write_run(directory: Path, conversations: int, steps: int, drafter: str, seed: int, recorded: bool = True) -> Path:
    """A finished run with one turn per conversation; drafts are accepted with their recorded ratios."""
    rng = np.random.default_rng(seed)
    owner = np.arange(steps) * conversations // steps
    alpha = np.repeat(hardness(conversations), np.bincount(owner))[:, None].repeat(K, axis=1)
    ratio = alpha + np.minimum(alpha, 1 - alpha) * rng.uniform(-1, 1, (steps, K))
    accepted = (rng.random((steps, K)) < ratio).cumprod(axis=1).sum(axis=1)
    names = pd.Series([f"question-{i:06}" for i in range(conversations)])
    first = np.searchsorted(owner, np.arange(conversations))
    table = pd.DataFrame({"suite": SUITE, "conversation": names[owner].to_numpy(), "seed": 0, "turn": 1})
    table = table.assign(step=np.arange(steps) - first[owner] + 1, drafted=K, accepted=accepted, committed=accepted + 1)
    table = table.astype(STEP_COLUMNS)
    if recorded:
        columns = pd.DataFrame(np.hstack([ratio, alpha]).astype(np.float32), columns=recorded_columns(K))
        table = pd.concat([table, columns], axis=1)
    del ratio, alpha
    count, total = np.bincount(owner), np.bincount(owner, accepted).astype(int)
    turns = pd.DataFrame({"suite": SUITE, "conversation": names, "seed": 0, "turn": 1, "category": "", "steps": count})
    turns = turns.assign(prompt_tokens=9, cached_tokens=0, undrafted_steps=0, padded_steps=0, excess=0)
    turns = turns.assign(output_tokens=1 + count + total, finish_reason="stop", drafted=K * count, accepted=total)
    directory.mkdir()
    turns[list(TURN_COLUMNS)].astype(TURN_COLUMNS).to_parquet(directory / TURNS, index=False)
    table.to_parquet(directory / STEPS, index=False)
    meta = read_meta(TEMPLATE)
    fingerprint = meta.fingerprint
    (facts,) = fingerprint.suites.values()
    changed = {
        "draft": fingerprint.draft.model_copy(update={"name": drafter}),
        "suites": {SUITE: facts},
        "seeds": [0],
        "engine": fingerprint.engine.model_copy(update={"k": K}),
    }
    meta.name, meta.fingerprint = directory.name, fingerprint.model_copy(update=changed)
    meta.spec = meta.spec.model_copy(update={"draft": drafter, "k": K, "suites": (SUITE,), "seeds": (0,)})
    meta.conversations, meta.segments = conversations, [segment(accepted, conversations)]
    write_meta(directory, meta)
    return directory


def segment(accepted: NDArray[np.int64], conversations: int) -> Segment:
    """What an engine would have counted."""
    counters = Counters(
        num_drafts=len(accepted),
        num_draft_tokens=K * len(accepted),
        num_accepted_tokens=int(accepted.sum()),
        num_accepted_tokens_per_pos=[int((accepted >= j).sum()) for j in range(1, K + 1)],
    )
    tokens = conversations + len(accepted) + counters.num_accepted_tokens
    return Segment(conversations=conversations, tokens=tokens, seconds=1.0, counters=counters)


def measure(arguments: list[str], rounds: int) -> dict[str, float]:
    """Least wall-clock and processor seconds and the largest peak memory (MiB) of `speceval` with `arguments`."""
    wall, processor, memory = [], [], []
    for _ in range(rounds):
        begin = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-m", "speceval", *arguments], stdout=subprocess.DEVNULL, cwd=ROOT)
        _, status, usage = os.wait4(process.pid, 0)
        wall.append(time.perf_counter() - begin)
        if os.waitstatus_to_exitcode(status) not in (0, INCONCLUSIVE):
            raise SystemExit(f"speceval {' '.join(arguments)} failed")
        processor.append(usage.ru_utime + usage.ru_stime)
        memory.append(usage.ru_maxrss / 1024)
    return {"seconds": min(wall), "processor_seconds": min(processor), "peak_mib": max(memory)}


def bench(rounds: int, conversations: int, sizes: Sequence[int], recorded: bool) -> list[dict[str, Any]]:
    """One entry for each size and command."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for steps in sizes:
            a, b = (str(Path(folder) / f"{name}-{steps}") for name in "ab")
            for seed, path in enumerate((a, b), start=1):
                # In a process of its own: what this one has had in memory counts as a peak of those that it starts.
                writer = multiprocessing.get_context("spawn").Process(
                    target=write_run, args=(Path(path), conversations, steps, Path(path).name[0], seed, recorded)
                )
                writer.start()
                writer.join()
                if writer.exitcode:
                    raise SystemExit(f"{path} could not be written")
            for arguments in (["show", a], ["compare", a, b], ["check", b, "--baseline", a]):
                rows.append({"command": arguments[0], "steps": steps} | measure(arguments, rounds))
                print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "bench" / "scale.json")
    parser.add_argument("--conversations", type=int, default=CONVERSATIONS)
    parser.add_argument("--steps", type=int, nargs="+", default=SIZES)
    parser.add_argument("--no-record", action="store_true", help="without the recorder's columns")
    args = parser.parse_args()
    found = {
        "command": "python scripts/bench_scale.py",
        "rounds": args.rounds,
        "conversations": args.conversations,
        "k": K,
        "recorded": not args.no_record,
        "environment": environment().model_dump(),
        "load": round(os.getloadavg()[0], 1),
        "rows": [
            {key: round(v, 3) if isinstance(v, float) else v for key, v in row.items()}
            for row in bench(args.rounds, args.conversations, args.steps, not args.no_record)
        ],
    }
    write_whole(args.out, json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
