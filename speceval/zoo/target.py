"""The target: a small Llama, its training on packed conversations, and its own text for the drafters."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speceval.zoo.llama import MLP, Projections, RMSNorm, initialise, rotation
from speceval.zoo.optimiser import Optimiser, cooldown
from speceval.zoo.recipe import Recipe
from speceval.zoo.text import EOS_ID

Report = Callable[[int, int], None]  # (done, total)


class Layer(nn.Module):
    """One Llama decoder layer."""

    def __init__(self, hidden: int, intermediate: int, heads: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(hidden)
        self.self_attn = Projections(hidden, hidden, heads)
        self.post_attention_layernorm = RMSNorm(hidden)
        self.mlp = MLP(hidden, intermediate)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], cache: Tensor | None, start: int) -> Tensor:
        """The residual stream x [batch, time, hidden] after this layer.

        With `cache` x is one token, at `start`: its key and value are put there, and it attends to all up to them.
        """
        q, k, v = self.self_attn.split(self.input_layernorm(x), turn)
        if cache is not None:
            cache[0, :, :, start], cache[1, :, :, start] = k[:, :, 0], v[:, :, 0]
            k, v = cache[:, :, :, : start + 1]
        x = x + self.self_attn.join(F.scaled_dot_product_attention(q, k, v, is_causal=cache is None))
        return x + self.mlp(self.post_attention_layernorm(x))


class Target(nn.Module):
    """A Llama language model; `state_dict` is its checkpoint."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        hidden = recipe.hidden_size
        self.head_dim = hidden // recipe.heads
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(recipe.vocab_size, hidden)
        self.model.layers = nn.ModuleList(
            Layer(hidden, recipe.intermediate_size, recipe.heads) for _ in range(recipe.layers)
        )
        self.model.norm = RMSNorm(hidden)
        self.lm_head = nn.Linear(hidden, recipe.vocab_size, bias=False)

    def forward(
        self, tokens: Tensor, caches: list[Tensor] | None = None, start: int = 0
    ) -> tuple[Tensor, list[Tensor]]:
        """Logits [batch, time, vocab] of tokens [batch, time], and the residual stream after each layer.

        To decode a token at a time, give `empty_caches` and the token's position `start`.
        """
        turn = rotation(torch.arange(start, start + tokens.shape[1]), self.head_dim)
        x = self.model.embed_tokens(tokens)
        streams = []
        for index, layer in enumerate(self.model.layers):
            x = layer(x, turn, caches[index] if caches else None, start)
            streams.append(x)
        return self.lm_head(self.model.norm(x)), streams

    def empty_caches(self, batch: int, time: int) -> list[Tensor]:
        """Room for the keys and values [2, batch, heads, time, head_dim] of each layer."""
        heads = self.model.layers[0].self_attn.heads
        return [torch.empty(2, batch, heads, time, self.head_dim) for _ in self.model.layers]


def train(recipe: Recipe, stream: Tensor, report: Report) -> Target:
    """Train on `stream` [tokens], the packed documents, with the next-token loss everywhere."""
    target = Target(recipe)
    initialise(target, recipe.seed)
    layers = list(target.model.layers.parameters())
    matrices = [p for p in layers if p.ndim == 2]
    others = [p for p in layers if p.ndim == 1]
    others += [target.model.embed_tokens.weight, target.model.norm.weight, target.lm_head.weight]
    optimiser = Optimiser(matrices, others, recipe.target_matrix_rate, recipe.target_rate)
    generator = torch.Generator().manual_seed(recipe.seed)
    for step in range(recipe.target_steps):
        starts = torch.randint(len(stream) - recipe.target_length, (recipe.target_batch, 1), generator=generator)
        rows = stream[starts + torch.arange(recipe.target_length + 1)]
        logits, _ = target(rows[:, :-1])
        F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()).backward()
        optimiser.step(cooldown(step, recipe.target_steps, 0.5))
        report(step + 1, recipe.target_steps)
    return target.eval()


@torch.no_grad()
def sample(target: Target, prompts: list[list[int]], rows: int, length: int, seed: int) -> tuple[Tensor, Tensor]:
    """Let the target answer at temperature 1: tokens [rows, length] and which of them it sampled (bool).

    A row starts with a prompt; when its answer ends, the next prompt follows, so that no position is idle.
    """
    generator = torch.Generator().manual_seed(seed)
    queue = cycle(prompts)
    tokens = torch.full((rows, length), -1)

    def place(row: int, at: int) -> None:
        prompt = torch.tensor(next(queue)[: length - at])
        tokens[row, at : at + len(prompt)] = prompt

    for row in range(rows):
        place(row, 0)
    sampled = torch.zeros(rows, length, dtype=torch.bool)
    caches = target.empty_caches(rows, length)
    for at in range(length - 1):
        logits, _ = target(tokens[:, at : at + 1], caches, at)
        drawn = torch.multinomial(logits[:, -1].softmax(-1), 1, generator=generator)[:, 0]
        free = tokens[:, at + 1] < 0
        tokens[free, at + 1] = drawn[free]
        sampled[free, at + 1] = True
        if at + 2 < length:
            for row in (free & (drawn == EOS_ID)).nonzero()[:, 0].tolist():
                place(row, at + 2)
    return tokens, sampled
