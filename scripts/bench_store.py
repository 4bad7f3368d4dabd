"""Time and memory of the store: append, resume, look (`--until`) and finish, for 10^4 and 10^5 conversations.

Synthetic conversations of two turns with 25 steps each, K = 5, with the recorder's values; every size in a process of
its own. What is linear has the same seconds per conversation in both rows.

    python scripts/bench_store.py [--sizes 10000,100000]
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from speceval.measure import until
from speceval.store import Store, pack, read_meta

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE = ROOT / "results" / "reference" / "demo" / "lk-eagle3-T1-probabilistic"
STEPS, TURNS, K, SUITE = 25, 2, 5, "synthetic"


def turns() -> list[dict[str, Any]]:
    """The turns of a conversation, all accepting alike."""
    rng = np.random.default_rng(0)
    accepted = rng.integers(0, K + 1, STEPS).tolist()
    record = pack(rng.random((STEPS, 2, K), np.float32))
    text = {"user": "question " * 20, "output": "answer " * 40, "prompt_tokens": 40, "cached_tokens": 0}
    text |= {"token_ids": list(range(1000, 1001 + STEPS + sum(accepted))), "finish_reason": "stop"}
    text |= {"stop_reason": None, "padded_steps": 0, "steps": [(K, a, 1 + a) for a in accepted], "recorded": record}
    return [{"turn": turn, **text} for turn in range(1, TURNS + 1)]


@contextmanager
def timed(seconds: dict[str, float], what: str) -> Iterator[None]:
    """Add the time that the block takes."""
    begin = time.perf_counter()
    yield
    seconds[what] = seconds.get(what, 0.0) + time.perf_counter() - begin


def bench(conversations: int) -> None:
    """Print one line for a store of this size."""
    seconds: dict[str, float] = {}
    content, meta = turns(), read_meta(TEMPLATE)
    order = [f"question-{n:06}" for n in range(conversations)]
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "run"
        with Store(directory) as store, timed(seconds, "append"):
            store.write_meta(meta.model_copy(update={"status": "running"}))
            for name in np.random.default_rng(1).permutation(order).tolist():
                line = {"suite": SUITE, "conversation": name, "seed": 0, "category": None, "turns": content}
                store.append(line)
        with timed(seconds, "resume"):
            store = Store(directory).__enter__()
        with store:
            goal = until.Goal(1e-9, {SUITE: order}, (0,))
            with timed(seconds, "a look"):
                until.Looks(goal, store)
            with timed(seconds, "finish"):
                store.frames()
                store.finish(meta)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    parts = ", ".join(
        f"{what} {value:.1f} s ({1e6 * value / conversations:.0f} µs each)" for what, value in seconds.items()
    )
    print(f"{conversations:,} conversations: {parts}; peak {peak:,.0f} MiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sizes", default="10000,100000")
    for size in map(int, parser.parse_args().sizes.split(",")):
        worker = multiprocessing.get_context("spawn").Process(target=bench, args=(size,))
        worker.start()
        worker.join()
        if worker.exitcode:
            raise SystemExit(f"{size:,} conversations failed")


if __name__ == "__main__":
    main()
