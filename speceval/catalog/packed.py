"""Drafters that come with the project: EAGLE-3, MEDUSA or MLP speculator in one small file -> a checkpoint directory
that vLLM loads.

Matrices are stored as int8 with a scale for each row, or as their difference from another stored drafter in half a
byte with a scale for each few columns (drafters of one warm-up are near each other, so that is little coarser); the
output map is the target's own, in the rows of the draft vocabulary; token embeddings are the target's anyway. What is
measured is what the file gives, so rounding is part of the drafter, not an error of the measurement.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speceval.errors import UserError
from speceval.files import save_tensors

if TYPE_CHECKING:
    from torch import Tensor

LEVELS, DIFFERENCE_LEVELS = 127, 7
GROUP = 32
"""Columns of a difference that share a scale; a matrix has a multiple of it."""
SCALE = ".row_scale"
MLP_HEADS = 5
"""Of a stored MLP speculator, which are all the same; how many there are is in the weight that the state has."""
OWN_ROWS = "drafts_own_rows_alone"
"""Field of a config.json: tokens whose rows of the output map are all the same are as good as never drafted."""
ROPE_THETA = 10000.0
"""The drafter's own attention, whatever the target's."""


def pack(tensors: dict[str, Tensor], base: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Matrices as int8, nearest level, and their `row_scale`; vectors as they are, in float32.

    base: another drafter's `unpacked` tensors; then matrices are differences from its, two columns in a byte.
    """
    import torch

    packed = {}
    for name, values in tensors.items():
        values = values.detach().float()
        if values.ndim != 2:
            packed[name] = values.contiguous()
            continue
        if base is None:
            scale = values.abs().amax(1).clamp_min(1e-12) / LEVELS
            packed[name] = (values / scale[:, None]).round().to(torch.int8)
            packed[name + SCALE] = scale
        else:
            groups = (values - base[name]).unflatten(1, (-1, GROUP))
            scale = (groups.abs().amax(2) / DIFFERENCE_LEVELS).clamp_min(1e-7).half()
            levels = (groups / scale.float()[..., None]).round().clamp(-DIFFERENCE_LEVELS, DIFFERENCE_LEVELS)
            packed[name] = _halves(levels.flatten(1).to(torch.int8))
            packed[name + SCALE] = scale
    return packed


def _halves(levels: Tensor) -> Tensor:
    import torch

    above = (levels + 8).to(torch.uint8)
    return above[:, 0::2] | above[:, 1::2] << 4


def _whole(halves: Tensor) -> Tensor:
    import torch

    return torch.stack((halves & 15, halves >> 4), dim=-1).flatten(1).float() - 8


