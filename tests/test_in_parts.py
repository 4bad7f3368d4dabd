"""A table of results that is computed in parts keeps what was not asked for."""

from __future__ import annotations

import runpy
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

WRITE = runpy.run_path(str(Path(__file__).resolve().parents[1] / "scripts" / "in_parts.py"))


def write(path: Path, value: int, *only: str) -> dict[str, int]:
    """Parts a and b with one row each; what the file then holds."""
    parser = ArgumentParser()
    WRITE["add_option"](parser)
    parts: dict[str, Any] = {name: lambda: [{"scenario": "s", "x": value}] for name in ("a", "b")}
    WRITE["write"](parts, path, parser.parse_args([word for name in only for word in ("--only", name)]))
    return dict(pd.read_csv(path).set_index("part")["x"])


def test_one_part_is_computed_again_and_the_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    assert write(path, 1) == {"a": 1, "b": 1}
    assert write(path, 2, "b") == {"a": 1, "b": 2}
    before = path.read_bytes()
    with pytest.raises(SystemExit, match="--only c: no such part; there are: a, b"):
        write(path, 3, "c")
    assert path.read_bytes() == before
