"""Checkpoints: what is written is what was trained, under the names vLLM reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.zoo_miniature import MINIATURE

from speceval.catalog.recognise import recognise
from speceval.zoo import eagle3, export
from speceval.zoo.llama import initialise
from speceval.zoo.recipe import METHODS, trained_k
from speceval.zoo.target import Target, sample
from speceval.zoo.worker import ARCHITECTURES


def a_target() -> Target:
    target = Target(MINIATURE)
    initialise(target, seed=3)
    return target.eval()


def test_target_round_trip_gives_the_same_logits(tmp_path: Path) -> None:
    target = a_target()
    export.save_target(tmp_path, MINIATURE, target, "{}")
    tokens = torch.arange(12).view(2, 6)
    loaded = export.load_target(tmp_path, MINIATURE)
    assert torch.equal(loaded(tokens)[0], target(tokens)[0])
    assert json.loads((tmp_path / "generation_config.json").read_text())["temperature"] not in (0, 1)


def test_cached_decoding_of_the_target_equals_its_training_forward() -> None:
    target = a_target()
    tokens = torch.arange(12).view(2, 6)
    whole, _ = target(tokens)
    caches, parts = target.empty_caches(2, 6), []
    for at in range(6):
        logits, _ = target(tokens[:, at : at + 1], caches, at)
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=1e-5)


def test_own_text_round_trip_and_its_shape(tmp_path: Path) -> None:
    tokens, sampled = sample(a_target(), [[0, 2, 7, 3], [0, 2, 8, 9, 3]], rows=5, length=30, seed=0)
    export.save_own_text(tmp_path, tokens, sampled)
    again = export.load_own_text(tmp_path)
    assert torch.equal(again[0], tokens)
    assert torch.equal(again[1], sampled)
    assert tokens[0, :4].tolist() == [0, 2, 7, 3]
    assert not sampled[0, :4].any()
    assert sampled[0, 4]
    assert tokens.min() >= 0


def test_next_prompt_follows_an_answer_that_ended() -> None:
    target = a_target()
    prompt = [0, 2, 9, 3]
    tokens, sampled = sample(target, [prompt], rows=40, length=60, seed=0)
    ends = (sampled & (tokens == 1))[:, :-4].nonzero().tolist()
    assert ends, "no answer ended: the test shows nothing"
    for row, at in ends:
        assert tokens[row, at + 1 : at + 5].tolist() == prompt
        assert not sampled[row, at + 1 : at + 5].any()


def test_eagle3_checkpoint_has_vllms_names_and_maps_draft_ids_to_target_ids(tmp_path: Path) -> None:
    draft_ids = torch.arange(MINIATURE.draft_vocab_size) * 2 + 1
    export.save_eagle3(tmp_path, MINIATURE, eagle3.Eagle3(MINIATURE, draft_ids))
    tensors = load_file(tmp_path / "model.safetensors")
    assert torch.equal(tensors["d2t"] + torch.arange(MINIATURE.draft_vocab_size), draft_ids)
    assert tensors["t2d"].nonzero()[:, 0].tolist() == draft_ids.tolist()
    hidden = MINIATURE.hidden_size
    assert tensors["fc.weight"].shape == (hidden, 3 * hidden)
    assert tensors["midlayer.self_attn.q_proj.weight"].shape == (hidden, 2 * hidden)
    assert tensors["lm_head.weight"].shape == (MINIATURE.draft_vocab_size, hidden)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["eagle_aux_hidden_state_layer_ids"] == [1, 2, 3]
    assert config["intermediate_size"] == tensors["midlayer.mlp.up_proj.weight"].shape[0]
    assert config["draft_vocab_size"] == MINIATURE.draft_vocab_size


KEYS = {
    "medusa": {"blocks.3.layers.0.weight": (16, 16), "lm_heads.3.weight": (300, 16)},
    "mlp": {
        "speculator.emb.3.weight": (300, 24),
        "speculator.proj.0.weight": (24, 16),
        "speculator.proj.3.weight": (24, 24),
        "speculator.ln.3.weight": (24,),
        "speculator.ln.3.bias": (24,),
        "speculator.head.3.weight": (300, 24),
    },
    "mtp": {
        "model.layers.3.enorm.weight": (16,),
        "model.layers.3.hnorm.weight": (16,),
        "model.layers.3.eh_proj.weight": (16, 32),
        "model.layers.3.input_layernorm.weight": (16,),
        "model.layers.3.self_attn.q_proj.weight": (16, 16),
        "model.layers.3.self_attn.kv_a_proj_with_mqa.weight": (8, 16),
        "model.layers.3.self_attn.kv_a_layernorm.weight": (4,),
        "model.layers.3.self_attn.kv_b_proj.weight": (24, 4),
        "model.layers.3.self_attn.o_proj.weight": (16, 16),
        "model.layers.3.post_attention_layernorm.weight": (16,),
        "model.layers.3.mlp.gate_proj.weight": (16, 16),
        "model.layers.3.mlp.down_proj.weight": (16, 16),
        "model.layers.3.shared_head.norm.weight": (16,),
        "model.layers.3.shared_head.head.weight": (300, 16),
        "model.layers.3.embed_tokens.weight": (300, 16),
    },
    "draft": {
        "model.embed_tokens.weight": (300, 8),
        "model.layers.0.self_attn.q_proj.weight": (8, 8),
        "model.layers.0.mlp.up_proj.weight": (16, 8),
        "model.norm.weight": (8,),
        "lm_head.weight": (300, 8),
    },
}
COUNT = {"medusa": 4 * 2, "mlp": 4 * 5, "mtp": 16, "draft": 12}


@pytest.mark.parametrize("architecture", KEYS)
def test_checkpoint_has_vllms_names_and_shapes(architecture: str, tmp_path: Path) -> None:
    write(architecture, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert KEYS[architecture].items() <= shapes.items()
    assert len(tensors) == COUNT[architecture]


@pytest.mark.parametrize("architecture", METHODS)
def test_a_checkpoint_is_recognised_as_what_it_is(architecture: str, tmp_path: Path) -> None:
    write(architecture, tmp_path)
    facts = recognise(json.loads((tmp_path / "config.json").read_text()), f"zoo/lk-{architecture}")
    assert facts.method == METHODS[architecture]
    assert facts.sizes.hidden_size == (8 if architecture == "draft" else MINIATURE.hidden_size)
    assert facts.max_k in (None, trained_k(architecture, MINIATURE))


def write(architecture: str, directory: Path) -> None:
    """The checkpoint of an untrained drafter."""
    own = (torch.arange(12).view(2, 6), torch.ones(2, 6, dtype=torch.bool))
    start, save = ARCHITECTURES[architecture]
    save(directory, MINIATURE, start(MINIATURE, a_target(), own))
