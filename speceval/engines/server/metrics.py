"""The totals of a server of vLLM or llama.cpp, as its `/metrics` page prints them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection

from speceval.errors import UserError
from speceval.store.schema import Counters

_VALUE = r" (\S+)(?: -?\d+)?[ \t\r]*$"
"""Some exporters write the time after it."""
LINE = re.compile(rf"^(\w+:)(\w+?)_total(?:\{{(.*)\}})?{_VALUE}", re.M)
POSITION = re.compile(r'position="(\d+)"')
TOTALS = {
    "spec_decode_num_drafts": "num_drafts",
    "spec_decode_num_draft_tokens": "num_draft_tokens",
    "spec_decode_num_accepted_tokens": "num_accepted_tokens",
    "num_preemptions": "preemptions",
}
"""The server's name -> ours."""
PER_POSITION = "spec_decode_num_accepted_tokens_per_pos"
GENERATED = ("generation_tokens", "tokens_predicted")
"""Tokens that it generated, by vLLM's name and by llama.cpp's."""
MOST = 1 << 62
RUNNING = re.compile(
    rf"^(\w+:)(?:num_requests_(?:running|waiting)|requests_(?:processing|deferred))(?:\{{.*\}})?{_VALUE}", re.M
)
DIGITS = 6
"""Of llama.cpp's totals: larger ones are rounded."""


def _count(text: str) -> int:
    """A value. Raises `UserError` for what counts nothing."""
    try:
        value = float(text)
        if 0 <= value < MOST:
            return int(value)
    except ValueError:
        pass
    raise UserError(f"/metrics: holds {text[:40]!a} where a count should be: its totals cannot be used")


def counts_drafts(page: str, prefix: str) -> bool:
    """Whether a page has the totals of drafts at all: one without them is not one that counts 0."""
    return any(begin == prefix and name == "spec_decode_num_drafts" for begin, name, _, _ in LINE.findall(page))


def rounding(page: str, prefix: str, names: Collection[str] = (*TOTALS, *GENERATED)) -> int:
    """What the totals `names` are multiples of, the largest of them: 1 where they are exact."""
    if prefix != "llamacpp:":
        return 1
    values = [_count(value) for begin, name, _, value in LINE.findall(page) if begin == prefix and name in names]
    return int(10 ** max(len(str(max(values, default=0))) - DIGITS, 0))


def of_positions(counted: Counters, k: int) -> list[int]:
    """Accepted tokens of positions 1 … k."""
    told = counted.num_accepted_tokens_per_pos
    return told[:k] + [0] * (k - len(told))


def running(page: str, prefix: str = "vllm:") -> int:
    """Requests that the server runs or holds back now."""
    return sum(_count(value) for begin, value in RUNNING.findall(page) if begin == prefix)


def generated(page: str, prefix: str = "vllm:") -> int | None:
    """Tokens that it has generated; None if it does not tell."""
    values = [_count(value) for begin, name, _, value in LINE.findall(page) if begin == prefix and name in GENERATED]
    return sum(values) if values else None


def counters(page: str, prefix: str = "vllm:") -> Counters:
    """The totals on a page of metrics, summed over the replicas that it tells of."""
    totals: dict[str, int] = defaultdict(int)
    positions: dict[int, int] = defaultdict(int)
    for begin, name, labels, value in LINE.findall(page):
        if begin != prefix:
            continue
        if name in TOTALS:
            totals[TOTALS[name]] += _count(value)
        elif name == PER_POSITION and (position := POSITION.search(labels)):
            positions[int(position[1])] += _count(value)
    if prefix == "llamacpp:" and positions:
        totals["num_accepted_tokens"] = sum(positions.values())  # which are never rounded
    return Counters(num_accepted_tokens_per_pos=[positions[number] for number in range(len(positions))], **totals)
