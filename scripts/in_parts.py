"""A table of results computed in parts: `--only` computes the named ones again and keeps the other rows of the file."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from speceval.files import write_whole

Parts = Mapping[str, Callable[[], Iterable[dict[str, Any]]]]
"""The rows of each part, computed when called."""


def add_option(parser: ArgumentParser) -> None:
    parser.add_argument("--only", action="append", metavar="PART", help="compute these alone, keep the file's others")


def write(parts: Parts, path: Path, args: Namespace) -> pd.DataFrame:
    """Compute the parts that `--only` names [default: all] and write the table, whole or not at all, after each.

    Parts stand in the order of `parts`, each under its name in the column `part`; rows of other parts are dropped.
    Exits where `--only` names none.
    """
    only = args.only or list(parts)
    if unknown := [name for name in only if name not in parts]:
        raise SystemExit(f"--only {unknown[0]}: no such part; there are: {', '.join(parts)}")
    tables = {}
    if args.only and path.exists():
        kept = pd.read_csv(path)
        tables = {str(name): rows for name, rows in kept.groupby("part", sort=False) if name in parts}
    for name in only:
        tables[name] = pd.DataFrame(list(parts[name]())).assign(part=name)
        whole = pd.concat([tables[part] for part in parts if part in tables], ignore_index=True)
        whole = whole[["part", "scenario", *whole.columns.drop(["part", "scenario"])]]
        write_whole(path, whole.to_csv(index=False, float_format="%.5g"))
        print(f"{name}: {len(tables[name])} rows, wrote {path}", flush=True)
    return whole
