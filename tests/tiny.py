"""Tiny random checkpoints that vLLM loads on a CPU, and their exact laws in plain float32 torch.

A Llama target and an EAGLE-3 drafter for it, without tokenizer (`skip_tokenizer_init=True`, `prompt_token_ids`).
The drafter passes the newest token's embedding on to the target's own head, so it is a noisy bigram model of the
target and its acceptance is middling. All weights follow from the seed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

VOCAB, HIDDEN, HEADS, HEAD_DIM, LAYERS, MLP = 24, 64, 2, 32, 3, 128
EPS, ROPE_THETA = 1e-5, 10000.0
AUX_LAYERS = (1, 2, 3)  # the drafter reads the residual stream after these many target layers

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
    """Logits [B, T, V] and the drafter's features [B, T, 3 * HIDDEN] of token ids [B, T]."""
    hidden = weights["model.embed_tokens.weight"][tokens]
    streams = [hidden]
    while (prefix := f"model.layers.{len(streams) - 1}.") + "mlp.up_proj.weight" in weights:
        normed = _rms(hidden, weights[prefix + "input_layernorm.weight"])
        hidden = _block(weights, prefix, normed, hidden)
        streams.append(hidden)
    logits = _rms(hidden, weights["model.norm.weight"]) @ weights["lm_head.weight"].T
    return logits, torch.cat([streams[k] for k in AUX_LAYERS], dim=-1)


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
    """Rotate [B, heads, T, HEAD_DIM] by position, first half against second half."""
    frequency = ROPE_THETA ** (-torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    angle = torch.arange(x.shape[2])[:, None] * frequency
    first, second = x.chunk(2, dim=-1)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


# ------------------------------------------------------------------------------------------------ exact laws


def joint_law(target: Weights, prompt: list[int], length: int, temperature: float) -> Tensor:
    """P(x_1 ... x_length | prompt) under the target alone at `temperature`: float64 [V] * length."""
    vocab = target["lm_head.weight"].shape[0]
    law = torch.ones(1, dtype=torch.float64)
    for tokens in _continuations(prompt, vocab, length):
        logits = target_forward(target, tokens)[0][:, -1].double()
        law = (law[:, None] * torch.softmax(logits / temperature, -1)).flatten()
    return law.reshape([vocab] * length)


def acceptance_law(target: Weights, drafter: Weights, prompt: list[int], k: int, temperature: float) -> list[float]:
    """P(A >= j), j = 1 ... k, of the first verify step after `prompt` and one sampled token, probabilistic drafts.

    With x_1 ~ p: P(A >= j) = E[ sum over d_1 ... d_j of prod_i min(p_i(d_i), q_i(d_i)) ].
    """
    vocab = target["lm_head.weight"].shape[0]
    weight, chances = torch.ones(1, dtype=torch.float64), []
    for step, tokens in enumerate(_continuations(prompt, vocab, k + 1)):
        p = torch.softmax(target_forward(target, tokens)[0][:, -1].double() / temperature, -1)
        if step:
            split = len(prompt) + 1
            draft_logits = eagle3_logits(target, drafter, tokens[:, :split], tokens[:, split:]).double()
            p = torch.minimum(p, torch.softmax(draft_logits / temperature, -1))
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
