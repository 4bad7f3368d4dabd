"""What a run's directory holds beside its record: the names of the files and of the columns."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from speceval.files import write_whole
from speceval.store.schema import RunMeta

Texts = Mapping[tuple[str, str, int, int], tuple[int, ...]]
"""Token ids of (suite, conversation, seed, turn): the texts of a run that is replayed."""

RUN, JOURNAL, TURNS, STEPS, OUTPUTS = (
    "run.json",
    "journal.jsonl",
    "turns.parquet",
    "steps.parquet",
    "outputs.jsonl",
)

Key = tuple[str, str, int]
"""A conversation of a run: suite, conversation id, seed."""

Counts = tuple[int, int]
"""Accepted draft tokens, and steps that had drafts."""

CUT_THOUGHT = "cut_thought"
"""Key of a turn whose thought never ended: the next turn sees nothing of it."""

THOUGHT = "thought_tokens"
"""Key of a turn that begins with a thought: its output tokens up to the end of that."""

STRETCH = "stretch"
"""Key of a conversation that one of several replicas measured: the number of its stretch, from 0."""

REQUEST = ["suite", "conversation", "seed", "turn"]
"""Columns that name a request; the first three a conversation (`Key`)."""

TURN_COLUMNS = {
    "suite": "string", "conversation": "string", "seed": "int64", "turn": "int64", "category": "string",
    "prompt_tokens": "int64", "cached_tokens": "int64", "output_tokens": "int64", "finish_reason": "string",
    "steps": "int64", "undrafted_steps": "int64", "padded_steps": "int64",
    "drafted": "int64", "accepted": "int64", "excess": "int64",
}  # fmt: skip
STEP_COLUMNS = {
    "suite": "string", "conversation": "string", "seed": "int64", "turn": "int64", "step": "int64",
    "drafted": "int32", "accepted": "int32", "committed": "int32",
}  # fmt: skip
"""Beside these, in runs that record the verifier: `recorded_columns`."""


TIMES = "times"
"""Key of a turn whose times an engine has told: the values of `TIME_COLUMNS`."""
TIME_COLUMNS = {"sent": "float64", "waited": "float64", "ttft": "float64", "latency": "float64", "chunks": "float64"}
"""Further columns of the turns of a run with `--rate`, in seconds: when a request was sent (Unix time), for
how long it had been due, the time to its first token and to its last one; pieces in which they came. NaN: not told."""

RECORDED_COLUMNS = {"recorded": ("ratio", "alpha"), "kept": ("kept",), "law": ("p", "rank", "spread")}
"""What the verifier saw, by the name under which a turn's line in the journal holds it (see `pack`)."""
RECORDED = RECORDED_COLUMNS.keys()


def recorded_columns(k: int, names: tuple[str, ...] = RECORDED_COLUMNS["recorded"]) -> list[str]:
    """Columns of `steps` for what the verifier saw at draft positions j = 1 … k, float32.

    ratio_j = min(1, p_j(d_j)/q_j(d_j)), alpha_j = sum_x min(p_j, q_j), in a replayed text kept_j = min(1, q_j(x_j)/
    p_j(x_j)); NaN where nothing was drafted or recorded. Of a replayed text's token at j = 1 also p, its chance, rank,
    the mass of likelier tokens and half of those as likely, and spread, at most how much that varies.
    """
    return [f"{name}_{j}" for name in names for j in range(1, k + 1)]


def is_recorded(column: str) -> bool:
    """Whether a column of `steps` is one of `recorded_columns`."""
    return any(column.rpartition("_")[0] in names for names in RECORDED_COLUMNS.values())


def write_meta(directory: Path, meta: RunMeta) -> None:
    """Replace a run's run.json."""
    write_whole(directory / RUN, json.dumps(meta.as_json(), indent=2, ensure_ascii=False) + "\n")
