"""vLLM's totals, as its `/metrics` page prints them."""

from __future__ import annotations

import re
from collections import defaultdict

from speceval.store.schema import Counters

LINE = re.compile(r"^vllm:(\w+?)_total(?:\{(.*)\})? (\S+)$", re.M)
POSITION = re.compile(r'position="(\d+)"')
TOTALS = {
    "spec_decode_num_drafts": "num_drafts",
    "spec_decode_num_draft_tokens": "num_draft_tokens",
    "spec_decode_num_accepted_tokens": "num_accepted_tokens",
    "num_preemptions": "preemptions",
}
"""vLLM's name -> ours."""
PER_POSITION = "spec_decode_num_accepted_tokens_per_pos"


RUNNING = re.compile(r"^vllm:num_requests_(?:running|waiting)(?:\{.*\})? (\S+)$", re.M)


def running(page: str) -> int:
    """Requests that the server runs or holds back now."""
    return sum(int(float(value)) for value in RUNNING.findall(page))


def counters(page: str) -> Counters:
    """The totals on a page of metrics, summed over the replicas that it tells of."""
    totals: dict[str, int] = defaultdict(int)
    positions: dict[int, int] = defaultdict(int)
    for name, labels, value in LINE.findall(page):
        if name in TOTALS:
            totals[TOTALS[name]] += int(float(value))
        elif name == PER_POSITION and (position := POSITION.search(labels)):
            positions[int(position[1])] += int(float(value))
    return Counters(num_accepted_tokens_per_pos=[positions[number] for number in range(len(positions))], **totals)
