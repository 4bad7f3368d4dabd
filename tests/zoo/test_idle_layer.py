"""The zoo's target for llama.cpp has another layer on top and is the same function, to the bit."""

from __future__ import annotations

import torch
from test_docs import script
from transformers import LlamaConfig, LlamaForCausalLM


def test_a_target_with_an_idle_layer_gives_the_same_logits_and_states() -> None:
    def model(layers: int) -> LlamaForCausalLM:
        config = LlamaConfig(
            vocab_size=64, hidden_size=24, intermediate_size=32, num_hidden_layers=layers, num_attention_heads=3,
            num_key_value_heads=3, tie_word_embeddings=False,
        )  # fmt: skip
        return LlamaForCausalLM(config).eval()

    torch.manual_seed(3)
    small, large = model(3), model(4)
    large.load_state_dict(script("llamacpp_zoo").with_idle_layer(small.state_dict(), 3))
    tokens = torch.randint(64, (2, 17))
    with torch.no_grad():
        a, b = (one(tokens, output_hidden_states=True) for one in (small, large))
    assert torch.equal(a.logits, b.logits)
    for states, other in zip(a.hidden_states[:-1], b.hidden_states, strict=False):
        assert torch.equal(states, other)
