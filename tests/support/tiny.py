"""Tiny random checkpoints that vLLM loads on a CPU, and their exact laws in plain float32 torch.

A Llama target and drafters for it, without tokenizer (`skip_tokenizer_init=True`, `prompt_token_ids`).
The EAGLE-3 drafter passes the newest token's embedding on to the target's own head, so it is a noisy bigram model of
the target and its acceptance is middling. All weights follow from the seed.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

VOCAB, HIDDEN, HEADS, HEAD_DIM, LAYERS, MLP = 24, 64, 2, 32, 3, 128
EPS, ROPE_THETA = 1e-5, 10000.0
LORA = 16  # rank of the MTP layer's keys and values
MTP_OVERRIDES = {"num_nextn_predict_layers": 1, "n_group": 1, "n_routed_experts": 4}
"""What vLLM's MTP code reads from the target's configuration (`hf_overrides`)."""
AUX_LAYERS = (1, 2, 3)  # the drafter reads the residual stream after these many target layers
EVERYTHING = slice(None)
LETTERS = {"regex": "[a-l]{8}"}
"""A grammar for `write_tokenizer`'s vocabulary, as `live` takes it."""
ONLY_LETTERS = slice(2, 14)
"""The token ids that `LETTERS` allows."""

Weights = dict[str, Tensor]


# ------------------------------------------------------------------------------------------------ checkpoints


def write_target(path: Path, *, vocab: int = VOCAB, layers: int = LAYERS, seed: int = 0) -> Path:
    """Write a Llama target to directory `path` (config.json, model.safetensors) and return it."""
    draw = torch.Generator().manual_seed(seed)
    weights = {
        "model.embed_tokens.weight": _normal(draw, vocab, HIDDEN, scale=1.0),
        "model.norm.weight": torch.ones(HIDDEN),
        "lm_head.weight": _normal(draw, vocab, HIDDEN, scale=1.5 / HIDDEN**0.5),  # logits have deviation 1.5
    }
    for layer in range(layers):
        weights |= _decoder_layer(draw, f"model.layers.{layer}.", HIDDEN)
    return _write(path, weights, _llama_config(vocab, layers, "LlamaForCausalLM"))


def write_eagle3(path: Path, target: Path, *, draft_vocab: int = VOCAB, seed: int = 1) -> Path:
    """Write an EAGLE-3 drafter for the checkpoint in `target` to directory `path` and return it.

    With `draft_vocab` below the target's vocabulary the drafter proposes only the last `draft_vocab` token ids.
    """
    draw = torch.Generator().manual_seed(seed)
    weights = _decoder_layer(draw, "midlayer.", 2 * HIDDEN)
    own_embedding = torch.cat([torch.eye(HIDDEN), torch.zeros(HIDDEN, HIDDEN)], dim=1)
    for name in "qkv":  # equal queries and keys: each position attends mostly to itself
        weights[f"midlayer.self_attn.{name}_proj.weight"] = own_embedding.clone()
    weights["midlayer.self_attn.o_proj.weight"] = torch.eye(HIDDEN)
    head = load(target)["lm_head.weight"]
    cut = len(head) - draft_vocab
    weights |= {
        "midlayer.hidden_norm.weight": torch.ones(HIDDEN),
        "norm.weight": torch.ones(HIDDEN),
        "fc.weight": _normal(draw, HIDDEN, 3 * HIDDEN, scale=0.4 / (3 * HIDDEN) ** 0.5),
        "lm_head.weight": head[cut:].clone(),
    }
    if cut:  # vLLM takes the map only from a drafter that needs it
        weights["d2t"] = torch.full((draft_vocab,), cut)  # target id - draft id
        weights["t2d"] = torch.arange(len(head)) >= cut
    config = _llama_config(len(head), 1, "LlamaForCausalLMEagle3") | {
        "draft_vocab_size": draft_vocab,
        "target_hidden_size": HIDDEN,
        "eagle_aux_hidden_state_layer_ids": list(AUX_LAYERS),
    }
    return _write(path, weights, config)


