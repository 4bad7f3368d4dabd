"""Suffix drafting (arXiv 2411.04975): what is likeliest after the longest known end of the tokens, in the request's own
prompt and answer, or in all answers before it.

The memory is that of Arctic Inference, an optional package, which vLLM asks as well; it is asked here as
vllm/v1/spec_decode/suffix_decoding.py does. What is drafted depends on what has been answered before, so that texts
have an order: that of an engine which answers one request at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from speceval.errors import UserError

PACKAGE = "arctic_inference"
ARGUMENTS: dict[str, tuple[type, float, float, float]] = {
    "suffix_decoding_max_tree_depth": (int, 24, 1, 1 << 20),
    "suffix_decoding_max_cached_requests": (int, 10_000, 0, 1 << 31),
    "suffix_decoding_max_spec_factor": (float, 1.0, 0, 1e9),
    "suffix_decoding_min_token_prob": (float, 0.1, 0, 1),
}
"""vLLM's names: type, default, least and largest value (vllm/config/speculative.py)."""


def require() -> None:
    """Raises `UserError` where the package is missing."""
    if find_spec(PACKAGE) is None:
        raise UserError(
            "--draft suffix: its memory is the package arctic-inference, which is not installed: "
            "pip install arctic-inference"
        )


class Suffix:
    """Drafts after texts that are answered one after the other, in the order in which they are given."""

    def __init__(self, k: int, arguments: dict[str, Any]) -> None:
        """`arguments`: some of `ARGUMENTS`. Raises `UserError` for a value that vLLM refuses."""
        require()
        depth, requests, factor, least = (_value(name, arguments.get(name)) for name in ARGUMENTS)
        memory = import_module(f"{PACKAGE}.suffix_decoding").SuffixDecodingCache
        self._memory = memory(max_tree_depth=int(depth), max_cached_requests=int(requests))
        self._depth, self._k, self._answered = int(depth), k, 0
        self._limits = {"max_spec_factor": factor, "min_token_prob": least}

    def __call__(self, tokens: list[int], start: int) -> Iterator[list[int]]:
        """Drafts after tokens[:n] for n = start … len(tokens) - 1; the answer, from start - 1 on, is remembered."""
        name, self._answered = self._answered, self._answered + 1
        self._memory.start_request(name, tokens[: start - 1])
        for end in range(start, len(tokens) + 1):
            self._memory.add_active_response(name, tokens[end - 1 : end])
            if end < len(tokens):
                known = tokens[max(0, end - self._depth) : end]
                yield self._memory.speculate(name, known, max_spec_tokens=self._k, **self._limits).token_ids
        self._memory.stop_request(name)


def _value(name: str, value: Any) -> float:
    kind, default, least, largest = ARGUMENTS[name]
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int if kind is int else (int, float)):
        raise UserError(f"--draft-arg {name}={value}: not a{' whole' if kind is int else ''} number")
    if not least <= value <= largest:
        raise UserError(f"--draft-arg {name}={value}: not from {least:g} to {largest:g}")
    return value
