"""What a drafter's checkpoint filled is seen whatever it left out, and its memory is as it was."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vllm_patches import loading
from vllm_patches.refuse import MEASURED_SWITCH


class Drafter(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(8, 6, bias=False, dtype=torch.bfloat16)
        self.norm = torch.nn.Linear(6, 6)
        self.scale = torch.nn.Parameter(torch.zeros(()), requires_grad=False)
        self.draft_id_to_target_id = torch.nn.Parameter(torch.zeros(5, dtype=torch.long), requires_grad=False)


class Loader:
    """Fills the parameters that a checkpoint of given tensors has."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.tensors = tensors

    def get_all_weights(self, model_config: Any, model: Any) -> Iterator[tuple[str, torch.Tensor]]:
        yield from self.tensors.items()

    def load_weights(self, model: Any, model_config: Any) -> None:
        parameters = dict(model.named_parameters())
        for name, tensor in self.get_all_weights(model_config, model):
            if name in parameters:
                parameters[name].data[: len(tensor)] = tensor if tensor.dim() else tensor.clone()


def load(monkeypatch: pytest.MonkeyPatch, **tensors: torch.Tensor) -> Drafter:
    monkeypatch.setenv(MEASURED_SWITCH, "1")
    model, loader = Drafter(), Loader({name.replace("__", "."): tensor for name, tensor in tensors.items()})
    loading.watch(Loader.load_weights)(loader, model, SimpleNamespace(runner_type="draft"))
    return model


WHOLE = {
    "fc__weight": torch.ones(6, 8, dtype=torch.bfloat16),
    "norm__weight": torch.zeros(6, 6),
    "norm__bias": torch.zeros(6),
    "draft_id_to_target_id": torch.zeros(5, dtype=torch.long),
}


def unfilled(model: Any) -> list[str]:
    return [name for name in loading._unfilled(model) if name != "scale"]


def test_a_whole_checkpoint_leaves_nothing_unfilled_even_where_it_is_all_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    assert unfilled(load(monkeypatch, **WHOLE)) == []


@pytest.mark.parametrize(
    ("lost", "named"), [("fc__weight", "fc.weight"), ("norm__bias", "norm.bias"), ("draft_id_to_target_id", "d2t")]
)
def test_a_tensor_that_the_checkpoint_lacks_is_named_and_keeps_its_memory(
    monkeypatch: pytest.MonkeyPatch, lost: str, named: str
) -> None:
    torch.manual_seed(0)
    before = {name: value.detach().clone() for name, value in Drafter().named_parameters()}
    torch.manual_seed(0)
    model = load(monkeypatch, **{name: tensor for name, tensor in WHOLE.items() if name != lost})
    assert unfilled(model) == [named]
    name = lost.replace("__", ".")
    assert torch.equal(dict(model.named_parameters())[name], before[name])


def test_a_tensor_with_rows_missing_is_named_with_the_share(monkeypatch: pytest.MonkeyPatch) -> None:
    assert unfilled(load(monkeypatch, **WHOLE | {"norm__weight": torch.zeros(3, 6)})) == ["50% of norm.weight"]


def test_a_layer_that_was_replaced_after_loading_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(monkeypatch, **{name: tensor for name, tensor in WHOLE.items() if name != "fc__weight"})
    model.fc = torch.nn.Linear(8, 6)  # the target's own
    gc.collect()
    assert unfilled(model) == []


@pytest.mark.parametrize("brought", [False, True])
def test_a_mask_embedding_is_missed_only_where_the_drafter_reads_one(
    monkeypatch: pytest.MonkeyPatch, brought: bool
) -> None:
    """vLLM's DFlash drafters have room for one, and read it if the checkpoint brings it."""
    monkeypatch.setattr(Drafter, "mask_embedding", torch.nn.Parameter(torch.zeros(6)), raising=False)
    monkeypatch.setattr(Drafter, "has_separate_mask_embedding", brought, raising=False)
    model = load(monkeypatch, **WHOLE)
    loading.LAST.shares["mask_embedding"] = 1.0
    loading.LAST.owners["mask_embedding"] = weakref.ref(model)
    assert unfilled(model) == (["mask_embedding"] if brought else [])


