"""Replay in the worker: what is kept by hand, and that each request gets its own text's next tokens."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.reads import NobodyWaits

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


@pytest.mark.parametrize("sampled", [True, False])
def test_a_drafter_whose_draws_cannot_be_set_is_refused_unless_it_draws_nothing(sampled: bool) -> None:
    """DSpark's next draft depends on the one before: along its own drafts, not the text, it would be measured."""
    live = RunnerV2()
    live.speculator._sample_logits = live.speculator.sample_draft  # type: ignore[attr-defined]
    if not sampled:
        live.speculator.draft_logits = None  # type: ignore[assignment]
        assert isinstance(replay.start(live), replay.ReplayV2)
        return
    with pytest.raises(NotImplementedError, match="draws by itself: --drafting greedy"):
        replay.start(live)


class Speculator:
    """It drafts 7."""

    draft_logits = torch.zeros(1)

    def __init__(self, device: str) -> None:
        self._device = device

    def sample_draft(self) -> torch.Tensor:
        return torch.tensor([7, 7, 7]).to(self._device)


class RunnerV2:
    """As much of vLLM's V2 runner as replay touches: it samples 9 and 8 everywhere, and counts what is out."""

    def __init__(self, device: str = "cpu") -> None:
        model = SimpleNamespace(enforce_eager=True)
        self.vllm_config = SimpleNamespace(use_v2_model_runner=True, model_config=model)
        self.speculator = Speculator(device)
        self.req_states = SimpleNamespace(
            max_num_reqs=5,
            device=torch.device(device),
            req_id_to_index={},
            total_len=SimpleNamespace(gpu=torch.zeros(5, dtype=torch.int32, device=device)),
        )
        self.added: list[str] = []

    def add_requests(self, scheduled: Any) -> None:
        """A request gets the last place that is free, as in vLLM; one that is there again another one."""
        places = self.req_states.req_id_to_index
        for new in scheduled.scheduled_new_reqs:
            places.pop(new.req_id, None)
            places[new.req_id] = max(set(range(5)) - set(places.values()))
            self.req_states.total_len.gpu[places[new.req_id]] = len(new.prefill_token_ids)
            self.added.append(new.req_id)

    def come(self, given: dict[str, Any], out: int = 0) -> None:
        """Requests come in with a prompt of three tokens and their texts (None: without), of which some are out."""
        new = [
            SimpleNamespace(
                req_id=name,
                sampling_params=SimpleNamespace(extra_args=text and {TEXT: text}),
                prompt_len=3,
                prefill_token_ids=[1] * (3 + out),
            )
            for name, text in given.items()
        ]
        self.add_requests(SimpleNamespace(scheduled_new_reqs=new, finished_req_ids=set()))

    def sample(self, hidden_states: Any, batch: Any, grammar: Any) -> Any:
        device = self.req_states.device
        number = torch.tensor(batch.numbers, dtype=torch.int32).to(device)
        rejected = torch.from_numpy(np.diff(batch.cu_num_logits_np)).to(device) - number
        return SimpleNamespace(sampled_token_ids=torch.tensor([[9, 8, 8]] * len(number)).to(device)), number, rejected

    def step(self, names: str, drafts: int, *numbers: int) -> tuple[torch.Tensor, ...]:
        """Tokens, how many count, how many are taken back, and two drafts of each, of one step of the requests."""
        starts = np.arange(len(names) + 1) * (drafts + 1)
        batch = SimpleNamespace(req_ids=list(names), cu_num_logits_np=starts, numbers=list(numbers))
        output, number, rejected = self.sample(None, batch, None)
        rows = [self.req_states.req_id_to_index[name] for name in names]
        self.req_states.total_len.gpu[rows] += number  # as vLLM does before it drafts
        return output.sampled_token_ids, number, rejected, *(self.speculator.sample_draft() for _ in range(2))


