"""EAGLE-3 drafter (arXiv 2503.01840): one decoder layer that reads the target's hidden states and recycles its own.

Definitions, with x the tokens and g_i the target's residual stream at token i after the layers `AUX_LAYERS`, joined:

* draft position 1 reads token x_{i+1} and state fc(g_i), and predicts x_{i+2};
* draft position j reads token x_{i+j} and the layer's own output at position j - 1, and predicts x_{i+j+1};
* it attends to the position-1 keys of all anchors up to i, and to the later keys of its own chain.

Training unrolls the same chain ("training-time test", section 3.2 of the paper): a drafter that has seen only the target's
states in training collapses from position 2 on.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speceval.zoo import losses
from speceval.zoo.llama import MLP, Projections, RMSNorm, initialise, rotation
from speceval.zoo.optimiser import Optimiser, cooldown
from speceval.zoo.recipe import Recipe
from speceval.zoo.target import Report, Target

AUX_LAYERS = (1, 2, 3)  # the residual stream after so many layers


class Midlayer(nn.Module):
    """The drafter's decoder layer: a Llama layer whose attention reads [token embedding, state]."""

    def __init__(self, hidden: int, intermediate: int, heads: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(hidden)
        self.hidden_norm = RMSNorm(hidden)
        self.self_attn = Projections(2 * hidden, hidden, heads)
        self.post_attention_layernorm = RMSNorm(hidden)
        self.mlp = MLP(hidden, intermediate)


class Eagle3(nn.Module):
    """`state_dict` is the checkpoint, but for the vocabulary map; token embeddings are the target's."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        hidden = recipe.hidden_size
        self.head_dim = hidden // recipe.heads
        self.fc = nn.Linear(len(AUX_LAYERS) * hidden, hidden, bias=False)
        self.midlayer = Midlayer(hidden, recipe.intermediate_size, recipe.heads)
        self.norm = RMSNorm(hidden)
        self.lm_head = nn.Linear(hidden, recipe.draft_vocab_size, bias=False)

    def forward(self, embedded: Tensor, streams: Tensor, depth: int) -> Tensor:
        """Logits [depth, batch, time - depth, draft vocabulary] of `depth` draft positions from every anchor.

        `embedded` [batch, time, hidden]: the target's embedding of each token; `streams` [batch, time, 3 hidden].
        Entry [j - 1, :, i] predicts token i + j + 1.
        """
        anchors = embedded.shape[1] - depth
        layer = self.midlayer
        state = self.fc(streams[:, :anchors])
        keys: list[Tensor] = []
        values: list[Tensor] = []
        logits = []
        for j in range(1, depth + 1):
            turn = rotation(torch.arange(j - 1, j - 1 + anchors), self.head_dim)
            inputs = (layer.input_layernorm(embedded[:, j : j + anchors]), layer.hidden_norm(state))
            q, k, v = layer.self_attn.split(torch.cat(inputs, dim=-1), turn)
            keys.append(k)
            values.append(v)
            x = state + layer.self_attn.join(_attend(q, keys, values))
            state = x + layer.mlp(layer.post_attention_layernorm(x))
            logits.append(self.lm_head(self.norm(state)))
        return torch.stack(logits)


def _attend(q: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
    """Attention of the newest draft position: causal over keys[0], and each later key of the same anchor only."""
    anchors = q.shape[2]
    q = q * q.shape[-1] ** -0.5
    future = torch.ones(anchors, anchors, dtype=torch.bool).triu(1)
    scores = [(q @ keys[0].mT).masked_fill(future, float("-inf"))]
    scores += [(q * k).sum(-1, keepdim=True) for k in keys[1:]]
    weights = torch.cat(scores, dim=-1).softmax(-1)
    out = weights[..., :anchors] @ values[0]
    for index, v in enumerate(values[1:]):
        out = out + weights[..., anchors + index, None] * v
    return out


def draft_vocabulary(tokens: Tensor, sampled: Tensor, vocab_size: int, size: int) -> Tensor:
    """Target ids [size] of the tokens that the target samples most often, in increasing order."""
    counts = torch.bincount(tokens[sampled], minlength=vocab_size)
    return counts.argsort(descending=True, stable=True)[:size].sort().values


def train(
    recipe: Recipe, loss: str, target: Target, tokens: Tensor, sampled: Tensor, report: Report
) -> tuple[Eagle3, Tensor]:
    """Train on the target's own text; returns the drafter and its vocabulary (target ids [draft vocabulary]).

    `tokens`, `sampled` [rows, length] as target.sample gives them. All losses share their first `warmup_steps`, which are
    KL: from scratch, total variation has next to no gradient (LK Losses, arXiv 2602.23881). Same steps, same batches.
    """
    draft_ids = draft_vocabulary(tokens, sampled, recipe.vocab_size, recipe.draft_vocab_size)
    with torch.no_grad():
        features = [_features(target, chunk) for chunk in tokens.split(64)]
    streams = torch.cat([f[0] for f in features])
    final = torch.cat([f[1] for f in features])
    drafter = Eagle3(recipe)
    initialise(drafter, recipe.seed)
    with torch.no_grad():  # as good a start as any, and a quick one
        drafter.lm_head.weight.copy_(target.lm_head.weight[draft_ids])
        drafter.norm.weight.copy_(target.model.norm.weight)
    head = [drafter.lm_head.weight]
    body = [p for name, p in drafter.named_parameters() if name != "lm_head.weight"]
    optimiser = Optimiser(
        [p for p in body if p.ndim == 2],
        [p for p in body if p.ndim == 1] + head,
        recipe.draft_matrix_rate,
        recipe.draft_rate,
    )
    generator = torch.Generator().manual_seed(recipe.seed)
    total = recipe.warmup_steps + recipe.loss_steps
    for step in range(total):
        rows = torch.randint(len(tokens), (recipe.draft_batch,), generator=generator)
        with torch.no_grad():
            embedded = target.model.embed_tokens(tokens[rows])
            p = target.lm_head(final[rows]).softmax(-1)
        log_q = drafter(embedded, streams[rows], recipe.max_k).log_softmax(-1)
        measure = losses.LOSSES["kl" if step < recipe.warmup_steps else loss]
        _weighted(measure, p, log_q, draft_ids, sampled[rows], recipe.position_decay).backward()
        scale = 1.0 if step < recipe.warmup_steps else cooldown(step - recipe.warmup_steps, recipe.loss_steps, 1.0)
        optimiser.step(scale)
        report(step + 1, total)
    return drafter, draft_ids


def _features(target: Target, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Streams [rows, length, 3 hidden] that the drafter reads, and the target's normed last state."""
    _, streams, _ = target(tokens)
    return torch.cat([streams[layer - 1] for layer in AUX_LAYERS], dim=-1), target.model.norm(streams[-1])


def _weighted(
    measure: losses.Loss, p: Tensor, log_q: Tensor, draft_ids: Tensor, sampled: Tensor, decay: float
) -> Tensor:
    """Mean loss over the anchors that drafting can start from, draft position j weighing decay ** (j - 1).

    Drafting starts where the newest token is the target's own, never inside a prompt.
    """
    depth, _, anchors, _ = log_q.shape
    starts = sampled[:, 1 : 1 + anchors]
    wanted = torch.stack([p[:, j : j + anchors][starts] for j in range(1, depth + 1)])
    value = measure(wanted, log_q[:, starts], draft_ids).mean(dim=1)
    weights = decay ** torch.arange(depth, dtype=torch.float32)
    return (value * weights).sum() / weights.sum()