def test_biases_and_the_mask_of_the_draft_vocabulary_are_heard_of(monkeypatch: pytest.MonkeyPatch) -> None:
    load(monkeypatch, **WHOLE, other__bias=torch.ones(2), t2d=torch.tensor([1, 0, 1]))
    assert loading.LAST.biases == ["other.bias"] and loading.LAST.kept.tolist() == [True, False, True]


def test_a_target_and_a_plain_vllm_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    loading.LAST = loading.Loading()
    monkeypatch.setenv(MEASURED_SWITCH, "1")
    model = Drafter()
    loading.watch(Loader.load_weights)(Loader({}), model, SimpleNamespace(runner_type="generate"))
    monkeypatch.delenv(MEASURED_SWITCH)
    loading.watch(Loader.load_weights)(Loader({}), model, SimpleNamespace(runner_type="draft"))
    assert loading.LAST.model is None


@pytest.mark.parametrize(("tokens", "named"), [(None, ["lm_head.weight"]), (12, ["lm_head.weight"]), (0, [])])
def test_a_head_that_is_the_targets_is_missed_where_the_draft_vocabulary_is_cut_but_not_in_a_shard_of_padding(
    monkeypatch: pytest.MonkeyPatch, tokens: int | None, named: list[str]
) -> None:
    head = torch.nn.Linear(6, 32)
    if tokens is not None:
        head.shard_indices = SimpleNamespace(num_org_elements=tokens)
    drafter, target = load(monkeypatch, **WHOLE), torch.nn.Module()
    drafter.lm_head = target.lm_head = head
    drafter.draft_id_to_target_id = None
    runner = SimpleNamespace(drafter=SimpleNamespace(model=drafter), model=target)
    settings = SimpleNamespace(draft_vocab_size=16)
    speculative = SimpleNamespace(draft_model_config=SimpleNamespace(hf_config=settings), method="eagle3")
    config = SimpleNamespace(speculative_config=speculative, model_config=SimpleNamespace(get_vocab_size=lambda: 24))
    assert [name for name in loading.report(runner, config)["unfilled"] if name != "scale"] == named


IDS = torch.tensor([0, 2, 3, 5, 6, 7])
OFFSETS = IDS - torch.arange(6)
MASK = torch.zeros(16, dtype=torch.bool).index_fill(0, IDS, True)


@pytest.mark.parametrize(
    ("d2t", "vocabulary", "t2d", "fault"),
    [
        (OFFSETS, 8, None, ""),
        (OFFSETS, 16, MASK, ""),
        (IDS, 8, None, "its d2t holds the target's token ids"),
        (IDS, 16, MASK, "its d2t holds the target's token ids"),
        (IDS.flip(0), 8, None, "its d2t holds the target's token ids"),
        (torch.tensor([0, -1, 0, 0, 0, 0]), 8, None, "its d2t does not map"),
        (OFFSETS + 9, 8, None, "its d2t does not map"),
    ],
)
def test_a_map_of_the_draft_vocabulary_holds_offsets_that_lead_to_tokens_of_their_own(
    d2t: torch.Tensor, vocabulary: int, t2d: torch.Tensor | None, fault: str
) -> None:
    told = loading.map_fault(d2t, vocabulary, t2d)
    assert told.startswith(fault) and bool(told) == bool(fault)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_drafter_with_numbers_that_are_none_is_named(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    odd = torch.zeros(6, 6)
    odd[3, 2] = value
    load(monkeypatch, **WHOLE)
    assert loading.LAST.odd == ""
    load(monkeypatch, **WHOLE | {"norm__weight": odd}).norm.weight.data = torch.empty(0)  # packed after it was loaded
    assert loading.LAST.odd == "its tensor norm.weight holds NaN or infinity"


def test_what_a_checkpoint_does_not_fill_need_not_be_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(monkeypatch)
    model.norm.weight.data.fill_(float("nan"))  # memory that nobody writes: it is named as unfilled, if it is used
    given = {name.replace("__", "."): tensor for name, tensor in WHOLE.items() if name != "norm__weight"}
    loading.watch(Loader.load_weights)(Loader(given), model, SimpleNamespace(runner_type="draft"))
    assert loading.LAST.odd == "" and "norm.weight" in unfilled(model)
