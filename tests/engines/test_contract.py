"""Every engine does what `support.contract` says: the simulated one in this process, vLLM in one of its own."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import contract

from speceval.catalog import Draft
from speceval.engines.base import Finished, Sampling, unknown
from speceval.engines.simulated import SimulatedEngine
from speceval.store.schema import Counters


@pytest.fixture(scope="module")
def simulated() -> dict[str, str]:
    """What each assertion found."""
    return contract.hold("simulated")


@pytest.mark.parametrize("assertion", contract.ASSERTIONS)
def test_the_simulated_engine_keeps_the_contract(simulated: dict[str, str], assertion: str) -> None:
    assert simulated[assertion] == ""


@pytest.fixture(scope="module")
def vllm(zoo: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The same of vLLM with the zoo; four engines, one after another in one process."""
    folder = tmp_path_factory.mktemp("contract")
    script = Path(contract.__file__)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(script.parents[1]), os.environ.get("PYTHONPATH", "")])
    }
    with (folder / "log").open("wb") as log:
        done = subprocess.run(
            [sys.executable, script, "vllm", folder / "result.json"], env=environment, stdout=log, stderr=log
        )
    assert done.returncode == 0, (folder / "log").read_text()[-4000:]
    found: dict[str, str] = json.loads((folder / "result.json").read_text())
    return found


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.parametrize("assertion", contract.ASSERTIONS)
def test_vllm_keeps_the_contract(vllm: dict[str, str], assertion: str) -> None:
    assert vllm[assertion] == ""


def told(change: Callable[[Finished], Finished]) -> Callable[..., Any]:
    """An engine's `step` that tells of every finished request with a change."""
    step = SimulatedEngine.step

    def changed(self: SimulatedEngine) -> tuple[int, list[Finished]]:
        committed, finished = step(self)
        return committed, [change(one) for one in finished]

    return changed


def counted(change: Callable[[SimulatedEngine], int]) -> Callable[..., Any]:
    """An engine's `counters` with so many accepted drafts too many."""
    counters = SimulatedEngine.counters

    def changed(self: SimulatedEngine) -> Counters:
        right = counters(self)
        return replace(right, num_accepted_tokens=right.num_accepted_tokens + change(self))

    return changed


def asked(**other: Any) -> Callable[..., Any]:
    """An engine's `submit` that takes another sampling parameter than it was given."""
    submit = SimulatedEngine.submit

    def changed(self: SimulatedEngine, name: str, prompt: list[int], sampling: Sampling) -> None:
        submit(self, name, prompt, replace(sampling, **{key: value() for key, value in other.items()}))

    return changed


def opened(**other: Any) -> classmethod[Any, Any, Any]:
    """An engine's `open` that follows another order than it was given."""
    start = SimulatedEngine.open
    return classmethod(lambda cls, order: start(replace(order, **other)))


def shorter(one: Finished) -> Finished:
    return replace(one, token_ids=one.token_ids[:-1])


numbers = itertools.count()
FAULTS: dict[str, tuple[str, Any, str]] = {
    "facts of another engine": ("facts", lambda self: unknown(device="", runner="", method="", k=4), "its_facts_are"),
    "another K than was asked": ("open", opened(k=3), "it_resolved_what_was_asked"),
    "greedy drafts": ("open", opened(drafting="greedy"), "it_resolved_what_was_asked"),
    "a patch is missing": ("missing_patches", lambda self: ["p: off"], "it_resolved_what_was_asked"),
    "counts too much": ("counters", counted(lambda self: self._counters.num_drafts), "its_counters_are_the_sums"),
    "counts without working": ("counters", counted(lambda self: next(numbers)), "its_counters_do_not_move"),
    "loses a token": ("step", told(shorter), "the_evidence_that_it_promises"),
    "tells of no steps": ("step", told(lambda one: replace(one, steps=[])), "the_evidence_that_it_promises"),
    "keeps no record": ("step", told(lambda one: replace(one, recorded=None)), "what_the_verifier_saw"),
    "nothing is in flight": ("in_flight", lambda self: [], "what_is_in_flight"),
    "seeds of its own": ("submit", asked(seed=lambda: next(numbers)), "a_seed_gives_the_same"),
    "one seed for all": ("submit", asked(seed=lambda: 1), "a_seed_gives_the_same"),
    "a limit of its own": ("submit", asked(max_tokens=lambda: 5), "a_request_ends_at_its_limit"),
    "ends in an error": ("step", told(lambda one: replace(one, finish_reason="abort")), "a_request_ends_at_its_limit"),
    "answers in no text": ("step", told(lambda one: replace(one, token_ids=[-1])), "any_text_is_a_prompt"),
    "takes empty prompts": ("shortest_prompt", 0, "a_prompt_that_is_too_short"),
    "stays open": ("close", lambda self: None, "a_closed_engine_takes_nothing_more"),
    "replays nothing": ("submit", asked(replay=lambda: None), "a_text_that_a_request_brings"),
    "drafts alone": (
        "open",
        opened(draft=Draft(name="d", source="none", model=None, method="ngram"), k=4),
        "the_target",
    ),
    "takes any argument": ("open", opened(engine_args={}), "an_order_that_it_cannot_meet"),
}
"""What an engine may do wrong: the member of the simulated one that does it, and the assertion that must notice."""


@pytest.mark.parametrize("fault", FAULTS)
def test_an_engine_that_breaks_the_contract_is_noticed(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    member, wrong, assertion = FAULTS[fault]
    monkeypatch.setattr(SimulatedEngine, member, wrong)
    (found,) = (text for name, text in contract.hold("simulated").items() if name.startswith(assertion))
    assert "Error" in found
