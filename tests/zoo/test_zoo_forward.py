"""Each architecture's training forward against a recomputation from its checkpoint, token by token.

`tiny` and `vllm_patches.drafters` are held against live engines by the tests of `vllm_patches`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support import tiny
from support.zoo_miniature import MINIATURE
from torch import Tensor

from speceval.zoo import export
from speceval.zoo.llama import initialise
from speceval.zoo.target import Target
from speceval.zoo.training import Batch, Drafter
from speceval.zoo.worker import ARCHITECTURES
from vllm_patches import drafters as heads

TIME = 12
RECIPE = replace(
    MINIATURE,
    vocab_size=40,
    draft_vocab_size=40,
    hidden_size=tiny.HIDDEN,
    heads=tiny.HEADS,
    layers=tiny.LAYERS,
    latent_size=tiny.LORA,
    draft_model_size=tiny.HIDDEN,
    draft_model_heads=tiny.HEADS,
)
LOGITS = {
    "eagle3": tiny.eagle3_logits,
    "medusa": tiny.medusa_logits,
    "mlp": tiny.mlp_logits,
    "mtp": tiny.mtp_logits,
    "draft": tiny.draft_model_logits,
}


@pytest.fixture(scope="module")
def target() -> Target:
    found = Target(RECIPE)
    initialise(found, seed=3)
    return found.eval()


def started(architecture: str, target: Target) -> Drafter:
    """A drafter whose every weight is random, so that none can be left out unnoticed."""
    own = (torch.arange(40).view(2, 20), torch.ones(2, 20, dtype=torch.bool))
    drafter = ARCHITECTURES[architecture][0](RECIPE, target, own)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in drafter.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return drafter


def batch(target: Target, tokens: Tensor, anchors: Tensor) -> Batch:
    streams = target(tokens)[1]
    return Batch(tokens, target.model.embed_tokens(tokens), streams, target.model.norm(streams[-1]), anchors)


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(2, 40, (2, TIME), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_forward_is_what_the_checkpoint_drafts_token_by_token(
    architecture: str, target: Target, tokens: Tensor, tmp_path: Path
) -> None:
    drafter = started(architecture, target)
    (tmp_path / "target").mkdir()
    export.save_target(tmp_path / "target", RECIPE, target, "{}")
    ARCHITECTURES[architecture][1](tmp_path, RECIPE, drafter)
    weights = tiny.load(tmp_path / "target"), tiny.load(tmp_path)
    anchors = torch.tensor([[0, 2, 7], [5, 1, 3]])
    logits = drafter(batch(target, tokens, anchors))
    for row in range(2):
        for column, i in enumerate(anchors[row].tolist()):
            for j in range(1, drafter.depth + 1):
                known, drafts = tokens[row, None, : i + 2], tokens[row, None, i + 2 : i + j + 1]
                expected = LOGITS[architecture](*weights, known, drafts)[0]
                torch.testing.assert_close(logits[j - 1, row, column], expected, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize(("architecture", "engine"), [("medusa", heads.Medusa), ("mlp", heads.MLPSpeculator)])
@torch.no_grad()
def test_forward_is_that_of_the_heads_that_vllm_runs(
    architecture: str, engine: Any, target: Target, tokens: Tensor, tmp_path: Path
) -> None:
    drafter = started(architecture, target)
    ARCHITECTURES[architecture][1](tmp_path, RECIPE, drafter)
    model = SimpleNamespace(
        use_fp64_gumbel=False, get_vocab_size=lambda: RECIPE.vocab_size, get_hidden_size=lambda: RECIPE.hidden_size
    )
    loaded = engine(
        SimpleNamespace(
            additional_config={heads.CHECKPOINT: str(tmp_path)},
            model_config=model,
            speculative_config=SimpleNamespace(num_speculative_tokens=drafter.depth),
        )
    )
    anchor = 4
    given = batch(target, tokens, torch.full((2, 1), anchor))
    expected = drafter(given)[:, :, 0]
    following: Iterator[Tensor] = iter(tokens[:, anchor + 2 :].T)
    found = []

    def sample(logits: Tensor) -> tuple[Tensor, None]:
        found.append(logits)
        return next(following), None

    loaded.draft(given.final[:, anchor], tokens[:, anchor + 1], drafter.depth, sample)
    torch.testing.assert_close(torch.stack(found), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_a_draft_position_reads_nothing_that_drafting_does_not_know(
    architecture: str, target: Target, tokens: Tensor
) -> None:
    """Changing token i + j + 1 and all that follows, and the target's states after i, moves no position up to j."""
    drafter, anchor = started(architecture, target), 4
    anchors = torch.full((2, 1), anchor)
    before = drafter(batch(target, tokens, anchors))
    for j in range(1, drafter.depth + 1):
        other = tokens.clone()
        other[:, anchor + j + 1 :] = (other[:, anchor + j + 1 :] + 1) % 40
        changed = batch(target, other, anchors)
        for state in (*changed.streams, changed.final):
            state[:, anchor + 1 :] = 0.0
        after = drafter(changed)
        torch.testing.assert_close(after[:j], before[:j], atol=1e-5, rtol=1e-5)
        if j < drafter.depth and architecture != "medusa":
            assert not torch.allclose(after[j], before[j])
