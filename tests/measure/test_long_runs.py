"""A run's size is known when it is prepared, and what an engine is started with follows it."""

from __future__ import annotations

from typing import Any

import pytest

from speceval.engines.vllm import start
from speceval.measure.job import most_tokens, prepare


@pytest.mark.parametrize(
    ("asked", "eager"),
    [
        ({}, True),
        ({"seeds": tuple(range(16))}, False),
        ({"seeds": tuple(range(16)), "max_tokens": 10}, True),
        ({"seeds": tuple(range(16)), "runner": "v2"}, True),
        ({"seeds": tuple(range(16)), "long": False}, True),
        ({"seeds": tuple(range(16)), "engine_args": {"enforce_eager": True}}, True),
        ({"engine_args": {"enforce_eager": False}}, False),
    ],
)
def test_a_long_run_of_a_real_target_on_a_cpu_is_compiled_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any], eager: bool
) -> None:
    monkeypatch.setattr(start, "on_cpu", lambda: True)
    monkeypatch.setattr(start, "has_compiler", lambda: True)
    monkeypatch.delenv("VLLM_USE_V2_MODEL_RUNNER", raising=False)
    common: dict[str, Any] = {"target": "smollm2-135m-q4", "draft": "kl-eagle3", "suite_names": ["demo"]}
    job = prepare(temperature=1.0, **common, **asked)
    assert job.spec.engine_args.get("enforce_eager", False) is eager
    turns = sum(len(conversation.turns) for suite in job.suites for conversation in suite.conversations)
    assert most_tokens(job.spec, job.suites) == turns * len(job.spec.seeds) * (job.spec.max_tokens or 96)
