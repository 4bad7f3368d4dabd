"""The zoo's target for llama.cpp has another layer on top and is the same function, to the bit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from support.served import ENVIRONMENT
from test_docs import script
from transformers import LlamaConfig, LlamaForCausalLM

RUN = ("run", "--k", "5", "--temp", "0", "--suite", "demo", "--limit", "6", "--max-tokens", "40", "--batch", "1")


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


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.long
def test_vllm_takes_the_same_steps_with_it(zoo: dict[str, Path], tmp_path: Path) -> None:
    script("llamacpp_zoo").write(tmp_path / "idle", "lk-eagle3")
    idle = (str(tmp_path / "idle" / "target"), str(tmp_path / "idle" / "draft"))
    for (target, draft), out in ((("zoo", "lk-eagle3"), "zoo"), (idle, "idle")):
        command = [sys.executable, "-m", "speceval", *RUN, "--target", target, "--draft", draft]
        command += ["--engine-arg", "dtype=float32", "--out", out]
        done = subprocess.run(command, env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    steps, others = (pd.read_parquet(tmp_path / name / "steps.parquet") for name in ("zoo", "idle"))
    pd.testing.assert_frame_equal(steps, others)
    texts, other_texts = ((tmp_path / name / "outputs.jsonl").read_text() for name in ("zoo", "idle"))
    assert len(steps) > 30 and texts == other_texts
