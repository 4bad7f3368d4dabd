"""n-gram drafting (prompt lookup): what followed the first occurrence of the longest known end of the tokens so far.

As vLLM does (vllm/v1/spec_decode/ngram_proposer.py): the longest n-gram within [least, most] that ends the tokens and
stands somewhere before; of several the first; then up to K tokens that follow it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from speceval.errors import UserError

ARGUMENTS = ("prompt_lookup_min", "prompt_lookup_max")
"""vLLM's names for the shortest and the longest n-gram."""
LENGTH = 5
"""Of both, where nothing else is asked for: vLLM's own."""


def lengths(arguments: dict[str, Any]) -> tuple[int, int]:
    """What vLLM makes of `ARGUMENTS`: one alone stands for both. Raises `UserError` for what it refuses."""
    asked = {name: arguments[name] for name in ARGUMENTS if arguments.get(name) is not None}
    for name, value in asked.items():
        if type(value) is not int or value < 1:
            raise UserError(f"--draft-arg {name}={value}: not a whole number from 1 on")
    other = next(iter(asked.values()), LENGTH)
    least, most = (asked.get(name, other) for name in ARGUMENTS)
    if least > most:
        raise UserError(f"--draft-arg {ARGUMENTS[0]}={least}: above {ARGUMENTS[1]}={most}")
    return least, most


def drafts(tokens: list[int], start: int, k: int, least: int, most: int) -> Iterator[list[int]]:
    """Drafts after tokens[:n] for n = start … len(tokens) - 1."""
    first: dict[tuple[int, ...], int] = {}
    for end in range(1, len(tokens)):
        if end >= start:
            yield _follows(tokens, end, k, least, most, first)
        for length in range(least, min(most, end) + 1):  # n-grams that end here are before all later ends
            first.setdefault(tuple(tokens[end - length : end]), end)


def _follows(
    tokens: list[int], end: int, k: int, least: int, most: int, first: dict[tuple[int, ...], int]
) -> list[int]:
    for length in range(min(most, end), least - 1, -1):
        if (after := first.get(tuple(tokens[end - length : end]))) is not None:
            return tokens[after : min(after + k, end)]
    return []
