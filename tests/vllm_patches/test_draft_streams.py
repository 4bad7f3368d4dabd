"""Patches `v1-draft-streams` and `v1-draft-sampling` on a live engine: seeds, and truncated drafts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import live, tiny

from vllm_patches.patches import v1_draft_sampling, v1_drafting

ALPHA = 1e-8
PROMPT = [3, 7, 11, 5]
SMALL = {"top_k": 8, "top_p": 0.9}
SEEDS = 1500
OTHER = [[i % tiny.VOCAB] * (2 + i % 5) for i in range(100)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The drafter knows 20 of the target's 24 tokens."""
    root = tmp_path_factory.mktemp("models")
    target = tiny.write_target(root / "target")
    return target, tiny.write_eagle3(root / "draft", target, draft_vocab=20)


@pytest.fixture(scope="module")
def results(models: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    llm = live.llm_arguments(*models, "eagle3", max_num_seqs=256)
    off = "v1-draft-streams,v1-draft-sampling"
    jobs = {
        "patched": {
            "llm": llm,
            "runs": [live.same(PROMPT, 3000, **SMALL), seeded(range(SEEDS)), crowd(300), mixed(2000)],
        },
        "one_by_one": {"llm": llm | {"max_num_seqs": 3}, "runs": [seeded(range(100))]},
        "stock": {"llm": llm, "runs": [seeded(range(300)), crowd(300)], "env": {"SPECEVAL_PATCHES_SKIP": off}},
        "temperature_only": {
            "llm": llm | {"additional_config": {"draft_truncation": False}},
            "runs": [live.same(PROMPT, 3000, **SMALL)],
        },
    }
    return live.engines(tmp_path_factory.mktemp("engines"), jobs)


def seeded(seeds: Any, max_tokens: int = 3) -> dict[str, Any]:
    params = [{"temperature": 1.0, "max_tokens": 12 if seed < 300 else max_tokens, "seed": seed} for seed in seeds]
    return {"prompts": [PROMPT] * len(params), "params": params}


def crowd(count: int) -> dict[str, Any]:
    """The first `count` seeded requests in reverse, each third one beside an unseeded or greedy stranger."""
    run = seeded(reversed(range(count)))
    for i, prompt in enumerate(OTHER):
        run["prompts"].insert(3 * i, prompt)
        run["params"].insert(3 * i, {"temperature": float(i % 2), "max_tokens": 9})
    return run


def mixed(requests: int) -> dict[str, Any]:
    """Every second request is greedy."""
    params = [{"temperature": float(i % 2), "max_tokens": 3} for i in range(requests)]
    return {"prompts": [PROMPT] * requests, "params": params}


def by_seed(run: dict[str, Any], given: dict[str, Any]) -> dict[int, list[int]]:
    """Tokens of the seeded requests of a run."""
    return {p["seed"]: t for p, t in zip(given["params"], run["tokens"], strict=True) if "seed" in p}


def laws(models: tuple[Path, Path], **truncation: Any) -> tuple[np.ndarray, list[float]]:
    target, drafter = map(tiny.load, models)
    return (
        tiny.joint_law(target, PROMPT, 3, 1.0, **truncation).numpy(),
        tiny.acceptance_law(target, drafter, PROMPT, 2, 1.0, **truncation),
    )


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.parametrize(("index", "truncation"), [(0, SMALL), (1, {})], ids=["top-k and top-p", "seeded"])
def test_tokens_and_acceptance_follow_theory(
    models: tuple[Path, Path], results: dict[str, Any], index: int, truncation: dict[str, Any]
) -> None:
    """Joint law of three tokens, P(A >= 1) and P(A >= 2) with q truncated like p; standard error 0.008 and 0.013."""
    law, chances = laws(models, **truncation)
    run = results["patched"]["runs"][index]
    tokens, found = live.fit_tokens(run, law, ALPHA), live.acceptance_p(run, chances)
    print(tokens, chances, found)
    assert tokens.p > ALPHA
    assert all(p > ALPHA for _, p in found)


@pytest.mark.slow
@pytest.mark.engine
def test_the_switch_leaves_the_drafts_untruncated(models: tuple[Path, Path], results: dict[str, Any]) -> None:
    """Lossless as well, with another acceptance: with this random drafter a higher one (0.36 in place of 0.26)."""
    run, (law, truncated) = results["temperature_only"]["runs"][0], laws(models, **SMALL)
    chances = tiny.acceptance_law(*map(tiny.load, models), PROMPT, 2, 1.0, **SMALL, truncated_drafts=False)
    found = live.acceptance_p(run, chances)
    print(chances, found, truncated)
    assert all(p > ALPHA for _, p in found)
    assert live.acceptance_p(run, truncated)[0][1] < ALPHA
    assert live.fit_tokens(run, law, ALPHA).p > ALPHA


@pytest.mark.slow
@pytest.mark.engine
def test_a_seed_gives_the_same_tokens_in_any_company(results: dict[str, Any]) -> None:
    """12 tokens of 300 seeds, in a batch of 256, of 3 and among strangers; 5 % are alike without the patches.

    Rounding depends on the batch's shape, so one request in a hundred may differ.
    """
    patched, stock = results["patched"]["runs"], results["stock"]["runs"]
    first = by_seed(patched[1], seeded(range(SEEDS)))
    for other in (by_seed(patched[2], crowd(300)), by_seed(results["one_by_one"]["runs"][0], seeded(range(100)))):
        alike = np.mean([first[seed] == other[seed] for seed in other])
        print(alike)
        assert alike >= 0.99
    before = by_seed(stock[0], seeded(range(300)))
    assert np.mean([before[seed] == tokens for seed, tokens in by_seed(stock[1], crowd(300)).items()]) < 0.5


@pytest.mark.slow
@pytest.mark.engine
def test_greedy_requests_beside_sampled_ones_stay_greedy(models: tuple[Path, Path], results: dict[str, Any]) -> None:
    run, law = results["patched"]["runs"][3], laws(models)[0]
    weights, tokens = tiny.load(models[0]), list(PROMPT)
    for _ in range(3):
        tokens.append(int(tiny.target_forward(weights, torch.tensor([tokens]))[0][0, -1].argmax()))
    assert all(greedy == tokens[-3:] for greedy in run["tokens"][::2])
    assert live.fit_tokens({"tokens": run["tokens"][1::2]}, law, ALPHA).p > ALPHA


def test_the_draft_stream_is_another_one_in_the_bits_a_cpu_generator_reads() -> None:
    for seed in (0, 1, 42, 2**32 + 1):
        assert v1_drafting.draft_seed(seed) % 2**32 != seed % 2**32
    assert len({v1_drafting.draft_seed(seed) % 2**32 for seed in range(10000)}) > 9990


def test_each_request_of_a_parallel_drafter_draws_all_its_rows_from_its_generator() -> None:
    q = torch.softmax(torch.randn(6, 50, generator=torch.Generator().manual_seed(0)), -1)
    seeds = {0: 5, 2: 7}
    draws = [
        v1_draft_sampling.draw(q, {r: torch.Generator().manual_seed(s) for r, s in seeds.items()}, 2) for _ in range(20)
    ]
    assert all((draw[[0, 1, 4, 5]] == draws[0][[0, 1, 4, 5]]).all() for draw in draws)
    assert any((draw[[2, 3]] != draws[0][[2, 3]]).any() for draw in draws)


@pytest.mark.engine
@pytest.mark.parametrize(
    ("top_k", "top_p"), [([5, 1, 40], None), ([5, 1, 40], [0.9, 0.5, 0.3]), ([5, 200, 7], [1.0, 0.8, 1.0])]
)
def test_truncation_is_vllm_s_own(top_k: list[int], top_p: list[float] | None) -> None:
    """The sort of the largest few leaves the same tokens as vLLM's sort of all, which verifies with p."""
    from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

    from vllm_patches.patches.v1_draft_sampling import truncate

    logits = torch.randn(3, 200, generator=torch.Generator().manual_seed(0)) * 2
    k, p = torch.tensor(top_k), None if top_p is None else torch.tensor(top_p)
    assert torch.equal(truncate(logits.clone(), k, p), apply_top_k_top_p(logits.clone(), k, p))
