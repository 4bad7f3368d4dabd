"""`speceval validate`: is what is stored still a run, and does it agree with itself?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from speceval import terminal
from speceval.commands import options
from speceval.errors import EXIT_BAD_INPUT, UserError


def validate(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Runs, or folders of runs.")],
    as_json: options.AsJson = False,
) -> None:
    """Check stored runs: schema, tables, and every identity that their counts must obey. One line per problem.

    Exit code 0 if all are sound, 1 if one has problems, 4 if one cannot be read.
    """
    from speceval.store import directories

    validated = [_validate(run) for path in runs for run in directories(path) or [path]]
    if as_json:
        options.print_json("validate", {"runs": validated})
    else:
        for row in validated:
            for line in row["problems"] or ["ok"]:
                print(terminal.line(f"{row['run']}: {line}"))
    if not all(row["readable"] for row in validated):
        raise typer.Exit(EXIT_BAD_INPUT)
    raise typer.Exit(0 if all(row["ok"] for row in validated) else 1)


def _validate(run: Path) -> dict[str, Any]:
    """`run`, `ok`, `readable`, and `problems`, one line each."""
    from speceval.estimate import books
    from speceval.store import read_run

    try:
        stored = read_run(run)
        problems, readable = books.problems(stored) + books.texts(stored), True
    except UserError as error:
        problems, readable = [str(error).removeprefix(str(run)).lstrip(":/ ")], False
    return {"run": str(run), "ok": not problems, "readable": readable, "problems": problems}
