"""EAGLE-3 drafter (arXiv 2503.01840): one decoder layer that reads the target's hidden states and recycles its own.

Definitions, with x the tokens and g_i the target's residual stream at token i after the layers `AUX_LAYERS`, joined:

* draft position 1 reads token x_{i+1} and state fc(g_i), and predicts x_{i+2};
* draft position j reads token x_{i+j} and the layer's own output at position j - 1, and predicts x_{i+j+1};
* it attends to the position-1 keys of all anchors up to i, and to the later keys of its own chain.

Training unrolls the same chain ("training-time test", section 3.2 of the paper): a drafter that has seen only the
target's states in training collapses from position 2 on.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

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
        self.midlayer = Midlayer(hidden, recipe.draft_intermediate_size, recipe.heads)
        self.norm = RMSNorm(hidden)
        self.lm_head = nn.Linear(hidden, recipe.draft_vocab_size, bias=False)

    def forward(self, embedded: Tensor, streams: Tensor, anchors: Tensor, depth: int) -> Tensor:
        """Logits [depth, batch, n, draft vocabulary] of `depth` draft positions from each of `anchors` [batch, n].

        `embedded` [batch, time, hidden]: the target's embedding of each token; `streams` [batch, time, 3 hidden].
        Entry [j - 1] at anchor i predicts token i + j + 1; time must exceed every anchor by `depth`.
        """
        layer, attention = self.midlayer, self.midlayer.self_attn
        time = streams.shape[1] - 1
        state = self.fc(streams[:, :-1])
        tokens = layer.input_layernorm(embedded[:, 1:])
        turn = rotation(torch.arange(time), self.head_dim)
        _, *position_1 = attention.split(torch.cat((tokens, layer.hidden_norm(state)), dim=-1), turn)
        visible = torch.arange(time) <= anchors[:, None, :, None]
        state = _pick(state, anchors)
        later: list[tuple[Tensor, Tensor]] = []
        logits = []
        for j in range(1, depth + 1):
            turn = rotation(anchors[:, None] + j - 1, self.head_dim)
            inputs = torch.cat((_pick(tokens, anchors + j - 1), layer.hidden_norm(state)), dim=-1)
            q, k, v = attention.split(inputs, turn)
            if j > 1:  # an anchor's own position-1 key is among those of all anchors
                later.append((k, v))
            x = state + attention.join(_attend(q, position_1, visible, later))
            state = x + layer.mlp(layer.post_attention_layernorm(x))
            logits.append(self.lm_head(self.norm(state)))
        return torch.stack(logits)


def _pick(x: Tensor, index: Tensor) -> Tensor:
    """x [batch, time, size] at index [batch, n]: [batch, n, size]."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def _attend(q: Tensor, shared: list[Tensor], visible: Tensor, later: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Attention of one draft position, q [batch, heads, n, head_dim].

    `shared`: keys and values [batch, heads, time, head_dim] of position 1, of which an anchor sees `visible`
    [batch, 1, n, time]; `later`: those [batch, heads, n, head_dim] of each later position, seen by its own chain.
    """
    keys, values = shared
    q = q * q.shape[-1] ** -0.5
    scores = [(q @ keys.mT).masked_fill(~visible, float("-inf"))]
    scores += [(q * k).sum(-1, keepdim=True) for k, _ in later]
    weights = torch.cat(scores, dim=-1).softmax(-1)
    time = keys.shape[2]
    out = weights[..., :time] @ values
    for index, (_, v) in enumerate(later):
        out = out + weights[..., time + index, None] * v
    return out


def draft_vocabulary(tokens: Tensor, sampled: Tensor, vocab_size: int, size: int) -> Tensor:
    """Target ids [size] of the tokens that the target samples most often, in increasing order."""
    counts = torch.bincount(tokens[sampled], minlength=vocab_size)
    return counts.argsort(descending=True, stable=True)[:size].sort().values


def train(
    recipe: Recipe, loss: str, target: Target, tokens: Tensor, sampled: Tensor, report: Report
) -> tuple[Eagle3, Tensor]:
    """Train on the target's own text; returns the drafter and its vocabulary (target ids [draft vocabulary]).

    `tokens`, `sampled` [rows, length] as `target.sample` gives them; `loss` is a key of `losses.LOSSES`. All losses
    share start, batches and the first `warmup_steps`, which are KL: from scratch, total variation has next to no
    gradient (LK Losses, arXiv 2602.23881). Then the optimiser starts afresh, for each loss alike: running averages
    of KL's gradients, which are larger, would hold the next loss back.
    """
    draft_ids = draft_vocabulary(tokens, sampled, recipe.vocab_size, recipe.draft_vocab_size)
    drafter = _start(recipe, target, draft_ids)
    streams, final = _features(target, tokens)
    weights = recipe.position_decay ** torch.arange(recipe.max_k, dtype=torch.float32)
    weights /= weights.sum()
    generator = torch.Generator().manual_seed(recipe.seed)
    total = recipe.warmup_steps + recipe.loss_steps
    for step in range(total):
        if step in (0, recipe.warmup_steps):
            optimiser = _optimiser(recipe, drafter)
        warm = step < recipe.warmup_steps
        measure = losses.LOSSES["kl" if warm else loss]
        rows = torch.randint(len(tokens), (recipe.draft_batch,), generator=generator)
        anchors = _draw_anchors(sampled[rows], recipe.anchors, recipe.max_k, generator)
        with torch.no_grad():
            embedded = target.model.embed_tokens(tokens[rows])
            states = torch.stack([_pick(final[rows], anchors + j) for j in range(1, recipe.max_k + 1)])
            p = target.lm_head(states).softmax(-1)
        log_q = drafter(embedded, streams[rows], anchors, recipe.max_k).log_softmax(-1)
        of_position = measure(p, log_q, draft_ids).mean(dim=(1, 2))
        (of_position * weights).sum().backward()
        optimiser.step(1.0 if warm else cooldown(step - recipe.warmup_steps, recipe.loss_steps, 1.0))
        report(step + 1, total)
    return drafter, draft_ids


def _start(recipe: Recipe, target: Target, draft_ids: Tensor) -> Eagle3:
    """An untrained drafter; output map and last norm are the target's, which saves steps."""
    drafter = Eagle3(recipe)
    initialise(drafter, recipe.seed)
    with torch.no_grad():
        drafter.lm_head.weight.copy_(target.lm_head.weight[draft_ids])
        drafter.norm.weight.copy_(target.model.norm.weight)
    return drafter


