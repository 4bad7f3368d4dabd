"""`speceval export`."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from speceval.commands import options


class Shape(StrEnum):
    """What a run can be exported as: the functions of `speceval.show.export`."""

    model_card = "model-card"
    speculation_profile = "speculation-profile"
    lm_eval = "lm-eval-style-json"


def export(
    run: options.RunDirectory,
    as_: Annotated[Shape, typer.Option("--as", help="The shape that others read.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File to write [default: standard output].")] = None,
) -> None:
    """Export a finished run: a hub page, a speculation profile, or results as lm-evaluation-harness writes them."""
    from speceval.errors import UserError
    from speceval.estimate import books
    from speceval.show.export import export as exported

    text = exported(books.read(run), as_.value)
    if out is None:
        sys.stdout.write(text)
        return
    if out.is_dir():
        raise UserError(f"--out {out}: a directory: name a file")
    partial = out.with_name(f".{out.name}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
