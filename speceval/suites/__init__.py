"""Suites of conversations: the built-in benchmarks, our demo, and a user's own YAML or JSONL.

`load("mt_bench", data_dir)` gives the same conversations and the same `dataset_hash` from the hub and from local files.
Importing this package does not import `datasets`.
"""

from .load import listing, load, load_or_count, names
from .schema import Conversation, Suite

__all__ = ["Conversation", "Suite", "listing", "load", "load_or_count", "names"]
