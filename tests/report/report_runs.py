"""Stored runs with known content, written without an engine, for the tests of reports and exports."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from speceval import store
from speceval.protocol import digest, make_spec
from speceval.store import StoredRun, read_run

TEXT = "the answer to the question is forty two because six times seven is that "

COUNTERS = {
    "num_drafts": 0, "num_draft_tokens": 0, "num_accepted_tokens": 0, "num_accepted_tokens_per_pos": [],
    "preemptions": 0, "steps_with_q": 0, "steps_one_hot": 0, "steps_structured": 0, "steps_padded": 0,
}  # fmt: skip


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
    made = _meta(keys, accepted, k, suites, conversations, seeds, draft, target)
    made["spec"] |= spec or {}
    (directory / store.RUN).write_text(json.dumps(made | (meta or {})))
    return read_run(directory)


def _meta(
    keys: list[Any], accepted: Any, k: int, suites: tuple[str, ...], conversations: int, seeds: int,
    draft: str, target: str,
) -> dict[str, Any]:  # fmt: skip
    spec = make_spec(
        target=target, draft=draft, k=k, temperature=1.0, drafting="probabilistic", suites=suites,
        seeds=tuple(range(seeds)),
    ).model_dump(mode="json")  # fmt: skip
    fingerprint = {
        "target": {"name": target, "model": "zoo" if target == "zoo" else "local", "revision": None, "weights": "a1"},
        "draft": {"name": draft, "model": "zoo", "revision": None, "weights": f"weights of {draft}"},
        "suites": {
            suite: {"version": 1, "dataset": "0" * 64, "conversations": conversations, "max_tokens": 64}
            for suite in suites
        },
        "prompts": "1" * 64,
        "chat_template": "2" * 64,
        "chat_template_kwargs": {},
        "sampling": {"temperature": 1.0, "top_p": 1.0, "top_k": 0},
        "drafting": "probabilistic",
        "seeds": list(range(seeds)),
        "limit": None,
        "shuffle_seed": None,
        "engine": {
            "vllm": "0.32.0", "device": "cpu", "runner": "V1", "method": "eagle3", "k": k, "dtype": "float32",
            "draft_sample_method": "probabilistic", "rejection_sample_method": "standard", "quantization": None,
            "tensor_parallel": 1, "prefix_caching": False,
        },
        "patches": ["cpu-expand"],
    }  # fmt: skip
    counters = COUNTERS | {"num_drafts": accepted.size, "steps_with_q": accepted.size}
    return {
        "schema": store.SCHEMA_VERSION,
        "name": "made",
        "status": "complete",
        "created": "2026-01-02T03:04:05+00:00",
        "command": ["speceval", "run", "--target", target, "--draft", draft, "--temp", "1"],
        "spec": spec,
        "fingerprint": fingerprint,
        "fingerprint_hash": digest(fingerprint),
        "conversations": len(keys),
        "environment": {"python": "3.11", "platform": "Linux", "cpus": 2, "packages": {"speceval": "0.1.0"}},
        "patches": [
            {"id": "cpu-expand", "title": "A repair.", "target": "x", "versions": "x", "upstream": "https://example.org",
             "state": "active", "reason": ""}
        ],
        "segments": [{"conversations": len(keys), "tokens": 100, "seconds": 1.0, "counters": counters}],
        "problems": [],
        "finished": "2026-01-02T03:05:05+00:00",
        "skipped": [],
    }  # fmt: skip
