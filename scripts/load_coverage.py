"""Do intervals of times under load hold, though requests that run together delay each other?

`python scripts/load_coverage.py [--out FILE]`: simulated servers, results/statistics/load.csv.

A server runs up to eight requests in one batch. A step takes longer the fuller the batch is and when a prompt comes in,
and is multiplied by a disturbance that all requests of the step share and that lasts (an autoregression with a given
time). Each conversation has its own chance to accept and its own length. Over many runs: how often the 95 % interval
of a run holds the mean of all runs, and the spread of the runs in standard errors as a run states them (1: honest).
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from speceval.estimate import load
from speceval.estimate.statistics import ratio_interval

CONVERSATIONS, BATCH, K, STEP = 96, 8, 5, 0.01
"""STEP: seconds of a step of one request."""
DISTURBANCES = {"none": (0.0, 0.0), "a request long": (0.2, 0.4), "a quarter of the run": (0.2, 3.0)}
"""Relative size, and seconds for which it lasts."""
LOADS = {"8 in flight": math.inf, "half of what it can": 4.0, "nearly all of it": 7.5}
"""Conversations that begin in a second."""


def run(draw: np.random.Generator, rate: float, size: float, lasts: float) -> tuple[pd.DataFrame, Any]:
    """The turns of one run, and [n, 2] steps and accepted drafts of each conversation."""
    due = np.zeros(CONVERSATIONS) if math.isinf(rate) else np.cumsum(draw.exponential(1 / rate, CONVERSATIONS))
    chance, length = draw.beta(4, 3, CONVERSATIONS), draw.geometric(1 / 60, CONVERSATIONS) + 8
    sent, first, last = (np.zeros(CONVERSATIONS) for _ in range(3))
    tokens, counts = np.zeros(CONVERSATIONS, int), np.zeros((CONVERSATIONS, 2), int)
    now, waiting, running, disturbance = 0.0, list(range(CONVERSATIONS)), list[int](), draw.normal()
    while waiting or running:
        new = [one for one in waiting[: BATCH - len(running)] if due[one] <= now]
        if not running and not new:
            now = due[waiting[0]]
            continue
        waiting, running = waiting[len(new) :], running + new
        sent[new] = now
        seconds = STEP * (1 + 0.15 * (len(running) - 1) + 0.5 * len(new)) * math.exp(size * disturbance)
        if lasts:
            kept = math.exp(-seconds / lasts)
            disturbance = kept * disturbance + math.sqrt(1 - kept**2) * draw.normal()
        now += seconds
        for one in running:
            if tokens[one] == 0:
                first[one], tokens[one] = now, 1
                continue
            accepted = min(int(draw.geometric(1 - chance[one])) - 1, K)
            counts[one] += 1, accepted
            tokens[one], last[one] = min(tokens[one] + 1 + accepted, length[one]), now
        running = [one for one in running if tokens[one] < length[one]]
    times = {
        "sent": sent,
        "ttft": first - sent,
        "latency": last - sent,
        "chunks": counts[:, 0] + 1,
        "waited": sent - due,
    }
    named = {"suite": "simulated", "conversation": np.arange(CONVERSATIONS), "turn": 1, "prompt_tokens": 40}
    return pd.DataFrame(named | times | {"output_tokens": tokens}), counts


def estimates(turns: pd.DataFrame, counts: Any) -> dict[str, dict[str, Any]]:
    """Each number with its interval."""
    seen = load.summarise(turns)
    seconds = float((turns["sent"] + turns["latency"]).max())
    tau = ratio_interval((counts[:, 0] + counts[:, 1]).astype(float), counts[:, 0].astype(float))
    found = {"tau": tau.as_dict(), "output_throughput": load.throughput(turns, seconds, BATCH)["output_throughput"]}
    return found | {name: seen[name]["mean"] for name in ("ttft_ms", "tpot_ms", "e2el_ms")}


def row(runs: list[dict[str, dict[str, Any]]], name: str) -> dict[str, Any]:
    """How often the interval holds, and how much wider the runs scatter than it says."""
    values = np.array([one[name]["value"] for one in runs])
    low, high = (np.array([one[name][bound] for one in runs]) for bound in ("low", "high"))
    half = float(np.mean(high - low)) / 2
    return {
        "number": name,
        "value": round(float(values.mean()), 4),
        "coverage": round(float(np.mean((low <= values.mean()) & (values.mean() <= high))), 3),
        "spread_over_stated": round(1.985 * float(values.std(ddof=1)) / half, 3),
    }


def table(rows: pd.DataFrame) -> str:
    """Markdown: a line for each case."""
    names = {
        "tau": "tau", "ttft_ms": "TTFT", "tpot_ms": "TPOT", "e2el_ms": "E2EL", "output_throughput": "tokens a second"
    }  # fmt: skip
    lines = ["| load | disturbance that all share | " + " | ".join(names.values()) + " |", "|---" * 7 + "|"]
    for (load_name, disturbance), part in rows.groupby(["load", "disturbance"], sort=False):
        told = part.set_index("number").loc[list(names)]
        cells = [f"{one.coverage:.2f} ({one.spread_over_stated:.1f})" for one in told.itertuples()]
        lines.append(f"| {load_name} | {disturbance} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(out: Path, repeats: int) -> None:
    rows = []
    for load_name, rate in LOADS.items():
        for name, (size, lasts) in DISTURBANCES.items():
            draws = (np.random.default_rng([7, number]) for number in range(repeats))
            runs = [estimates(*run(draw, rate, size, lasts)) for draw in draws]
            rows += [{"load": load_name, "disturbance": name, "runs": repeats} | row(runs, key) for key in runs[0]]
            print(pd.DataFrame(rows[-5:]).to_string(index=False, header=len(rows) == 5), flush=True)
    pd.DataFrame(rows).to_csv(out, index=False)
    print(table(pd.DataFrame(rows)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("results/statistics/load.csv"))
    parser.add_argument("--repeats", type=int, default=1000)
    given = parser.parse_args()
    main(given.out, given.repeats)
