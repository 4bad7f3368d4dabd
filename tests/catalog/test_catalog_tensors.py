"""A checkpoint that lacks a tensor is refused before an engine starts, naming the tensor."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from speceval.catalog.tensors import check_tensors, tensor_names
from speceval.errors import UserError

EAGLE3 = {"vocab_size": 8, "draft_vocab_size": 6}
MEDUSA = {"num_heads": 2}
MLP = {"n_predict": 2}


def checkpoint(directory: Path, *names: str) -> Path:
    save_file({name: np.zeros(1) for name in names}, directory / "model.safetensors")
    return directory


@pytest.mark.parametrize(
    ("method", "config", "names", "missing"),
    [
        ("eagle3", EAGLE3, ("d2t", "fc.weight"), "lm_head.weight"),
        ("eagle3", EAGLE3, ("lm_head.weight", "fc.weight"), "d2t"),
        ("medusa", MEDUSA, ("blocks.0.layers.0.weight", "lm_heads.0.weight"), "lm_heads.1.weight"),
        ("medusa", MEDUSA, ("0.0.linear.weight", "0.1.weight", "1.0.linear.weight"), "lm_heads.1.weight"),
        ("medusa", MEDUSA | {"original_lm_head": True}, ("blocks.0.layers.0.weight",), "lm_head.weight"),
        ("mlp_speculator", MLP, ("speculator.head.0.weight",), "speculator.head.1.weight"),
        ("mlp_speculator", MLP | {"tie_weights": True}, ("speculator.emb.0.weight",), "speculator.head.0.weight"),
    ],
)
def test_a_missing_tensor_is_named(
    tmp_path: Path, method: Any, config: dict[str, Any], names: tuple[str, ...], missing: str
) -> None:
    with pytest.raises(UserError, match=f"no tensor {missing} "):
        check_tensors(checkpoint(tmp_path, *names), config, method)


@pytest.mark.parametrize(
    ("method", "config", "names"),
    [
        ("eagle3", EAGLE3, ("d2t", "lm_head.weight")),
        ("eagle3", {"vocab_size": 8, "draft_vocab_size": 8}, ("fc.weight",)),
        ("eagle3", {"vocab_size": 8}, ("fc.weight",)),
        ("medusa", MEDUSA, ("lm_heads.0.weight", "lm_heads.1.weight")),
        ("medusa", MEDUSA, ("medusa_heads.0.1.weight", "medusa_heads.1.1.weight")),
        ("medusa", MEDUSA | {"original_lm_head": True}, ("lm_head.weight",)),
        ("mlp_speculator", MLP | {"tie_weights": True}, ("speculator.head.0.weight",)),
        ("draft_model", {}, ("model.norm.weight",)),
    ],
)
def test_whole_checkpoints_pass(tmp_path: Path, method: Any, config: dict[str, Any], names: tuple[str, ...]) -> None:
    check_tensors(checkpoint(tmp_path, *names), config, method)


def test_weights_that_are_not_here_yet_are_not_judged(tmp_path: Path) -> None:
    check_tensors(tmp_path, MEDUSA, "medusa")


def test_pickled_files_and_nested_configs_are_read_too(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(1), "lm_head.weight": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    torch.save({"d2t": torch.zeros(1)}, tmp_path / "optimizer.pt")
    (tmp_path / "notes.bin").write_text("no tensors")
    nested = {"draft_vocab_size": 6, "transformer_layer_config": {"vocab_size": 8}}
    with pytest.raises(UserError, match="no tensor d2t "):
        check_tensors(tmp_path, nested, "eagle3")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors: not a safetensors file"):
        check_tensors(tmp_path, MEDUSA, "medusa")


def test_a_tensor_in_two_files_is_refused_unless_an_index_says_which_counts(tmp_path: Path) -> None:
    for name in ("model", "model-00001-of-00001"):
        save_file({"fc.weight": np.zeros(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(UserError, match=r"fc\.weight stands in model-00001-of-00001\.safetensors and in model\.safe"):
        tensor_names(tmp_path)
    index = {"weight_map": {"fc.weight": "model-00001-of-00001.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert tensor_names(tmp_path) == ["fc.weight"]
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(UserError, match=r"index\.json: not a JSON object"):
        tensor_names(tmp_path)
