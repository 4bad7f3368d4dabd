"""A GGUF file written here block by block is read as what it says; a Llama in it becomes a checkpoint."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from speceval.catalog import gguf, smollm
from speceval.errors import UserError

KINDS = {bool: (7, "?"), int: (4, "I"), float: (6, "f")}


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def value(content: Any) -> bytes:
    """Kind and value of a metadata entry."""
    if isinstance(content, str):
        return struct.pack("<I", 8) + text(content)
    if isinstance(content, list):
        items = [value(item) for item in content]
        return struct.pack("<I", 9) + items[0][:4] + struct.pack("<Q", len(items)) + b"".join(i[4:] for i in items)
    kind, form = KINDS[type(content)]
    return struct.pack(f"<I{form}", kind, content)


def write(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, tuple[tuple[int, ...], int, bytes]]) -> Path:
    """A GGUF file; tensors: name -> shape from the slowest axis, storage format, bytes."""
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata))
    for key, content in metadata.items():
        head += text(key) + value(content)
    offset, body = 0, b""
    for name, (shape, kind, data) in tensors.items():
        head += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], kind, offset)
        padded = data + bytes(-len(data) % 32)
        offset, body = offset + len(padded), body + padded
    path.write_bytes(head + bytes(-len(head) % 32) + body)
    return path


def single(values: np.ndarray[Any, Any]) -> tuple[tuple[int, ...], int, bytes]:
    return values.shape, 0, values.astype(np.float32).tobytes()


def test_each_storage_format_gives_its_values(tmp_path: Path) -> None:
    levels = np.arange(32) % 16
    packed = (levels[:16] | levels[16:] << 4).astype(np.uint8)
    q4 = np.array([0.5, -2.0], np.float16).tobytes() + packed.tobytes()
    q8 = np.array([0.25], np.float16).tobytes() + np.arange(-16, 16, dtype=np.int8).tobytes()
    half = np.array([1.5, -3.0], np.float16).tobytes()
    file = gguf.Gguf(
        write(
            tmp_path / "x.gguf",
            {"a": "text", "b": [1, 2, 3], "c": True, "d": ["x", "yz"]},
            {
                "q4": ((2, 32), 3, q4 + q4),
                "q8": ((1, 32), 8, q8),
                "half": ((2,), 1, half),
                "single": single(np.arange(6).reshape(2, 3)),
            },
        )
    )
    assert file.metadata == {"a": "text", "b": [1, 2, 3], "c": True, "d": ["x", "yz"]}
    np.testing.assert_array_equal(file.tensor("q4"), np.tile(levels * 0.5 - 2, (2, 1)))
    np.testing.assert_array_equal(file.tensor("q8"), np.arange(-16, 16)[None] * 0.25)
    np.testing.assert_array_equal(file.tensor("half"), [1.5, -3])
    np.testing.assert_array_equal(file.tensor("single"), [[0, 1, 2], [3, 4, 5]])


def test_another_file_or_an_unknown_format_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "no.gguf").write_bytes(b"GGML" + bytes(60))
    with pytest.raises(UserError, match="not a GGUF file"):
        gguf.Gguf(tmp_path / "no.gguf")
    file = gguf.Gguf(write(tmp_path / "x.gguf", {}, {"t": ((32,), 12, bytes(144))}))
    with pytest.raises(UserError, match="format 12"):
        file.tensor("t")


HEADS, KEY_HEADS, DIMENSIONS = 2, 1, 4
PIECES = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "a", "b", "1", "2", "Ġ", "ab"]


def metadata(**changes: Any) -> dict[str, Any]:
    return {
        "general.architecture": "llama",
        "llama.embedding_length": HEADS * DIMENSIONS,
        "llama.feed_forward_length": 8,
        "llama.block_count": 1,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KEY_HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.context_length": 64,
        "llama.rope.freq_base": 100000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": PIECES,
        "tokenizer.ggml.token_type": [3, 3, 3, 1, 1, 1, 1, 1, 1],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.chat_template": "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}",
        **changes,
    }


def llama(path: Path, **changes: Any) -> Path:
    """A Llama of one layer, whose every number is another."""
    hidden, keys = HEADS * DIMENSIONS, KEY_HEADS * DIMENSIONS
    shapes = {
        "token_embd": (len(PIECES), hidden),
        "output_norm": (hidden,),
        "blk.0.attn_norm": (hidden,),
        "blk.0.attn_q": (hidden, hidden),
        "blk.0.attn_k": (keys, hidden),
        "blk.0.attn_v": (keys, hidden),
        "blk.0.attn_output": (hidden, hidden),
        "blk.0.ffn_norm": (hidden,),
        "blk.0.ffn_gate": (8, hidden),
        "blk.0.ffn_up": (8, hidden),
        "blk.0.ffn_down": (hidden, 8),
    }
    rng = np.random.default_rng(0)
    tensors = {f"{name}.weight": single(rng.normal(size=shape) / 2) for name, shape in shapes.items()}
    return write(path, metadata(**changes), tensors)


def rotate_neighbours(x: np.ndarray[Any, Any], position: int) -> np.ndarray[Any, Any]:
    """llama.cpp's rotary embedding of one head's rows: pairs (0, 1), (2, 3), …"""
    out, half = x.copy(), DIMENSIONS // 2
    for pair in range(half):
        angle = position * 100000.0 ** (-pair / half)
        a, b = x[2 * pair], x[2 * pair + 1]
        out[2 * pair] = a * np.cos(angle) - b * np.sin(angle)
        out[2 * pair + 1] = a * np.sin(angle) + b * np.cos(angle)
    return out


def reference(file: gguf.Gguf, tokens: list[int]) -> np.ndarray[Any, Any]:
    """Logits of the last token, computed from the file's own tensors in llama.cpp's order of rows."""
    t = {name.removesuffix(".weight").removeprefix("blk.0."): file.tensor(name).astype(float) for name in file.names}

    def norm(x: np.ndarray[Any, Any], weight: str) -> np.ndarray[Any, Any]:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * t[weight]

    x = t["token_embd"][tokens]
    read = norm(x, "attn_norm")
    q, k, v = ((read @ t[f"attn_{part}"].T).reshape(len(tokens), -1, DIMENSIONS) for part in "qkv")
    mixed = []
    for head in range(HEADS):
        turned = rotate_neighbours(q[-1, head], len(tokens) - 1)
        scores = np.array([turned @ rotate_neighbours(k[i, 0], i) for i in range(len(tokens))]) / DIMENSIONS**0.5
        weights = np.exp(scores - scores.max())
        mixed.append(weights / weights.sum() @ v[:, 0])
    last = x[-1] + np.concatenate(mixed) @ t["attn_output"].T
    read = norm(last, "ffn_norm")
    gate = read @ t["ffn_gate"].T
    last = last + (gate / (1 + np.exp(-gate)) * (read @ t["ffn_up"].T)) @ t["ffn_down"].T
    return np.asarray(norm(last, "output_norm") @ t["token_embd"].T)


@pytest.mark.slow
def test_the_converted_checkpoint_computes_what_the_file_s_model_does(tmp_path: Path) -> None:
    """Fails if rows of queries and keys keep llama.cpp's order: it rotates other pairs than the hub's checkpoints."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    source = llama(tmp_path / "x.gguf")
    smollm.convert(source, tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    tokens = [3, 5, 4, 8, 6]
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0, -1].double().numpy()
    expected = reference(gguf.Gguf(source), tokens)
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(logits, expected, atol=0.03)  # weights are rounded to bfloat16


def test_the_tokenizer_splits_digits_and_keeps_special_tokens(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from tokenizers import Tokenizer

    smollm.convert(llama(tmp_path / "x.gguf"), tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.encode("ab 12<|im_end|>").tokens == ["ab", "Ġ", "1", "2", "<|im_end|>"]
    said = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert said["eos_token"] == "<|im_end|>" and "<|im_start|>" in said["chat_template"]
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["vocab_size"], config["tie_word_embeddings"], config["rms_norm_eps"]) == (len(PIECES), True, 1e-5)


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="qwen2"):
        smollm.convert(llama(tmp_path / "x.gguf", **{"general.architecture": "qwen2"}), tmp_path)
