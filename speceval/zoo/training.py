"""What all drafters share: what they learn from, the training loop and the optimiser's settings.

With x the tokens of the target's own text: a drafter starts from an anchor i, where the target has read the tokens up
to x_i and sampled x_{i+1}. Its draft position j predicts x_{i+j+1} and may read x_{i+1} ... x_{i+j}.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from speceval.zoo import losses
from speceval.zoo.optimiser import Optimiser, cooldown
from speceval.zoo.recipe import FROM_SCRATCH, Recipe
from speceval.zoo.target import Report, Target

VOCABULARY_MAPS = {"lm_head", "lm_heads", "head", "emb", "embed_tokens"}
"""Modules whose matrices have a row for each token: Adam's, as the target's are."""


@dataclass(frozen=True)
class Batch:
    """Rows of the target's own text, what the target computed on them, and where drafting starts."""

    tokens: Tensor
    """[batch, time]"""
    embedded: Tensor
    """[batch, time, hidden], the target's embedding of each token."""
    streams: list[Tensor]
    """The target's residual stream after each layer, each [batch, time, hidden]."""
    final: Tensor
    """[batch, time, hidden], the target's normed last state."""
    anchors: Tensor
    """[batch, n]; time exceeds every anchor by the drafter's `depth`."""


class Drafter(nn.Module):
    """A drafter in training."""

    depth: int
    """Draft positions unrolled."""
    draft_ids: Tensor
    """Target ids [D] of the tokens it can draft."""

    def forward(self, batch: Batch) -> Tensor:
        """Logits [depth, batch, n, D]; entry [j - 1] at anchor i predicts token i + j + 1."""
        raise NotImplementedError

    def adam_rate(self, recipe: Recipe) -> float:
        """Learning rate of the parameters that Adam trains."""
        return recipe.draft_rate


def train(
    recipe: Recipe, loss: str, drafter: Drafter, target: Target, own: tuple[Tensor, Tensor], report: Report
) -> None:
    """Train `drafter` on the target's own text.

    `own`: tokens and sampled [rows, length] as `target.sample` gives them; `loss` is a key of `losses.LOSSES`. All
    losses share start, batches and the first `warmup_steps`, which are KL: from scratch, total variation has next to no
    gradient (LK Losses, arXiv 2602.23881). Then the optimiser starts afresh, for each loss alike: running averages
    of KL's gradients, which are larger, would hold the next loss back. The losses of `FROM_SCRATCH` have no warm-up
    but are otherwise treated the same.
    """
    tokens, sampled = own
    streams, final = _features(target, tokens)
    weights = recipe.position_decay ** torch.arange(drafter.depth, dtype=torch.float32)
    weights /= weights.sum()
    generator = torch.Generator().manual_seed(recipe.seed)
    total = recipe.warmup_steps + recipe.loss_steps
    for step in range(total):
        if step in (0, recipe.warmup_steps):
            optimiser = _optimiser(recipe, drafter)
        warm = step < recipe.warmup_steps
        measure = losses.LOSSES["kl" if warm and loss not in FROM_SCRATCH else loss]
        rows = torch.randint(len(tokens), (recipe.draft_batch,), generator=generator)
        anchors = _draw_anchors(sampled[rows], recipe.anchors, drafter.depth, generator)
        with torch.no_grad():
            embedded = target.model.embed_tokens(tokens[rows])
            states = torch.stack([pick(final[rows], anchors + j) for j in range(1, drafter.depth + 1)])
            p = target.lm_head(states).softmax(-1)
        batch = Batch(tokens[rows], embedded, [stream[rows] for stream in streams], final[rows], anchors)
        log_q = drafter(batch).log_softmax(-1)
        of_position = measure(p, log_q, drafter.draft_ids).mean(dim=(1, 2))
        (of_position * weights).sum().backward()
        optimiser.step(1.0 if warm else cooldown(step - recipe.warmup_steps, recipe.loss_steps, 1.0))
        report(step + 1, total)


def pick(x: Tensor, index: Tensor) -> Tensor:
    """x [batch, time, size] at index [batch, n]: [batch, n, size]."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def _optimiser(recipe: Recipe, drafter: Drafter) -> Optimiser:
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in drafter.named_parameters():
        of_tokens = not VOCABULARY_MAPS.isdisjoint(name.split("."))
        (matrices if parameter.ndim == 2 and not of_tokens else others).append(parameter)
    return Optimiser(matrices, others, recipe.draft_matrix_rate, drafter.adam_rate(recipe))


@torch.no_grad()
def _features(target: Target, tokens: Tensor) -> tuple[list[Tensor], Tensor]:
    """The residual stream after each layer and the normed last state, each [rows, length, hidden]."""
    chunks = [target(chunk)[1] for chunk in tokens.split(64)]  # bounds the logits' memory
    streams = [torch.cat(of_layer) for of_layer in zip(*chunks, strict=True)]
    return streams, target.model.norm(streams[-1])


def _draw_anchors(sampled: Tensor, count: int, depth: int, generator: torch.Generator) -> Tensor:
    """Draw `count` anchors [rows, count] of each row from those where drafting can start.

    That is where the newest token, i + 1, is the target's own: not inside a prompt, unless a row has too few others.
    """
    starts = sampled[:, 1 : sampled.shape[1] - depth].float()
    return torch.multinomial(starts + 1e-6, count, generator=generator)
