"""What is recorded of the verifier: the values, whose they are, and that recording leaves the tokens alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from vllm_patches import overlap

P = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.2, 0.2, 0.6], [1.0, 0.0, 0.0]])
Q = torch.tensor([[0.2, 0.6, 0.2], [0.1, 0.5, 0.4], [0.2, 0.2, 0.6], [0.0, 0.0, 1.0]])
DRAFTS = torch.tensor([1, 2, -1, 2])


def unpacked(drained: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(drained["values"], np.float32).reshape(2, -1)


def laws(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 2


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
        monkeypatch.setattr(overlap, "MOST_ELEMENTS", most)
        torch.testing.assert_close(overlap.measure_logits(drafts, logits, q), whole, equal_nan=True)

    def test_no_drafts_at_all(self) -> None:
        assert overlap.measure_logits(torch.zeros(0, dtype=torch.long), torch.zeros(0, 7), None).shape == (2, 0)


class TestRecorder:
    def test_drained_in_order_once(self) -> None:
        recorder = overlap.Recorder()
        recorder.add(["a", "b"], [2, 1], torch.tensor([[1.0, 2, 3], [4, 5, 6]]))
        recorder.add(["b"], [1], torch.tensor([[7.0], [8]]))
        drained = recorder.drain()
        assert (drained["requests"], drained["counts"]) == (["a", "b", "b"], [2, 1, 1])
        assert unpacked(drained).tolist() == [[1, 2, 3, 7], [4, 5, 6, 8]]
        again = recorder.drain()
        assert (again["requests"], again["counts"], again["values"]) == ([], [], b"")

    def test_values_of_half_precision_come_back_as_float32(self) -> None:
        recorder = overlap.Recorder()
        recorder.add(["a"], [1], torch.tensor([[0.5], [0.25]], dtype=torch.bfloat16))
        assert unpacked(recorder.drain()).tolist() == [[0.5], [0.25]]

    def test_no_more_steps_are_kept_than_allowed_and_the_oldest_go(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(overlap, "MOST_STEPS", 3)
        recorder = overlap.Recorder()
        for number in range(10):
            recorder.add([str(number)], [1], torch.full((2, 1), float(number)))
        assert recorder.drain()["requests"] == ["7", "8", "9"]


class TestV1:
    """`rejection_sample` of the V1 runner, as installed, with the wrap around it."""

    COUNTS = (2, 0, 3)

    @pytest.fixture
    def module(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        """vLLM's module with a verifier in plain torch, and without what a test leaves behind."""
        from vllm.v1.sample import rejection_sampler

        from vllm_patches import cpu_rejection

        verifier = cpu_rejection.replace(SimpleNamespace(__globals__={"generate_uniform_probs": uniforms}))
        monkeypatch.setattr(rejection_sampler, "rejection_sample", verifier)
        return rejection_sampler

    def start(self) -> overlap.Recorder:
        names = ["a-11111111", "b-22222222", "c-33333333", "not in this step"]
        batch = SimpleNamespace(req_ids=names)
        config = SimpleNamespace(use_v2_model_runner=False)
        return overlap.start(SimpleNamespace(input_batch=batch, vllm_config=config))

    def arguments(self, temperature: list[float]) -> tuple[Any, ...]:
        heat = torch.tensor(temperature)
        greedy = heat == 0
        sampling = SimpleNamespace(
            temperature=heat, all_greedy=bool(greedy.all()), all_random=not greedy.any(), generators={}
        )
        drafts, q = torch.tensor([0, 1, 2, 3, 4], dtype=torch.int32), laws((5, 7), 5).softmax(-1)
        cumulative = torch.tensor(self.COUNTS).cumsum(0)
        return drafts, list(self.COUNTS), 3, cumulative, q, laws((5, 7), 4), torch.zeros(3, 1).int(), sampling

    def test_values_names_and_counts_are_the_verifiers(self, module: Any) -> None:
        recorder, arguments = self.start(), self.arguments([1.0, 1.0, 0.5])
        module.rejection_sample(*arguments)
        drained = recorder.drain()
        assert drained["requests"] == ["a-11111111", "b-22222222", "c-33333333"] and drained["counts"] == [2, 0, 3]
        p, q = arguments[5].softmax(-1).numpy(), arguments[4].numpy()
        rows = np.arange(5)
        expected = [np.minimum(1, p[rows, rows] / q[rows, rows]), np.minimum(p, q).sum(1)]
        np.testing.assert_allclose(unpacked(drained), expected, rtol=1e-5)

    def test_greedy_requests_have_no_record_and_all_greedy_steps_none_at_all(self, module: Any) -> None:
        recorder = self.start()
        module.rejection_sample(*self.arguments([0.0, 0.0, 1.0]))
        assert np.isnan(unpacked(recorder.drain())).tolist() == [[True, True, False, False, False]] * 2
        module.rejection_sample(*self.arguments([0.0, 0.0, 0.0]))
        assert recorder.drain()["requests"] == []

    def test_the_tokens_and_the_random_state_are_what_they_are_without(self, module: Any) -> None:
        def run() -> tuple[list[Any], torch.Tensor]:
            torch.manual_seed(7)
            return [module.rejection_sample(*self.arguments([1.0, 0.0, 0.5])).tolist() for _ in range(20)], torch.rand(
                3
            )

        plain, after = run()
        self.start()
        recorded, after_recording = run()
        assert recorded == plain and torch.equal(after, after_recording)
        assert len({str(tokens) for tokens in plain}) > 1

    def test_starting_again_wraps_once(self, module: Any) -> None:
        first, second = self.start(), self.start()
        module.rejection_sample(*self.arguments([1.0, 1.0, 1.0]))
        assert first.drain()["requests"] == [] and len(second.drain()["requests"]) == 3


