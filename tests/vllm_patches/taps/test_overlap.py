"""What is recorded of the verifier: r and alpha, whose they are, and that recording leaves the tokens alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from stand_ins import Batch, laws, unpacked, v1_arguments, v1_runner, v2_runner

from vllm_patches import pieces
from vllm_patches.taps import overlap
from vllm_patches.taps.tap import TAP, requests_v2, step_v2

P = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.2, 0.2, 0.6], [1.0, 0.0, 0.0]])
Q = torch.tensor([[0.2, 0.6, 0.2], [0.1, 0.5, 0.4], [0.2, 0.2, 0.6], [0.0, 0.0, 1.0]])
DRAFTS = torch.tensor([1, 2, -1, 2])


class TestMeasure:
    def test_ratio_and_overlap_by_hand_and_nan_where_nothing_was_drafted(self) -> None:
        expected = [[0.3 / 0.6, 1.0, np.nan, 0.0], [0.2 + 0.3 + 0.2, 0.1 + 0.1 + 0.4, np.nan, 0.0]]
        np.testing.assert_allclose(overlap.measure(DRAFTS, P, Q), expected, rtol=1e-6)

    def test_without_q_the_draft_is_certain_and_both_are_its_probability(self) -> None:
        expected = [0.3, 0.8, np.nan, 0.0]
        np.testing.assert_allclose(overlap.measure(DRAFTS, P, None), [expected, expected], rtol=1e-6)

    def test_a_draft_without_probability_in_either_is_no_nan(self) -> None:
        """q of a lost draft is a row of zeros."""
        zero = torch.zeros(1, 3)
        assert overlap.measure(torch.tensor([1]), torch.tensor([[1.0, 0.0, 0.0]]), zero).tolist() == [[0.0], [0.0]]

    def test_its_arguments_are_left_as_they_are(self) -> None:
        logits, q, drafts = laws((5, 7), 0), laws((5, 7), 1).softmax(-1), torch.tensor([0, 1, -1, 3, 4])
        before = logits.clone(), q.clone(), drafts.clone()
        overlap.measure_logits(drafts, logits, q)
        assert all(torch.equal(a, b) for a, b in zip(before, (logits, q, drafts), strict=True))

    @pytest.mark.parametrize("with_q", [True, False])
    @pytest.mark.parametrize("most", [1, 14, 21, 35, 36])
    def test_pieces_equal_the_whole(self, monkeypatch: pytest.MonkeyPatch, most: int, with_q: bool) -> None:
        logits, drafts = laws((5, 7), 2), torch.tensor([0, 1, -1, 3, 4])
        q = laws((5, 7), 3).softmax(-1) if with_q else None
        whole = overlap.measure(drafts, logits.softmax(-1), q)
        monkeypatch.setitem(pieces.ELEMENTS, "cpu", most)
        torch.testing.assert_close(overlap.measure_logits(drafts, logits, q), whole, equal_nan=True)

    def test_no_drafts_at_all(self) -> None:
        assert overlap.measure_logits(torch.zeros(0, dtype=torch.long), torch.zeros(0, 7), None).shape == (2, 0)


class TestV1:
    """`rejection_sample` of the V1 runner, as installed, with the tap around it."""

    @pytest.fixture(autouse=True)
    def start(self, v1: Any) -> None:
        TAP.add("overlap", overlap.start, v1_runner())

    def test_values_names_and_counts_are_the_verifiers(self, v1: Any) -> None:
        arguments = v1_arguments([1.0, 1.0, 0.5])
        v1.rejection_sample(*arguments)
        drained = TAP.drain("overlap")
        assert drained["requests"] == ["a-11111111", "c-33333333"] and drained["counts"] == [2, 3]  # b drafts none
        p, q = arguments[5].softmax(-1).numpy(), arguments[4].numpy()
        rows = np.arange(5)
        expected = [np.minimum(1, p[rows, rows] / q[rows, rows]), np.minimum(p, q).sum(1)]
        np.testing.assert_allclose(unpacked(drained), expected, rtol=1e-5)

    def test_greedy_requests_have_no_record_and_all_greedy_steps_none_at_all(self, v1: Any) -> None:
        v1.rejection_sample(*v1_arguments([0.0, 0.0, 1.0]))
        assert np.isnan(unpacked(TAP.drain("overlap"))).tolist() == [[True, True, False, False, False]] * 2
        v1.rejection_sample(*v1_arguments([0.0, 0.0, 0.0]))
        assert TAP.drain("overlap")["requests"] == []


COUNTS = ([3, 0, 1, 2], [3], [0, 0], [1, 3, 3, 2, 0, 1])


def measured(batch: Batch, with_q: bool = True) -> tuple[np.ndarray, list[int]]:
    """r and alpha of V2's arguments, and the draft counts."""
    q = batch.q_logits if with_q else None
    requests = requests_v2(batch, batch.temperature.numpy())
    listener = overlap.Overlap()
    listener.hear(
        step_v2(batch.logits, q, batch.tokens, batch.cu_num_logits, batch.idx_mapping, batch.temperature, requests)
    )
    drained = listener.drain()
    assert drained["requests"] == batch.drafting
    return unpacked(drained), drained["counts"]


