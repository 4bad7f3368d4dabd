"""Drafters of published checkpoints: what their files say in other words, and what is refused by name."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support import tiny
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from speceval.drafters import ngram
from speceval.drafters.base import States
from speceval.drafters.llama import Attention, Rotary
from speceval.drafters.load import load, try_out
from speceval.errors import UserError

K = 3
Damage = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]


@pytest.fixture
def eagle3(tmp_path: Path) -> Path:
    return tiny.write_eagle3(tmp_path / "eagle3", tiny.write_target(tmp_path / "target"), draft_vocab=16)


def drafts(place: Path, method: str = "eagle3") -> torch.Tensor:
    """Logits [K, batch, places, D] on random states."""
    draw = torch.Generator().manual_seed(0)
    batch, time = 2, 9
    layers = {layer: torch.randn(batch, time, tiny.HIDDEN, generator=draw) for layer in (1, 2, 3)}
    embedding, output = torch.randn(2, tiny.VOCAB, tiny.HIDDEN, generator=draw)
    states = States(layers[3], layers, SimpleNamespace(embedding=embedding, output=output))
    tokens = torch.randint(tiny.VOCAB, (batch, time), generator=draw)
    return torch.stack(list(load(method, place, K, layers=3)(tokens, states, torch.tensor([[1, 2, 4], [0, 3, 4]]))))


def rewritten(place: Path, rename: dict[str, str] | None = None, **fields: Any) -> Path:
    """The checkpoint with other names of tensors, and fields of its config.json."""
    weights = tiny.load(place)
    for old, new in (rename or {}).items():
        weights = {name.replace(old, new): tensor for name, tensor in weights.items()}
    save_file(weights, place / "model.safetensors")
    config = json.loads((place / "config.json").read_text()) | fields
    (place / "config.json").write_text(json.dumps(config))
    return place


def test_a_speculators_checkpoint_is_read_like_one_of_the_first(eagle3: Path) -> None:
    before = drafts(eagle3)
    config = json.loads((eagle3 / "config.json").read_text())
    layers = config.pop("eagle_aux_hidden_state_layer_ids")
    (eagle3 / "config.json").write_text(json.dumps({"transformer_layer_config": config, "draft_vocab_size": 16}))
    rewritten(eagle3, {"midlayer.": "layers.0."}, eagle_aux_hidden_state_layer_ids=layers)
    torch.testing.assert_close(drafts(eagle3), before)


def test_norm_before_residual_is_obeyed(eagle3: Path) -> None:
    before = drafts(eagle3)
    assert not torch.allclose(drafts(rewritten(eagle3, norm_before_residual=True)), before)


def test_fewer_key_heads_are_shared_by_query_heads(eagle3: Path) -> None:
    """Two heads with equal keys and values are one that both read."""
    weights, size = tiny.load(eagle3), tiny.HEAD_DIM
    for name in ("midlayer.self_attn.k_proj.weight", "midlayer.self_attn.v_proj.weight"):
        weights[name][size:] = weights[name][:size]
    save_file(weights, eagle3 / "model.safetensors")
    before = drafts(eagle3)
    for name in ("midlayer.self_attn.k_proj.weight", "midlayer.self_attn.v_proj.weight"):
        weights[name] = weights[name][:size].clone()
    save_file(weights, eagle3 / "model.safetensors")
    torch.testing.assert_close(drafts(rewritten(eagle3, num_key_value_heads=1)), before)


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "default"},
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 256},
    ],
)  # fmt: skip
def test_rotary_embeddings_are_those_of_transformers(scaling: dict[str, Any]) -> None:
    theirs = LlamaRotaryEmbedding(
        LlamaConfig(hidden_size=64, num_attention_heads=2, rope_parameters=scaling | {"rope_theta": 5e5})
    )
    ours = Rotary.of({"rope_scaling": scaling, "rope_theta": 5e5}, 32)
    torch.testing.assert_close(ours.rates, theirs.inv_freq)


@pytest.mark.parametrize(
    ("fields", "rename", "says"),
    [
        ({"parallel_drafting": True}, {}, "its config.json has parallel_drafting"),
        ({"eagle_config": {"norm_before_fc": True}}, {}, "its config.json has norm_before_fc"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2}}, {}, "rotary embedding of kind 'yarn'"),
        ({}, {"midlayer.mlp.up_proj": "layers.1.mlp.up_proj"}, "more than one layer"),
        ({}, {"hidden_norm": "other_norm"}, "no tensor layers.0.hidden_norm.weight in its files"),
    ],
)
def test_what_is_not_computed_here_is_refused_by_name(eagle3: Path, fields, rename, says: str) -> None:
    with pytest.raises(UserError, match=says):
        drafts(rewritten(eagle3, rename, **fields))


def test_a_config_that_lacks_a_field_is_named(eagle3: Path) -> None:
    config = json.loads((eagle3 / "config.json").read_text())
    del config["num_attention_heads"]
    (eagle3 / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"no 'num_attention_heads' in its config\.json"):
        drafts(eagle3)


def test_the_first_medusa_checkpoints_say_what_they_need(tmp_path: Path) -> None:
    place = tiny.write_medusa(tmp_path / "medusa", tiny.write_target(tmp_path / "target"))
    with pytest.raises(UserError, match="the names of the first MEDUSA checkpoints: convert it"):
        drafts(rewritten(place, {"blocks.0.": "0.0."}), "medusa")


def test_attention_biases_are_added() -> None:
    draw = torch.Generator().manual_seed(0)
    weights = {f"{name}_proj.weight": torch.randn(8, 8, generator=draw) for name in "qkvo"}
    x, turn = torch.randn(1, 3, 8, generator=draw), Rotary.of({}, 4).at(torch.arange(3))
    plain = Attention(weights, "", 2, 2).keys(x, turn)[1]
    biased = Attention(weights | {"v_proj.bias": torch.ones(8)}, "", 2, 2).keys(x, turn)[1]
    torch.testing.assert_close(biased, plain + 1)


def test_ngram_lookup_agrees_with_a_search_of_all_places() -> None:
    chance = random.Random(3)
    for _ in range(30):
        tokens = [chance.randrange(3) for _ in range(40)]
        least, most, start = chance.randint(1, 3), chance.randint(3, 5), chance.randint(1, 5)
        found = list(ngram.drafts(tokens, start, 4, least, most))
        assert found == [searched(tokens[:end], 4, least, most) for end in range(start, len(tokens))]
    least, most = ngram.ARGUMENTS
    asked = ({}, {least: 2}, {most: 3}, {least: 2, most: 4}, {least: None, most: 3})
    assert [ngram.lengths(one) for one in asked] == [(5, 5), (2, 2), (3, 3), (2, 4), (3, 3)]


def searched(tokens: list[int], k: int, least: int, most: int) -> list[int]:
    for length in range(min(most, len(tokens) - 1), least - 1, -1):
        for start in range(len(tokens) - length):
            if tokens[start : start + length] == tokens[-length:]:
                return tokens[start + length :][:k]
    return []


def test_heads_whose_rows_are_mostly_the_same_give_the_logits_of_all() -> None:
    """A row of zeros is a logit of 0, not of minus infinity: where the others are small it is drafted."""
    from speceval.drafters.heads import OWN_ROWS, Medusa

    generator = torch.Generator().manual_seed(0)
    own = torch.randperm(64, generator=generator)[:7].sort().values
    head = torch.zeros(64, 12)
    head[own] = torch.randn(7, 12, generator=generator)
    weights = {"blocks.0.layers.0.weight": torch.randn(12, 12, generator=generator), "lm_head.weight": head}
    config = {"num_heads": 1, "original_lm_head": True}
    states = States(torch.randn(2, 9, 12, generator=generator), {}, SimpleNamespace())
    places = torch.tensor([[1, 2], [3, 5]])
    for common in (0.0, -30.0):
        weights["lm_head.weight"][head[:, 0] == head[:, 0].median()] = common
        plain, quick = (Medusa(config | more, dict(weights), 1) for more in ({}, {OWN_ROWS: True}))
        (wanted,), (found,) = (list(drafter(torch.zeros(2, 9), states, places)) for drafter in (plain, quick))
        assert quick.draft_ids is None
        torch.testing.assert_close(found, wanted)


# ------------------------------------------------------------------------------------- no draft is made of noise

WRITERS = {"eagle3": tiny.write_eagle3, "medusa": tiny.write_medusa, "mlp_speculator": tiny.write_mlp_speculator}


def without(*parts: str) -> Damage:
    return lambda weights: {name: each for name, each in weights.items() if not any(part in name for part in parts)}


def with_(part: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Damage:
    return lambda weights: {name: change(each) if part in name else each for name, each in weights.items()}


def not_a_number(tensor: torch.Tensor) -> torch.Tensor:
    return torch.where(torch.arange(tensor.numel()).reshape(tensor.shape) == 1, torch.nan, tensor)


@pytest.mark.parametrize(
    ("method", "damage", "told"),
    [
        ("eagle3", lambda weights: weights, None),
        ("medusa", lambda weights: weights, None),
        ("mlp_speculator", lambda weights: weights, None),
        ("eagle3", with_("fc.weight", not_a_number), "tensor fc.weight holds NaN or infinity"),
        ("medusa", with_("lm_heads.1", lambda each: each * torch.inf), r"tensor lm_heads\.1\.weight holds NaN"),
        ("eagle3", without("midlayer.hidden_norm"), r"no tensor layers\.0\.hidden_norm\.weight"),
        ("eagle3", lambda weights: weights | {"midlayer.self_attn.q_norm.weight": torch.ones(16)}, "q_norm.* is none"),
        ("eagle3", with_("fc.weight", lambda each: each[:, :-1]), "do not fit its config.json or the target"),
        ("eagle3", with_("fc.weight", lambda each: each[:0]), "do not fit its config.json or the target"),
        ("eagle3", with_("lm_head", lambda each: each[:-1]), "its output map has 15 rows, for 16 tokens"),
        ("eagle3", with_("d2t", torch.zeros_like), "its d2t does not map each draft token"),
        (
            "eagle3",
            with_("d2t", lambda each: each * 0 + 40 - torch.arange(16)),
            "its d2t does not map each draft token",
        ),
        ("medusa", without("blocks.1"), r"no tensor blocks\.1\.layers\.0\.weight"),
        ("medusa", without("lm_heads.2"), r"no tensor lm_heads\.2\.weight"),
        ("medusa", with_("lm_heads.1", lambda each: each[:, :4]), "do not fit its config.json or the target"),
        ("mlp_speculator", without("emb.1"), r"no tensor emb\.1\.weight"),
        ("mlp_speculator", without("proj.2"), r"no tensor proj\.2\.weight"),
        ("mlp_speculator", without("ln.0.bias"), r"no tensor ln\.0\.bias"),
    ],
)
def test_a_checkpoint_that_lacks_a_tensor_or_has_another_drafts_nothing(
    tmp_path: Path, method: str, damage: Damage, told: str | None
) -> None:
    more = {"draft_vocab": 16} if method == "eagle3" else {}
    place = WRITERS[method](tmp_path / "draft", tiny.write_target(tmp_path / "target"), **more)
    save_file({name: each.contiguous() for name, each in damage(tiny.load(place)).items()}, place / "model.safetensors")
    with nullcontext() if told is None else pytest.raises(UserError, match=told):
        try_out(load(method, place, K, layers=3), tiny.HIDDEN, tiny.VOCAB)


def test_a_whole_model_without_one_of_its_tensors_drafts_nothing(tmp_path: Path) -> None:
    place = tiny.write_draft_model(tmp_path / "draft", tiny.write_target(tmp_path / "target"))
    try_out(load("draft_model", place, K, layers=3), tiny.HIDDEN, tiny.VOCAB)
    save_file(without("layers.0.mlp.up_proj")(tiny.load(place)), place / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"missing tensor model\.layers\.0\.mlp\.up_proj\.weight"):
        load("draft_model", place, K, layers=3)


def test_two_files_with_one_tensor_and_files_of_something_else_are_named(eagle3: Path) -> None:
    save_file({"fc.weight": torch.ones(1)}, eagle3 / "other.safetensors")
    with pytest.raises(UserError, match=r"fc\.weight stands in other\.safetensors and in a file before it"):
        load("eagle3", eagle3, K, layers=3)
    (eagle3 / "other.safetensors").write_bytes(b"<html>")
    with pytest.raises(UserError, match=r"other\.safetensors: no file of tensors"):
        load("eagle3", eagle3, K, layers=3)
    for file in eagle3.glob("*.safetensors"):
        file.unlink()
    (eagle3 / "pytorch_model.bin").write_bytes(b"<html>")
    with pytest.raises(UserError, match=r"pytorch_model\.bin: no file of tensors"):
        load("eagle3", eagle3, K, layers=3)


@pytest.mark.parametrize(
    ("rename", "fields", "says"),
    [
        ({"layers.0.mlp.up": "layers.1.mlp.up"}, {}, "it has more than one layer"),
        ({"self_attn.q_proj": "self_attn.q_a_proj"}, {}, "its layer is not Llama's"),
        ({}, {"logit_scale": 0.5}, "its config.json has logit_scale"),
    ],
)
def test_an_eagle_layer_of_another_kind_is_refused(
    tmp_path: Path, rename: dict[str, str], fields: dict[str, float], says: str
) -> None:
    place = tiny.write_eagle(tmp_path / "eagle", tiny.write_target(tmp_path / "target"))
    assert drafts(place, "eagle").shape[0] == K
    with pytest.raises(UserError, match=f"{says}: measure it with `run --replay`$|{says}.*run --replay"):
        drafts(rewritten(place, rename, **fields), "eagle")
