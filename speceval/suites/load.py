"""`load`: a suite's name or file -> conversations."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from speceval.errors import UserError, meant
from speceval.paths import data_directory

from .read import hub_rows, local_rows
from .rows import Row, check_pins, dataset_hash, normalise, notes, read_pins
from .schema import Conversation, Data, Suite, SuiteFile, read_suite_file

SUITES_DIR = data_directory("suites")
"""The built-in suites: a YAML each, with row hashes or rows beside it."""

DATA_DIR = "SPECEVAL_DATA_DIR"
"""Environment variable: a folder with suites' data files, for who gives none; what is not in it comes from the hub."""

_ROWS = re.compile(r"(.+)\.(?:parquet|(?:jsonl|json|ndjson|csv|tsv)(?:\.(?:gz|bz2|xz))?)", re.IGNORECASE)
"""Names of files that are rows and no YAML: the suite's name, and how they are written."""


def names() -> list[str]:
    """Names of the built-in suites."""
    return sorted(path.stem for path in SUITES_DIR.glob("*.yaml"))


def listing() -> list[dict[str, str]]:
    """Rows for `speceval ls suites`. Conversations are counted in the pins, or in data that ship with the suite."""
    rows = []
    for name in names():
        suite = read_suite_file(SUITES_DIR / f"{name}.yaml")
        counted = SUITES_DIR / (suite.pinned.rows if suite.pinned else suite.data.file[0])
        count = str(counted.read_bytes().count(b"\n")) if counted.is_file() else ""
        rows.append(
            {
                "suite": name,
                "version": str(suite.version),
                "conversations": count,
                "max_tokens": str(suite.max_tokens),
                "data file": suite.data.file[0],
                "hub": suite.data.hub.id if suite.data.hub else "",
            }
        )
    return rows


def load(
    name_or_path: str,
    data_dir: Path | None = None,
    limit: int | None = None,
    shuffle_seed: int | None = None,
    stratified: bool = False,
) -> Suite:
    """A built-in suite by name, or a user's `.yaml` (same schema), or rows as in `forms`: `.jsonl`, `.json`, `.csv`,
    `.tsv` or `.parquet`.

    Rows come from beside the YAML, else from `data_dir`; without one from the folder that `DATA_DIR` names, else from
    the dataset hub. Pinned suites are checked row by row. `shuffle_seed` orders conversations by a hash of seed and id,
    so that a shorter `limit` is a prefix of a longer one; then the first `limit` are kept (all, if there are fewer).
    `stratified` takes them from the categories in turn, in the order in which they come: also a prefix of what a longer
    `limit` gives.

    Raises UserError in one line: unknown suite, missing file, hub out of reach, or file, row and field of a bad row.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit must be at least 1, not {limit}")
    suite, directory = _describe(name_or_path)
    path = _find_file(suite, directory, data_dir)
    raw: Iterable[Mapping[str, Any]]
    if path is not None:
        shown, raw = str(path), local_rows(path)
    elif suite.data.made is not None:
        shown, raw = f"made by {suite.data.made}", import_module(f"speceval.suites.{suite.data.made}").rows()
    else:
        assert suite.data.hub is not None
        shown = f"hub dataset {suite.data.hub.id}"
        raw = hub_rows(suite.data.hub, suite.data.file, suite.name)
    pieces: list[int] = []
    rows = normalise(raw, suite, shown, pieces)
    _check_groups(rows, suite, shown)
    check_pins(rows, suite, directory, shown)
    chosen = _choose(rows, limit, shuffle_seed, stratified)
    return Suite(
        name=suite.name,
        version=suite.version,
        dataset_hash=dataset_hash(rows),
        conversations=[_conversation(row, suite.template) for row in chosen],
        max_tokens=suite.max_tokens,
        system=suite.system,
        template=suite.template,
        source=shown,
        notes=(*notes(rows, suite, len(pieces)), *_repeats(chosen, suite)),
        groups=suite.groups,
    )


def load_or_count(
    name_or_path: str,
    data_dir: Path | None = None,
    limit: int | None = None,
    shuffle_seed: int | None = None,
    stratified: bool = False,
) -> Suite:
    """A suite to plan with: `load`, or where the data of a pinned one are not at hand, conversations without texts."""
    try:
        return load(name_or_path, data_dir, limit, shuffle_seed, stratified)
    except UserError:
        suite, directory = _describe(name_or_path)
        if suite.pinned is None:
            raise
        count = len(read_pins(directory / suite.pinned.rows)[:limit])
        return Suite(
            name=suite.name,
            version=suite.version,
            dataset_hash=suite.pinned.dataset_hash,
            conversations=[Conversation(str(i), None, [""] * suite.pinned.turns) for i in range(count)],
            max_tokens=suite.max_tokens,
            system=suite.system,
            template=suite.template,
            source="pins",
        )


def _describe(name_or_path: str) -> tuple[SuiteFile, Path]:
    """The suite's description and the directory its data and pins are relative to."""
    if name_or_path.lower() in names():
        return read_suite_file(SUITES_DIR / f"{name_or_path.lower()}.yaml"), SUITES_DIR
    path = Path(name_or_path).expanduser()
    rows = _ROWS.fullmatch(path.name)
    is_yaml, is_rows = path.suffix.lower() in (".yaml", ".yml"), rows is not None
    if not is_yaml and not is_rows:
        hint = meant(name_or_path, names(), 2, 0.5)
        raise UserError(
            f"unknown suite '{name_or_path}'{hint}; known: {', '.join(names())}, or a .yaml, .jsonl, .json, .csv, .tsv "
            "or .parquet file"
        )
    if not path.is_file():
        raise UserError(f"suite '{name_or_path}': no such file")
    if is_yaml:
        return read_suite_file(path), path.parent
    assert rows is not None
    return SuiteFile(name=rows[1], version=1, data=Data(file=(path.name,))), path.parent


