"""Drafters in one small file: what is rounded, what is put back, and that a checkpoint for vLLM comes out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from speceval import catalog
from speceval.catalog import stored
from speceval.catalog.packed import SCALE, based_on, pack, read, unpacked, write_checkpoint
from speceval.catalog.recognise import recognise
from speceval.errors import UserError
from speceval.paths import data_directory
from speceval.zoo.recipe import Recipe

torch = pytest.importorskip("torch")

RECIPE = Recipe(vocab_size=40, hidden_size=12, heads=3, draft_vocab_size=10, draft_intermediate_size=16)
TARGET = "smollm2-135m-q4"


def drafter() -> Any:
    from speceval.zoo.eagle3 import Eagle3
    from speceval.zoo.llama import initialise

    made = Eagle3(RECIPE, torch.arange(0, 40, 4))
    initialise(made, 0)
    return made


def test_a_matrix_comes_back_within_half_a_level_of_its_row_and_a_vector_as_it_is() -> None:
    matrix = (
        torch.randn(5, 64, generator=torch.Generator().manual_seed(0)) * torch.tensor([1e-3, 1, 10, 0, 1e3])[:, None]
    )
    vector = torch.randn(7, generator=torch.Generator().manual_seed(1))
    packed = pack({"m": matrix, "v": vector})
    assert packed["m"].dtype == torch.int8 and packed["m" + SCALE].shape == (5,)
    back = unpacked(packed)
    assert back.keys() == {"m", "v"} and torch.equal(back["v"], vector)
    assert ((back["m"] - matrix).abs() <= matrix.abs().amax(1, keepdim=True) / 127 / 2 * 1.001 + 1e-12).all()


def test_a_difference_from_another_drafter_takes_half_a_byte_a_number_and_comes_back() -> None:
    generator = torch.Generator().manual_seed(0)
    base = {"m": torch.randn(6, 64, generator=generator), "v": torch.zeros(3)}
    near = {"m": base["m"] + 0.05 * torch.randn(6, 64, generator=generator), "v": torch.ones(3)}
    packed = pack(near, base)
    assert packed["m"].dtype == torch.uint8 and packed["m"].shape == (6, 32)
    back = unpacked(packed, base)
    limit = (near["m"] - base["m"]).unflatten(1, (2, 32)).abs().amax(2).repeat_interleave(32, dim=1) / 7 / 2
    assert ((back["m"] - near["m"]).abs() <= limit * 1.01 + 1e-6).all() and torch.equal(back["v"], near["v"])


def test_a_difference_from_a_drafter_that_changed_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    base = {"m": torch.randn(6, 64)}
    save_file(pack(base), tmp_path / "base.safetensors")
    saved = based_on(tmp_path / "base.safetensors")
    save_file(pack({"m": base["m"] + 1}, read(tmp_path / "base.safetensors")[0]), tmp_path / "x.safetensors", saved)
    assert torch.allclose(read(tmp_path / "x.safetensors")[0]["m"], base["m"] + 1, atol=0.2)
    save_file(pack({"m": base["m"] * 2}), tmp_path / "base.safetensors")
    with pytest.raises(UserError, match=r"made of differences from .*base.safetensors, which is not there or was"):
        read(tmp_path / "x.safetensors")


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, Any, Any]:
    """A checkpoint directory made of a stored drafter, the drafter, and the target's embeddings."""
    from safetensors.torch import save_file

    target, directory = tmp_path / "target", tmp_path / "made"
    target.mkdir()
    directory.mkdir()
    embeddings = torch.randn(40, 12).bfloat16()
    save_file({"model.embed_tokens.weight": embeddings}, target / "model.safetensors")
    config = {"model_type": "llama", "hidden_size": 12, "vocab_size": 40, "num_attention_heads": 3}
    (target / "config.json").write_text(json.dumps(config))
    own = drafter()
    tensors = {name: value for name, value in own.state_dict().items() if name != "lm_head.weight"}
    beside = {
        "draft_ids": own.draft_ids.to(torch.int32),
        "stream_scale": torch.linspace(1, 400, 36),
        "aux_layers": torch.tensor([2, 4, 6], dtype=torch.int32),
    }
    save_file(pack(tensors) | beside, tmp_path / "x.safetensors")
    write_checkpoint(tmp_path / "x.safetensors", target, directory)
    return directory, own, embeddings


def test_the_checkpoint_reads_raw_streams_and_drafts_with_the_target_s_own_rows(made: tuple[Path, Any, Any]) -> None:
    from safetensors.torch import load_file

    directory, own, embeddings = made
    tensors = load_file(directory / "model.safetensors")
    streams = torch.randn(3, 36) * torch.linspace(1, 400, 36)
    expected = own.fc(streams / torch.linspace(1, 400, 36))
    torch.testing.assert_close(streams @ tensors["fc.weight"].float().T, expected, atol=0.05, rtol=0.05)
    assert torch.equal(tensors["lm_head.weight"], embeddings[own.draft_ids])
    assert torch.equal(tensors["d2t"] + torch.arange(10), own.draft_ids)
    assert tensors["t2d"].nonzero()[:, 0].tolist() == own.draft_ids.tolist()


