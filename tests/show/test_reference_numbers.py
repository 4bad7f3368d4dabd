"""`show --json` of every stored run says what it said when `reference_numbers.json.gz` was written.

The file holds {run: `tables.run_json` without the run's path} of all of `results/reference`. It is written again
(`python tests/show/test_reference_numbers.py`) only when a number is meant to change, and the commit says why.
"""

from __future__ import annotations

import gzip
import json
import math
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from speceval.show.tables import run_json
from speceval.store import read_run

STORED = Path(__file__).with_name("reference_numbers.json.gz")
RUNS = Path(__file__).resolve().parents[2] / "results" / "reference"
NAMES = sorted(f"{file.parent.parent.name}/{file.parent.name}" for file in RUNS.glob("*/*/run.json"))
RELATIVE, ABSOLUTE = 1e-9, 1e-12
"""By which floats may differ: processors add in different orders."""

MOVED: dict[str, str] = {}
"""Fields that have another name or place by now: pattern of the old path -> its replacement, as in `re.sub`."""


def shown(name: str) -> dict[str, Any]:
    """What `show --json` prints of a run, without its path."""
    found = run_json(read_run(RUNS / name))
    return {key: value for key, value in found.items() if key != "run"}


@cache
def stored() -> dict[str, dict[str, Any]]:
    """All runs as they were."""
    runs: dict[str, dict[str, Any]] = json.loads(gzip.decompress(STORED.read_bytes()))
    return runs


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Every value by its path, "suites.demo.positions.0.accepted"; an empty list or object is a value."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = {deep: leaf for key, entry in entries for deep, leaf in leaves(entry, f"{path}.{key}".lstrip(".")).items()}
    return found or {path: value}


def renamed(path: str) -> str:
    """Today's path of a stored field."""
    for old, new in MOVED.items():
        path = re.sub(f"^{old}$", new, path)
    return path


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The stored fields that are gone or have another value; fields that were added are none of them."""
    today = leaves(now)
    wanted = {renamed(path): value for path, value in leaves(before).items()}
    return [
        f"{path}: {value!r} is now {today.get(path, 'gone')!r}"
        for path, value in wanted.items()
        if path not in today or not same(value, today[path])
    ]


def same(before: Any, now: Any) -> bool:
    """Floats but for rounding; all else, and the type, exactly."""
    if type(before) is float and type(now) is float:
        return math.isclose(before, now, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
    return type(before) is type(now) and bool(before == now)


def test_every_stored_run_has_its_numbers_kept() -> None:
    assert list(stored()) == NAMES and len(NAMES) == 46


@pytest.mark.parametrize("name", NAMES)
def test_a_stored_run_shows_the_numbers_it_showed(name: str) -> None:
    assert changes(stored()[name], json.loads(json.dumps(shown(name)))) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("suites", "demo", "tau", "high"), lambda old: old * (1 + 1e-8)),
        (("suites", "demo", "steps"), lambda old: old + 1),
        (("suites", "demo", "steps"), float),
        (("suites", "demo", "tau_rb", "value"), lambda old: None),
        (("fingerprint",), lambda old: old[:-1]),
        (("problems",), None),
    ],
    ids=lambda given: "" if callable(given) else "gone" if given is None else ".".join(given),
)
def test_a_changed_lost_or_retyped_field_is_seen(path: tuple[str, ...], value: Any) -> None:
    before = stored()["demo/lk-eagle3-T1-probabilistic"]
    now = json.loads(json.dumps(before))
    *outer, last = path
    place = now
    for key in outer:
        place = place[key]
    if value is None:
        del place[last]
    else:
        place[last] = value(place[last])
    assert [line.split(":")[0] for line in changes(before, now)] == [".".join(path)]
    assert changes(before, before | {"added": 1}) == []


def test_a_moved_field_is_compared_at_its_new_place(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {"suites": {"demo": {"tau": 2.5}}}
    monkeypatch.setitem(MOVED, r"suites\.(\w+)\.tau", r"suites.\1.lengths.tau")
    assert changes(before, {"suites": {"demo": {"lengths": {"tau": 2.5}}}}) == []
    assert changes(before, {"suites": {"demo": {"lengths": {"tau": 2.6}}}}) != []


if __name__ == "__main__":
    text = json.dumps({name: shown(name) for name in NAMES}, sort_keys=True)
    STORED.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
