"""A whole run.json with chosen parts, for the tests of what reads one."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

from speceval.protocol import RunSpec
from speceval.store import StoredRun
from speceval.store.schema import SCHEMA_VERSION, RunMeta, parse

FACTS: dict[str, Any] = {
    "vllm": "0.32.0", "torch": "2.13.0", "device": "cpu", "runner": "V1", "method": "eagle3", "k": 3,
    "draft_sample_method": "probabilistic", "rejection_sample_method": "standard", "draft_truncation": True,
    "dtype": "float32", "quantization": None, "kv_cache_dtype": "auto", "max_model_len": 8192, "max_num_seqs": 8,
    "max_num_batched_tokens": 4096, "async_scheduling": False, "prefix_caching": False, "enforce_eager": True,
    "generation_config": "vllm", "tensor_parallel": 1, "pipeline_parallel": 1, "data_parallel": 1,
}  # fmt: skip

SUITE_FACTS: dict[str, Any] = {"version": 1, "dataset": "0" * 64, "conversations": 6, "max_tokens": 64}

MACHINE: dict[str, Any] = {"host": "a", "processor": "x86_64", "cpus": 2, "gpus": []}


def content(**changes: Any) -> dict[str, Any]:
    """run.json's content; `changes` are fields, with "__" for the dot: `spec__k=7`, `fingerprint__engine__k=7`.

    Where a change of `spec` has a counterpart in the fingerprint, that follows.
    """
    asked = {name.removeprefix("spec__"): value for name, value in changes.items() if name.startswith("spec__")}
    given = {"target": "zoo", "draft": "lk-eagle3", "k": 3, "temperature": 1.0, "suites": ("demo",)} | asked
    given.setdefault("drafting", "probabilistic" if given["temperature"] > 0 else "greedy")
    spec = RunSpec(**given)
    made: dict[str, Any] = {
        "schema": SCHEMA_VERSION,
        "name": spec.name,
        "status": "complete",
        "created": "2026-01-02T03:04:05+00:00",
        "command": ["speceval", "run", "--target", spec.target, "--draft", spec.draft, "--temp", "1"],
        "spec": spec.model_dump(mode="json"),
        "fingerprint": {
            "target": {
                "name": spec.target,
                "model": "zoo" if spec.target == "zoo" else "local",
                "revision": None,
                "weights": "a1",
            },
            "draft": {"name": spec.draft, "model": "zoo", "revision": None, "weights": f"weights of {spec.draft}"},
            "suites": {suite: dict(SUITE_FACTS) for suite in spec.suites},
            "prompts": "1" * 64,
            "chat_template": "2" * 64,
            "chat_template_kwargs": {},
            "sampling": {"temperature": spec.temperature, "top_p": spec.top_p, "top_k": spec.top_k},
            "drafting": spec.drafting,
            "seeds": list(spec.seeds),
            "limit": spec.limit,
            "shuffle_seed": spec.shuffle_seed,
            "engine": FACTS
            | {"k": spec.k, "draft_sample_method": spec.drafting, "rejection_sample_method": spec.rejection},
            "replay": spec.replay,
            "patches": ["cpu-expand"],
        },
        "fingerprint_hash": "h",
        "conversations": 12,
        "environment": {"python": "3.11", "platform": "Linux", "cpus": 2, "packages": {"speceval": "0.1.0"}},
        "patches": [
            {"id": "cpu-expand", "title": "A repair.", "target": "x", "versions": "x", "upstream": "https://example.org",
             "state": "active", "reason": ""}
        ],
        "segments": [segment()],
        "problems": [],
        "finished": "2026-01-02T03:05:05+00:00",
        "skipped": [],
    }  # fmt: skip
    for name, value in changes.items():
        if not name.startswith("spec__"):
            *path, last = name.split("__")
            place = made
            for key in path:
                place = place[key]
            place[last] = copy.deepcopy(value)
    return made


def segment(conversations: int = 12, **counters: Any) -> dict[str, Any]:
    """A stretch in which nothing was counted but `counters`."""
    return {"conversations": conversations, "tokens": 100, "seconds": 1.0, "counters": counters}


def run_meta(**changes: Any) -> RunMeta:
    """The record of `content(**changes)`."""
    return parse(content(**changes), Path("run.json"))


def altered(run: StoredRun, **changes: Any) -> StoredRun:
    """The run with another record: fields with "__" for the dot, as in `content`."""
    made = run.meta.as_json()
    for name, value in changes.items():
        *path, last = name.split("__")
        place = made
        for key in path:
            place = place[key]
        place[last] = value
    return replace(run, meta=parse(made, Path("run.json")))
