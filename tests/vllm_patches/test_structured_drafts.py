"""Patches `v1-draft-streams` and `v1-missing-q` on a live engine: requests with a grammar among free ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support import live, tiny

pytestmark = [pytest.mark.slow, pytest.mark.engine]

ALPHA = 1e-8
PROMPT = [3, 7, 11, 5]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("models")
    target = tiny.write_tokenizer(tiny.write_target(root / "target"))
    return target, tiny.write_eagle3(root / "draft", target)


@pytest.fixture(scope="module")
def results(models: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    llm = live.llm_arguments(*models, "eagle3", skip_tokenizer_init=False)
    params = [{"temperature": 1.0, "max_tokens": 3} | (tiny.LETTERS if i % 2 else {}) for i in range(6000)]
    skip = {"SPECEVAL_PATCHES_SKIP": "v1-draft-streams,v1-missing-q"}
    jobs = {
        "patched": {"llm": llm, "runs": [{"prompts": [PROMPT] * len(params), "params": params}]},
        "stock": {"llm": llm, "runs": [live.same(PROMPT, 5000, **tiny.LETTERS)], "env": skip},
    }
    return live.engines(tmp_path_factory.mktemp("engines"), jobs)


@pytest.mark.parametrize("grammar", [True, False], ids=["grammar", "free"])
def test_tokens_follow_the_target(models: tuple[Path, Path], results: dict[str, Any], grammar: bool) -> None:
    """Joint law of three tokens of 3000 requests each; power 0.9 against a bias of TV 0.13."""
    run = results["patched"]["runs"][0]
    allowed = tiny.ONLY_LETTERS if grammar else tiny.EVERYTHING
    expected = tiny.joint_law(tiny.load(models[0]), PROMPT, 3, 1.0, allowed=allowed)
    found = live.fit_tokens({"tokens": run["tokens"][int(grammar) :: 2]}, expected.numpy(), ALPHA)
    print(found, run["counts"])
    assert found.p > ALPHA


def test_steps_of_requests_with_a_grammar_are_counted_apart(models: tuple[Path, Path], results: dict[str, Any]) -> None:
    """The free ones beside them keep q: their acceptance is the sum of min(p, q), standard error 0.009."""
    run = results["patched"]["runs"][0]
    assert run["counts"]["steps_structured"] > 0
    assert run["counts"]["steps_with_q"] >= 3000
    assert run["counts"]["steps_one_hot"] == 0
    chances = tiny.acceptance_law(*map(tiny.load, models), PROMPT, 2, 1.0)
    found = live.acceptance_p({"accepted": run["accepted"][::2]}, chances)
    print(chances, found)
    assert all(p > ALPHA for _, p in found)


def test_without_the_patches_the_second_token_is_biased(models: tuple[Path, Path], results: dict[str, Any]) -> None:
    second = [tokens[1:2] for tokens in results["stock"]["runs"][0]["tokens"]]
    law = tiny.joint_law(tiny.load(models[0]), PROMPT, 2, 1.0, allowed=tiny.ONLY_LETTERS)
    found = live.fit_tokens({"tokens": second}, law.sum(0).numpy(), ALPHA)
    print(found)
    assert found.p < 1e-10
