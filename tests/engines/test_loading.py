"""No drafting with noise: what a checkpoint does not fill ends the run by name, what vLLM decided is told."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from speceval.engines.vllm import loading
from speceval.errors import UserError
from speceval.store import read_run

REPORT: dict[str, Any] = {"unfilled": [], "unused": [], "wrong": "", "seen": True, "decided": {}}


def test_what_the_checkpoint_lacks_is_named_and_many_are_counted() -> None:
    loading.check(REPORT, "d")
    with pytest.raises(UserError, match=r"^d: its checkpoint lacks fc\.weight, d2t: vLLM would draft with noise"):
        loading.check(REPORT | {"unfilled": ["fc.weight", "d2t"]}, "d")
    with pytest.raises(UserError, match="t7 and 4 more"):
        loading.check(REPORT | {"unfilled": [f"t{i}" for i in range(12)]}, "d")
    with pytest.raises(UserError, match=r"^d: its d2t"):
        loading.check(REPORT | {"wrong": "its d2t"}, "d")


def test_what_vllm_decided_is_told_and_what_may_surprise_has_a_line_of_its_own() -> None:
    decided = {
        "drafter": "Eagle3LlamaForCausalLM",
        "embedding": "its own",
        "embedding_cosine": 0.0,
        "head": "the target's",
        "auxiliary_layers": [2, 16, 29],
        "auxiliary_layers_named": False,
    }
    lines = loading.notes(REPORT | {"decided": decided, "unused": ["0.0.linear.bias"], "seen": False})
    assert lines[:3] == [
        "drafter as loaded: embedding its own, head the target's, auxiliary layers 2 16 29",
        "the drafter brings its own embedding, unlike the target's (cosine 0.00)",
        "the drafter's config.json names no auxiliary layers: vLLM took its default, 2, 16, 29",
    ]
    assert "left out: 0.0.linear.bias" in lines[3] and "could not be seen" in lines[4]
    assert loading.notes(REPORT) == []
    assert (
        loading.notes(REPORT | {"decided": decided | {"embedding_cosine": 1.0, "auxiliary_layers_named": True}})
        == (lines[:1])
    )


def measured(drafter: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "speceval", "run", "--target", "zoo", "--draft", str(drafter), "--k", "3"]
    command += ["--temp", "1", "--suite", "demo", "--limit", "1", "--max-tokens", "8", "--out", str(out)]
    return subprocess.run(command, env={**os.environ, "COLUMNS": "400"}, capture_output=True, text=True)


def damaged(zoo: Path, into: Path, change: Callable[[dict[str, Any], dict[str, Any]], None], binary: bool) -> Path:
    """A copy of a zoo drafter whose tensors and configuration `change` was applied to."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(zoo, into)
    tensors, config = load_file(into / "model.safetensors"), json.loads((into / "config.json").read_text())
    change(tensors, config)
    (into / "config.json").write_text(json.dumps(config))
    if binary:
        (into / "model.safetensors").unlink()
        torch.save(tensors, into / "pytorch_model.bin")
    else:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, into / "model.safetensors")
    return into


def without(*names: str) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def change(tensors: dict[str, Any], config: dict[str, Any]) -> None:
        for name in [name for name in tensors if name.startswith(names)]:
            del tensors[name]

    return change


def speculators_form(tensors: dict[str, Any], config: dict[str, Any]) -> None:
    """The tensors and settings as the library of that name writes them, without the head of the second MLP part."""
    own = ("draft_vocab_size", "eagle_aux_hidden_state_layer_ids", "target_hidden_size", "architectures")
    inner = {name: config.pop(name) for name in list(config) if name not in own}
    config |= {
        "architectures": ["Eagle3Speculator"],
        "speculators_model_type": "eagle3",
        "norm_before_residual": False,
        "speculators_config": {
            "algorithm": "eagle3",
            "default_proposal_method": "greedy",
            "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": 3}],
            "verifier": {"architectures": ["LlamaForCausalLM"], "name_or_path": "example/zoo"},
        },
        "transformer_layer_config": inner,
    }
    for name in [name for name in tensors if name.startswith("midlayer.")]:
        tensors[name.replace("midlayer.", "layers.0.")] = tensors.pop(name)
    del tensors["layers.0.mlp.down_proj.weight"]


def ids_for_offsets(tensors: dict[str, Any], config: dict[str, Any]) -> None:
    tensors["d2t"] += tensors["d2t"].new_ones(len(tensors["d2t"])).cumsum(0) - 1


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.parametrize(
    ("drafter", "change", "binary", "told"),
    [
        ("lk-eagle3", without("fc."), False, "lacks model.fc.weight"),
        pytest.param("lk-eagle3", speculators_form, False, "mlp.down_proj.weight", marks=pytest.mark.long),
        ("lk-eagle3", ids_for_offsets, True, "its d2t holds the target's token ids"),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_refused_by_the_name_of_what_it_lacks(
    zoo: dict[str, Path],
    tmp_path: Path,
    drafter: str,
    change: Callable[[dict[str, Any], dict[str, Any]], None],
    binary: bool,
    told: str,
) -> None:
    done = measured(damaged(zoo[drafter], tmp_path / "d", change, binary), tmp_path / "run")
    assert done.returncode == 4 and told in done.stderr, done.stderr
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.engine
@pytest.mark.slow
def test_an_own_random_embedding_and_default_layers_are_told_and_on_the_record(
    zoo: dict[str, Path], tmp_path: Path
) -> None:
    import torch

    def change(tensors: dict[str, Any], config: dict[str, Any]) -> None:
        tensors["embed_tokens.weight"] = torch.randn(512, 96, generator=torch.Generator().manual_seed(7)) * 0.02

    done = measured(damaged(zoo["lk-eagle3"], tmp_path / "d", change, False), tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "the drafter brings its own embedding, unlike the target's" in done.stdout + done.stderr
    drafter = read_run(tmp_path / "run").meta.fingerprint.drafter
    assert drafter["embedding"] == "its own" and abs(drafter["embedding_cosine"]) < 0.1
    assert drafter["head"] == "its own" and drafter["auxiliary_layers"] == [1, 2, 3]