def unpacked(packed: dict[str, Tensor], base: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """float32 again; what is neither a matrix nor a vector of the drafter is left out. `base`: as `pack`'s."""
    beside = ("draft_ids", "stream_scale", "aux_layers")
    tensors = {}
    for name, values in packed.items():
        if name.endswith(SCALE) or name in beside:
            continue
        if name + SCALE in packed:
            scale = packed[name + SCALE].float()[..., None]
            if base is None:
                values = values.float() * scale
            else:
                values = base[name] + (_whole(values).unflatten(1, (-1, GROUP)) * scale).flatten(1)
        tensors[name] = values
    return tensors


def based_on(base: Path) -> dict[str, str]:
    """Metadata of a file that holds differences from the drafter in `base`, which lies beside it."""
    return {"base": base.name, "base_sha256": hashlib.sha256(base.read_bytes()).hexdigest()}


def read(stored: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The drafter's tensors, and all that the file holds. Raises UserError if its base is another than it was."""
    from safetensors import safe_open
    from safetensors.torch import load_file

    with safe_open(stored, framework="pt") as file:
        metadata = file.metadata() or {}
    packed = load_file(stored)
    if "base" not in metadata:
        return unpacked(packed), packed
    base = stored.with_name(metadata["base"])
    if not base.is_file() or based_on(base) != metadata:
        raise UserError(f"{stored}: made of differences from {base}, which is not there or was changed")
    return unpacked(packed, read(base)[0]), packed


def write_checkpoint(stored: Path, target: Path, directory: Path) -> None:
    """Write the drafter in `stored` for the target checkpoint in `target`, in bfloat16.

    `stored`: `pack`ed tensors; `draft_ids` [D] in increasing order; of EAGLE-3 also `aux_layers`, whose streams it
    reads, and `stream_scale` [3 * hidden], by which these were divided in training: it goes into `fc`.
    """
    import torch
    from safetensors import safe_open

    tensors, packed = read(stored)
    ids = packed["draft_ids"].long()
    with safe_open(target / "model.safetensors", framework="pt") as file:
        embeddings = file.get_tensor("model.embed_tokens.weight")
    facts = json.loads((target / "config.json").read_text(encoding="utf-8"))
    vocabulary_map = {}
    if "aux_layers" in packed:
        tensors["lm_head.weight"] = embeddings[ids]
        tensors["fc.weight"] /= packed["stream_scale"]
        inside = torch.zeros(len(embeddings), dtype=torch.bool)
        inside[ids] = True
        vocabulary_map = {"d2t": ids - torch.arange(len(ids)), "t2d": inside}
        config = _eagle3(facts, tensors, packed["aux_layers"].tolist())
    elif "token.weight" in tensors:
        tensors = _multiplied_out(tensors, embeddings, ids)
        config = _mlp(facts, tensors)
    else:
        # vLLM 0.32 refuses a checkpoint with a token_map. A logit of 0 is as good as none: the log of the sum is 26.
        tensors["lm_head.weight"] = torch.zeros_like(embeddings)
        tensors["lm_head.weight"][ids] = embeddings[ids]
        config = _medusa(facts, tensors)
    weights = {name: values.bfloat16().contiguous() for name, values in tensors.items()}
    save_tensors(directory / "model.safetensors", weights | vocabulary_map, {"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def _eagle3(target: dict[str, Any], tensors: dict[str, Tensor], aux_layers: list[int]) -> dict[str, Any]:
    own = {
        "architectures": ["LlamaForCausalLMEagle3"],
        "tie_word_embeddings": False,
        "intermediate_size": len(tensors["midlayer.mlp.gate_proj.weight"]),
        "num_hidden_layers": 1,
        "num_key_value_heads": target["num_attention_heads"],
        "rope_theta": ROPE_THETA,
        "draft_vocab_size": len(tensors["lm_head.weight"]),
        "target_hidden_size": target["hidden_size"],
        "eagle_aux_hidden_state_layer_ids": aux_layers,
    }
    return target | own


CONSTANT, COLUMNS, OUTSIDE = 3.0, 8, -30.0
"""An MLP speculator's states get so many columns more, of which the first is gelu(`CONSTANT`), and the output map's
rows outside its draft vocabulary have `OUTSIDE` there: a logit of -90, so that none of them is drafted."""


def _multiplied_out(tensors: dict[str, Tensor], embeddings: Tensor, ids: Tensor) -> dict[str, Tensor]:
    """An MLP speculator under the checkpoint's names: token embeddings and output map are the target's times a matrix.

    With tied weights there is one of each, and a projection more for the first head. The root mean square of a state
    with more columns, all 0, is less by `shrink`, and the newest token's weight is more by its inverse.
    """
    import torch
    from torch.nn.functional import pad

    size = len(tensors["token.weight"])
    shrink = (size / (size + COLUMNS)) ** 0.5
    head = torch.zeros(len(embeddings), size + COLUMNS)
    head[:, size] = OUTSIDE
    head[ids] = pad(embeddings[ids].float() @ tensors["out.weight"], (0, COLUMNS))
    bias = pad(tensors["ln.bias"], (0, COLUMNS))
    bias[size] = CONSTANT
    named = {
        "emb.0.weight": pad(embeddings.float() @ tensors["token.weight"].T * shrink, (0, COLUMNS)),
        "proj.0.weight": pad(tensors["first.weight"], (0, 0, 0, COLUMNS)),
        "proj.1.weight": pad(tensors["next.weight"], (0, COLUMNS, 0, COLUMNS)),
        "ln.0.weight": pad(tensors["ln.weight"] * shrink, (0, COLUMNS)),
        "ln.0.bias": bias,
        "head.0.weight": head,
    }
    return {f"speculator.{name}": values for name, values in named.items()}


def _mlp(target: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {
        "architectures": ["MLPSpeculatorPreTrainedModel"],
        "model_type": "mlp_speculator",
        "torch_dtype": "bfloat16",
        "vocab_size": target["vocab_size"],
        "emb_dim": target["hidden_size"],
        "inner_dim": len(tensors["speculator.proj.0.weight"]),
        "n_predict": MLP_HEADS,
        "n_candidates": 1,
        "top_k_tokens_per_head": [1] * MLP_HEADS,
        "tie_weights": True,
        "scale_input": True,
        OWN_ROWS: True,
    }


def _medusa(target: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    # One output map for all heads is what vLLM calls the original one.
    return {
        "architectures": ["MedusaModel"],
        "model_type": "medusa",
        "torch_dtype": "bfloat16",
        "hidden_size": target["hidden_size"],
        "vocab_size": target["vocab_size"],
        "truncated_vocab_size": len(tensors["lm_head.weight"]),
        "num_heads": sum(name.endswith(".weight") and name.startswith("blocks.") for name in tensors),
        "num_hidden_layers": 1,
        "medusa_fc_bias": any(name.endswith(".bias") for name in tensors),
        "original_lm_head": True,
        OWN_ROWS: True,
    }
