"""The store of one run: `run.json`, `turns.parquet`, `steps.parquet`, `outputs.jsonl`."""

from speceval.store.journal import SYNC_SECONDS, Store
from speceval.store.layout import (
    JOURNAL,
    OUTPUTS,
    RECORDED,
    RECORDED_COLUMNS,
    RUN,
    STEP_COLUMNS,
    STEPS,
    TURN_COLUMNS,
    TURNS,
    Counts,
    Key,
    Texts,
    is_recorded,
    recorded_columns,
    write_meta,
)
from speceval.store.read import StoredRun, list_runs, migrate_turns, read_meta, read_run, run_directory
from speceval.store.tables import SUMS, Tables, frames, pack, read_lines, unpack

__all__ = [
    "JOURNAL",
    "OUTPUTS",
    "RECORDED",
    "RECORDED_COLUMNS",
    "RUN",
    "STEPS",
    "STEP_COLUMNS",
    "SUMS",
    "SYNC_SECONDS",
    "TURNS",
    "TURN_COLUMNS",
    "Counts",
    "Key",
    "Store",
    "StoredRun",
    "Tables",
    "Texts",
    "frames",
    "is_recorded",
    "list_runs",
    "migrate_turns",
    "pack",
    "read_lines",
    "read_meta",
    "read_run",
    "recorded_columns",
    "run_directory",
    "unpack",
    "write_meta",
]
