"""fetch: zoo directories, hub commits from the cache, K limits from config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from speceval import catalog, zoo
from speceval.catalog import hub
from speceval.errors import UserError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def write_config(directory: Path, config: dict[str, Any]) -> Path:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def cache_on_hub(cache: Path, model: str, config: dict[str, Any]) -> None:
    """A hub cache folder as huggingface_hub lays it out, with `main` at COMMIT."""
    repository = cache / f"models--{model.replace('/', '--')}"
    write_config(repository / "snapshots" / COMMIT, config)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No hub, an empty cache; returns the cache's directory."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "online", lambda: False)
    return tmp_path / "hub"


def test_offline_hub_ids_say_what_to_do_at_once(offline: Path) -> None:
    with pytest.raises(UserError, match="give a local directory or go online"):
        catalog.resolve("someone/some-model", None)


def test_a_cached_hub_id_resolves_offline_and_is_pinned_to_its_commit(offline: Path) -> None:
    cache_on_hub(offline, "someone/heads", {"model_type": "medusa", "num_heads": 4, "hidden_size": 4096})
    draft = catalog.resolve("llama-3.1-8b", "someone/heads").draft
    assert draft is not None
    assert (draft.source, draft.model, draft.revision, draft.max_k) == ("hub", "someone/heads", COMMIT, 4)


def test_fetch_pins_catalog_checkpoints_and_reads_the_limits_they_state(offline: Path) -> None:
    cache_on_hub(offline, "meta-llama/Llama-3.1-8B-Instruct", {"model_type": "llama", "hidden_size": 4096})
    heads = {"model_type": "medusa", "num_heads": 5, "hidden_size": 4096, "vocab_size": 128256}
    cache_on_hub(offline, "nebius/MEDUSA-Llama-3.1-8B-Instruct", heads)
    pair = catalog.fetch(catalog.resolve("llama-3.1-8b", "lk-medusa"))
    assert pair.target.revision == COMMIT
    assert pair.draft is not None and (pair.draft.revision, pair.draft.max_k) == (COMMIT, 5)


def test_fetch_finds_out_that_a_catalog_checkpoint_does_not_fit(offline: Path) -> None:
    cache_on_hub(offline, "meta-llama/Llama-3.1-8B-Instruct", {"model_type": "llama", "hidden_size": 4096})
    heads = {"model_type": "medusa", "num_heads": 5, "hidden_size": 8192}
    cache_on_hub(offline, "nebius/MEDUSA-Llama-3.1-8B-Instruct", heads)
    with pytest.raises(UserError, match="is not for target"):
        catalog.fetch(catalog.resolve("llama-3.1-8b", "lk-medusa"))


def test_fetch_turns_zoo_names_into_the_directories_the_zoo_built(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sizes = {"model_type": "llama", "hidden_size": 96, "vocab_size": 512, "num_hidden_layers": 3}
    paths = {
        "target": write_config(tmp_path / "target", {**sizes, "architectures": ["LlamaForCausalLM"]}),
        "lk-eagle3": write_config(tmp_path / "lk-eagle3", {**sizes, "architectures": ["LlamaForCausalLMEagle3"]}),
    }
    asked: list[list[str]] = []

    def ensure(names: list[str]) -> dict[str, Path]:
        asked.append(names)
        return paths

    monkeypatch.setattr(zoo, "ensure", ensure)
    pair = catalog.fetch(catalog.resolve("zoo", "lk-eagle3"))
    assert asked == [["lk-eagle3"]]
    assert pair.target.model == str(paths["target"])
    assert pair.draft is not None and pair.draft.model == str(paths["lk-eagle3"])
    assert pair.target.sizes.hidden_size == 96


def test_fetch_of_ngram_on_the_zoo_builds_the_target_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    target = write_config(tmp_path / "target", {"model_type": "llama"})
    monkeypatch.setattr(
        zoo, "ensure", lambda names: {"target": target} if not names else pytest.fail("built a drafter")
    )
    pair = catalog.fetch(catalog.resolve("zoo", "ngram"))
    assert pair.target.model == str(target)
    assert pair.draft is not None and pair.draft.model is None
