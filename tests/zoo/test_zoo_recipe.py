"""The list of drafters: names, architectures, losses and K belong together."""

from __future__ import annotations

import pytest

from speceval import catalog, zoo
from speceval.catalog.methods import METHODS as ROWS
from speceval.zoo import losses, worker
from speceval.zoo.recipe import FROM_SCRATCH, LOSSES, METHODS, PLANS


def test_every_architecture_has_every_loss_and_both_exist() -> None:
    assert set(PLANS.values()) == {(architecture, loss) for architecture in METHODS for loss in losses.LOSSES}
    assert set(METHODS) == set(worker.ARCHITECTURES)
    assert set(LOSSES.values()) == set(losses.LOSSES) > set(FROM_SCRATCH)


def test_no_name_makes_vllm_take_a_drafter_for_another_method() -> None:
    parts = [row.path_part for row in ROWS.values() if row.path_part]
    assert parts
    for name, method in zoo.DRAFTERS.items():
        assert method == "eagle3" or not any(part in name for part in parts), name


@pytest.mark.parametrize(
    ("name", "method", "k"),
    [
        ("lk-eagle3", "eagle3", 5),
        ("lk-medusa", "medusa", 6),
        ("lk-alpha-mlp", "mlp_speculator", 6),
        ("tv-mtp", "mtp", 5),
        ("kl-draft", "draft_model", 5),
    ],
)
def test_the_catalog_knows_method_and_k_of_a_drafter(name: str, method: str, k: int) -> None:
    draft = catalog.resolve("zoo", name).draft
    assert draft is not None
    assert (draft.source, draft.method, draft.default_k) == ("zoo", method, k)
