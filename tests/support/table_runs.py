"""Stored runs with chosen acceptance counts, for the tests of tables."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from speceval.store import RUN, STEP_COLUMNS, STEPS, TURN_COLUMNS, TURNS
from support.records import content

Counts = NDArray[np.int64]


def write_run(
    directory: Path,
    accepted: dict[str, Counts],
    *,
    draft: str = "kl-eagle3",
    target: str = "zoo",
    k: int = 3,
    temperature: float = 1.0,
    drafting: str | None = None,
    drafted: int | None = None,
    categories: tuple[str | None, ...] = (None,),
    turns: int = 1,
    seeds: int = 1,
    fingerprint: dict[str, Any] | None = None,
    spec: dict[str, Any] | None = None,
    meta: dict[str, Any] | None = None,
) -> Path:
    """A finished run; accepted[suite][conversation, step] is the accepted count of each step.

    Steps are dealt to the seeds and turns one after another; conversation i is of category `categories[i % len]`.
    """
    drafting = drafting or ("probabilistic" if temperature > 0 else "greedy")
    steps, rows = [], []
    for suite, counts in accepted.items():
        for conversation, own in enumerate(counts):
            for seed, turn in itertools.product(range(seeds), range(1, turns + 1)):
                mine = own[seed::seeds][turn - 1 :: turns]
                key = {"suite": suite, "conversation": f"c{conversation}", "seed": seed, "turn": turn}
                steps += [
                    {**key, "step": n, "drafted": drafted or k, "accepted": int(a), "committed": int(a) + 1}
                    for n, a in enumerate(mine, start=1)
                ]
                rows.append(
                    {
                        **key,
                        "category": categories[conversation % len(categories)],
                        "prompt_tokens": 1,
                        "cached_tokens": 0,
                        "output_tokens": int(mine.sum()) + len(mine) + 1,
                        "finish_reason": "length",
                        "steps": len(mine),
                        "undrafted_steps": 0,
                        "padded_steps": 0,
                        "drafted": len(mine) * (drafted or k),
                        "accepted": int(mine.sum()),
                        "excess": 0,
                    }
                )
    directory.mkdir(parents=True)
    pd.DataFrame(steps, columns=list(STEP_COLUMNS)).astype(STEP_COLUMNS).to_parquet(directory / STEPS)
    pd.DataFrame(rows).astype(TURN_COLUMNS).to_parquet(directory / TURNS)
    made = content(
        spec__target=target,
        spec__draft=draft,
        spec__k=k,
        spec__temperature=temperature,
        spec__drafting=drafting,
        spec__suites=tuple(accepted),
        spec__seeds=tuple(range(seeds)),
        **{f"spec__{name}": value for name, value in (spec or {}).items()},
        **{"segments": [], "conversations": seeds * sum(map(len, accepted.values()))} | (meta or {}),
    )
    made["fingerprint"] |= fingerprint or {}
    (directory / RUN).write_text(json.dumps(made))
    return directory


def constant(accepted: int, conversations: int = 4, steps: int = 5) -> Counts:
    """Every step accepts the same number."""
    return np.full((conversations, steps), accepted)


def binomial(rate: float, seed: int, conversations: int = 40, steps: int = 30, k: int = 3) -> Counts:
    """Steps that accept binomially, conversations that differ among themselves."""
    draw = np.random.default_rng(seed)
    rates = np.clip(rate + draw.normal(0, 0.05, (conversations, 1)), 0, 1)
    return draw.binomial(k, np.broadcast_to(rates, (conversations, steps)))
