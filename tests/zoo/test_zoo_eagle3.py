"""EAGLE-3's training forward against drafting one token at a time, as an engine does."""

from __future__ import annotations

import torch
from support.zoo_miniature import MINIATURE

from speceval.zoo import eagle3
from speceval.zoo.llama import initialise, rotate, rotation
from speceval.zoo.training import Batch

DEPTH, TIME = 3, 12


def drafter() -> eagle3.Eagle3:
    model = eagle3.Eagle3(MINIATURE, torch.arange(MINIATURE.draft_vocab_size))
    initialise(model, seed=0)
    return model.double()


def forward(model: eagle3.Eagle3, embedded: torch.Tensor, streams: torch.Tensor, anchors: torch.Tensor) -> torch.Tensor:
    """`streams` [batch, time, 3 hidden] are the three layers', joined."""
    nothing = torch.empty(0)
    return model(Batch(nothing, embedded, list(streams.chunk(3, dim=-1)), nothing, anchors))


def draft_step_by_step(model: eagle3.Eagle3, embedded: torch.Tensor, streams: torch.Tensor, anchor: int) -> list:
    """Logits of each draft position from `anchor`, with a growing key-value list and one query at a time."""
    layer, attention = model.midlayer, model.midlayer.self_attn
    keys: list[torch.Tensor] = []
    values: list[torch.Tensor] = []

    def one(token: torch.Tensor, state: torch.Tensor, position: int) -> torch.Tensor:
        inputs = torch.cat((layer.input_layernorm(token), layer.hidden_norm(state)))
        heads = [m(inputs).view(MINIATURE.heads, -1) for m in (attention.q_proj, attention.k_proj, attention.v_proj)]
        turn = tuple(t[0].double() for t in rotation(torch.tensor([position]), model.head_dim))
        q, k, v = rotate(heads[0], turn), rotate(heads[1], turn), heads[2]
        keys.append(k)
        values.append(v)
        scores = torch.stack([(q * key).sum(-1) for key in keys]) / model.head_dim**0.5
        mixed = (scores.softmax(0)[..., None] * torch.stack(values)).sum(0)
        x = state + attention.o_proj(mixed.flatten())
        return x + layer.mlp(layer.post_attention_layernorm(x))

    for i in range(anchor + 1):
        state = one(embedded[i + 1], model.fc(streams[i]), i)
    logits = [model.lm_head(model.norm(state))]
    for j in range(2, DEPTH + 1):
        state = one(embedded[anchor + j], state, anchor + j - 1)
        logits.append(model.lm_head(model.norm(state)))
    return logits


def test_training_forward_equals_step_by_step_drafting() -> None:
    model = drafter()
    generator = torch.Generator().manual_seed(1)
    embedded = torch.randn(2, TIME, MINIATURE.hidden_size, generator=generator, dtype=torch.float64)
    streams = torch.randn(2, TIME, 3 * MINIATURE.hidden_size, generator=generator, dtype=torch.float64)
    anchors = torch.tensor([[0, 3, 8], [5, 1, 7]])
    logits = forward(model, embedded, streams, anchors)
    for row in range(2):
        for column, anchor in enumerate(anchors[row].tolist()):
            expected = torch.stack(draft_step_by_step(model, embedded[row], streams[row], anchor))
            # rotation() computes its angles in float32
            torch.testing.assert_close(logits[:, row, column], expected, atol=1e-5, rtol=1e-5)


def test_a_draft_position_reads_nothing_that_drafting_does_not_know() -> None:
    model = drafter()
    generator = torch.Generator().manual_seed(2)
    embedded = torch.randn(1, TIME, MINIATURE.hidden_size, generator=generator, dtype=torch.float64)
    streams = torch.randn(1, TIME, 3 * MINIATURE.hidden_size, generator=generator, dtype=torch.float64)
    anchors = torch.tensor([[4]])
    before = forward(model, embedded, streams, anchors)
    streams[:, 5:] = 0.0
    torch.testing.assert_close(forward(model, embedded, streams, anchors), before)
    embedded[:, 6:] = 0.0  # token 6 is what draft position 1 predicts, and what position 2 reads
    after = forward(model, embedded, streams, anchors)
    torch.testing.assert_close(after[0], before[0])
    assert not torch.allclose(after[1], before[1])


def test_draft_vocabulary_counts_only_sampled_tokens() -> None:
    tokens = torch.tensor([[9, 9, 9, 2, 2, 7, 7, 7, 5]])
    sampled = torch.tensor([[False] * 3 + [True] * 6])
    assert eagle3.draft_vocabulary(tokens, sampled, vocab_size=10, size=2).tolist() == [2, 7]
