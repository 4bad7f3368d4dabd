"""Replay in the worker: what is kept by hand, and that each request gets its own text's next tokens."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from vllm_patches.state import TEXT
from vllm_patches.taps import replay
from vllm_patches.taps.replay import NO_TOKEN, Replay, kept, of_law
from vllm_patches.taps.tap import TAP, Step

NAN = float("nan")
P = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8], [0.2, 0.2, 0.6], [0.5, 0.5, 0.0], [0.2, 0.2, 0.6]])
Q = torch.tensor([[0.2, 0.7, 0.1], [0.5, 0.3, 0.2], [0.2, 0.2, 0.6], [0.0, 0.5, 0.5], [0.2, 0.2, 0.6]])


class TestKept:
    def test_is_q_over_p_of_the_texts_token_at_most_1_and_nan_past_the_text_or_without_a_draft(self) -> None:
        tokens, drafts = torch.tensor([0, 0, NO_TOKEN, 0, 1]), torch.tensor([2, 0, 1, 0, -1])
        expected = [0.2 / 0.5, 1.0, NAN, 0.0, NAN]
        np.testing.assert_allclose(kept(tokens, drafts, P.log(), Q), expected, rtol=1e-6)

    def test_a_draft_without_a_distribution_is_kept_when_it_is_the_texts_token(self) -> None:
        tokens, drafts = torch.tensor([0, 1, NO_TOKEN, 0, 1]), torch.tensor([0, 2, 1, 1, -1])
        np.testing.assert_allclose(kept(tokens, drafts, P.log(), None), [1, 0, NAN, 0, NAN])

    def test_a_token_that_the_target_never_emits_is_no_nan(self) -> None:
        never, q = torch.tensor([[1.0, 0.0]]).log(), torch.tensor([[1.0, 0.0]])
        assert kept(torch.tensor([1]), torch.tensor([0]), never, q).tolist() == [0.0]

    def test_its_mean_over_the_targets_tokens_is_the_overlap(self) -> None:
        """Σ_x p(x) min(1, q(x)/p(x)) = Σ_x min(p(x), q(x))."""
        p, q = torch.rand(2, 50, generator=torch.Generator().manual_seed(0)).pow(3)
        p, q = p / p.sum(), q / q.sum()
        tokens = torch.arange(50)
        chance = kept(tokens, tokens, p.log().expand(50, 50), q.expand(50, 50))
        assert float((p * chance).sum()) == pytest.approx(float(torch.minimum(p, q).sum()), rel=1e-5)


class TestOfLaw:
    def test_is_the_chance_the_mass_above_and_half_of_what_is_as_likely(self) -> None:
        tokens, rows = torch.tensor([0, 1, 2, 2, 1]), torch.tensor([0, 1, 2, 3])
        p, rank, spread = of_law(tokens, P.log(), rows, False).tolist()
        np.testing.assert_allclose(p, [0.5, 0.1, 0.6, 0.0, NAN], rtol=1e-5)
        np.testing.assert_allclose(rank, [0.25, 0.9, 0.3, 1.0, NAN], rtol=1e-5)
        cubes = [0.125 + 2 * 0.25**3, 2 * 0.1**3 + 0.8**3, 2 * 0.2**3 + 0.6**3, 0.25, NAN]
        np.testing.assert_allclose(spread, (1 - np.array(cubes)) / 12, rtol=1e-5)

    @pytest.mark.parametrize("coarse", [False, True], ids=["no two alike", "many alike"])
    def test_a_token_that_was_drawn_has_rank_one_half_and_no_more_than_its_spread(self, coarse: bool) -> None:
        """Means over the law itself, so nothing is left to chance."""
        logits = 2 * torch.randn(60, generator=torch.Generator().manual_seed(3))
        logits = logits.round() if coarse else logits
        law = logits.softmax(-1).double()
        _, rank, spread = of_law(torch.arange(60), logits.expand(60, 60), torch.arange(60), False).double()
        assert float((law * rank).sum()) == pytest.approx(0.5, abs=1e-6)
        variance = float((law * (rank - 0.5) ** 2).sum())
        assert variance <= float(spread[0]) + 1e-7
        assert coarse or variance == pytest.approx(float(spread[0]), rel=1e-4)

    def test_a_greedy_row_gives_its_argmax_for_certain(self) -> None:
        tokens, rows = torch.tensor([0, 0, 0]), torch.arange(3)
        p, rank, spread = of_law(tokens, P[:3].log(), rows, torch.tensor([True, True, False])).tolist()
        np.testing.assert_allclose([p, rank], [[1, 0, 0.2], [0.5, 1, 0.8]], rtol=1e-5)
        assert spread[:2] == [0, 0] and spread[2] > 0


def runner(*requests: tuple[list[int] | None, int], **fields: Any) -> SimpleNamespace:
    """A model runner whose requests r0, r1, ... have a text (None: not replayed) and tokens that are out."""
    states = {}
    for number, (text, out) in enumerate(requests):
        arguments = None if text is None else {TEXT: text}
        parameters = SimpleNamespace(extra_args=arguments)
        states[f"r{number}"] = SimpleNamespace(sampling_params=parameters, output_token_ids=[9] * out)
    batch = SimpleNamespace(req_ids=list(states))
    return SimpleNamespace(input_batch=batch, requests=states, **fields)


TEXTS = (([10, 11, 12, 13, 14], 1), (None, 3), ([20, 21], 0), ([30, 31, 32], 3))


class TestEmit:
    def test_each_row_emits_its_texts_next_token_alone(self) -> None:
        sampled = torch.tensor([[1, 2, 3], [4, 5, -1], [6, -1, -1], [7, 8, 9]], dtype=torch.int32)
        Replay(runner(*TEXTS)).emit(sampled)
        assert sampled.tolist() == [[11, -1, -1], [4, 5, -1], [20, -1, -1], [7, 8, 9]]

    def test_a_step_without_drafts_has_one_column(self) -> None:
        sampled = torch.tensor([[1], [4], [6], [7]], dtype=torch.int32)
        Replay(runner(*TEXTS)).emit(sampled)
        assert sampled.tolist() == [[11], [4], [20], [7]]

    def test_requests_past_the_sampled_rows_are_left_out(self) -> None:
        sampled = torch.tensor([[1, 2]], dtype=torch.int32)
        Replay(runner(*TEXTS)).emit(sampled)
        assert sampled.tolist() == [[11, -1]]


class TestDraft:
    def replaying(self) -> Replay:
        replaying = Replay(runner(*TEXTS))
        replaying.emit(torch.zeros(4, 4, dtype=torch.int32))
        return replaying

    def test_one_position_after_the_other_follows_what_was_emitted(self) -> None:
        """Row 0 emits 11, so its drafts are 12, 13, 14 and then its own; row 2 emits 20 and has 21 left."""
        replaying, own = self.replaying(), torch.tensor([1, 2, 3, 4])
        drafts = [replaying.draft(own).tolist() for _ in range(4)]
        assert drafts == [[12, 2, 21, 4], [13, 2, 3, 4], [14, 2, 3, 4], [1, 2, 3, 4]]

    def test_parallel_drafters_have_consecutive_rows_for_each_request(self) -> None:
        replaying, own = self.replaying(), torch.arange(12)
        drafts = replaying.draft(own).reshape(4, 3).tolist()
        assert drafts == [[12, 13, 14], [3, 4, 5], [21, 7, 8], [9, 10, 11]]
        assert replaying.draft(torch.arange(4)).tolist() == [0, 1, 2, 3]  # the text of row 0 is over

    def test_the_next_step_starts_anew(self) -> None:
        replaying = self.replaying()
        replaying.draft(torch.tensor([1, 2, 3, 4]))
        replaying._runner.requests["r0"].output_token_ids.append(11)
        sampled = torch.zeros(4, 4, dtype=torch.int32)
        replaying.emit(sampled)
        assert sampled[0, 0] == 12 and replaying.draft(torch.tensor([1, 2, 3, 4]))[0] == 13

    def test_keeps_dtype(self) -> None:
        assert self.replaying().draft(torch.zeros(4, dtype=torch.int32)).dtype == torch.int32


class TestVerify:
    def test_each_draft_is_held_against_the_token_due_in_its_place(self) -> None:
        """Row 0 has 1 token out, so its drafts stand for 11, 12, ...; row 2 has two tokens left for three drafts."""
        vocabulary = 40
        replaying = Replay(runner(*TEXTS[:3]))
        counts = [3, 2, 3]
        generator = torch.Generator().manual_seed(1)
        logits, q = torch.randn(8, vocabulary, generator=generator), torch.rand(8, vocabulary, generator=generator)
        q = q / q.sum(1, keepdim=True)
        replaying.hear(Step(["r0", "r1", "r2"], counts, torch.zeros(8, dtype=torch.int32), logits, q, False))
        drained = replaying.drain()
        assert drained["requests"] == ["r0", "r1", "r2"] and drained["counts"] == counts
        due, p = [11, 12, 13, None, None, 20, 21, None], logits.softmax(-1)
        expected = [NAN if x is None else min(1.0, float(q[row, x] / p[row, x])) for row, x in enumerate(due)]
        found = np.frombuffer(drained["values"], np.float32).reshape(5, -1)
        np.testing.assert_allclose(found[0], expected, rtol=1e-5)
        assert found[1].tolist() == [1, 1, 1, 3, 3, 0, 0, 0]
        at_start = [float(p[0, 11]), NAN, NAN, NAN, NAN, float(p[5, 20]), NAN, NAN]
        np.testing.assert_allclose(found[2], at_start, rtol=1e-5)
        assert (np.isnan(found[3:]) == np.isnan(at_start)).all()


@pytest.mark.parametrize(("v2", "asynchronous"), [(True, False), (False, True)])
def test_runners_that_cannot_replay_are_refused(v2: bool, asynchronous: bool) -> None:
    config = SimpleNamespace(use_v2_model_runner=v2)
    with pytest.raises(NotImplementedError, match="V1 runner without async"):
        replay.start(runner(vllm_config=config, use_async_scheduling=asynchronous))


def test_started_it_replaces_what_is_sampled_and_drafted_and_records_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.sample import rejection_sampler

    from vllm_patches.patches import v1_draft_sampling

    monkeypatch.setattr(rejection_sampler, "rejection_sample", lambda *_: torch.tensor([[1, 2, 3]]))
    monkeypatch.setattr(v1_draft_sampling, "choose", None)
    config = SimpleNamespace(use_v2_model_runner=False)
    made = runner(([5, 6, 7, 8], 1), vllm_config=config, use_async_scheduling=False)
    sampling = SimpleNamespace(all_greedy=False, all_random=True)

    def sample() -> Any:
        drafts, logits = torch.tensor([6, 0], dtype=torch.int32), torch.zeros(2, 10)
        tokens = rejection_sampler.rejection_sample(drafts, [2], 2, torch.tensor([2]), None, logits, None, sampling)
        return SimpleNamespace(sampled_token_ids=tokens)

    made._sample = sample
    for _ in range(2):  # once more: still one replay
        TAP.add("replay", replay.start, made)
    assert made._sample().sampled_token_ids.tolist() == [[6, -1, -1]]
    assert v1_draft_sampling.choose is not None
    assert v1_draft_sampling.choose(torch.tensor([0])).tolist() == [7]
    drained = TAP.drain("replay")
    assert drained["requests"] == ["r0"]
    assert np.frombuffer(drained["values"], np.float32).reshape(5, -1)[0].tolist() == [1.0, 0.0]
    TAP.remove("replay")
    assert made._sample is sample and v1_draft_sampling.choose is None
    assert made._sample().sampled_token_ids.tolist() == [[1, 2, 3]]
