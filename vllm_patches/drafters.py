"""Drafters that are a few heads on the target's last hidden state, where vLLM has no proposer that samples.

vLLM takes them as custom classes (`methods.TRANSPORT`), whose interface gives a drafter neither hidden states nor
sampling parameters: the patch `v1-draft-streams` calls `Heads.draft` with both, and keeps q; the V2 runner has
`speculator`. `engine_arguments` says how to start an engine with one.

MEDUSA (arXiv 2401.10774) was removed from vLLM 0.33; the MLP speculator (arXiv 2404.19124) cannot be loaded by any of
0.29 to 0.33. Checkpoints are those that vLLM's own models read or used to read (model_executor/models/medusa.py and
mlp_speculator.py).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from vllm_patches.loading import not_finite
from vllm_patches.methods import HEADS, TRANSPORT

CHECKPOINT = "draft_checkpoint"
"""Key of vLLM's `additional_config` that names the drafter's directory or hub id ("id@revision" for one revision)."""

MLP_EPS = 1e-6

Sample = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]]
"""Logits [B, V] -> draft tokens [B] and their q [B, V] (None: argmax)."""


def engine_arguments(method: str, checkpoint: str, k: int, drafting: str = "probabilistic") -> dict[str, Any]:
    """Arguments of vllm.LLM that draft `k` tokens with `checkpoint`; `method` is one of `methods.HEADS`.

    `drafting`: "probabilistic" draws from the heads, "greedy" takes their argmaxes.
    """
    return {
        "speculative_config": {
            "method": TRANSPORT,
            "model": HEADS[method][0],
            "num_speculative_tokens": k,
            "draft_sample_method": drafting,
        },
        "additional_config": {CHECKPOINT: checkpoint},
    }


class Heads:
    """A drafter whose weights are `weights` (checkpoint names without prefix) and whose settings are `config`.

    Raises ValueError, which vLLM passes on, when the checkpoint does not fit the target or has too few heads.
    """

    heads_key: str
    width_key: str

    def __init__(self, vllm_config: Any) -> None:
        checkpoint = vllm_config.additional_config.get(CHECKPOINT)
        if not checkpoint:
            raise ValueError(f"additional_config names no {CHECKPOINT}")
        directory = fetch(checkpoint)
        self.config = json.loads((directory / "config.json").read_text())
        weights = read_weights(directory)
        target, k = vllm_config.model_config, vllm_config.speculative_config.num_speculative_tokens
        for name, has, needs in (
            ("vocabulary", self.config["vocab_size"], target.get_vocab_size()),
            ("hidden size", self.config[self.width_key], target.get_hidden_size()),
        ):
            if has != needs:
                raise ValueError(f"{checkpoint}: its {name} is {has}, the target's {needs}")
        if k > self.config[self.heads_key]:
            raise ValueError(f"{checkpoint}: {self.config[self.heads_key]} heads cannot draft {k} tokens")
        self.k = k
        self.take(weights, checkpoint)

    def take(self, weights: dict[str, torch.Tensor], checkpoint: str) -> None:
        """Draft with these tensors of a checkpoint from now on. Raises ValueError where they would draft noise."""
        own = {self.rename(name): tensor for name, tensor in weights.items()}
        if lost := [name for name in self.needed(self.k) if name not in own]:
            raise ValueError(f"{checkpoint}: it has no tensor {lost[0]}, which drafts need ({len(lost)} are missing)")
        if fault := not_finite(own.items()):
            raise ValueError(f"{checkpoint}: {fault}")
        self.weights = own

    def needed(self, k: int) -> list[str]:
        """Names of the tensors that `k` drafts are made of."""
        raise NotImplementedError

    def load_model(self, target_model: Any) -> None:
        """vLLM calls this; the weights are loaded already."""

    def propose(self, *arguments: Any, **options: Any) -> Any:
        """vLLM's own call, which has no hidden states: it only comes when nothing is patched."""
        raise RuntimeError("this drafter needs the patch v1-draft-streams, which is not active")

    def draft(self, hidden: torch.Tensor, tokens: torch.Tensor, k: int, sample: Sample) -> Any:
        """`k` draft tokens [B, k] and their q [B, k, V] or None.

        `hidden` [B, H] are the normed last hidden states that `tokens` [B], the newest of each request, came from.
        """
        self.move(hidden.device, hidden.dtype)
        steps = [(draft.long(), q) for draft, q in self.steps(hidden, tokens, k, sample)]
        drafts = torch.stack([draft for draft, _ in steps], dim=1)
        q = None if steps[0][1] is None else torch.stack([q for _, q in steps if q is not None], dim=1)
        return drafts, q

    def move(self, device: torch.device, dtype: torch.dtype) -> None:
        """Have the weights where the target's states are, and of their type. A token map stays what it is: whole."""
        self.weights = {
            name: tensor.to(device, dtype if tensor.is_floating_point() else None)
            for name, tensor in self.weights.items()
        }

    def steps(self, hidden: torch.Tensor, tokens: torch.Tensor, k: int, sample: Sample) -> Any:
        """Yield what `sample` returned for each of the k positions."""
        raise NotImplementedError

    @staticmethod
    def rename(name: str) -> str:
        """A checkpoint's tensor name as `steps` uses it."""
        raise NotImplementedError


