"""One wrapper of the verifier: who listens hears each step once, and the tokens are what they are without."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from stand_ins import V1_NAMES, v1_arguments, v1_runner, v2_runner

from vllm_patches.taps import evidence, overlap
from vllm_patches.taps.tap import TAP, Step, Told, tapped

STARTS = {"overlap": overlap.start, "evidence": evidence.start}


class Ear:
    """Keeps what it hears, and what it is told afterwards."""

    def __init__(self, runner: Any) -> None:
        self.steps: list[Step] = []
        self.emitted: list[torch.Tensor] = []
        self.closed = 0

    def hear(self, step: Step) -> Told | None:
        self.steps.append(step)
        return self.emitted.append

    def drain(self) -> dict[str, Any]:
        return {"steps": self.steps, "emitted": self.emitted}

    def close(self) -> None:
        self.closed += 1


def listen(name: str, runner: Any) -> Ear:
    ear = Ear(runner)
    TAP.add(name, lambda _: ear, runner)
    return ear


def test_each_listener_hears_each_step_once_and_then_what_was_emitted(v1: Any) -> None:
    runner = v1_runner()
    first, second = listen("first", runner), listen("second", runner)
    output = v1.rejection_sample(*v1_arguments([1.0, 0.0, 0.5]))
    for ear in (first, second):
        (step,) = ear.steps
        assert step.names == V1_NAMES and step.counts == [2, 0, 3]
        assert torch.as_tensor(step.greedy).tolist() == [
            False,
            False,
            False,
            False,
            False,
        ]  # the greedy one drafts none
        assert len(ear.emitted) == 1 and torch.equal(ear.emitted[0], output)
    assert TAP.names() == ["first", "second"] and tapped()


def test_a_listener_of_the_same_name_takes_the_place_of_the_one_before(v1: Any) -> None:
    runner = v1_runner()
    first, second = listen("ear", runner), listen("ear", runner)
    v1.rejection_sample(*v1_arguments([1.0, 1.0, 1.0]))
    assert (first.closed, len(first.steps), len(second.steps)) == (1, 0, 1)


def test_when_the_last_listener_goes_the_verifier_is_vllms_own_again(v1: Any) -> None:
    plain, runner = v1.rejection_sample, v1_runner()
    first, second = listen("first", runner), listen("second", runner)
    TAP.remove("first")
    TAP.remove("never there")
    assert v1.rejection_sample is not plain and (first.closed, second.closed) == (1, 0)
    TAP.remove("second")
    assert v1.rejection_sample is plain and not tapped() and TAP.names() == []


def test_another_engine_in_the_process_starts_with_no_listener_of_the_one_before(v1: Any) -> None:
    first = listen("first", v1_runner())
    second = listen("second", v1_runner())
    v1.rejection_sample(*v1_arguments([1.0, 1.0, 1.0]))
    assert (first.closed, len(first.steps), len(second.steps)) == (1, 0, 1) and TAP.names() == ["second"]


def test_a_listener_that_cannot_start_leaves_the_verifier_alone(v1: Any) -> None:
    plain = v1.rejection_sample

    def start(runner: Any) -> Ear:
        raise NotImplementedError("not here")

    with pytest.raises(NotImplementedError):
        TAP.add("ear", start, v1_runner())
    assert v1.rejection_sample is plain and TAP.names() == [] and not tapped()


def test_tokens_and_random_state_are_what_they_are_without(v1: Any) -> None:
    def run() -> tuple[list[Any], torch.Tensor]:
        torch.manual_seed(7)
        tokens = [v1.rejection_sample(*v1_arguments([1.0, 0.0, 0.5])).tolist() for _ in range(20)]
        return tokens, torch.rand(3)

    plain, after = run()
    runner = v1_runner()
    for name, start in STARTS.items():
        TAP.add(name, start, runner)
    recorded, after_recording = run()
    assert recorded == plain and torch.equal(after, after_recording)
    assert len({str(tokens) for tokens in plain}) > 1


@pytest.mark.slow
class TestV2:
    def test_tokens_and_random_state_are_what_they_are_without(self, v2: Any) -> None:
        def run() -> tuple[torch.Tensor, torch.Tensor]:
            torch.manual_seed(3)
            return v2.made(v2.batch.logits, v2.batch, v2.batch.q_logits).sampled_token_ids, torch.rand(2)

        plain = run()
        runner = v2_runner()
        for name, start in STARTS.items():
            TAP.add(name, start, runner)
        recorded = run()
        assert all(torch.equal(a, b) for a, b in zip(plain, recorded, strict=True))

    def test_emitted_tokens_end_where_vllm_says_that_they_do(self, v2: Any) -> None:
        ear = listen("ear", v2_runner())
        v2.made(v2.batch.logits, v2.batch, v2.batch.q_logits)
        (*_, sampled, number), (emitted,) = v2.calls[0], ear.emitted
        assert number.min() < emitted.shape[1]
        for row, count in enumerate(number.tolist()):
            assert emitted[row].tolist() == sampled[row, :count].tolist() + [-1] * (emitted.shape[1] - count)

    def test_when_the_last_listener_goes_both_symbols_are_vllms_own_again(self, v2: Any) -> None:
        plain = v2.module.rejection_sample, v2.module.RejectionSampler.__call__
        listen("ear", v2_runner())
        assert v2.module.rejection_sample is not plain[0] and v2.module.RejectionSampler.__call__ is not plain[1]
        TAP.remove("ear")
        assert (v2.module.rejection_sample, v2.module.RejectionSampler.__call__) == plain
