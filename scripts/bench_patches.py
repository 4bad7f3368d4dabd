"""What the patches cost against stock vLLM, side by side in one process on a CPU: `python scripts/bench_patches.py`.

Calls: the draft-sampling and the rejection function alone, stock and patched in turns on the same tables, at several
vocabulary sizes. Engine: one engine with the zoo's target and lk-eagle3 at T=1, whose functions are exchanged between
rounds; `cpu-expand` is active in both, because without it stock output and acceptance mean nothing. Times are per
committed token there. Writes results/bench/patches.json.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

EXCHANGED = ("cpu-rejection", "v1-missing-q", "v1-draft-streams", "v1-draft-sampling")
os.environ["SPECEVAL_PATCHES_SKIP"] = ",".join(EXCHANGED)

from speceval.files import write_whole  # noqa: E402
from speceval.measure import launch, runner  # noqa: E402
from speceval.measure.fingerprint import environment  # noqa: E402
from speceval.measure.job import Job, prepare  # noqa: E402
from speceval.measure.output import output_to  # noqa: E402
from speceval.measure.start import start_engine  # noqa: E402
from speceval.store import Store  # noqa: E402
from vllm_patches.ledger import LEDGER  # noqa: E402

RESULT = Path("results/bench/patches.json")
ROUNDS = 5
K = 7
SHAPES = tuple((vocabulary, batch) for vocabulary in (512, 32_768, 131_072) for batch in (1, 64))
TRUNCATION: dict[str, Any] = {"top_k": 8, "top_p": 0.9}
CONDITIONS = {
    "T=1": {"seeded": False},
    "T=1, seeded requests": {"seeded": True},
    "T=1, top-k 8, top-p 0.9": {"seeded": False, **TRUNCATION},
}


def main() -> None:
    """Measure and write."""
    result: dict[str, Any] = {"command": "python scripts/bench_patches.py", "rounds": ROUNDS, "k": K}
    result |= {
        "environment": environment().model_dump(),
        "engine": list(engine_rows()),
        "calls": list(call_rows()),
    }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    write_whole(RESULT, json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def engine_rows() -> Iterator[dict[str, Any]]:
    """Stock against patched generation for each of CONDITIONS."""
    with tempfile.TemporaryDirectory() as folder, output_to(Path(folder) / "engine.log"):
        job = prepare(
            target="zoo",
            draft="lk-eagle3",
            temperature=1.0,
            suite_names=["demo"],
            seeds=tuple(range(16)),
            batch=64,
            record=False,
            k=K,
            max_tokens=64,
        )
        job = launch.fetch(job)
        with closing(start_engine(job)) as opened:
            engine: Any = opened
            engine.warm_up()
            submit = engine.submit
            functions = exchanged()
            for name, condition in CONDITIONS.items():
                settings = dict(condition)
                seeded = settings.pop("seeded")
                measured = replace(job, spec=job.spec.model_copy(update=settings))

                def without_seed(request_id: str, prompt: list[int], sampling: Any) -> None:
                    submit(request_id, prompt, replace(sampling, seed=None))

                engine.submit = submit if seeded else without_seed
                rounds = []
                for number in range(ROUNDS + 1):
                    for patched in (False, True):
                        with functions(patched):
                            seconds = per_token(engine, measured, Path(folder) / f"{name} {number} {patched}")
                        rounds.append(seconds)
                stock, ours = rounds[2::2], rounds[3::2]  # the first pair warms up
                yield row(stock, ours, condition=name)


def exchanged() -> Callable[[bool], Any]:
    """A context in which the functions of EXCHANGED are stock (False) or patched (True)."""
    patches = [patch for patch in LEDGER if patch.id in EXCHANGED]
    places = []
    for patch in patches:
        owner: Any = import_module(patch.module)
        *path, name = patch.symbol.split(".")
        for part in path:
            owner = getattr(owner, part)
        stock = getattr(owner, name)
        places.append((owner, name, stock, import_module(patch.replacement).replace(stock)))

    @contextmanager
    def use(patched: bool) -> Iterator[None]:
        for owner, name, stock, ours in places:
            setattr(owner, name, ours if patched else stock)
        try:
            yield
        finally:
            for owner, name, stock, _ in places:
                setattr(owner, name, stock)

    return use


def per_token(engine: Any, job: Job, directory: Path) -> float:
    """Seconds for one committed token of the whole suite."""
    progress = runner.Progress(len(runner.plan(job.suites, job.spec)))
    with Store(directory) as store:
        start = time.perf_counter()
        segment = runner.measure(engine, job.spec, job.suites, runner.Template({}, None), store, progress, lambda: None)
        return (time.perf_counter() - start) / segment.tokens


def call_rows() -> Iterator[dict[str, Any]]:
    """Stock against patched calls for each of SHAPES."""
    import torch
    from vllm.platforms import current_platform
    from vllm.v1.sample import rejection_sampler
    from vllm.v1.spec_decode.llm_base_proposer import SpecDecodeBaseProposer

    from vllm_patches.patches import cpu_expand, cpu_rejection, v1_draft_sampling

    torch.set_num_threads(1)
    current_platform.import_kernels()
    current_platform.register_triton_kernel_overrides()
    rejection_sampler.expand_batch_to_tokens = cpu_expand.replace(rejection_sampler.expand_batch_to_tokens)
    reject = rejection_sampler.rejection_sample, cpu_rejection.replace(rejection_sampler.rejection_sample)
    stock_draft = SpecDecodeBaseProposer._sample_from_logits
    draft = stock_draft, v1_draft_sampling.replace(stock_draft)
    config = SimpleNamespace(additional_config={})
    proposer = SimpleNamespace(_enable_probabilistic_draft_probs=True, use_fp64_gumbel=False, vllm_config=config)
    for vocabulary, batch in SHAPES:
        torch.manual_seed(0)
        logits = torch.randn(batch, vocabulary) * 3
        plain = sampling(batch)
        cut = sampling(batch, **TRUNCATION)
        shape: dict[str, Any] = {"vocabulary": vocabulary, "batch": batch}
        for name, metadata in (("drafting", plain), ("drafting, top-k 8, top-p 0.9", cut)):
            calls = [partial(draft_copy, function, proposer, logits, metadata) for function in draft]
            yield row(*timed(calls), call=name, **shape)
        p = torch.randn(batch * K, vocabulary) * 3
        q = (p + torch.randn_like(p)).softmax(-1)
        tokens = q.multinomial(1).squeeze(1).int()
        ends = torch.arange(K, batch * K + 1, K, dtype=torch.int32)
        bonus = torch.zeros(batch, 1, dtype=torch.int32)
        arguments = (tokens, [K] * batch, K, ends, q, p, bonus, plain)
        yield row(*timed([partial(function, *arguments) for function in reject]), call="rejection", **shape)


def draft_copy(function: Callable[..., Any], proposer: Any, logits: Any, metadata: Any) -> None:
    """Draft from a copy of the logits: both functions may write to them."""
    function(proposer, logits.clone(), metadata)


def sampling(batch: int, top_k: int | None = None, top_p: float | None = None) -> Any:
    """The parts of vLLM's SamplingMetadata that are read."""
    import torch

    return SimpleNamespace(
        all_greedy=False,
        all_random=True,
        temperature=torch.ones(batch),
        top_k=None if top_k is None else torch.full((batch,), top_k),
        top_p=None if top_p is None else torch.full((batch,), top_p),
        generators={},
    )


def timed(calls: Sequence[Callable[[], Any]]) -> tuple[list[float], list[float]]:
    """Seconds of each call, taken in turns; enough repetitions that a round takes some 50 ms."""
    start = time.perf_counter()
    calls[0]()
    calls[1]()
    repeat = max(1, int(0.1 / (time.perf_counter() - start)))
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(3 * ROUNDS):
        for call, kept in zip(calls, seconds, strict=True):
            start = time.perf_counter()
            for _ in range(repeat):
                call()
            kept.append((time.perf_counter() - start) / repeat)
    return seconds


def row(stock: list[float], ours: list[float], **what: Any) -> dict[str, Any]:
    """Median ratio of neighbouring rounds, and what it comes from."""
    ratios = [b / a for a, b in zip(stock, ours, strict=True)]
    microseconds = {"stock_us": statistics.median(stock) * 1e6, "patched_us": statistics.median(ours) * 1e6}
    spread = {"ratio": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
    return what | {name: float(f"{value:.4g}") for name, value in (microseconds | spread).items()}


if __name__ == "__main__":
    main()
