"""What acts on a setting reads it from the engine's configuration in its own process."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vllm_patches import settings
from vllm_patches.patches import v1_draft_sampling


def config(**additional: Any) -> SimpleNamespace:
    return SimpleNamespace(additional_config=additional)


@pytest.mark.parametrize("variable", [None, "0", "1"])
def test_the_configuration_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch, variable: str | None) -> None:
    monkeypatch.delenv(settings.TRUNCATION_SWITCH, raising=False)
    if variable is not None:
        monkeypatch.setenv(settings.TRUNCATION_SWITCH, variable)
    assert settings.draft_truncation(config(draft_truncation=True)) is True
    assert settings.draft_truncation(config(draft_truncation=False)) is False
    assert settings.draft_truncation(config()) is (variable != "0")


def test_a_configuration_that_is_no_mapping_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM also takes objects of other plugins there."""
    monkeypatch.delenv(settings.TRUNCATION_SWITCH, raising=False)
    foreign = SimpleNamespace(additional_config=object())
    assert settings.draft_truncation(foreign) is True and settings.known_answer(foreign) is False


@pytest.mark.parametrize("truncation", [True, False])
def test_the_proposer_truncates_as_its_own_configuration_says(truncation: bool) -> None:
    """Top-k 2 of 5: q has two tokens, or all."""
    proposer = SimpleNamespace(
        _enable_probabilistic_draft_probs=True, use_fp64_gumbel=False, vllm_config=config(draft_truncation=truncation)
    )
    metadata = SimpleNamespace(
        all_greedy=False,
        all_random=True,
        temperature=torch.ones(3),
        top_k=torch.full((3,), 2),
        top_p=None,
        generators={},
    )
    draw = v1_draft_sampling.replace(lambda *_: (torch.zeros(0), None))
    _, q = draw(proposer, torch.randn(3, 5, generator=torch.Generator().manual_seed(0)), metadata)
    assert q is not None and (q > 0).sum(1).tolist() == [2 if truncation else 5] * 3
