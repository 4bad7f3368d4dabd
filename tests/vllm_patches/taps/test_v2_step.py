"""A V2 step on its way through the listeners: nothing waits for the device, and q is made in pieces."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from stand_ins import Batch, v1_runner, v2_runner
from support.reads import NobodyWaits

from vllm_patches import pieces
from vllm_patches.patches import v2_draft_truncation, v2_grammar_drafts
from vllm_patches.taps import count, evidence, overlap
from vllm_patches.taps.counters import ONE_HOT, PADDED, WITH_Q
from vllm_patches.taps.tap import TAP, Drafted, Step, requests_v2, step_v2


def step(batch: Batch, device: str = "cpu", with_q: bool = True) -> Step:
    def there(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(device)

    return step_v2(
        there(batch.logits),
        there(batch.q_logits) if with_q else None,
        there(batch.tokens),
        there(batch.cu_num_logits),
        there(batch.idx_mapping),
        there(batch.temperature),
        requests_v2(batch, batch.temperature.numpy()),
    )


def cooled(batch: Batch, *requests: int) -> Batch:
    """The batch with some requests greedy."""
    batch.temperature[batch.idx_mapping[list(requests)].long()] = 0.0
    return batch


def with_count(probabilistic: bool = True, method: str = "eagle3") -> count.Count:
    sampling = "probabilistic" if probabilistic else "greedy"
    runner = v2_runner()
    runner.vllm_config.speculative_config = SimpleNamespace(method=method, draft_sample_method=sampling)
    return count.start(runner)


def test_nothing_is_read_back_from_the_device_while_a_step_is_recorded() -> None:
    """On the device "meta", which has no values, whatever the host wanted to read would raise. Replay has its own
    test."""
    mixed = step(cooled(Batch([3, 0, 1, 2], seed=1), 0), "meta")
    listeners: list[Any] = [overlap.Overlap(), with_count(), evidence.Evidence()]
    with NobodyWaits():
        for listener in listeners:
            if told := listener.hear(mixed):
                told(torch.zeros(4, 4, dtype=torch.int64, device="meta"))
    for listener in listeners:
        with pytest.raises((RuntimeError, NotImplementedError)):
            listener.drain()


@pytest.mark.slow  # vLLM is imported
def test_nothing_is_read_back_while_drafts_are_truncated_or_held_against_a_grammar() -> None:
    pytest.importorskip("vllm")
    there = {"device": "meta"}
    asked = SimpleNamespace(top_k=SimpleNamespace(gpu=torch.ones(4, dtype=torch.int32, **there)))
    asked.top_p = SimpleNamespace(gpu=torch.ones(4, **there))
    rows = torch.zeros(3, dtype=torch.int32, **there)
    with NobodyWaits():
        kept = v2_draft_truncation.truncated(torch.ones(3, 6, **there), rows, torch.ones(4, **there), asked)
        gone = v2_grammar_drafts.excluded(torch.ones(3, 6, **there), rows)
    assert (kept.device.type, kept.shape, gone.device.type, gone.shape) == ("meta", (3, 6), "meta", (3,))


def test_the_host_knows_names_counts_and_whether_all_requests_are_greedy() -> None:
    batch = Batch([3, 0, 1], seed=2)
    heard = step(batch, "meta")
    assert (heard.names, heard.counts, heard.greedy) == (batch.req_ids, batch.counts, False)
    assert step(cooled(batch, 0, 2), "meta").greedy is True
    assert isinstance(step(cooled(Batch([3, 0, 1], seed=2), 2), "meta").greedy, torch.Tensor)


def test_q_is_made_for_a_bounded_number_of_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, sizes = Batch([3, 2, 1, 3], seed=3), []
    made = Drafted.__getitem__

    def counted(self: Drafted, part: slice) -> torch.Tensor:
        rows = made(self, part)
        sizes.append(len(rows))
        return rows

    monkeypatch.setattr(Drafted, "__getitem__", counted)
    monkeypatch.setitem(pieces.ELEMENTS, "cpu", 2 * batch.logits.shape[-1])
    overlap.Overlap().hear(step(batch))
    assert sizes == [2, 2, 2, 2, 1]


class TestCount:
    def test_steps_with_q_without_q_and_padded_are_counted_greedy_ones_are_not(self) -> None:
        batch = cooled(Batch([3, 0, 1, 2], seed=4), 2)
        batch.tokens[batch.cu_num_logits[3] + 1 :] = -1  # the last request's drafts are padding
        listener = with_count()
        listener.hear(step(batch))
        listener.hear(step(batch, with_q=False))
        assert listener.drain() == {PADDED: 2, WITH_Q: 1, ONE_HOT: 1}
        assert listener.drain() == {}

    @pytest.mark.parametrize("drafts", [(False, "eagle3"), (True, "ngram")])
    def test_where_drafts_have_no_q_only_padding_is_counted(self, drafts: tuple[bool, str]) -> None:
        listener = with_count(*drafts)
        listener.hear(step(Batch([3, 1], seed=5), with_q=False))
        assert listener.drain() == {PADDED: 0}

    def test_a_step_without_any_draft_counts_nothing(self) -> None:
        listener = with_count()
        listener.hear(step(Batch([0, 0], seed=6)))
        assert listener.drain() == {}

    def test_v1_which_counts_its_own_steps_has_no_such_listener(self) -> None:
        with pytest.raises(NotImplementedError, match="V1"):
            TAP.add("count", count.start, v1_runner())