def write_eagle(path: Path, target: Path, *, seed: int = 5) -> Path:
    """Write an EAGLE drafter (arXiv 2401.15077) for the checkpoint in `target`; embeddings and head are the target's.

    Its layer passes the newest token's embedding on, with a little of the target's hidden state.
    """
    draw = torch.Generator().manual_seed(seed)
    weights = _decoder_layer(draw, "layers.0.", HIDDEN)
    del weights["layers.0.input_layernorm.weight"]  # vLLM's first EAGLE layer has none
    noise = _normal(draw, HIDDEN, HIDDEN, scale=0.3 / HIDDEN**0.5)
    weights["fc.weight"] = torch.cat([torch.eye(HIDDEN), noise], dim=1)
    return _write(path, weights, _llama_config(len(load(target)["lm_head.weight"]), 1, "EagleLlamaForCausalLM"))


def write_draft_model(path: Path, target: Path) -> Path:
    """Write a standalone draft model to directory `path` and return it: the target's first layer and head."""
    weights = {name: tensor for name, tensor in load(target).items() if not re.match(r"model\.layers\.[1-9]", name)}
    vocab = len(weights["lm_head.weight"])
    return _write(path, weights, _llama_config(vocab, 1, "LlamaForCausalLM"))


def write_medusa(path: Path, target: Path, *, heads: int = 3, seed: int = 2) -> Path:
    """Write MEDUSA heads for the checkpoint in `target` (names of vllm/model_executor/models/medusa.py)."""
    draw = torch.Generator().manual_seed(seed)
    head = load(target)["lm_head.weight"]
    weights = {}
    for i in range(heads):
        weights[f"blocks.{i}.layers.0.weight"] = _normal(draw, HIDDEN, HIDDEN, scale=HIDDEN**-0.5)
        weights[f"lm_heads.{i}.weight"] = 0.5 * head + _normal(draw, *head.shape, scale=0.5 / HIDDEN**0.5)
    config = {
        "architectures": ["MedusaModel"],
        "model_type": "medusa",
        "hidden_size": HIDDEN,
        "vocab_size": len(head),
        "truncated_vocab_size": len(head),
        "num_heads": heads,
        "num_hidden_layers": 1,
        "medusa_fc_bias": False,
        "original_lm_head": False,
        "torch_dtype": "float32",
    }
    return _write(path, weights, config)


def write_mlp_speculator(path: Path, target: Path, *, heads: int = 3, inner: int = 32, seed: int = 3) -> Path:
    """Write an MLP speculator for the checkpoint in `target`, as the IBM and nebius ones are (arXiv 2404.19124)."""
    draw = torch.Generator().manual_seed(seed)
    vocab = len(load(target)["lm_head.weight"])
    weights = {}
    for i in range(heads):
        size = HIDDEN if i == 0 else inner
        weights |= {
            f"speculator.emb.{i}.weight": _normal(draw, vocab, inner, scale=1.0),
            f"speculator.proj.{i}.weight": _normal(draw, inner, size, scale=size**-0.5),
            f"speculator.head.{i}.weight": _normal(draw, vocab, inner, scale=1.5 / inner**0.5),
            f"speculator.ln.{i}.weight": 1 + 0.2 * torch.randn(inner, generator=draw),
            f"speculator.ln.{i}.bias": 0.2 * torch.randn(inner, generator=draw),
        }
    config = {
        "architectures": ["MLPSpeculatorPreTrainedModel"],
        "model_type": "mlp_speculator",
        "vocab_size": vocab,
        "emb_dim": HIDDEN,
        "inner_dim": inner,
        "n_predict": heads,
        "n_candidates": 1,
        "top_k_tokens_per_head": [1] * heads,
        "tie_weights": False,
        "scale_input": True,
        "torch_dtype": "float32",
    }
    return _write(path, weights, config)


