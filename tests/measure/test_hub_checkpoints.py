"""MEDUSA heads and an MLP speculator in their published formats, loaded by hub id from the hub's own cache."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file
from support import tiny

from speceval.engines.vllm.start import ZOO_ENVIRONMENT

pytestmark = [pytest.mark.engine, pytest.mark.slow]

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def to_cache(home: Path, model: str, checkpoint: Path) -> None:
    """Lay a checkpoint out as a download of `model`'s main branch."""
    entry = home / "hub" / f"models--{model.replace('/', '--')}"
    shutil.copytree(checkpoint, entry / "snapshots" / COMMIT)
    (entry / "refs").mkdir()
    (entry / "refs" / "main").write_text(COMMIT)


def as_published(checkpoint: Path, **changes: Any) -> Path:
    """Change config.json; a value of None takes the field out."""
    file = checkpoint / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
    return checkpoint


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hub cache with a target and three drafters for it."""
    root = tmp_path_factory.mktemp("hub")
    target = tiny.write_tokenizer(tiny.write_target(root / "target"))
    to_cache(root, "tiny/Llama", target)
    to_cache(root, "tiny/MEDUSA-Llama", tiny.write_medusa(root / "medusa", target))
    # As ibm-ai-platform/llama3-8b-accelerator states it: no scale_input, no tie_weights.
    accelerator = tiny.write_mlp_speculator(root / "mlp", target)
    to_cache(root, "tiny/accelerator", as_published(accelerator, scale_input=None, tie_weights=None, n_candidates=5))
    # As ibm-ai-platform/llama3-70b-accelerator does: one set of weights for all but the first projection.
    tied = tiny.write_mlp_speculator(root / "tied", target, inner=tiny.HIDDEN)
    kept = {n: t for n, t in tiny.load(tied).items() if n.split(".")[2] == "0" or n.split(".")[1:3] == ["proj", "1"]}
    save_file(kept, tied / "model.safetensors")
    to_cache(root, "tiny/tied-accelerator", as_published(tied, tie_weights=True))
    return root


@pytest.mark.parametrize(
    "drafter",
    [
        "tiny/MEDUSA-Llama",
        pytest.param("tiny/accelerator", marks=pytest.mark.long),
        pytest.param("tiny/tied-accelerator@main", marks=pytest.mark.long),
    ],
)
def test_a_hub_id_drafts_by_sampling_and_is_verified_exactly(home: Path, tmp_path: Path, drafter: str) -> None:
    arguments = ("--target", "tiny/Llama", "--draft", drafter, "--temp", "1", "--samples", "1500", "--json")
    engine = [f"--engine-arg={name}" for name in ("dtype=float32", "enforce_eager=true", "max_model_len=64")]
    command = [sys.executable, "-m", "speceval", "verify", *arguments, *engine, "--prompt", "bdfc"]
    environment = {**os.environ, **ZOO_ENVIRONMENT, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode in (0, 2), done.stderr  # 2: too few samples to be sure, nothing failed
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["settings"]["drafting"] == "probabilistic" and report["settings"]["k"] == 3
    assert report["missing"] == [] and report["failed"] == 0
    accepted = [check for check in report["checks"] if check["kind"] == "accepted" and "p" in check]
    assert accepted and all(0 < check["observed"] < 1 for check in accepted)
