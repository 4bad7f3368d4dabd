"""Does a drafter's checkpoint hold the tensors without which vLLM drafts nonsense, some of them without a word?"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speceval.errors import UserError
from speceval.foreign import json_object
from speceval.protocol import MOST_K

from .config import Config
from .methods import Method

_OF_TRAINERS = ("training_args", "optimizer", "scheduler", "scaler", "rng_state")
"""Pickled files beside a checkpoint's that are none of it."""


def check_tensors(directory: Path, config: Mapping[str, Any], method: Method) -> None:
    """Raise UserError naming the first tensor that is missing from `directory`'s files.

    A directory without such files passes: it is not downloaded yet. What a worker can tell is asked there
    (`vllm_patches.loading`); this comes before an engine is started.
    """
    found = tensor_names(directory)
    missing = next((name for name, pattern in required(config, method) if not _any(pattern, found)), None)
    if found and missing:
        raise UserError(f"{directory}: no tensor {missing} in its files: the checkpoint is not complete")


def required(content: Mapping[str, Any], method: Method) -> list[tuple[str, str]]:
    """What a drafter of `method` must hold: names, and patterns of all spellings that are read.

    EAGLE-3 with a draft vocabulary: vLLM takes a missing `d2t` for the identity, and a missing head is never filled
    (vllm/model_executor/models/llama_eagle3.py). MEDUSA and MLP speculators: `vllm_patches.drafters`.
    """
    top = Config.of(content, "config.json").flat()
    if method == "eagle3" and 0 < (top.integer("draft_vocab_size") or 0) < (top.integer("vocab_size") or 0):
        return [("d2t", r"(^|\.)d2t$"), ("lm_head.weight", r"(^|\.)lm_head\.weight$")]
    if method == "medusa":
        heads = top.integer("num_heads", "medusa_num_heads", most=MOST_K) or 0
        if top.get("original_lm_head"):
            return [("lm_head.weight", r"lm_head(s\.0)?\.weight$")]
        spelled = r"^(medusa_heads\.)?({i}\.\d+|lm_heads\.{i})\.weight$"
        return [(f"lm_heads.{i}.weight", spelled.replace("{i}", str(i))) for i in range(heads)]
    if method == "mlp_speculator":
        heads = 1 if top.get("tie_weights") else top.integer("n_predict", most=MOST_K) or 0
        return [(f"speculator.head.{i}.weight", rf"(^|\.)head\.{i}\.weight$") for i in range(heads)]
    return []


def tensor_names(directory: Path) -> list[str]:
    """Names of all tensors in a directory's safetensors files, or else in its .bin and .pt files.

    Raises UserError for a damaged file, and for a tensor in two of the files that count. Without torch the older kind
    is not read.
    """
    from safetensors import SafetensorError, safe_open

    places: dict[str, Path] = {}
    for path in _counted(directory):
        try:
            with safe_open(path, framework="np") as file:
                names = list(file.keys())
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: not a safetensors file ({error})") from None
        for name in names:
            if name in places:
                told = f"tensor {name} stands in {places[name].name} and in {path.name}"
                raise UserError(f"{directory}: {told}: remove the file that is not the checkpoint's")
            places[name] = path
    return list(places) or [name for path in _pickled(directory) for name in _pickled_names(path)]


def _counted(directory: Path) -> list[Path]:
    """The safetensors files that are loaded: those of the index where there is one, as vLLM takes them."""
    files, index = sorted(directory.glob("*.safetensors")), directory / "model.safetensors.index.json"
    if not index.is_file():
        return files
    named = Config.of(json_object(index), str(index)).part("weight_map").values()
    return [path for path in files if path.name in named] or files


def _pickled(directory: Path) -> list[Path]:
    return sorted(
        path for ending in ("*.bin", "*.pt") for path in directory.glob(ending) if path.stem not in _OF_TRAINERS
    )


def _pickled_names(path: Path) -> list[str]:
    try:
        import torch

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of how it was pickled
            content = torch.load(path, map_location="meta", weights_only=True)
    except Exception:  # whatever unpickling stumbles over: vLLM will say it
        return []
    return [name for name in content if isinstance(name, str)] if isinstance(content, Mapping) else []


def _any(pattern: str, names: list[str]) -> bool:
    return any(re.search(pattern, name) for name in names)