def uniforms(count: int, counts: list[int], generators: dict[int, Any], device: Any) -> torch.Tensor:
    return torch.rand(count, dtype=torch.float64)


class Batch:
    """A verify step of V2: requests in the order of the batch, at shuffled places of the request states."""

    def __init__(self, counts: list[int], seed: int, k: int = 3, vocabulary: int = 6, slots: int = 8) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.counts, self.k = counts, k
        self.num_reqs = len(counts)
        self.idx_mapping = torch.randperm(slots, generator=generator)[: len(counts)].int()
        self.idx_mapping_np = self.idx_mapping.numpy()
        self.req_ids = [f"r{slot}" for slot in self.idx_mapping.tolist()]
        starts = [0, *np.cumsum([count + 1 for count in counts]).tolist()]
        self.cu_num_logits = torch.tensor(starts, dtype=torch.int32)
        self.cu_num_logits_np = np.array(starts, np.int32)
        rows = starts[-1]
        self.expanded_idx_mapping = self.idx_mapping.repeat_interleave(torch.tensor(counts) + 1)
        self.expanded_local_pos = torch.cat([torch.arange(count + 1) for count in counts]).int()
        self.seq_lens_cpu_upper_bound = torch.full((len(counts),), 9)
        self.seq_lens = self.input_ids = self.positions = self.logits_indices = None
        self.logits = laws((rows, vocabulary), seed + 1)
        self.q_logits = laws((slots, k, vocabulary), seed + 2)
        self.tokens = torch.randint(0, vocabulary, (rows,), generator=generator)
        self.temperature = torch.rand(slots, generator=generator) + 0.5

    def expected(self, with_q: bool = True) -> list[list[float]]:
        """r and alpha, draft by draft, from the description of the layout alone."""
        ratios, overlaps, row = [], [], 0
        for slot, count in zip(self.idx_mapping.tolist(), self.counts, strict=True):
            for j in range(count):
                heat, token = float(self.temperature[slot]), int(self.tokens[row + j + 1])
                p = self.logits[row + j].double().softmax(-1)  # V2's target logits are past temperature
                q = torch.zeros(len(p)).double()
                q[token] = 1
                if with_q and heat > 0:
                    q = (self.q_logits[slot, j].double() / heat).softmax(-1)
                sound = heat > 0 and token >= 0
                ratios.append(min(1.0, float(p[token] / q[token])) if sound else np.nan)
                overlaps.append(float(torch.minimum(p, q).sum()) if sound else np.nan)
            row += count + 1
        return [ratios, overlaps]

    def measured(self, with_q: bool = True) -> tuple[torch.Tensor, list[int]]:
        q = self.q_logits if with_q else None
        return overlap.measure_v2(self.logits, q, self.tokens, self.cu_num_logits, self.idx_mapping, self.temperature)


COUNTS = ([3, 0, 1, 2], [3], [0, 0], [1, 3, 3, 2, 0, 1])


