"""Shards of one run, measured by themselves, made into the run that one engine would have given."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from speceval.errors import UserError
from speceval.estimate import books
from speceval.files import write_whole
from speceval.protocol import RunSpec
from speceval.store import OUTPUTS, REQUEST, RUN, STEPS, TURNS, StoredRun, read_lines, read_run, write_meta
from speceval.store.schema import RunMeta, Segment, differences
from speceval.store.tables import OutputLine

CONVERSATION = REQUEST[:3]


def merge(directories: Sequence[Path], out: Path | None = None, command: Sequence[str] = ()) -> StoredRun:
    """Join all shards of a run (`--shard i/n`) and return the whole.

    out: its directory, by default `results/<name of the request without a shard>`. Raises `UserError` in one line when
    a shard is missing, unfinished or unsound, when one is there twice, or when they are not of one run; then nothing is
    written.
    """
    shards = _ordered([books.read(directory) for directory in directories])
    first = shards[0]
    for other in shards[1:]:
        _require_same(first, other)
    _require_once(shards)
    turns, steps = (_joined([getattr(shard, name) for shard in shards]) for name in ("turns", "steps"))
    spec = first.meta.spec.model_copy(update={"shard": None})
    directory = out or Path("results") / spec.name
    if (directory / RUN).exists():
        raise UserError(f"--out {directory}: holds a run: name another directory")
    texts = "".join(_outputs(shards))  # refuses shards whose texts are not whole
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"--out {directory}: not a directory: name one, or a new one") from None
    write_whole(directory / OUTPUTS, texts)
    for name, table in ((TURNS, turns), (STEPS, steps)):
        write_whole(directory / name, partial(table.to_parquet, index=False))
    write_meta(directory, _meta(spec, [shard.meta for shard in shards], command))  # last: now it is a run
    return read_run(directory)


def _ordered(runs: Sequence[StoredRun]) -> list[StoredRun]:
    """The shards 1 … n, each once. Raises `UserError`."""
    by_number: dict[int, StoredRun] = {}
    count = 0
    for run in runs:
        if run.meta.spec.shard is None:
            raise UserError(f"{run.directory}: is no shard: it was measured without --shard")
        if not run.complete:
            raise UserError(f"{run.directory}: is unfinished: finish it first")
        number, of = map(int, run.meta.spec.shard.split("/"))
        if count and of != count:
            raise UserError(f"{run.directory}: is shard {number}/{of}, the others are of {count}")
        count = of
        if number in by_number:
            raise UserError(f"{by_number[number].directory} and {run.directory} are both shard {number}/{of}")
        by_number[number] = run
    if missing := [f"{number}/{count}" for number in range(1, count + 1) if number not in by_number]:
        more = f" and {len(missing) - 3} others" if len(missing) > 3 else ""
        raise UserError(f"missing: shard {', '.join(missing[:3])}{more}: name all {count}")
    return [by_number[number] for number in sorted(by_number)]


def _require_same(one: StoredRun, other: StoredRun) -> None:
    """Raises `UserError` unless the two are of one run."""
    specs = (run.meta.spec.model_copy(update={"shard": None}) for run in (one, other))
    a, b = (spec.model_dump(mode="json") for spec in specs)
    lines = [
        f"{name}: {a.get(name)} -> {b.get(name)}" for name in sorted(a.keys() | b.keys()) if a.get(name) != b.get(name)
    ]
    lines = lines or differences(one.meta.fingerprint, other.meta.fingerprint)
    if lines:
        raise UserError(f"{one.directory} and {other.directory} are not of one run ({'; '.join(lines)})")


def _require_once(shards: Sequence[StoredRun]) -> None:
    """Raises `UserError` when two shards have the same conversation."""
    owner: dict[tuple[Any, ...], Path] = {}
    for shard in shards:
        for key in map(tuple, shard.turns[CONVERSATION].drop_duplicates().to_numpy()):
            if (other := owner.setdefault(key, shard.directory)) != shard.directory:
                raise UserError(f"{other} and {shard.directory} both have conversation {key[1]} of {key[0]}")


def _joined(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """The rows of all shards as those of one run are sorted."""
    whole = pd.concat(tables, ignore_index=True)
    by = [name for name in (*REQUEST, "step") if name in whole]
    return whole.sort_values(by, kind="stable").reset_index(drop=True)


def _outputs(shards: Sequence[StoredRun]) -> Iterator[str]:
    """The lines of outputs.jsonl."""
    lines: list[tuple[Any, ...]] = []
    for shard in shards:
        books.require_texts(shard)
        for line in read_lines(shard.directory / OUTPUTS, kind=OutputLine):
            lines.append((*(line[name] for name in REQUEST), json.dumps(line, ensure_ascii=False)))
    yield from (f"{line[-1]}\n" for line in sorted(lines))


def _meta(spec: RunSpec, shards: list[RunMeta], command: Sequence[str]) -> RunMeta:
    segments: list[Segment] = []
    for shard in shards:
        done = sum(segment.conversations for segment in segments)
        segments += [segment.model_copy(update={"first": segment.first + done}) for segment in shard.segments]
    problems = [f"shard {shard.spec.shard}: {line}" for shard in shards for line in shard.problems]
    return shards[0].model_copy(
        update={
            "name": spec.name,
            "status": "inconsistent" if problems else "complete",
            "created": min(shard.created for shard in shards),
            "finished": max(shard.finished or shard.created for shard in shards),
            "command": list(command) or shards[0].command,
            "spec": spec,
            "conversations": sum(shard.conversations for shard in shards),
            "segments": segments,
            "problems": problems,
            "skipped": [line for shard in shards for line in shard.skipped],
            "notes": [note for note in shards[0].notes if not note.startswith("shard ")],
            "speedup": None,
        }
    )
