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


@pytest.mark.parametrize(
    ("v2", "eager", "asynchronous", "mend"),
    [(True, False, True, "V2 runner needs .*enforce_eager=true"), (False, True, True, "async_scheduling=false")],
)
def test_runners_that_cannot_replay_are_refused_with_the_mend(
    v2: bool, eager: bool, asynchronous: bool, mend: str
) -> None:
    config = SimpleNamespace(use_v2_model_runner=v2, model_config=SimpleNamespace(enforce_eager=eager))
    with pytest.raises(NotImplementedError, match=mend):
        replay.start(runner(vllm_config=config, use_async_scheduling=asynchronous))


class Speculator:
    """It drafts 7."""

    draft_logits = torch.zeros(1)

    def sample_draft(self) -> torch.Tensor:
        return torch.tensor([7, 7, 7])


class RunnerV2:
    """As much of vLLM's V2 runner as replay touches: it samples 9 and 8 everywhere."""

    def __init__(self) -> None:
        model = SimpleNamespace(enforce_eager=True)
        self.vllm_config = SimpleNamespace(use_v2_model_runner=True, model_config=model)
        self.speculator = Speculator()
        self.added: list[str] = []

    def add_requests(self, scheduled: Any) -> None:
        self.added += [new.req_id for new in scheduled.scheduled_new_reqs]

    def sample(self, hidden_states: Any, batch: Any, grammar: Any) -> Any:
        number = torch.tensor(batch.numbers)
        rejected = torch.from_numpy(np.diff(batch.cu_num_logits_np)) - number
        return SimpleNamespace(sampled_token_ids=torch.tensor([[9, 8, 8]] * len(number))), number, rejected


def test_on_the_v2_runner_each_step_emits_the_texts_next_token_and_takes_all_drafts_back() -> None:
    live = RunnerV2()
    given = {"a": [10, 11, 12, 13], "b": None, "c": [20, 21]}

    def come(names: str, out: int = 0, gone: str = "") -> None:
        """Requests with a prompt of three tokens come in, of whose texts some tokens are out; others are done."""
        new = [
            SimpleNamespace(
                req_id=name,
                sampling_params=SimpleNamespace(extra_args=(text := given[name]) and {TEXT: text}),
                prompt_len=3,
                prefill_token_ids=[1] * (3 + out),
            )
            for name in names
        ]
        live.add_requests(SimpleNamespace(scheduled_new_reqs=new, finished_req_ids=set(gone)))

    replaying = replay.start(live)
    come("abc")

    def step(drafts: int, *numbers: int) -> tuple[list[Any], list[list[int]]]:
        starts = np.arange(4) * (drafts + 1)
        batch = SimpleNamespace(req_ids=list(given), cu_num_logits_np=starts, numbers=list(numbers))
        output, number, rejected = live.sample(None, batch, None)
        kept_tokens = [row[:n] for row, n in zip(output.sampled_token_ids.tolist(), number.tolist(), strict=True)]
        return [kept_tokens, rejected.tolist()], [live.speculator.sample_draft().tolist() for _ in range(2)]

    # The prompt of c is not done: it emits nothing, and stands where it stood.
    assert step(0, 1, 1, 0) == ([[[10], [9], []], [0, 0, 1]], [[11, 7, 21], [12, 7, 7]])
    assert replaying.texts(list(given)) == [(given["a"], 1), ([], 1), (given["c"], 0)]
    assert step(2, 3, 2, 1)[0] == [[[11], [9, 8], [20]], [2, 1, 2]]
    come("a", out=2)  # preempted, and there again
    emitted, drafts = step(2, 3, 1, 3)
    assert emitted == [[[12], [9], [21]], [2, 2, 2]] and drafts == [[13, 7, 7], [7, 7, 7]]
    assert step(2, 3, 1, 3)[0][0] == [[13], [9], [9, 8, 8]]  # the text of c is over
    come("a", out=1)  # two of its steps were thrown away
    assert replaying.texts("a") == [(given["a"], 1)]
    come("", gone="ac")
    assert replaying.texts(list(given)) == [([], 0), ([], 5), ([], 0)]
    replaying.close()
    assert step(2, 3, 1, 3) == ([[[9, 8, 8], [9], [9, 8, 8]], [0, 2, 0]], [[7, 7, 7]] * 2)
    assert live.added == ["a", "b", "c", "a", "a"]


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