class TestMeasureV2:
    @pytest.mark.parametrize("with_q", [True, False])
    @pytest.mark.parametrize("counts", COUNTS, ids=str)
    def test_equals_a_direct_computation(self, counts: list[int], with_q: bool) -> None:
        batch = Batch(counts, seed=len(counts))
        values, found = batch.measured(with_q)
        assert found == counts
        np.testing.assert_allclose(values, batch.expected(with_q), rtol=1e-5)

    def test_greedy_requests_and_drafts_that_were_none_are_nan(self) -> None:
        batch = Batch([2, 3, 1], seed=9)
        batch.temperature[batch.idx_mapping[1].long()] = 0.0
        batch.tokens[2] = -1
        values, _ = batch.measured()
        assert torch.isnan(values).tolist() == [[False, True, True, True, True, False]] * 2
        np.testing.assert_allclose(values, batch.expected(), rtol=1e-5)

    def test_a_wider_q_is_cut_to_the_targets_vocabulary(self) -> None:
        """Columns past the target's vocabulary are padding without probability."""
        batch = Batch([2, 1], seed=3)
        expected = batch.expected()
        padding = torch.full((*batch.q_logits.shape[:2], 4), -torch.inf)
        batch.q_logits = torch.cat([batch.q_logits, padding], dim=-1)
        np.testing.assert_allclose(batch.measured()[0], expected, rtol=1e-5)


@pytest.mark.slow
class TestV2:
    """vLLM's own `RejectionSampler` of the V2 runner around a verifier in torch (its kernels need a GPU)."""

    @pytest.fixture
    def sampler(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        module = pytest.importorskip("vllm.v1.worker.gpu.spec_decode.rejection_sampler")
        monkeypatch.setattr(module, "rejection_sample", self.verify)
        monkeypatch.setattr(module.RejectionSampler, "__call__", module.RejectionSampler.__call__)
        monkeypatch.setattr(module, "gather_draft_sampled", lambda *_: (self.batch.tokens, self.batch.tokens))
        monkeypatch.setattr(module, "get_num_sampled_and_rejected", lambda sampled, *_: (sampled, None))
        states = SimpleNamespace(
            temperature=SimpleNamespace(gpu=self.batch.temperature),
            seeds=SimpleNamespace(gpu=None),
            max_num_logprobs=lambda _: -1,
        )
        made = module.RejectionSampler.__new__(module.RejectionSampler)
        made.sampler = SimpleNamespace(
            compute_nans=False,
            logprobs_mode="raw_logprobs",
            return_sampling_mask=False,
            use_fp64_gumbel=False,
            sampling_states=states,
            req_states=SimpleNamespace(prefill_len=SimpleNamespace(gpu=None)),
            apply_sampling_params=lambda logits, *_: logits,
        )
        made.enable_adaptive_verification = made.use_block_verification = False
        made.num_speculative_steps, made.synthetic_conditional_rates, made.watermark_key = self.batch.k, None, None
        made.calls = self.calls = []
        return module, made

    batch = Batch([3, 0, 1, 2, 3, 1], seed=21)

    def verify(
        self, logits: torch.Tensor, q: Any, tokens: torch.Tensor, starts: torch.Tensor, *rest: Any, **_: Any
    ) -> Any:
        self.calls.append((len(logits), starts.tolist()))
        count = len(starts) - 1
        return torch.rand(count, self.batch.k + 1), torch.ones(count)

    def start(self) -> overlap.Recorder:
        return overlap.start(SimpleNamespace(vllm_config=SimpleNamespace(use_v2_model_runner=True)))

    @pytest.mark.parametrize("rows", [100, 4, 5])
    def test_rows_are_of_the_request_they_are_named_after_also_in_chunks(
        self, sampler: Any, monkeypatch: pytest.MonkeyPatch, rows: int
    ) -> None:
        module, made = sampler
        monkeypatch.setattr(module, "get_max_chunk_logits", lambda _: rows)
        recorder = self.start()
        made(self.batch.logits, self.batch, self.batch.q_logits)
        assert len(self.calls) == {100: 1, 5: 4, 4: 5}[rows]
        drained = recorder.drain()
        assert drained["requests"] == self.batch.req_ids and drained["counts"] == self.batch.counts
        np.testing.assert_allclose(unpacked(drained), self.batch.expected(), rtol=1e-5)

    def test_another_batch_at_the_same_places_has_its_own_names(self, sampler: Any) -> None:
        _, made = sampler
        recorder = self.start()
        made(self.batch.logits, self.batch, self.batch.q_logits)
        batch = Batch(self.batch.counts, seed=21)
        batch.req_ids = [f"later {name}" for name in batch.req_ids]
        made(batch.logits, batch, batch.q_logits)
        assert recorder.drain()["requests"] == self.batch.req_ids + batch.req_ids

    def test_tokens_and_random_state_are_what_they_are_without(self, sampler: Any) -> None:
        _, made = sampler

        def run() -> tuple[torch.Tensor, torch.Tensor]:
            torch.manual_seed(3)
            return made(self.batch.logits, self.batch, self.batch.q_logits).sampled_token_ids, torch.rand(2)

        plain = run()
        self.start()
        recorded = run()
        assert all(torch.equal(a, b) for a, b in zip(plain, recorded, strict=True))