def test_on_the_v2_runner_each_step_emits_the_texts_next_token_and_takes_all_drafts_back() -> None:
    live = RunnerV2()
    given = {"a": [10, 11, 12, 13], "b": None, "c": [20, 21]}
    replaying = replay.start(live)
    live.come(given)

    def due(names: str) -> list[int]:
        return replaying.standing(list(names), torch.device("cpu")).due([1] * len(names)).tolist()

    def step(drafts: int, *numbers: int) -> tuple[list[Any], list[list[int]]]:
        tokens, number, rejected, *own = live.step("abc", drafts, *numbers)
        kept_tokens = [row[:n] for row, n in zip(tokens.tolist(), number.tolist(), strict=True)]
        return [kept_tokens, rejected.tolist()], [drawn.tolist() for drawn in own]

    # The prompt of c is not done: it emits nothing, and stands where it stood.
    assert step(0, 1, 1, 0) == ([[[10], [9], []], [0, 0, 1]], [[11, 7, 21], [12, 7, 7]])
    assert due("abc") == [11, NO_TOKEN, 20]
    assert step(2, 3, 2, 1)[0] == [[[11], [9, 8], [20]], [2, 1, 2]]
    live.come({"a": given["a"]}, out=2)  # preempted, and there again, at another place
    emitted, drafts = step(2, 3, 1, 3)
    assert emitted == [[[12], [9], [21]], [2, 2, 2]] and drafts == [[13, 7, 7], [7, 7, 7]]
    assert step(2, 3, 1, 3)[0][0] == [[13], [9], [9, 8, 8]]  # the text of c is over
    live.come({"a": given["a"]}, out=1)  # two of its steps were thrown away
    assert due("abc") == [11, NO_TOKEN, NO_TOKEN]
    live.come({"c": None, "d": [*range(30, 40)]})  # a text longer than all before it; c has no text any more
    assert due("abcd") == [11, NO_TOKEN, NO_TOKEN, 30]
    replaying.close()
    assert step(2, 3, 1, 3) == ([[[9, 8, 8], [9], [9, 8, 8]], [0, 2, 0]], [[7, 7, 7]] * 2)
    assert live.added == ["a", "b", "c", "a", "a", "c", "d"]


def test_on_the_v2_runner_each_draft_is_held_against_the_token_due_in_its_place_too() -> None:
    """The same numbers as on V1, for the same texts and tokens that are out."""
    live = RunnerV2()
    on_v2, on_v1 = replay.start(live), Replay(runner(*TEXTS))
    for number, (text, out) in enumerate(TEXTS):
        live.come({f"r{number}": text}, out)
    generator = torch.Generator().manual_seed(2)
    counts = [3, 2, 3, 0]
    logits, q = torch.randn(8, 40, generator=generator), torch.rand(8, 40, generator=generator).softmax(-1)
    step = Step(["r0", "r1", "r2", "r3"], counts, torch.zeros(8, dtype=torch.int32), logits, q, False)
    for replaying in (on_v1, on_v2):
        replaying.hear(step)
    assert on_v1.drain() == on_v2.drain()


def test_nothing_is_read_back_from_the_device_while_texts_are_replayed_on_the_v2_runner() -> None:
    """On the device "meta", which has no values, whatever the host wanted to read would raise."""
    live = RunnerV2("meta")
    with NobodyWaits():
        replaying = replay.start(live)
        live.come({"a": [10, 11, 12, 13], "b": None, "c": [20, 21]})
        tokens = live.step("abc", 0, 1, 1, 0)
        mixed = (True, torch.zeros(5, dtype=torch.bool).to("meta"), False)
        for greedy in mixed:
            replaying.hear(meta_step(["a", "b", "c"], [3, 0, 2], greedy))
        assert all(tensor.device.type == "meta" for tensor in (*tokens, *live.step("abc", 2, 3, 2, 1)))
    with pytest.raises((RuntimeError, NotImplementedError)):
        replaying.drain()


def test_nor_on_the_v1_runner_which_has_told_the_host_what_is_out() -> None:
    replaying = Replay(runner(*TEXTS))
    with NobodyWaits():
        replaying.hear(meta_step(["r0", "r1", "r2", "r3"], [3, 2, 0, 0], False))
        replaying.emit(torch.zeros(4, 4, dtype=torch.int32).to("meta"))
        assert replaying.draft(torch.zeros(4, dtype=torch.int32).to("meta")).device.type == "meta"


def meta_step(names: list[str], counts: list[int], greedy: Any) -> Step:
    drafts, table = torch.zeros(5, dtype=torch.int32).to("meta"), torch.rand(5, 40).to("meta")
    return Step(names, counts, drafts, table, table.clone(), greedy)


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
