"""`speceval plot`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from speceval import terminal
from speceval.commands import options
from speceval.errors import UserError

if TYPE_CHECKING:
    from speceval.show.plots import Drawn
    from speceval.store import StoredRun

DIRECTORY = Path("results") / "plots"
FORMATS = (".png", ".pdf")


def _kinds() -> list[str]:
    from speceval.show.plots import OF_RUNS

    return list(OF_RUNS)


def plot(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="RUN", help="Runs, or folders of runs."),
    ] = None,
    kind: Annotated[
        str | None, typer.Option(help="Which figure [default: all that the runs allow].", **options.choices(_kinds))
    ] = None,
    allow: Annotated[
        list[str] | None, typer.Option(help="With a forest plot: field that may differ between runs; may be repeated.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="File, .png or .pdf; a directory gets both [default: results/plots]."),
    ] = None,
) -> None:
    """Draw stored runs for a paper: acceptance by position, tau against K, differences, along the output.

    Prints each figure's caption, which says what its intervals are. The first run is the one that others are compared
    with.
    """
    from speceval.estimate import books
    from speceval.show import plots
    from speceval.store import directories

    if allow and kind not in (None, "forest"):
        raise UserError(f"--allow: has no meaning with --kind {kind}: leave it out")
    paths = list(dict.fromkeys(run for path in runs or [] for run in directories(path) or [path]))
    if not paths:
        raise UserError("which run? Name its directory: `speceval ls runs` lists them")
    stored = [books.read(path) for path in paths]
    if kind is not None:
        return write(plots.draw(kind, stored, allow or []), kind, out)
    if out is not None and out.suffix.lower() in FORMATS:
        raise UserError(f"-o {out}: all figures do not fit one file: name a directory, or --kind")
    write_all(stored, allow or [], out)


def write_all(stored: list[StoredRun], allow: list[str], out: Path | None) -> None:
    """Every figure that the runs allow, one line for each that they do not. Raises `UserError` when that is none."""
    from speceval.show import plots

    refused = []
    for name in plots.OF_RUNS:
        if name == "forest" and len(stored) == 1:
            continue
        try:
            drawn = plots.draw(name, stored, allow)
        except UserError as error:
            refused.append(f"{name}: left out: {error}")
        else:
            write(drawn, name, out)
    if len(refused) == len(plots.OF_RUNS) - (len(stored) == 1):
        raise UserError(refused[0].partition("left out: ")[2])
    for line in refused:
        print(terminal.line(line))


def write(drawn: Drawn, kind: str, out: Path | None) -> None:
    """Write one figure, as one file or in both formats, and print its caption."""
    from speceval.show import plots

    directory = out or DIRECTORY
    files = [out] if out is not None and out.suffix else [directory / f"{kind}{suffix}" for suffix in FORMATS]
    for file in files:
        plots.save(drawn.figure, file)
    options.output().print(
        f"{', '.join(map(str, files))}\n{drawn.caption}\n", markup=False, highlight=False, soft_wrap=True
    )
