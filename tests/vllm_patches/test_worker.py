"""What several workers answer, as one; nothing but names and plain data crosses between processes."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vllm_patches import worker
from vllm_patches.state import SWITCHES


class Workers:
    """`vllm.LLM.collective_rpc` of worker extensions in this process; what is sent must survive as JSON."""

    def __init__(self, *extensions: Any) -> None:
        self.extensions = extensions
        self.asked: list[str] = []

    def collective_rpc(self, method: str, args: tuple[Any, ...] = ()) -> list[Any]:
        assert type(method) is str and json.loads(json.dumps(args)) == list(args)
        self.asked.append(method)
        return [getattr(extension, method)(*args) for extension in self.extensions]


def answers(**methods: list[Any]) -> Workers:
    """Workers whose answers are given, in turn."""
    count = len(next(iter(methods.values())))
    return Workers(
        *(
            SimpleNamespace(**{name: (lambda *_, a=given[i]: a) for name, given in methods.items()})
            for i in range(count)
        )
    )


def drained(values: list[float], sums: bool = True) -> dict[str, Any]:
    found = {"requests": ["a"], "counts": [len(values)], "values": np.array(values, np.float32).tobytes()}
    return found | ({"sums": worker.recorder_sums(found)} if sums else {})


def test_what_was_recorded_comes_from_the_rank_whose_tokens_vllm_returns() -> None:
    """Two pipeline stages of two ranks: the first stage samples nothing, the second rank sends its sums alone."""
    first = drained([0.5, 0.25])
    found = worker.drain_tap(answers(drain_tap=[None, None, first, {"sums": first["sums"]}]), "overlap")
    assert found["values"] == first["values"] and found["requests"] == ["a"]
    assert worker.drain_tap(answers(drain_tap=[drained([0.5], sums=False)]), "overlap")["counts"] == [1]


@pytest.mark.parametrize(
    ("values", "same"),
    [
        ([0.5, 0.25], True),
        ([0.5000001, 0.25], True),
        ([0.50001, 0.25], False),
        ([0.5, np.nan], False),
        ([0.5], False),
        ([0.5, 0.3], False),
    ],
)
def test_ranks_that_verified_other_drafts_are_an_error(values: list[float], same: bool) -> None:
    workers = answers(drain_tap=[drained([0.5, 0.25]), {"sums": drained(values)["sums"]}])
    if same:
        worker.drain_tap(workers, "overlap")
    else:
        with pytest.raises(worker.Disagreement, match="rank 1 verified other drafts than rank 0"):
            worker.drain_tap(workers, "overlap")


def test_steps_are_counted_by_the_ranks_that_sample_and_these_must_agree() -> None:
    counts = {"steps_with_q": 3}
    assert worker.ask_counts(answers(draft_counts=[None, counts, dict(counts)])) == counts
    with pytest.raises(worker.Disagreement, match="rank 1 counted other verify steps"):
        worker.ask_counts(answers(draft_counts=[counts, {"steps_with_q": 4}]))


def test_a_listener_that_one_worker_cannot_start_is_said() -> None:
    assert worker.start_tap(answers(start_tap=["", ""]), "overlap") == ""
    assert worker.start_tap(answers(start_tap=["", "not here"]), "overlap") == "not here"


def extension(**fields: Any) -> Any:
    """The worker extension as vLLM mixes it in, over as much of a worker as it reads."""
    made = worker.Extension()
    model = SimpleNamespace(dtype="torch.float32", quantization=None, max_model_len=64, enforce_eager=True)
    drafter = SimpleNamespace(max_model_len=32)
    config = SimpleNamespace(
        speculative_config=SimpleNamespace(
            method="eagle3",
            model="drafter",
            num_speculative_tokens=3,
            draft_sample_method="probabilistic",
            rejection_sample_method="standard",
            draft_model_config=drafter,
        ),
        model_config=model,
        cache_config=SimpleNamespace(cache_dtype="auto", enable_prefix_caching=False),
        scheduler_config=SimpleNamespace(max_num_seqs=4, max_num_batched_tokens=8, async_scheduling=None),
        parallel_config=SimpleNamespace(tensor_parallel_size=1, pipeline_parallel_size=1, data_parallel_size=1),
        use_v2_model_runner=False,
        additional_config={},
    )
    vars(made).update({"vllm_config": config, "device": SimpleNamespace(type="cpu"), **fields})
    return made


def test_settings_are_plain_data_and_the_worker_s_own() -> None:
    """vLLM sends nothing else between processes: a subclass of str is refused."""
    made = extension()
    settings = made.engine_settings()
    assert {type(value) for value in settings.values()} <= {str, int, bool, type(None)}
    assert (settings["draft_truncation"], settings["max_model_len"], settings["k"]) == (True, 32, 3)
    made.vllm_config.additional_config = {"draft_truncation": False}
    assert made.engine_settings()["draft_truncation"] is False
    made.vllm_config.additional_config, made.vllm_config.use_v2_model_runner = {"draft_truncation": True}, True
    assert made.engine_settings()["draft_truncation"] is False  # V2's patches are not active here


def test_an_engine_without_a_drafter_has_settings_too() -> None:
    made = extension()
    made.vllm_config.speculative_config = None
    settings = made.engine_settings()
    assert (settings["method"], settings["k"], settings["max_model_len"]) == ("none", 0, 64)


def test_the_switches_that_a_worker_found_are_those_of_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SWITCHES:
        monkeypatch.delenv(name, raising=False)
    workers = Workers(extension())
    assert worker.ask_disobedience(workers, dict.fromkeys(SWITCHES)) == ""
    monkeypatch.setenv("SPECEVAL_PATCHES", "0")
    assert "SPECEVAL_PATCHES='0'" in worker.ask_disobedience(workers, dict.fromkeys(SWITCHES))
    assert workers.asked == ["patch_status", "patch_switches"] * 2


def test_listeners_start_by_name_and_a_worker_says_who_hears() -> None:
    from vllm.v1.sample import rejection_sampler

    plain = rejection_sampler.rejection_sample
    runner = SimpleNamespace(vllm_config=SimpleNamespace(use_v2_model_runner=False), use_async_scheduling=True)
    workers = Workers(extension(model_runner=runner))
    try:
        assert worker.start_tap(workers, worker.OVERLAP) == worker.start_tap(workers, worker.EVIDENCE) == ""
        assert worker.ask_taps(workers) == [["evidence", "overlap"]]
        assert "async_scheduling=false" in worker.start_tap(workers, worker.REPLAY)
        worker.stop_tap(workers, worker.OVERLAP)
        assert worker.ask_taps(workers) == [["evidence"]]
        rejection_sampler.rejection_sample = plain  # whatever undid it: nobody hears now
        assert worker.ask_taps(workers) == [[]]
    finally:
        rejection_sampler.rejection_sample = plain
        worker.stop_tap(workers)
    assert worker.ask_taps(workers) == [[]] and rejection_sampler.rejection_sample is plain


def test_every_worker_s_drafter_forgets_what_was_answered_before() -> None:
    """Names as Arctic Inference's suffix memory has them; a drafter without one has nothing to forget."""

    class Memory:
        def __init__(self) -> None:
            self.active_requests, self.cached_requests = {"last": 0}, {"first": 0, "last": 1}

        def stop_request(self, name: str) -> None:
            del self.active_requests[name]

        def evict_cached_response(self, name: str) -> None:
            del self.cached_requests[name]

    memories = [Memory(), Memory()]
    drafters = [SimpleNamespace(suffix_cache=memory) for memory in memories]
    extensions = [worker.Extension() for _ in range(4)]
    for extension, drafter in zip(extensions, [*drafters, SimpleNamespace(), None], strict=True):
        extension.model_runner = SimpleNamespace(drafter=drafter)
    worker.forget_drafts(Workers(*extensions))
    assert [(len(memory.active_requests), len(memory.cached_requests)) for memory in memories] == [(0, 0), (0, 0)]
