"""`v2-heads`, `v2-custom-class`: MEDUSA and the MLP speculator on the V2 runner, which has no drafter for either."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support import live, tiny

from vllm_patches.drafters import engine_arguments
from vllm_patches.patches import v2_custom_class, v2_heads

ALPHA = 1e-8
PROMPT = [3, 7, 11, 5]
SMALL = {"temperature": 0.7, "top_k": 8, "top_p": 0.9}
DRAFTERS = {
    "medusa": (tiny.write_medusa, tiny.medusa_logits),
    "mlp_speculator": (tiny.write_mlp_speculator, tiny.mlp_logits),
}
OURS = SimpleNamespace(method="custom_class", model="vllm_patches.drafters.Medusa")
THEIRS = SimpleNamespace(method="custom_class", model="somebody.Drafter")


def test_vllm_s_own_speculators_are_made_as_before() -> None:
    made = v2_heads.replace(lambda *arguments: arguments)
    for speculative in (SimpleNamespace(method="eagle3", model="a/d"), THEIRS):
        config = SimpleNamespace(speculative_config=speculative)
        assert made(config, "cpu", "states") == (config, "cpu", "states")


@pytest.mark.parametrize(
    ("asked", "speculative", "left"),
    [
        ("1", OURS, ["pipelines"]),
        ("1", THEIRS, ["pipelines", v2_custom_class.NAMED]),
        ("1", None, ["pipelines", v2_custom_class.NAMED]),
        ("", OURS, ["pipelines", v2_custom_class.NAMED]),
    ],
    ids=["ours", "another class", "no drafter", "V2 not asked for"],
)
def test_v2_may_have_drafters_of_ours_where_it_is_asked_for_and_no_others(
    asked: str, speculative: Any, left: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    envs = pytest.importorskip("vllm.envs")
    envs.disable_envs_cache()
    monkeypatch.delenv("VLLM_USE_V2_MODEL_RUNNER", raising=False)
    if asked:
        monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", asked)
    features = v2_custom_class.replace(lambda self: ["pipelines", v2_custom_class.NAMED])
    assert features(SimpleNamespace(speculative_config=speculative)) == left


@pytest.mark.slow
@pytest.mark.engine
class TestLive:
    @pytest.fixture(scope="class")
    def root(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        root = tmp_path_factory.mktemp("v2-heads")
        target = tiny.write_target(root / "target")
        for method, (write, _) in DRAFTERS.items():
            write(root / method, target)
        return root

    @pytest.fixture(scope="class")
    def results(self, root: Path) -> dict[str, Any]:
        runs = [
            live.same(PROMPT, 1500),
            live.same(PROMPT, 700, **SMALL),
            {"prompts": [PROMPT] * 50, "params": [{"temperature": float(i % 2), "max_tokens": 20} for i in range(50)]},
            live.replayed(PROMPT),
        ]
        arguments = live.llm_arguments(root / "target", root / "medusa", "medusa", max_num_batched_tokens=2560)
        jobs = {
            method: live.heard(
                {"llm": arguments | engine_arguments(method, str(root / method), 3), "runs": runs, "env": live.V2}
            )
            for method in DRAFTERS
        }
        return live.engines(root / "jobs", jobs)

    @pytest.mark.parametrize("method", DRAFTERS)
    def test_tokens_follow_the_target_and_drafts_are_accepted_as_p_and_q_say(
        self, root: Path, results: dict[str, Any], method: str
    ) -> None:
        """Joint law of three tokens; P(A >= 1), P(A >= 2) of truncated drafts where the target is truncated."""
        assert "error" not in results[method], results[method].get("error")
        target, drafter = tiny.load(root / "target"), tiny.load(root / method)
        for run, asked in zip(results[method]["runs"], ({"temperature": 1.0}, SMALL), strict=False):
            law = tiny.joint_law(target, PROMPT, 3, **asked).numpy()
            chances = tiny.acceptance_law(target, drafter, PROMPT, 2, draft_logits=DRAFTERS[method][1], **asked)
            tokens, measured = live.fit_tokens(run, law, ALPHA), live.acceptance_p(run, chances)
            print(method, asked, tokens, chances, measured)
            assert tokens.p > ALPHA and min(p for _, p in measured) > ALPHA

    @pytest.mark.parametrize("method", DRAFTERS)
    def test_greedy_requests_beside_sampled_ones_stay_greedy(
        self, root: Path, results: dict[str, Any], method: str
    ) -> None:
        weights, tokens = tiny.load(root / "target"), list(PROMPT)
        for _ in range(20):
            tokens.append(int(tiny.target_forward(weights, torch.tensor([tokens]))[0][0, -1].argmax()))
        assert all(greedy == tokens[-20:] for greedy in results[method]["runs"][2]["tokens"][::2])

    @pytest.mark.parametrize("method", DRAFTERS)
    def test_every_kernel_runs_in_lockstep_and_none_leaves_its_tensors(
        self, results: dict[str, Any], method: str
    ) -> None:
        (kernels,) = results[method]["kernels"]
        assert kernels["fallen_back"] == {} and kernels["strays"] == 0
        assert {"_rejection_kernel", "_gumbel_sample_kernel", "_resample_kernel"} <= kernels["launches"].keys()

    @pytest.mark.parametrize("method", DRAFTERS)
    def test_replayed_requests_say_their_texts_and_nothing_of_ours_waits_for_the_device(
        self, results: dict[str, Any], method: str
    ) -> None:
        live.check_heard(results[method], PROMPT)
