"""Drafting methods: a row is all that a new one needs, and one without a row is shown under its own name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, get_args

import pytest

from speceval import catalog
from speceval.catalog import methods
from speceval.catalog.recognise import recognise
from speceval.show import layouts, published, render
from speceval.show.export import FORMATS, export
from speceval.show.export.profile import profile
from speceval.show.plots import tau_k
from speceval.store import read_run
from speceval.zoo.recipe import METHODS as ZOO_METHODS

RUN = Path(__file__).resolve().parents[2] / "results" / "reference" / "demo-all" / "kl-mtp-T0-greedy"


def stored(root: Path, method: str) -> Path:
    """A finished run of a drafter with this method, from a checkpoint that the catalog does not know."""
    directory = shutil.copytree(RUN, root / "run")
    meta = json.loads((directory / "run.json").read_text())
    meta["spec"] |= {"target": "mine", "draft": "my-drafter"}
    meta["fingerprint"]["engine"]["method"] = method
    (directory / "run.json").write_text(json.dumps(meta))
    return directory


@pytest.fixture
def row(monkeypatch: pytest.MonkeyPatch) -> methods.DraftingMethod:
    added = methods.DraftingMethod(
        "hydra", "Hydra heads", nests=True, chain=True, bare=True, architectures=("hydra*",), k_fields=("hydra_heads",)
    )
    monkeypatch.setitem(methods.METHODS, "hydra", added)
    return added


def test_adding_a_row_is_enough_for_table_plot_and_profile(tmp_path: Path, row: methods.DraftingMethod) -> None:
    run = read_run(stored(tmp_path, "hydra"))
    assert row.display in render.markdown(layouts.build("paper-main", [run.directory]))
    assert tau_k.has_curve(run) and "Curves:" in tau_k.draw([run]).caption
    assert profile(run).method == "hydra" and profile(run).accept_length_model == "chain_analytic"


def test_adding_a_row_is_enough_to_recognise_and_to_name_it(row: methods.DraftingMethod) -> None:
    facts = recognise({"architectures": ["HydraForCausalLM"], "hydra_heads": 3}, "d")
    assert (facts.method, facts.default_k, facts.max_k) == ("hydra", 3, 3)
    draft = catalog.resolve("zoo", "hydra").draft
    assert draft is not None and draft.method == "hydra"


def test_a_method_without_a_row_is_shown_under_its_own_name_and_promises_nothing(tmp_path: Path) -> None:
    run = read_run(stored(tmp_path, "hydra"))
    assert "hydra" in render.markdown(layouts.build("paper-main", [run.directory]))
    assert not tau_k.has_curve(run) and profile(run).accept_length_model == "measured_per_k"
    assert all("hydra" in export(run, kind) for kind in FORMATS)


def test_a_catalog_entry_of_a_method_without_a_row_is_refused() -> None:
    with pytest.raises(ValueError, match="'hydra' is none of eagle, "):
        catalog.Draft.model_validate({"name": "d", "source": "hub", "model": "a/d", "method": "hydra"})


@pytest.mark.parametrize(
    ("alias", "name"), [("ngram_gpu", "ngram"), ("deepseek_mtp", "mtp"), ("eagle3", "eagle3"), ("x", "x")]
)
def test_an_alias_has_the_row_of_its_method(alias: str, name: str) -> None:
    assert methods.find(alias).name == name


def test_methods_without_a_distribution_are_those_that_the_patches_know() -> None:
    rows = {row.name for row in methods.METHODS.values() if row.deterministic}
    assert (
        rows == {"ngram", "suffix"} == {methods.find(name).name for name in methods.vllm_patches.methods.DETERMINISTIC}
    )


def test_the_zoo_and_the_drafters_of_ours_have_rows() -> None:
    assert {*ZOO_METHODS.values(), *methods.vllm_patches.methods.HEADS} <= methods.METHODS.keys()


def test_published_figures_name_methods_as_the_rows_do() -> None:
    displays = {row.display for row in methods.METHODS.values()}
    assert {figure.architecture for figure in published.load().rows} <= displays


def test_rows_are_methods_of_the_installed_vllm() -> None:
    speculative: Any = pytest.importorskip("vllm.config.speculative")

    def names(literal: Any) -> set[str]:
        return {n for part in get_args(literal) for n in ([part] if isinstance(part, str) else names(part))}

    assert methods.METHODS.keys() <= names(speculative.SpeculativeMethod)