def test_its_config_says_what_vllm_would_otherwise_guess(made: tuple[Path, Any, Any]) -> None:
    config = json.loads((made[0] / "config.json").read_text())
    assert config["eagle_aux_hidden_state_layer_ids"] == [2, 4, 6]
    assert (config["draft_vocab_size"], config["intermediate_size"], config["num_hidden_layers"]) == (10, 16, 1)


def test_heads_share_one_output_map_whose_rows_outside_the_draft_vocabulary_are_zero(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    embeddings = torch.randn(40, 12).bfloat16()
    save_file({"model.embed_tokens.weight": embeddings}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 12, "vocab_size": 40}))
    ids = torch.arange(0, 40, 4)
    heads = {f"blocks.{j}.layers.0.weight": torch.randn(12, 12) for j in range(3)}
    save_file(pack(heads) | {"draft_ids": ids.to(torch.int32)}, tmp_path / "x.safetensors")
    (tmp_path / "made").mkdir()
    write_checkpoint(tmp_path / "x.safetensors", tmp_path, tmp_path / "made")
    tensors = load_file(tmp_path / "made" / "model.safetensors")
    head = tensors["lm_head.weight"]
    assert torch.equal(head[ids], embeddings[ids]) and head.abs().sum() == head[ids].abs().sum() > 0
    assert "token_map" not in tensors, "vLLM 0.32 does not load it"
    config = json.loads((tmp_path / "made" / "config.json").read_text())
    facts = recognise(config, "made")
    assert (facts.method, facts.max_k, facts.sizes.draft_vocab_size) == ("medusa", 3, 40)
    assert config["original_lm_head"] is True


@pytest.mark.parametrize("name", ["kl-eagle3", "lk-eagle3", "tv-eagle3", "lk-alpha-eagle3"])
def test_the_catalog_s_stored_drafters_are_there_small_and_for_their_target(name: str) -> None:
    from safetensors import safe_open

    pair = catalog.resolve(TARGET, name)
    assert pair.draft is not None and pair.draft.stored is not None and pair.draft.model is not None
    assert name in Path(pair.draft.model).name
    path = data_directory("drafters") / f"{pair.draft.stored}.safetensors"
    assert path.stat().st_size < 5_000_000
    with safe_open(path, framework="pt") as file:
        ids, scale = file.get_tensor("draft_ids"), file.get_tensor("stream_scale")
        assert file.get_tensor("aux_layers").max() <= pair.target.sizes.num_hidden_layers
    assert len(scale) == 3 * (pair.target.sizes.hidden_size or 0)
    assert (ids.diff() > 0).all() and ids[-1] < (pair.target.sizes.vocab_size or 0)


@pytest.mark.parametrize("typed", ["lk-lambda-eagle3", "smollm2-135m-q4/lk-lambda-eagle3", "LK-EAGLE3"])
def test_a_stored_drafter_is_also_called_by_its_file_s_name_and_listed_by_it(typed: str) -> None:
    pair = catalog.resolve(TARGET, typed)
    assert pair.draft is not None and pair.draft.name == "lk-eagle3"
    rows = [row for row in catalog.listing("drafters") if (row["target"], row["draft"]) == (TARGET, "lk-eagle3")]
    assert [row["model"] for row in rows] == ["smollm2-135m-q4/lk-lambda-eagle3"]


@pytest.mark.parametrize("name", ["lk-eagle3", "tv-eagle3", "lk-alpha-eagle3", "kl-medusa", "lk-medusa", "lk-mlp"])
def test_every_stored_drafter_is_read_whole_and_is_another_than_its_base(name: str) -> None:
    def tensors(drafter: str) -> dict[str, Any]:
        draft = catalog.resolve(TARGET, drafter).draft
        assert draft is not None and draft.stored is not None
        return read(data_directory("drafters") / f"{draft.stored}.safetensors")[0]

    own, kl = tensors(name), tensors(f"kl-{name.rpartition('-')[2]}")
    assert own.keys() == kl.keys() and all(own[key].shape == kl[key].shape for key in kl)
    away = [float((own[key] - kl[key]).norm() / kl[key].norm()) for key in kl if kl[key].ndim == 2]
    assert max(away) < 0.5 and (name == "kl-medusa" or min(away) > 0.01)


def test_a_drafter_is_made_with_its_target_s_files_also_where_only_the_target_s_name_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pair = catalog.resolve(TARGET, "lk-mlp")
    assert pair.draft is not None and pair.target.package is not None
    made: list[tuple[str, ...]] = []

    def note(*words: object) -> None:
        made.append(tuple(map(str, words)))
        if len(made) == 2:
            raise UserError("that is all")

    monkeypatch.setattr("speceval.catalog.package.fetch", note)
    monkeypatch.setattr("speceval.catalog.stored.fetch", note)
    captured = pair.target.model_copy(update={"model": TARGET})  # as a capture's manifest has it
    with pytest.raises(UserError, match="that is all"):
        catalog.fetch_draft(captured, pair.draft)
    assert made[0] == (str(pair.target.package), pair.target.model)
    assert made[1] == ("smollm2-135m-q4/lk-lambda-mlp", pair.target.model, pair.draft.model)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="this installation has no drafter"):
        stored.fetch("no/such", tmp_path, tmp_path / "x")
