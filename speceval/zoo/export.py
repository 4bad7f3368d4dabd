"""Write checkpoint directories that vLLM loads as they are (float32)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from speceval.zoo import draft, eagle3, medusa, mlp, mtp, text
from speceval.zoo.llama import NORM_EPS, ROPE_THETA
from speceval.zoo.recipe import Recipe
from speceval.zoo.target import Target

MAX_POSITIONS = 8192  # long prompts run; what is said there is beyond the training text
OWN_TEXT = "own_text.npz"

# DeepSeek-style MTP drafters read these fields from the target's config; a Llama has no use for them.
MTP_FIELDS = {"num_nextn_predict_layers": 1, "n_group": 1, "n_routed_experts": 4}

# A trap on purpose: a harness that lets these defaults into its runs measures another distribution.
GENERATION = {"do_sample": True, "temperature": 0.3, "top_k": 5}


def save_target(directory: Path, recipe: Recipe, target: Target, tokenizer_json: str) -> None:
    """Write config, weights, tokenizer with chat template, and generation defaults."""
    config = _llama_config(recipe) | MTP_FIELDS
    config |= {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": recipe.layers}
    _write_json(directory / "config.json", config)
    _write_json(directory / "generation_config.json", GENERATION | _special_ids())
    (directory / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(text.tokenizer_config(), encoding="utf-8")
    _save_tensors(directory, target.state_dict())


def load_target(directory: Path, recipe: Recipe) -> Target:
    """The target that `save_target` wrote."""
    from safetensors.torch import load_file

    target = Target(recipe)
    target.load_state_dict(load_file(directory / "model.safetensors"))
    return target.eval()


def save_own_text(directory: Path, tokens: Tensor, sampled: Tensor) -> None:
    """Keep the target's own text (see `target.sample`) beside its weights."""
    np.savez_compressed(directory / OWN_TEXT, tokens=tokens.numpy().astype(np.int16), sampled=sampled.numpy())


def load_own_text(directory: Path) -> tuple[Tensor, Tensor]:
    """Tokens (int64) and sampled (bool), each [rows, length], that `save_own_text` wrote."""
    with np.load(directory / OWN_TEXT) as arrays:
        return torch.from_numpy(arrays["tokens"].astype(np.int64)), torch.from_numpy(arrays["sampled"])


def save_eagle3(directory: Path, recipe: Recipe, drafter: eagle3.Eagle3) -> None:
    """Write config and weights; token embeddings are left out, so that vLLM shares the target's.

    vLLM's silent traps: without the layer ids it reads other layers, without `d2t` the draft ids pass for target ids.
    """
    config = _llama_config(recipe) | {
        "architectures": ["LlamaForCausalLMEagle3"],
        "intermediate_size": recipe.draft_intermediate_size,
        "num_hidden_layers": 1,
        "draft_vocab_size": recipe.draft_vocab_size,
        "target_hidden_size": recipe.hidden_size,
        "eagle_aux_hidden_state_layer_ids": list(eagle3.AUX_LAYERS),
    }
    _write_json(directory / "config.json", config)
    draft_ids = drafter.draft_ids
    inside = torch.zeros(recipe.vocab_size, dtype=torch.bool)
    inside[draft_ids] = True
    vocabulary_map = {"d2t": draft_ids - torch.arange(len(draft_ids)), "t2d": inside}
    _save_tensors(directory, drafter.state_dict() | vocabulary_map)


def save_medusa(directory: Path, recipe: Recipe, drafter: medusa.Medusa) -> None:
    """Write config and weights of MEDUSA heads with one residual block each."""
    config = {
        "architectures": ["MedusaModel"],
        "model_type": "medusa",
        "torch_dtype": "float32",
        "hidden_size": recipe.hidden_size,
        "vocab_size": recipe.vocab_size,
        "truncated_vocab_size": recipe.vocab_size,
        "num_heads": drafter.depth,
        "num_hidden_layers": 1,
        "medusa_fc_bias": False,
        "original_lm_head": False,
    }
    _write_json(directory / "config.json", config)
    _save_tensors(directory, drafter.state_dict())


def save_mlp(directory: Path, recipe: Recipe, drafter: mlp.MLPSpeculator) -> None:
    """Write config and weights of an MLP speculator."""
    config = {
        "architectures": ["MLPSpeculatorPreTrainedModel"],
        "model_type": "mlp_speculator",
        "torch_dtype": "float32",
        "vocab_size": recipe.vocab_size,
        "emb_dim": recipe.hidden_size,
        "inner_dim": recipe.mlp_size,
        "n_predict": drafter.depth,
        "n_candidates": 1,
        "top_k_tokens_per_head": [1] * drafter.depth,
        "tie_weights": False,
        "scale_input": True,
    }
    _write_json(directory / "config.json", config)
    _save_tensors(directory, _prefixed("speculator.", drafter.state_dict()))


def save_mtp(directory: Path, recipe: Recipe, drafter: mtp.MTP) -> None:
    """Write config and weights of an MTP layer, numbered after the target's layers.

    vLLM asks for embeddings and output map, but uses the target's.
    """
    half = drafter.self_attn.half
    config = _llama_config(recipe) | MTP_FIELDS
    del config["head_dim"]  # DeepSeek's has two parts
    config |= {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "intermediate_size": recipe.draft_intermediate_size,
        "num_hidden_layers": recipe.layers,
        "first_k_dense_replace": recipe.layers + 1,  # dense; the expert fields below are asked for all the same
        "moe_intermediate_size": recipe.draft_intermediate_size,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "topk_group": 1,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "norm_topk_prob": True,
        "q_lora_rank": None,
        "kv_lora_rank": recipe.latent_size,
        "qk_nope_head_dim": half,
        "qk_rope_head_dim": half,
        "v_head_dim": 2 * half,
    }
    _write_json(directory / "config.json", config)
    targets = {
        "embed_tokens.weight": drafter.embeddings,
        "shared_head.head.weight": drafter.output_map,
    }
    _save_tensors(directory, _prefixed(f"model.layers.{recipe.layers}.", drafter.state_dict() | targets))


def save_draft(directory: Path, recipe: Recipe, drafter: draft.DraftModel) -> None:
    """Write config and weights of a standalone draft model; it shares the target's tokenizer."""
    sizes = draft.sizes(recipe)
    config = _llama_config(sizes) | {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": sizes.layers}
    _write_json(directory / "config.json", config)
    _save_tensors(directory, drafter.llama.state_dict())


def _llama_config(recipe: Recipe) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "torch_dtype": "float32",
        "vocab_size": recipe.vocab_size,
        "hidden_size": recipe.hidden_size,
        "intermediate_size": recipe.intermediate_size,
        "num_attention_heads": recipe.heads,
        "num_key_value_heads": recipe.heads,
        "head_dim": recipe.hidden_size // recipe.heads,
        "hidden_act": "silu",
        "max_position_embeddings": MAX_POSITIONS,
        "rms_norm_eps": NORM_EPS,
        "rope_theta": ROPE_THETA,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
    } | _special_ids()


def _prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _special_ids() -> dict[str, int]:
    return {"bos_token_id": text.BOS_ID, "eos_token_id": text.EOS_ID, "pad_token_id": text.EOS_ID}


def _save_tensors(directory: Path, tensors: dict[str, Tensor]) -> None:
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, directory / "model.safetensors", metadata={"format": "pt"})


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