def _optimiser(recipe: Recipe, drafter: Eagle3) -> Optimiser:
    body = [p for name, p in drafter.named_parameters() if name != "lm_head.weight"]
    return Optimiser(
        matrices=[p for p in body if p.ndim == 2],
        others=[p for p in body if p.ndim == 1] + [drafter.lm_head.weight],
        matrix_rate=recipe.draft_matrix_rate,
        rate=recipe.draft_rate,
    )


@torch.no_grad()
def _features(target: Target, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """What the drafter reads, [rows, length, 3 hidden], and the target's normed last state, [rows, length, hidden]."""
    streams, final = [], []
    for chunk in tokens.split(64):  # bounds the logits' memory
        layers = target(chunk)[1]
        streams.append(torch.cat([layers[index - 1] for index in AUX_LAYERS], dim=-1))
        final.append(target.model.norm(layers[-1]))
    return torch.cat(streams), torch.cat(final)


def _draw_anchors(sampled: Tensor, count: int, depth: int, generator: torch.Generator) -> Tensor:
    """Draw `count` anchors [rows, count] of each row from those where drafting can start.

    That is where the newest token, i + 1, is the target's own: not inside a prompt, unless a row has too few others.
    """
    starts = sampled[:, 1 : sampled.shape[1] - depth].float()
    return torch.multinomial(starts + 1e-6, count, generator=generator)
