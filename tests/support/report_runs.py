"""Stored runs with known content, written without an engine, for the tests of reports and exports."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from speceval import store
from speceval.store import StoredRun, read_run
from support.records import SUITE_FACTS, content, segment

TEXT = "the answer to the question is forty two because six times seven is that "


def write_run(
    directory: Path,
    *,
    conversations: int = 6,
    seeds: int = 2,
    steps: int = 8,
    k: int = 3,
    accept: float = 0.6,
    suites: tuple[str, ...] = ("demo",),
    draft: str = "lk-eagle3",
    target: str = "zoo",
    user: Callable[[int], str] = lambda row: f"question {row}?",
    output: Callable[[list[int]], str] | None = None,
    token_ids: Callable[[int, int], list[int]] | None = None,
    outputs: bool = True,
    seed: int = 0,
    meta: dict[str, Any] | None = None,
    spec: dict[str, Any] | None = None,
) -> StoredRun:
    """A finished run: every turn has `steps` steps, draft j accepted with probability `accept` once it is reached.

    `token_ids(row, count)` and `output(ids)` make the answer of a turn; `meta` and `spec` replace fields of run.json.
    """
    rng = np.random.default_rng(seed)
    keys = [(s, f"{c:04d}", r) for s in suites for c in range(conversations) for r in range(seeds)]
    count = len(keys)
    accepted = np.cumprod(rng.random((count, steps, k)) < accept, axis=2).sum(2)
    committed = 1 + accepted
    tokens = 1 + committed.sum(1)
    turn_frame = pd.DataFrame(keys, columns=["suite", "conversation", "seed"]).assign(
        turn=1, category="math", prompt_tokens=10, cached_tokens=0, output_tokens=tokens, finish_reason="stop",
        steps=steps, undrafted_steps=0, padded_steps=0, drafted=steps * k, accepted=accepted.sum(1), excess=0,
    )  # fmt: skip
    step_frame = turn_frame.loc[turn_frame.index.repeat(steps), ["suite", "conversation", "seed", "turn"]].assign(
        step=np.tile(np.arange(1, steps + 1), count), drafted=k, accepted=accepted.ravel(), committed=committed.ravel()
    )
    directory.mkdir(parents=True, exist_ok=True)
    turn_frame.astype(store.TURN_COLUMNS).to_parquet(directory / store.TURNS, index=False)
    step_frame.astype(store.STEP_COLUMNS).to_parquet(directory / store.STEPS, index=False)
    if outputs:
        make_ids = token_ids or (lambda row, n: [(7 * row + i) % 90 for i in range(n)])
        with (directory / store.OUTPUTS).open("w", encoding="utf-8") as file:
            for row, (key, n) in enumerate(zip(keys, tokens, strict=True)):
                ids = make_ids(row, int(n))
                line = dict(zip(("suite", "conversation", "seed"), key, strict=True))
                line |= {"category": "math", "turn": 1, "user": user(row), "token_ids": ids}
                line |= {"output": output(ids) if output else TEXT}
                file.write(json.dumps(line) + "\n")
    made = content(
        spec__target=target,
        spec__draft=draft,
        spec__k=k,
        spec__suites=suites,
        spec__seeds=tuple(range(seeds)),
        **{f"spec__{name}": value for name, value in (spec or {}).items()},
        fingerprint__suites={suite: SUITE_FACTS | {"conversations": conversations} for suite in suites},
        conversations=len(keys),
        segments=[
            segment(
                len(keys),
                num_drafts=accepted.size,
                num_draft_tokens=k * accepted.size,
                num_accepted_tokens=int(accepted.sum()),
                num_accepted_tokens_per_pos=[int((accepted >= j).sum()) for j in range(1, k + 1)],
                steps_with_q=accepted.size,
            )
        ],
        **(meta or {}),
    )
    (directory / store.RUN).write_text(json.dumps(made))
    return read_run(directory)
