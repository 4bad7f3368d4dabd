"""Names in exports: checkpoints without the place where a machine keeps them, suites with their dataset."""

from __future__ import annotations

from typing import Any

from speceval.private import public
from speceval.store.schema import Checkpoint
from speceval.suites.load import SUITES_DIR, names
from speceval.suites.schema import Hub, read_suite_file


def checkpoint(entry: Checkpoint) -> dict[str, Any]:
    """A checkpoint of a fingerprint, fit to be published: name or hub id, revision, hash of the weights."""
    model = None if entry.model is None else public(entry.model)
    return entry.model_dump() | {"name": public(entry.name), "model": model}


def hub_dataset(suite: str) -> Hub | None:
    """Where the hub has a built-in suite's rows; None for a user's own suites."""
    if suite not in names():
        return None
    return read_suite_file(SUITES_DIR / f"{suite}.yaml").data.hub