class Medusa(Heads):
    """Head i is residual blocks x + silu(W x + b) and a language model head; a token map cuts the vocabulary."""

    heads_key, width_key = "num_heads", "hidden_size"

    def needed(self, k: int) -> list[str]:
        layers = range(self.config.get("num_hidden_layers", 1))
        blocks = [f"blocks.{i}.layers.{j}.weight" for i in range(k) for j in layers]
        return blocks + [f"lm_heads.{self.head(i)}.weight" for i in range(k)]

    def head(self, i: int) -> int:
        """Which output map draft position i has."""
        return 0 if self.config.get("original_lm_head", False) else i

    def steps(self, hidden: torch.Tensor, tokens: torch.Tensor, k: int, sample: Sample) -> Any:
        for i in range(k):
            state = hidden
            for j in range(self.config.get("num_hidden_layers", 1)):
                part = f"blocks.{i}.layers.{j}."
                state = state + F.silu(F.linear(state, self.weights[part + "weight"], self.weights.get(part + "bias")))
            yield sample(self.logits(state, self.weights[f"lm_heads.{self.head(i)}.weight"]))

    def logits(self, state: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        """Logits [B, V], -inf outside the token map if there is one."""
        kept = self.weights.get("token_map")
        if kept is None:
            return F.linear(state, head)
        head = head if len(head) == len(kept) else head[kept.long()]
        logits = state.new_full((len(state), self.config["vocab_size"]), -torch.inf)
        logits[:, kept.long()] = F.linear(state, head)
        return logits

    @staticmethod
    def rename(name: str) -> str:
        """Also of the first published checkpoints: "0.1.linear.weight" is a block, "0.1.weight" the head."""
        name = name.removeprefix("medusa_heads.")
        name = re.sub(r"^(\d+)\.(\d+)\.linear\.", r"blocks.\1.layers.\2.", name)
        name = re.sub(r"^(\d+)\.\d+\.weight$", r"lm_heads.\1.weight", name)
        return "lm_heads.0.weight" if name == "lm_head.weight" else name


class MLPSpeculator(Heads):
    """Each head mixes the newest token into a state: s' = gelu(norm(P s + w E token)), logits = head s'."""

    heads_key, width_key = "n_predict", "emb_dim"

    def needed(self, k: int) -> list[str]:
        heads = range(1 if self.config.get("tie_weights") else k)
        kinds = ("proj", "weight"), ("emb", "weight"), ("ln", "weight"), ("ln", "bias"), ("head", "weight")
        return [f"{name}.{i}.{kind}" for i in heads for name, kind in kinds]

    def steps(self, hidden: torch.Tensor, tokens: torch.Tensor, k: int, sample: Sample) -> Any:
        state_weight = 0.5 ** (0.5 / self.config["n_predict"])
        inner = self.config["inner_dim"] or self.config["emb_dim"]
        token_weight = math.sqrt((1 - state_weight**2) * inner / 2) / state_weight
        state = rms(hidden) / math.sqrt(2) if self.config.get("scale_input") else hidden
        for i in range(k):
            state = F.linear(state, self.part("proj", i)) + token_weight * F.embedding(tokens, self.part("emb", i))
            state = F.gelu(rms(state) * self.part("ln", i) + self.part("ln", i, "bias"))
            tokens, q = sample(F.linear(state, self.part("head", i)))
            yield tokens, q

    def part(self, name: str, i: int, kind: str = "weight") -> torch.Tensor:
        """Tensor of head i; with tied weights a checkpoint holds the first ones only."""
        return next(w for j in range(i, -1, -1) if (w := self.weights.get(f"{name}.{j}.{kind}")) is not None)

    @staticmethod
    def rename(name: str) -> str:
        return name.removeprefix("speculator.")


def rms(x: torch.Tensor) -> torch.Tensor:
    """x over its root mean square, computed in float32 at least."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + MLP_EPS)).to(x)


def fetch(checkpoint: str) -> Path:
    """The checkpoint's directory, downloaded if it is a hub id."""
    if Path(checkpoint).is_dir():
        return Path(checkpoint)
    from huggingface_hub import snapshot_download

    name, _, revision = checkpoint.partition("@")
    return Path(snapshot_download(name, revision=revision or None, allow_patterns=["*.json", "*.safetensors"]))


def read_weights(directory: Path) -> dict[str, torch.Tensor]:
    """All tensors of a directory's safetensors files. Raises ValueError when it has none."""
    from safetensors.torch import load_file

    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{directory}: no safetensors file")
    return {name: tensor for file in files for name, tensor in load_file(file).items()}
