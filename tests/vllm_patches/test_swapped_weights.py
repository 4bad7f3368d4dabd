"""Other weights for a live drafter: what must not be loaded."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from vllm_patches import swap
from vllm_patches.drafters import Medusa

OWN, TARGETS = torch.ones(2), torch.zeros(3)


def test_tensors_of_shared_layers_are_left_out_where_both_checkpoints_have_the_same() -> None:
    both = {"lm_head.weight": OWN, "model.embed_tokens.weight": TARGETS}
    assert swap._without_shared(both, both, ("embed_tokens",)).keys() == {"lm_head.weight"}
    assert swap._without_shared(both, both, ()).keys() == both.keys()


@pytest.mark.parametrize("other", [{}, {"embed_tokens.weight": TARGETS + 1}])
def test_a_checkpoint_that_would_change_the_target_is_refused(other: dict[str, torch.Tensor]) -> None:
    for pair in ((other, {"embed_tokens.weight": TARGETS}), ({"embed_tokens.weight": TARGETS}, other)):
        with pytest.raises(ValueError, match=r"embed_tokens.weight is the target's own in one checkpoint"):
            swap._without_shared(*pair, ("embed_tokens",))


def test_layers_that_hold_the_target_s_tensors_are_named() -> None:
    target = torch.nn.ModuleDict({"embed": torch.nn.Embedding(4, 2)})
    model = torch.nn.ModuleDict({"embed_tokens": target["embed"], "head": torch.nn.Linear(2, 4)})
    assert swap._shared_layers(model, target) == ["embed_tokens"]


def test_heads_get_the_other_checkpoint_s_weights_under_their_own_names(tmp_path: Path) -> None:
    drafter = Medusa.__new__(Medusa)
    drafter.weights, drafter.k, drafter.config = {}, 1, {"num_hidden_layers": 0}
    save_file({"medusa_heads.0.1.weight": OWN}, tmp_path / "model.safetensors")
    swap.swap(SimpleNamespace(drafter=drafter), None, "before", str(tmp_path))
    assert torch.equal(drafter.weights["lm_heads.0.weight"], OWN)


def test_a_worker_without_a_drafter_has_nothing_to_swap() -> None:
    swap.swap(SimpleNamespace(drafter=None), None, "before", "/nowhere")
