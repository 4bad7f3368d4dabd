"""The tap on hidden states: what it keeps of a forward pass, what it hands on, and where it is refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from speceval.engines.vllm.recordings import pieces
from vllm_patches.taps import states

SIZE = 4


class Model(nn.Module):
    """Returns what vLLM's models do: the last state, with those of inner layers if they are asked for."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens[:, None] * torch.ones(SIZE)


class Runner:
    """As much of vLLM's V1 runner as the tap needs."""

    def __init__(self, *, v2: bool = False, eager: bool = True) -> None:
        self.vllm_config = SimpleNamespace(use_v2_model_runner=v2)
        self.model_config = SimpleNamespace(enforce_eager=eager)
        self.model = Model()
        self.input_batch = SimpleNamespace(req_ids=["b-12345678", "a-12345678"])
        self.input_batch.num_computed_tokens_cpu = np.array([3, 0, 9])

    def get_model(self) -> nn.Module:
        return self.model

    def execute_model(self, scheduled: Any) -> Any:
        return self.model(torch.arange(8.0))  # the batch is filled up


@pytest.fixture(autouse=True)
def _none_left_open():
    yield
    states.stop()


def test_the_states_of_each_request_are_kept_by_place_until_they_are_drained() -> None:
    runner = Runner()
    states.start(runner, [])
    output = runner.execute_model(SimpleNamespace(num_scheduled_tokens={"b-12345678": 2, "a-12345678": 3}))
    assert output.shape == (8, SIZE)
    runner.model(torch.arange(5.0))  # a pass of no request
    first, second = pieces(states.OPEN[0].drain(), {"a", "b"})
    assert (first.request_id, first.start, second.request_id, second.start) == ("b", 3, "a", 0)
    assert first.states["final"][:, 0].tolist() == [0, 1] and second.states["final"][:, 0].tolist() == [2, 3, 4]
    assert states.OPEN[0].drain()["pieces"] == [] == pieces(states.OPEN[0].drain(), {"a"})


def test_states_of_requests_that_are_not_ours_are_left_out() -> None:
    runner = Runner()
    states.start(runner, [])
    runner.execute_model(SimpleNamespace(num_scheduled_tokens={"b-12345678": 2, "a-12345678": 3}))
    assert [piece.request_id for piece in pieces(states.OPEN[0].drain(), {"a"})] == ["a"]


def test_afterwards_runner_and_model_are_as_they_were() -> None:
    runner = Runner()
    states.start(runner, [])
    states.stop()
    assert runner.execute_model.__func__ is Runner.execute_model and not runner.model._forward_hooks
    assert states.OPEN == []


@pytest.mark.parametrize(("options", "says"), [({"v2": True}, "--runner v1"), ({"eager": False}, "enforce_eager=true")])
def test_where_no_states_can_be_had_it_says_so(options: dict[str, bool], says: str) -> None:
    with pytest.raises(NotImplementedError, match=says):
        states.start(Runner(**options), [])
    assert states.OPEN == []
