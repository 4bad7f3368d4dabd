"""Measure the same requests through one engine in a process of its own: `python served.py ENGINE RESULT [URL]`.

ENGINE: "vllm", or "server" at URL. RESULT, JSON: for T=1, T=0 and the replay of what T=1 gave, each request's tokens,
steps and record; the target's log-probabilities of one of them; the settings, and the counters over T=1; of a server
T=1 again by streams.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import closing
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

from speceval import catalog, engines
from speceval.engines.base import Engine, Order, Sampling
from speceval.measure import chat
from support.contract import finish

K = 5
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
    "OMP_NUM_THREADS": "1",
}
"""Of a process with an engine."""
TEXTS = ("Where is the cat?", "a", "What does the dog do in the garden at night?", "Täglich 12 €, 你好, 😀!")


def requests(engine: Engine, temperature: float, texts: dict[str, list[int]] | None = None) -> dict[str, Any]:
    """One request for each text; `texts`: what they are to answer."""
    asked = {}
    for number, text in enumerate(TEXTS):
        tokens = chat.render(engine.tokenizer, [{"role": "user", "content": text}], {})
        how = Sampling(temperature, 1.0, 0, 40, None if temperature == 0 else 7 + number)
        if texts is not None:
            how = replace(how, max_tokens=len(texts[str(number)]), replay=tuple(texts[str(number)]))
        asked[str(number)] = tokens, how
    return asked


def told(engine: Engine, asked: dict[str, Any]) -> dict[str, Any]:
    """Tokens, steps and record of each request."""
    return {
        name: {
            "tokens": one.token_ids,
            "steps": [list(astuple(step)) for step in one.steps],
            "recorded": None if one.recorded is None else one.recorded.tobytes().hex(),
        }
        for name, one in sorted(finish(engine, asked).items())
    }


def main(name: str, result: Path, url: str | None = None) -> None:
    kind = engines.find(name)
    pair = catalog.fetch(catalog.resolve("zoo", "lk-eagle3"))
    arguments = kind.defaults(pair.target) if url is None else {"url": url}
    order = Order(
        name, pair.target, pair.draft, K, "probabilistic", 1.0, batch=1, seed=0, record=True, engine_args=arguments
    )
    found: dict[str, Any] = {}
    with closing(engines.open(order)) as engine:
        engine.warm_up()
        before = engine.counters()
        found["sampled"] = told(engine, requests(engine, 1.0))
        found["counters"] = list(astuple(engine.counters().minus(before)))
        found["greedy"] = told(engine, requests(engine, 0.0))
        tokens = {name: one["tokens"] for name, one in found["sampled"].items()}
        found["scores"] = engine.log_probabilities([tokens["2"]])
        found["settings"] = engine.facts().model_copy(update={"generation_config": None}).model_dump()
    found["streamed"] = found["sampled"]
    if url is not None:
        with closing(engines.open(replace(order, timed=True))) as engine:
            found["streamed"] = told(engine, requests(engine, 1.0))
    with closing(engines.open(replace(order, record=False, replay=True))) as engine:
        found["replayed"] = told(engine, requests(engine, 1.0, tokens))
    result.write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
