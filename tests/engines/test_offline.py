"""How vLLM is started to be measured, on a stand-in for its package."""

from __future__ import annotations

import os
import sys
from types import ModuleType
from typing import Any

import pytest

from speceval.engines import offline
from speceval.errors import UserError
from vllm_patches.refuse import MEASURED_SWITCH


@pytest.mark.parametrize("before", [None, "0"])
def test_the_plugin_knows_while_the_engine_starts_that_it_is_one_to_measure(
    monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    """And not afterwards: another engine of the same process is none of speceval's."""
    seen: list[str | None] = []

    def refuse(**arguments: Any) -> None:
        seen.append(os.environ.get(MEASURED_SWITCH))
        raise ValueError("a patch does not fit")

    vllm, sampling = ModuleType("vllm"), ModuleType("vllm.sampling_params")
    vllm.LLM, vllm.SamplingParams, sampling.RequestOutputKind = refuse, None, None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", sampling)
    monkeypatch.setattr(offline, "require_vllm", lambda: "0.32.0")
    if before is None:
        monkeypatch.delenv(MEASURED_SWITCH, raising=False)
    else:
        monkeypatch.setenv(MEASURED_SWITCH, before)
    with pytest.raises(UserError, match="vLLM could not start: a patch does not fit"):
        offline.OfflineEngine(
            model="m",
            revision=None,
            speculative={},
            batch=1,
            seed=0,
            prefix_caching=False,
            trust_remote_code=False,
            engine_args={},
        )
    assert seen == ["1"]
    assert os.environ.get(MEASURED_SWITCH) == before
