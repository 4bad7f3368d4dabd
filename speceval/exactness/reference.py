"""The target's own probabilities, from a forward pass of the checkpoint outside vLLM (transformers, float32)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speceval.errors import UserError

CHUNK = 1 << 22
"""Most logits held at once."""
ROWS = 2048
"""Most continuations of one forward pass."""
BOUNDARY, OF_MANY = 1e-3, 8
"""Two logits, or a nucleus and top_p, this close may be told apart otherwise by the engine's arithmetic, or as close as
so many times the largest difference seen in a few sequences: a GPU's attention rounds float32 to ten bits (TF32)."""

Floats = NDArray[np.float64]
Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Filter:
    """Temperature, top-k (0 = off) and top-p (1 = off), applied in this order as vLLM does."""

    temperature: float
    top_k: int
    top_p: float
    boundary: float = BOUNDARY
    """How close two logits, or a nucleus and top_p, must be for a doubt (`boundary`)."""

    def laws(self, logits: NDArray) -> tuple[Floats, NDArray[np.bool_]]:
        """Probabilities [R, V] of logits [R, V], and whether each row's support is beyond doubt [R].

        Top-k keeps ties with the k-th value; top-p keeps the smallest set of most probable tokens whose mass reaches
        top_p (cf. vllm/v1/sample/ops/topk_topp_sampler.py).
        """
        scaled = np.asarray(logits, float) / self.temperature
        certain = np.ones(len(scaled), bool)
        if 0 < self.top_k < scaled.shape[1]:
            ranked = -np.sort(-scaled, axis=1)
            kth, after = ranked[:, self.top_k - 1], ranked[:, self.top_k]
            certain &= kth - after > self.boundary
            scaled = np.where(scaled < kth[:, None], -np.inf, scaled)
        laws = np.exp(scaled - scaled.max(1, keepdims=True))
        laws /= laws.sum(1, keepdims=True)
        if self.top_p < 1:
            order = np.argsort(-laws, axis=1, kind="stable")
            ranked = np.take_along_axis(laws, order, 1)
            before = ranked.cumsum(1) - ranked
            # Errors of the logits move a sum of probabilities by less than a quarter of what they move a gap.
            certain &= (np.abs(before - self.top_p) > max(BOUNDARY, self.boundary / 4)).all(1)
            np.put_along_axis(laws, order, np.where(before < self.top_p, ranked, 0), 1)
            laws /= laws.sum(1, keepdims=True)
        return laws, certain


def boundary(difference: float) -> float:
    """Of an engine whose log-probabilities of a few sequences differ from the reference's by up to `difference`."""
    return max(BOUNDARY, OF_MANY * difference)


class Reference:
    """A target checkpoint on the CPU, in float32. `model`: directory or hub id."""

    def __init__(self, model: str, revision: str | None) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        try:
            network: Any = AutoModelForCausalLM.from_pretrained(model, revision=revision, dtype=torch.float32)
        except (ValueError, OSError, KeyError, ImportError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(
                f"transformers cannot load the target for exact probabilities ({reason}): use --reference two-sample"
            ) from error
        self._network = network.eval()
        self.vocabulary: int = self._network.config.get_text_config().vocab_size

    def logits(self, prompt: Sequence[int], continuations: Sequence[Tokens]) -> Iterator[tuple[int, NDArray]]:
        """Logits after the prompt and after each token of every continuation but its last place.

        Yields (index of the first continuation of a chunk, [chunk, n, V]) with n the longest length; row t of a
        continuation is the law of its token t (0-based), rows past its end mean nothing. An empty continuation counts
        as one of length 1, so that its row 0 is the law of the first token.
        """
        import torch

        longest = max(1, *(len(c) for c in continuations))
        size = min(ROWS, max(1, CHUNK // (self.vocabulary * longest)))
        for start in range(0, len(continuations), size):
            part = continuations[start : start + size]
            tokens = torch.tensor([[*prompt, *c[: longest - 1], *[0] * (longest - 1 - len(c))] for c in part])
            with torch.inference_mode():
                found = self._network(tokens, use_cache=False, logits_to_keep=longest).logits
            yield start, found[:, -longest:].float().numpy()

    def next_laws(
        self, prompt: Sequence[int], prefixes: Sequence[Tokens], filter_: Filter
    ) -> tuple[Floats, NDArray[np.bool_]]:
        """Law of the token after each prefix, all of one length: [R, V], and `certain` [R] as `Filter.laws`."""
        depth = len(prefixes[0])
        padded = [(*prefix, 0) for prefix in prefixes]
        laws = [filter_.laws(chunk[:, depth]) for _, chunk in self.logits(prompt, padded)]
        return np.concatenate([law for law, _ in laws]), np.concatenate([sure for _, sure in laws])