def write_mtp(path: Path, target: Path, *, seed: int = 4) -> Path:
    """Write a DeepSeek-V3 style MTP layer (dense) for the Llama in `target`; start the target with MTP_OVERRIDES."""
    draw = torch.Generator().manual_seed(seed)
    weights = load(target)
    vocab, layers = len(weights["lm_head.weight"]), sum(".mlp.up_proj." in name for name in weights)
    prefix = f"model.layers.{layers}."
    shapes = {
        "self_attn.q_proj": (HEADS * HEAD_DIM, HIDDEN),
        "self_attn.kv_a_proj_with_mqa": (LORA + HEAD_DIM // 2, HIDDEN),
        "self_attn.kv_b_proj": (HEADS * (HEAD_DIM // 2 + HEAD_DIM), LORA),
        "self_attn.o_proj": (HIDDEN, HEADS * HEAD_DIM),
        "mlp.gate_proj": (MLP, HIDDEN),
        "mlp.up_proj": (MLP, HIDDEN),
        "mlp.down_proj": (HIDDEN, MLP),
    }
    # Large queries and rotary keys and a small MLP: what is attended to, hence the rotation, moves the drafts.
    gain = dict.fromkeys(("self_attn.q_proj", "self_attn.kv_a_proj_with_mqa", "self_attn.o_proj"), 3.0)
    gain["mlp.down_proj"] = 0.25
    drafter = {
        f"{prefix}{n}.weight": _normal(draw, *s, scale=gain.get(n, 1.5) * s[1] ** -0.5) for n, s in shapes.items()
    }
    norms = ("enorm", "hnorm", "input_layernorm", "post_attention_layernorm", "shared_head.norm")
    drafter |= {f"{prefix}{n}.weight": torch.ones(HIDDEN) for n in norms}
    drafter |= {
        f"{prefix}self_attn.kv_a_layernorm.weight": torch.ones(LORA),
        f"{prefix}eh_proj.weight": torch.cat([torch.eye(HIDDEN), _normal(draw, HIDDEN, HIDDEN, scale=0.05)], dim=1),
        # vLLM puts the target's own in place of these two
        f"{prefix}embed_tokens.weight": weights["model.embed_tokens.weight"].clone(),
        f"{prefix}shared_head.head.weight": weights["lm_head.weight"].clone(),
    }
    config = (
        _llama_config(vocab, layers, "DeepseekV3ForCausalLM")
        | MTP_OVERRIDES
        | {
            "model_type": "deepseek_v3",
            "n_shared_experts": 1,
            "num_experts_per_tok": 2,
            "topk_group": 1,
            "scoring_func": "sigmoid",
            "topk_method": "noaux_tc",
            "norm_topk_prob": True,
            "moe_intermediate_size": MLP,
            "first_k_dense_replace": layers + 1,
            "q_lora_rank": None,
            "kv_lora_rank": LORA,
            "qk_nope_head_dim": HEAD_DIM // 2,
            "qk_rope_head_dim": HEAD_DIM // 2,
            "v_head_dim": HEAD_DIM,
        }
    )
    del config["head_dim"]
    return _write(path, drafter, config)


def write_dflash(path: Path, target: Path, *, draft_vocab: int = VOCAB, causal: bool = False, seed: int = 6) -> Path:
    """Write a DFlash drafter for the checkpoint in `target`: all drafts at once, from masks in the newest token's wake.

    Two Qwen3 layers over keys and values of the target's hidden states; embeddings are the target's. With `draft_vocab`
    below the target's vocabulary it proposes only the last `draft_vocab` token ids.
    """
    return _write(path, *_dflash(target, draft_vocab, causal, seed))


def write_dflash2(path: Path, target: Path, *, top_k: int = 8, rank: int = 8, seed: int = 7) -> Path:
    """Write a DFlash 2 drafter: DFlash with convolutions over the block, and drafts chosen one after the other among
    the `top_k` likeliest of each position."""
    weights, config = _dflash(target, VOCAB, False, seed)
    draw = torch.Generator().manual_seed(seed)
    taps, group = 3, 16
    for layer in range(config["num_hidden_layers"]):
        for place in ("attention_conv", "mlp_conv"):
            own = torch.zeros(2, taps, HIDDEN)
            own[:, 0] = 1.0  # a position's own stream, and a little of those before it
            prefix = f"layers.{layer}.{place}."
            weights[prefix + "base_kernel"] = own + 0.1 * torch.randn(own.shape, generator=draw)
            weights[prefix + "kernel_projection.weight"] = _normal(
                draw, 2 * taps * (HIDDEN // group), HIDDEN, scale=0.1 * HIDDEN**-0.5
            )
    weights |= {
        "candidate_selector.predecessor_codebook": _normal(draw, VOCAB, rank, scale=1.0),
        "candidate_selector.successor_codebook": _normal(draw, VOCAB, rank, scale=0.5),
        "candidate_selector.hidden_projection.weight": _normal(draw, rank, HIDDEN, scale=HIDDEN**-0.5),
    }
    config["architectures"] = ["DFlash2DraftModel"]
    config["dflash_config"] |= {
        "conv_kernel_size": taps,
        "conv_group_size": group,
        "selector_rank": rank,
        "selector_top_k": top_k,
    }
    return _write(path, weights, config)


def write_dspark(path: Path, target: Path, *, draft_vocab: int = VOCAB, rank: int = 8, seed: int = 8) -> Path:
    """Write a DSpark drafter: DFlash's layers, and a bias on each draft's logits by the draft before it."""
    weights, config = _dflash(target, draft_vocab, False, seed)
    draw = torch.Generator().manual_seed(seed)
    weights |= {
        "markov_head.markov_w1.weight": _normal(draw, VOCAB, rank, scale=1.0),
        "markov_head.markov_w2.weight": _normal(draw, draft_vocab, rank, scale=rank**-0.5),
    }
    config |= {"architectures": ["Qwen3DSparkModel"], "markov_rank": rank, "block_size": 7}
    return _write(path, weights, config)


def write_lilicorr(path: Path, target: Path, *, top_k: int = 8, block: int = 8, seed: int = 9) -> Path:
    """Write a LiLiCorr drafter: DFlash's layers, and a small transformer over the `top_k` likeliest tokens of each
    position, whose vectors score what may follow what."""
    weights, config = _dflash(target, VOCAB, False, seed)
    draw = torch.Generator().manual_seed(seed)
    factor, features = 16, 5
    linears = {
        "pass_hidden_proj": (HIDDEN, HIDDEN),
        "context_proj": (HIDDEN, HIDDEN),
        "feature_mlp.up_proj": (HIDDEN, features),
        "feature_mlp.down_proj": (HIDDEN, HIDDEN),
        "layers.0.attn.out_proj": (HIDDEN, HIDDEN),
        "layers.0.mlp.up_proj": (MLP, HIDDEN),
        "layers.0.mlp.down_proj": (HIDDEN, MLP),
        "factor_input_proj": (HIDDEN, 3 * HIDDEN),
        "out_head": (factor, HIDDEN),
        "in_head": (factor, HIDDEN),
        "anchor_out_head": (factor, HIDDEN),
    }
    head: Weights = {}
    for name, shape in linears.items():
        head |= {f"{name}.weight": _normal(draw, *shape, scale=shape[1] ** -0.5), f"{name}.bias": torch.zeros(shape[0])}
    head |= {
        f"{name}_norm.weight": torch.ones(HIDDEN) for name in ("layers.0.attn", "layers.0.mlp", "output", "anchor")
    }
    head |= {
        "feature_norm.weight": torch.ones(features),
        "feature_norm.bias": torch.zeros(features),
        "layers.0.attn.in_proj_weight": _normal(draw, 3 * HIDDEN, HIDDEN, scale=HIDDEN**-0.5),
        "layers.0.attn.in_proj_bias": torch.zeros(3 * HIDDEN),
        "slot_embedding": 0.1 * torch.randn(1, 1, block - 1, 1, HIDDEN, generator=draw),
        "rank_embedding": 0.1 * torch.randn(1, 1, 1, top_k, HIDDEN, generator=draw),
        "relative_slot_bias": _normal(draw, HEADS, 2 * block - 1, scale=0.1),
        "same_slot_bias": torch.zeros(HEADS),
    }
    weights |= {f"lilicorr.{name}": tensor for name, tensor in head.items()}
    config["architectures"] = ["LiLiCorrDraftModel"]
    config["dflash_config"] |= {
        "block_size": block,
        "lilicorr_hidden_size": HIDDEN,
        "lilicorr_candidate_topk": top_k,
        "lilicorr_num_heads": HEADS,
        "lilicorr_num_layers": 1,
        "lilicorr_mlp_ratio": 2.0,
        "lilicorr_factor_dim": factor,
        "lilicorr_vector_eps": 1e-6,
        "lilicorr_logit_scale": 3.0,
    }
    return _write(path, weights, config)


def write_xpress(path: Path, target: Path, *, rank: int = 16, block: int = 5, seed: int = 10) -> Path:
    """Write an XPress drafter (vLLM 0.33) for K = `block` - 1: DFlash's layers, and passes that refine the argmaxes."""
    weights, config = _dflash(target, VOCAB, False, seed)
    draw = torch.Generator().manual_seed(seed)
    shapes = {
        "w1": (VOCAB, rank),
        "down_h": (rank, HIDDEN),
        "down_g": (rank, HIDDEN),
        "in_proj": (rank, 3 * rank),
        "mlp.gate_proj": (32, rank),
        "mlp.up_proj": (32, rank),
        "mlp.down_proj": (rank, 32),
        "w2": (VOCAB, rank),
    }
    weights |= {f"xpress_head.{n}.weight": _normal(draw, *s, scale=s[1] ** -0.5) for n, s in shapes.items()}
    weights["xpress_head.mix.L"] = 0.1 * torch.randn(rank, block, block, generator=draw)
    config |= {"architectures": ["Qwen3XPressModel"], "xpress_block_size": block, "xpress_rank": rank}
    config |= {"xpress_mlp_hidden": 32, "xpress_topc": 8, "xpress_num_passes": 3}
    return _write(path, weights, config)


def _dflash(target: Path, draft_vocab: int, causal: bool, seed: int) -> tuple[Weights, dict[str, Any]]:
    """Weights and configuration that DFlash drafters share. The last token id is the mask."""
    draw = torch.Generator().manual_seed(seed)
    weights: Weights = {}
    for layer in range(2):
        prefix = f"layers.{layer}."
        weights |= _decoder_layer(draw, prefix, HIDDEN)
        weights |= {f"{prefix}self_attn.{name}_norm.weight": torch.ones(HEAD_DIM) for name in "qk"}
    weights |= {
        "fc.weight": _normal(draw, HIDDEN, 3 * HIDDEN, scale=(3 * HIDDEN) ** -0.5),
        "hidden_norm.weight": torch.ones(HIDDEN),
        "norm.weight": torch.ones(HIDDEN),
    }
    vocab = len(load(target)["lm_head.weight"])
    if cut := vocab - draft_vocab:
        weights["d2t"] = torch.full((draft_vocab,), cut)  # target id - draft id
        weights["lm_head.weight"] = load(target)["lm_head.weight"][cut:].clone()
    config = _llama_config(vocab, 2, "DFlashDraftModel") | {
        "model_type": "qwen3",
        "draft_vocab_size": draft_vocab,
        "dflash_config": {
            "mask_token_id": vocab - 1,
            "target_layer_ids": [layer - 1 for layer in AUX_LAYERS],
            "causal": causal,
        },
    }
    return weights, config


def write_tokenizer(path: Path, vocab: int = VOCAB) -> Path:
    """Give the checkpoint in `path` a tokenizer: ids 0 and 1 are <s> and </s>, then one letter each from "a" on."""
    words = ["<s>", "</s>", *map(chr, range(ord("a"), ord("a") + vocab - 2))]
    model = {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(words)}, "unk_token": "<s>"}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": words[i], **special} for i in range(2)],
        "pre_tokenizer": {"type": "Split", "pattern": {"String": ""}, "behavior": "Isolated", "invert": False},
        "model": model,
    }
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


def load(path: Path) -> Weights:
    """The tensors of a checkpoint directory."""
    return load_file(path / "model.safetensors")


def _normal(draw: torch.Generator, rows: int, columns: int, scale: float) -> Tensor:
    return torch.randn(rows, columns, generator=draw) * scale


def _decoder_layer(draw: torch.Generator, prefix: str, inputs: int) -> Weights:
    shapes = {
        "self_attn.q_proj": (HEADS * HEAD_DIM, inputs),
        "self_attn.k_proj": (HEADS * HEAD_DIM, inputs),
        "self_attn.v_proj": (HEADS * HEAD_DIM, inputs),
        "self_attn.o_proj": (HIDDEN, HEADS * HEAD_DIM),
        "mlp.gate_proj": (MLP, HIDDEN),
        "mlp.up_proj": (MLP, HIDDEN),
        "mlp.down_proj": (HIDDEN, MLP),
    }
    matrices = {f"{prefix}{n}.weight": _normal(draw, *s, scale=s[1] ** -0.5) for n, s in shapes.items()}
    norms = ("input_layernorm", "post_attention_layernorm")
    return matrices | {f"{prefix}{n}.weight": torch.ones(HIDDEN) for n in norms}


def _llama_config(vocab: int, layers: int, architecture: str) -> dict[str, Any]:
    return {
        "architectures": [architecture],
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": HIDDEN,
        "intermediate_size": MLP,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "rms_norm_eps": EPS,
        "rope_theta": ROPE_THETA,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": "float32",
    }


def _write(path: Path, weights: Weights, config: dict[str, Any]) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps(config, indent=1))
    return path


# ------------------------------------------------------------------------------------------------ forward passes


def target_forward(weights: Weights, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [B, T, V] and EAGLE-3's features [B, T, 3 * HIDDEN] of token ids [B, T]."""
    streams = _streams(weights, tokens)
    return _target_hidden(weights, streams) @ weights["lm_head.weight"].T, torch.cat(
        [streams[k] for k in AUX_LAYERS], dim=-1
    )


def _streams(weights: Weights, tokens: Tensor) -> list[Tensor]:
    """The residual stream [B, T, HIDDEN] after 0, 1, ... layers of a Llama."""
    streams = [weights["model.embed_tokens.weight"][tokens]]
    while (prefix := f"model.layers.{len(streams) - 1}.") + "mlp.up_proj.weight" in weights:
        normed = _rms(streams[-1], weights[prefix + "input_layernorm.weight"])
        streams.append(_block(weights, prefix, normed, streams[-1]))
    return streams


def _target_hidden(weights: Weights, streams: list[Tensor]) -> Tensor:
    """The normed last hidden state [B, T, HIDDEN], which the head and most drafters read."""
    return _rms(streams[-1], weights["model.norm.weight"])


DraftLogits = Callable[[Weights, Weights, Tensor, Tensor], Tensor]
"""(target, drafter, tokens [B, T], drafts [B, j]) -> the drafter's logits [B, V] for draft j + 1."""


def draft_model_logits(target: Weights, drafter: Weights, tokens: Tensor, drafts: Tensor) -> Tensor:
    """A standalone model reads everything and knows nothing of the target."""
    hidden = _target_hidden(drafter, _streams(drafter, torch.cat([tokens, drafts], dim=1)))
    return hidden[:, -1] @ drafter["lm_head.weight"].T


def medusa_logits(target: Weights, drafter: Weights, tokens: Tensor, drafts: Tensor) -> Tensor:
    """Head j reads the hidden state that the newest of `tokens` was sampled from (arXiv 2401.10774)."""
    head = drafts.shape[1]
    hidden = _target_hidden(target, _streams(target, tokens[:, :-1]))[:, -1]
    hidden = hidden + F.silu(hidden @ drafter[f"blocks.{head}.layers.0.weight"].T)
    return hidden @ drafter[f"lm_heads.{head}.weight"].T


def mlp_logits(target: Weights, drafter: Weights, tokens: Tensor, drafts: Tensor) -> Tensor:
    """As MEDUSA, but each head's state depends on the tokens before it (arXiv 2404.19124, section 3)."""
    heads = sum(name.startswith("speculator.head.") for name in drafter)
    inner = drafter["speculator.head.0.weight"].shape[1]
    state_weight = 0.5 ** (0.5 / heads)
    token_weight = math.sqrt((1 - state_weight**2) * inner / 2)
    state = _target_hidden(target, _streams(target, tokens[:, :-1]))[:, -1]
    state = _rms(state, torch.ones(())) / math.sqrt(2)  # scale_input
    for i, token in enumerate(torch.cat([tokens[:, -1:], drafts], dim=1).T):
        part = {n: drafter[f"speculator.{n}.{i}.weight"] for n in ("emb", "proj", "ln", "head")}
        state = state @ part["proj"].T + part["emb"][token] * (token_weight / state_weight)
        state = F.gelu(_rms(state, part["ln"]) + drafter[f"speculator.ln.{i}.bias"])
    return state @ part["head"].T


def eagle3_logits(target: Weights, drafter: Weights, tokens: Tensor, drafts: Tensor) -> Tensor:
    """Drafter's logits [B, V] for the draft that follows `tokens` [B, T] (T >= 2) and `drafts` [B, j], j >= 0.

    The target has seen all of `tokens` but the last; later rows feed the drafter's own state back
    (EAGLE-3, arXiv 2503.01840; input pairs as in vllm/model_executor/models/llama_eagle3.py).
    """
    features = target_forward(target, tokens[:, :-1])[1]
    states = features @ drafter["fc.weight"].T
    embedded = target["model.embed_tokens.weight"][torch.cat([tokens[:, 1:], drafts], dim=1)]
    for _ in range(drafts.shape[1] + 1):
        rows = states.shape[1]
        normed = torch.cat(
            [
                _rms(embedded[:, :rows], drafter["midlayer.input_layernorm.weight"]),
                _rms(states, drafter["midlayer.hidden_norm.weight"]),
            ],
            dim=-1,
        )
        last = _block(drafter, "midlayer.", normed, states)[:, -1:]
        states = torch.cat([states, last], dim=1)
    logits = _rms(last[:, 0], drafter["norm.weight"]) @ drafter["lm_head.weight"].T
    return F.pad(logits, (len(target["lm_head.weight"]) - logits.shape[1], 0), value=-torch.inf)


def eagle_logits(target: Weights, drafter: Weights, tokens: Tensor, drafts: Tensor) -> Tensor:
    """One layer over pairs (next token's embedding, last state), its own output fed back (arXiv 2401.15077).

    As vllm/model_executor/models/llama_eagle.py: no norm before the attention, none after the layer.
    """
    states = _target_hidden(target, _streams(target, tokens[:, :-1]))
    embedded = target["model.embed_tokens.weight"][torch.cat([tokens[:, 1:], drafts], dim=1)]
    for _ in range(drafts.shape[1] + 1):
        inputs = torch.cat([embedded[:, : states.shape[1]], states], dim=-1) @ drafter["fc.weight"].T
        last = _block(drafter, "layers.0.", inputs, inputs)[:, -1:]
        states = torch.cat([states, last], dim=1)
    return last[:, 0] @ target["lm_head.weight"].T


def mtp_logits(target: Weights, drafter: Weights, tokens: Tensor, drafts: Tensor) -> Tensor:
    """One layer over pairs (next token's embedding, hidden state), its own output fed back (arXiv 2412.19437, 2.2).

    As vllm/model_executor/models/deepseek_mtp.py: the first position's embedding is zero, states are normed outputs.
    """
    prefix = next(name for name in drafter if name.endswith("eh_proj.weight")).removesuffix("eh_proj.weight")
    part = {name.removeprefix(prefix).removesuffix(".weight"): tensor for name, tensor in drafter.items()}
    states = _target_hidden(target, _streams(target, tokens[:, :-1]))
    embedded = target["model.embed_tokens.weight"][torch.cat([tokens[:, 1:], drafts], dim=1)].clone()
    embedded[:, 0] = 0
    for _ in range(drafts.shape[1] + 1):
        pairs = [_rms(embedded[:, : states.shape[1]], part["enorm"]), _rms(states, part["hnorm"])]
        hidden = torch.cat(pairs, dim=-1) @ part["eh_proj"].T
        hidden = hidden + _latent_attention(part, _rms(hidden, part["input_layernorm"]))
        normed = _rms(hidden, part["post_attention_layernorm"])
        gated = F.silu(normed @ part["mlp.gate_proj"].T) * (normed @ part["mlp.up_proj"].T)
        hidden = hidden + gated @ part["mlp.down_proj"].T
        last = _rms(hidden[:, -1:], part["shared_head.norm"])
        states = torch.cat([states, last], dim=1)
    return last[:, 0] @ target["lm_head.weight"].T


def _latent_attention(part: Weights, x: Tensor) -> Tensor:
    """DeepSeek's attention [B, T, HIDDEN] with keys and values from a latent vector, one rotary key for all heads."""
    half = HEAD_DIM // 2
    q = (x @ part["self_attn.q_proj"].T).unflatten(-1, (HEADS, HEAD_DIM)).transpose(1, 2)
    latent, rotary = (x @ part["self_attn.kv_a_proj_with_mqa"].T).split([LORA, half], dim=-1)
    kv = _rms(latent, part["self_attn.kv_a_layernorm"]) @ part["self_attn.kv_b_proj"].T
    k, v = kv.unflatten(-1, (HEADS, half + HEAD_DIM)).transpose(1, 2).split([half, HEAD_DIM], dim=-1)
    rotary = _rope_pairs(rotary[:, None]).expand(-1, HEADS, -1, -1)
    q = torch.cat([q[..., :half], _rope_pairs(q[..., half:])], dim=-1)
    mixed = F.scaled_dot_product_attention(q, torch.cat([k, rotary], dim=-1), v, is_causal=True)
    return mixed.transpose(1, 2).flatten(2) @ part["self_attn.o_proj"].T


def _block(weights: Weights, prefix: str, normed: Tensor, residual: Tensor) -> Tensor:
    """Attention and MLP with their residual connections: [B, T, *] -> [B, T, HIDDEN]."""
    q, k, v = (_heads(normed @ weights[f"{prefix}self_attn.{n}_proj.weight"].T) for n in "qkv")
    mixed = F.scaled_dot_product_attention(_rope(q), _rope(k), v, is_causal=True)
    hidden = residual + mixed.transpose(1, 2).flatten(2) @ weights[prefix + "self_attn.o_proj.weight"].T
    normed = _rms(hidden, weights[prefix + "post_attention_layernorm.weight"])
    gate, up, down = (weights[f"{prefix}mlp.{n}_proj.weight"] for n in ("gate", "up", "down"))
    return hidden + (F.silu(normed @ gate.T) * (normed @ up.T)) @ down.T


def _heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (HEADS, HEAD_DIM)).transpose(1, 2)


def _rms(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS) * weight


def _rope(x: Tensor) -> Tensor:
    """Rotate [B, heads, T, size] by position, first half against second half."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = _angles(x)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def _rope_pairs(x: Tensor) -> Tensor:
    """Rotate [B, heads, T, size] by position, even places against odd ones."""
    even, odd = x[..., ::2], x[..., 1::2]
    cos, sin = _angles(x)
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)


def _angles(x: Tensor) -> tuple[Tensor, Tensor]:
    size = x.shape[-1]
    angle = torch.arange(x.shape[2])[:, None] * ROPE_THETA ** (-torch.arange(0, size, 2) / size)
    return angle.cos(), angle.sin()


# ------------------------------------------------------------------------------------------------ exact laws


def joint_law(
    target: Weights,
    prompt: list[int],
    length: int,
    temperature: float,
    top_k: int = 0,
    top_p: float = 1.0,
    allowed: slice = EVERYTHING,
) -> Tensor:
    """P(x_1 ... x_length | prompt) under the target alone, float64 [V] * length; `allowed`: the ids of a grammar."""
    vocab = target["lm_head.weight"].shape[0]
    law = torch.ones(1, dtype=torch.float64)
    for tokens in _continuations(prompt, vocab, length):
        p = distribution(only(target_forward(target, tokens)[0][:, -1], allowed), temperature, top_k, top_p)
        law = (law[:, None] * p).flatten()
    return law.reshape([vocab] * length)


def only(logits: Tensor, allowed: slice) -> Tensor:
    """Logits [B, V] that are -inf outside the `allowed` ids."""
    kept = torch.full_like(logits, -torch.inf)
    kept[:, allowed] = logits[:, allowed]
    return kept


def distribution(logits: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Sampling distribution of logits [..., V]: temperature, then the top_k largest (0: all), then top_p of those."""
    p = torch.softmax(logits.double() / temperature, -1)
    if top_k:
        p = p * (p >= p.topk(top_k).values[..., -1:])
        p = p / p.sum(-1, keepdim=True)
    ranked, order = p.sort(-1, descending=True)
    kept = ranked * (ranked.cumsum(-1) - ranked < top_p)  # the tokens before it do not make top_p yet
    p = torch.zeros_like(p).scatter(-1, order, kept)
    return p / p.sum(-1, keepdim=True)


def acceptance_law(
    target: Weights,
    drafter: Weights,
    prompt: list[int],
    k: int,
    temperature: float,
    *,
    draft_logits: DraftLogits = eagle3_logits,
    top_k: int = 0,
    top_p: float = 1.0,
    truncated_drafts: bool = True,
    allowed: slice = EVERYTHING,
) -> list[float]:
    """P(A >= j), j = 1 ... k, of the first verify step after `prompt` and one sampled token, probabilistic drafts.

    With x_1 ~ p: P(A >= j) = E[ sum over d_1 ... d_j of prod_i min(p_i(d_i), q_i(d_i)) ], p truncated
    and, unless `truncated_drafts` is off, q as well; only p keeps to `allowed`, the ids of a grammar.
    """
    vocab = target["lm_head.weight"].shape[0]
    weight, chances = torch.ones(1, dtype=torch.float64), []
    for step, tokens in enumerate(_continuations(prompt, vocab, k + 1)):
        p = distribution(only(target_forward(target, tokens)[0][:, -1], allowed), temperature, top_k, top_p)
        if step:
            split = len(prompt) + 1
            logits = draft_logits(target, drafter, tokens[:, :split], tokens[:, split:])
            q = distribution(logits, temperature, *((top_k, top_p) if truncated_drafts else ()))
            p = torch.minimum(p, q)
            chances.append(float((weight[:, None] * p).sum()))
        weight = (weight[:, None] * p).flatten()
    return chances


def _continuations(prompt: list[int], vocab: int, length: int) -> list[Tensor]:
    """For j = 0 ... length - 1: all vocab**j continuations of the prompt by j tokens, [vocab**j, T + j]."""
    start = torch.tensor([prompt])
    found = [start]
    for j in range(1, length):
        tails = torch.cartesian_prod(*[torch.arange(vocab)] * j).reshape(-1, j)
        found.append(torch.cat([start.expand(len(tails), -1), tails], dim=1))
    return found
