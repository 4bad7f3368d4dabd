"""DeepSeek-style MTP on the CPU: patch `cpu-rotary`, and the law and acceptance of a live engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import live, tiny

pytestmark = [pytest.mark.slow]

ALPHA = 1e-8
PROMPT = [3, 7, 11, 5, 20, 1, 9, 14, 2, 17]

ROTATE = """
import json, sys, torch
from vllm.platforms import current_platform
current_platform.import_kernels()
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding
from vllm_patches import register
register()
worst = {}
with set_current_vllm_config(VllmConfig()):
    for pairs in (True, False):
        rotary = RotaryEmbedding(32, 32, 256, 10000, not pairs, torch.float32)
        for heads in (1, 2, 4):
            for flat in (True, False):
                q, k = torch.randn(7, heads, 32), torch.randn(7, 1, 32)
                q, k = (q.flatten(1), k.flatten(1)) if flat else (q, k)
                expected = rotary.forward_native(torch.arange(7), q.clone(), k.clone())
                found = rotary.forward_cpu(torch.arange(7), q.clone(), k.clone())
                error = max(float((a - b).abs().max()) for a, b in zip(expected, found))
                worst[f"{2 if flat else 3}-D, {heads} heads, {pairs}"] = error
print(json.dumps(worst))
"""


def rotation_errors(patches: str) -> dict[str, float]:
    """Largest difference to vLLM's torch code, by shape."""
    environment = os.environ | {"SPECEVAL_PATCHES": patches, "PYTHONDONTWRITEBYTECODE": ""}
    run = subprocess.run([sys.executable, "-c", ROTATE], env=environment, capture_output=True, text=True, check=True)
    errors: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return errors


def test_queries_of_any_shape_are_rotated_as_in_torch() -> None:
    assert max(rotation_errors("1").values()) < 1e-5


def test_the_stock_kernel_rotates_several_heads_wrongly() -> None:
    errors = rotation_errors("0")
    print(errors)
    wrong = {shape for shape, error in errors.items() if error > 0.1}
    assert wrong == {shape for shape in errors if shape.startswith("3-D") and "1 heads" not in shape}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("models")
    target = tiny.write_target(root / "target")
    return target, tiny.write_mtp(root / "layer", target)


@pytest.fixture(scope="module")
def results(models: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    llm = live.llm_arguments(*models, "mtp", hf_overrides=tiny.MTP_OVERRIDES)
    jobs = {
        "patched": {"llm": llm, "runs": [live.same(PROMPT, 3000)]},
        "stock": {
            "llm": llm,
            "runs": [live.same(PROMPT, 6000)],
            "env": {"SPECEVAL_PATCHES_SKIP": "cpu-rotary"},
        },
    }
    return live.engines(tmp_path_factory.mktemp("engines"), jobs)


def theory(models: tuple[Path, Path]) -> list[float]:
    return tiny.acceptance_law(*map(tiny.load, models), PROMPT, 2, 1.0, draft_logits=tiny.mtp_logits)


@pytest.mark.engine
def test_tokens_and_acceptance_follow_theory(models: tuple[Path, Path], results: dict[str, Any]) -> None:
    """Joint law of three tokens (power 0.9 at TV 0.13), and P(A >= 1), P(A >= 2) with standard error 0.009."""
    run = results["patched"]["runs"][0]
    tokens = live.fit_tokens(run, tiny.joint_law(tiny.load(models[0]), PROMPT, 3, 1.0).numpy(), ALPHA)
    chances = theory(models)
    found = live.acceptance_p(run, chances)
    print(tokens, chances, found)
    assert tokens.p > ALPHA
    assert all(p > ALPHA for _, p in found)


@pytest.mark.engine
def test_with_the_stock_kernel_the_drafts_are_those_of_another_model(
    models: tuple[Path, Path], results: dict[str, Any]
) -> None:
    """Lossless all the same: the target is a Llama, which rotates 2-D queries. 0.37 was accepted for 0.31 due."""
    found = live.acceptance_p(results["stock"]["runs"][0], theory(models))
    print(found)
    assert min(p for _, p in found) < 1e-6