class TestMeasureV2:
    @pytest.mark.parametrize("with_q", [True, False])
    @pytest.mark.parametrize("counts", COUNTS, ids=str)
    def test_equals_a_direct_computation(self, counts: list[int], with_q: bool) -> None:
        batch = Batch(counts, seed=len(counts))
        values, found = measured(batch, with_q)
        assert found == [count for count in counts if count]
        np.testing.assert_allclose(values, batch.expected(with_q), rtol=1e-5)

    def test_greedy_requests_and_drafts_that_were_none_are_nan(self) -> None:
        batch = Batch([2, 3, 1], seed=9)
        batch.temperature[batch.idx_mapping[1].long()] = 0.0
        batch.tokens[2] = -1
        values, _ = measured(batch)
        assert np.isnan(values).tolist() == [[False, True, True, True, True, False]] * 2
        np.testing.assert_allclose(values, batch.expected(), rtol=1e-5)

    def test_a_wider_q_is_cut_to_the_targets_vocabulary(self) -> None:
        """Columns past the target's vocabulary are padding without probability."""
        batch = Batch([2, 1], seed=3)
        expected = batch.expected()
        padding = torch.full((*batch.q_logits.shape[:2], 4), -torch.inf)
        batch.q_logits = torch.cat([batch.q_logits, padding], dim=-1)
        np.testing.assert_allclose(measured(batch)[0], expected, rtol=1e-5)

    def test_a_narrower_q_cuts_the_targets_vocabulary_as_the_verifier_does(self) -> None:
        batch = Batch([2, 1], seed=3)
        batch.tokens = batch.tokens.clamp(max=3)
        whole, batch.q_logits = batch.logits, batch.q_logits[..., :4].contiguous()
        batch.logits = whole[:, :4]
        expected = batch.expected()
        batch.logits = whole
        np.testing.assert_allclose(measured(batch)[0], expected, rtol=1e-5)


@pytest.mark.slow
class TestV2:
    @pytest.mark.parametrize("rows", [100, 4, 5])
    def test_rows_are_of_the_request_they_are_named_after_also_in_chunks(
        self, v2: Any, monkeypatch: pytest.MonkeyPatch, rows: int
    ) -> None:
        monkeypatch.setattr(v2.module, "get_max_chunk_logits", lambda _: rows)
        TAP.add("overlap", overlap.start, v2_runner())
        v2.made(v2.batch.logits, v2.batch, v2.batch.q_logits)
        assert len(v2.calls) == {100: 1, 5: 4, 4: 5}[rows]
        drained = TAP.drain("overlap")
        assert drained["requests"] == v2.batch.drafting and drained["counts"] == [n for n in v2.batch.counts if n]
        np.testing.assert_allclose(unpacked(drained), v2.batch.expected(), rtol=1e-5)

    def test_another_batch_at_the_same_places_has_its_own_names(self, v2: Any) -> None:
        TAP.add("overlap", overlap.start, v2_runner())
        v2.made(v2.batch.logits, v2.batch, v2.batch.q_logits)
        batch = Batch(v2.batch.counts, seed=21)
        batch.req_ids = [f"later {name}" for name in batch.req_ids]
        v2.made(batch.logits, batch, batch.q_logits)
        assert TAP.drain("overlap")["requests"] == v2.batch.drafting + batch.drafting
