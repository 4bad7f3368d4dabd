"""n-gram drafting (prompt lookup): what followed the first occurrence of the longest known end of the tokens so far.

As vLLM does (vllm/v1/spec_decode/ngram_proposer.py): the longest n-gram within [least, most] that ends the tokens and
stands somewhere before; of several the first; then up to K tokens that follow it.
"""

from __future__ import annotations

from collections.abc import Iterator

LENGTHS = (5, 5)
"""Shortest and longest n-gram, where nothing else is asked for: vLLM's own."""


def lengths(least: int | None, most: int | None) -> tuple[int, int]:
    """What vLLM makes of `prompt_lookup_min` and `prompt_lookup_max`: one alone stands for both."""
    return (least or most or LENGTHS[0], most or least or LENGTHS[1])


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