def _find_file(suite: SuiteFile, directory: Path, data_dir: Path | None) -> Path | None:
    """The data file, or None if the rows are to come from the hub."""
    named = data_dir or os.environ.get(DATA_DIR)
    places = [directory, *([Path(named).expanduser()] if named else [])]
    for place in places:
        for file in suite.data.file:
            path = place / Path(file).expanduser()
            if path.is_file():
                return path
    if suite.data.made is not None or (data_dir is None and suite.data.hub is not None):
        return None
    mend = f": {suite.data.prepare}" if suite.data.prepare else ""
    raise UserError(f"suite {suite.name}: no file {' or '.join(suite.data.file)} in {places[-1]}{mend}")


def _check_groups(rows: list[Row], suite: SuiteFile, shown: str) -> None:
    known = {row.category for row in rows}
    for group, categories in suite.groups.items():
        for category in categories:
            if category not in known:
                raise UserError(f"{shown}: group '{group}' of suite {suite.name}: no row is of category '{category}'")


def _repeats(rows: list[Row], suite: SuiteFile) -> list[str]:
    """What to say of conversations that are no new ones, though every interval takes them for that."""
    different = len({(row.system, tuple(row.turns)) for row in rows})
    if different == len(rows):
        return []
    return [
        f"{suite.name}: {len(rows):,} conversations have {different:,} different prompts: they count as so many, so "
        "intervals over new prompts are too narrow (for more samples of a prompt: --seeds)"
    ]


def _choose(rows: list[Row], limit: int | None, shuffle_seed: int | None, stratified: bool) -> list[Row]:
    if shuffle_seed is not None:
        rows = sorted(rows, key=lambda row: hashlib.sha256(f"{shuffle_seed}:{row.id}".encode()).digest())
    if stratified:
        seen: Counter[str | None] = Counter()
        ranks = []
        for row in rows:
            ranks.append(seen[row.category])
            seen[row.category] += 1
        rows = [row for _, row in sorted(zip(ranks, rows, strict=True), key=lambda pair: pair[0])]  # a stable sort
    return rows[:limit]


def _conversation(row: Row, template: str) -> Conversation:
    turns = [template.replace("{prompt}", turn) for turn in row.turns]
    return Conversation(id=row.id, category=row.category, turns=turns, system=row.system)
