"""How many verify steps of this process had the drafts' own distribution, and how many could not have it.

A step here is one request's part of an engine step (design: verify step). Of greedy requests only PADDED is counted.
With the V1 runner the patch that assembles q counts them (`v1-missing-q`); with V2, where nothing is patched there, the
listener `count` does.
"""

from __future__ import annotations

from collections import Counter

WITH_Q = "steps_with_q"
"""Verified with the distribution the drafts were drawn from."""
ONE_HOT = "steps_one_hot"
"""q was lost: the drafts were verified as if certain. Lossless, but accepts with p(draft) in place of min(1, p/q)."""
STRUCTURED = "steps_structured"
"""The request has a grammar: its drafts are argmaxes, verified as such."""
PADDED = "steps_padded"
"""No drafts at all: vLLM filled the step up with -1."""

COUNTS: Counter[str] = Counter({WITH_Q: 0, ONE_HOT: 0, STRUCTURED: 0, PADDED: 0})
