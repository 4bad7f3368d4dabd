"""`python swapped.py RESULT BEFORE AFTER TEMPERATURE K [RUNNER]`: a drafter swapped in an engine, and one of its own.

RESULT, JSON: what AFTER did after a swap (`swapped`), in an engine of its own (`own`), and what BEFORE did (`before`):
tokens, steps and what was recorded of each request; `seconds` of the swap and of a start; `how` the engine was got.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from speceval import suites
from speceval.engines.base import Engine, Sampling
from speceval.measure import chat
from speceval.measure.job import Job, prepare
from speceval.measure.kept import Kept
from speceval.measure.launch import fetch
from speceval.protocol import request_seed

PROMPTS, TOKENS = 8, 32


def answers(engine: Engine, temperature: float) -> dict[str, Any]:
    """What the engine makes of the demo's first prompts, all at once."""
    engine.warm_up()
    suite = suites.load("demo", limit=PROMPTS)
    results: dict[str, Any] = {}
    for conversation in suite.conversations:
        ids = chat.render(
            engine.tokenizer,
            [*suite.opening(conversation), {"role": "user", "content": conversation.turns[0]}],
            {},
        )
        seed = request_seed(0, suite.name, conversation.id, 1) if temperature else None
        engine.submit(conversation.id, ids, Sampling(temperature, 1.0, 0, TOKENS, seed))
    while len(results) < PROMPTS:
        for done in engine.step()[1]:
            recorded = None if done.recorded is None else [[f"{x:.6g}" for x in row] for row in done.recorded[:, 0]]
            results[done.request_id] = {
                "tokens": done.token_ids,
                "steps": [list(asdict(step).values()) for step in done.steps],
                "recorded": recorded,
            }
    return results


def job(draft: str, temperature: float, k: int, runner: str | None, **changes: Any) -> Job:
    asked: dict[str, Any] = {"temperature": temperature, "suite_names": ["demo"], "k": k, "batch": PROMPTS}
    return fetch(prepare(target="zoo", draft=draft, runner=runner, **asked, **changes))


def main(result: str, before: str, after: str, temperature: str, k: str, runner: str | None = None) -> None:
    heat = float(temperature)
    # The V1 runner also goes from argmax drafts that nobody records to sampled ones that are, and back.
    changes: dict[str, Any] = {"drafting": "greedy", "record": False} if heat and runner is None else {}
    first, second = job(before, heat, int(k), runner, **changes), job(after, heat, int(k), runner)
    found: dict[str, Any] = {}
    seconds = found["seconds"] = {}
    with closing(Kept()) as kept:
        for name, asked in (("before", first), ("swapped", second), ("back", first)):
            start = time.perf_counter()
            with kept.use(asked) as engine:
                seconds[name] = time.perf_counter() - start
                found[name] = answers(engine, heat)
        found["how"] = kept.how
    with closing(Kept()) as kept, kept.use(second) as engine:
        found["own"] = answers(engine, heat)
    Path(result).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
