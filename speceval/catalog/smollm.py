"""SmolLM2 in a GGUF file -> a checkpoint directory as the hub has them: config, weights, tokenizer, chat template."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from speceval.errors import UserError
from speceval.files import save_tensors

from .gguf import Floats, Gguf

_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_OF_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""llama.cpp's name of a tensor -> the hub's."""

_SPECIAL = 3
"""tokenizer.ggml.token_type of control tokens."""


def convert(source: Path, directory: Path) -> None:
    """Write the checkpoint in `source` to `directory`, weights in bfloat16.

    Raises UserError unless it is a Llama with SmolLM's tokenizer: no other has been tried.
    """
    file = Gguf(source)
    kinds = [file.metadata.get(key) for key in ("general.architecture", "tokenizer.ggml.model", "tokenizer.ggml.pre")]
    if kinds != ["llama", "gpt2", "smollm"]:
        raise UserError(f"{source}: {kinds[0]} with tokenizer {kinds[2]}; only SmolLM's Llamas are read")
    _save_weights(file, directory / "model.safetensors")
    parts = {
        "config.json": config(file),
        "generation_config.json": _special_ids(file),
        "tokenizer.json": tokenizer(file),
        "tokenizer_config.json": tokenizer_config(file),
    }
    for name, content in parts.items():
        (directory / name).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def tensors(file: Gguf) -> Iterator[tuple[str, Floats]]:
    """Name on the hub and values of each tensor."""
    heads = {"attn_q": "llama.attention.head_count", "attn_k": "llama.attention.head_count_kv"}
    for name in file.names:
        parts = name.split(".")
        if parts[0] != "blk":
            yield f"{_TOP[parts[0]]}.weight", file.tensor(name)
            continue
        values = file.tensor(name)
        if parts[2] in heads:
            values = _halves(values, file.metadata[heads[parts[2]]])
        yield f"model.layers.{parts[1]}.{_OF_LAYER[parts[2]]}.weight", values


def _halves(rows: Floats, heads: int) -> Floats:
    """Rows of a query or key map, each head's in the order (0, d/2, 1, d/2 + 1, …) -> (0, 1, …, d - 1).

    llama.cpp rotates neighbouring rows, checkpoints of the hub rotate the two halves of a head.
    """
    pairs = rows.reshape(heads, -1, 2, rows.shape[1])
    return np.ascontiguousarray(pairs.transpose(0, 2, 1, 3)).reshape(rows.shape)


def _save_weights(file: Gguf, path: Path) -> None:
    import torch

    weights = {name: torch.from_numpy(values).bfloat16() for name, values in tensors(file)}
    save_tensors(path, weights, {"format": "pt"})


def config(file: Gguf) -> dict[str, Any]:
    """config.json."""
    said = {key.removeprefix("llama."): value for key, value in file.metadata.items()}
    hidden, heads = said["embedding_length"], said["attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "vocab_size": len(said["tokenizer.ggml.tokens"]),
        "hidden_size": hidden,
        "intermediate_size": said["feed_forward_length"],
        "num_hidden_layers": said["block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": said["attention.head_count_kv"],
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "max_position_embeddings": said["context_length"],
        "rms_norm_eps": round(said["attention.layer_norm_rms_epsilon"], 9),
        "rope_theta": said["rope.freq_base"],
        "tie_word_embeddings": "output.weight" not in file.names,
        "attention_bias": False,
        "mlp_bias": False,
        **_special_ids(file),
    }


def _special_ids(file: Gguf) -> dict[str, int]:
    names = {"bos": "bos", "eos": "eos", "pad": "padding"}
    return {f"{name}_token_id": file.metadata[f"tokenizer.ggml.{key}_token_id"] for name, key in names.items()}


def tokenizer(file: Gguf) -> dict[str, Any]:
    """tokenizer.json: byte-level BPE in which every digit stands alone."""
    pieces: list[str] = file.metadata["tokenizer.ggml.tokens"]
    kinds: list[int] = file.metadata["tokenizer.ggml.token_type"]
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    bytewise = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    special = [
        {"id": index, "content": piece, "special": True, **plain}
        for index, (piece, kind) in enumerate(zip(pieces, kinds, strict=True))
        if kind == _SPECIAL
    ]
    return {
        "version": "1.0",
        "added_tokens": special,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, bytewise]},
        "decoder": bytewise,
        "model": {
            "type": "BPE",
            "vocab": {piece: index for index, piece in enumerate(pieces)},
            "merges": file.metadata["tokenizer.ggml.merges"],
        },
    }


def tokenizer_config(file: Gguf) -> dict[str, Any]:
    """tokenizer_config.json, with the chat template."""
    pieces = file.metadata["tokenizer.ggml.tokens"]
    names = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{name}_token": pieces[file.metadata[f"tokenizer.ggml.{key}_token_id"]] for name, key in names.items()},
        "model_max_length": file.metadata["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "chat_template": file.metadata["tokenizer.chat_template"],
    }
